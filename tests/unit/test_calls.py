"""Answers to clients that are longer than a frame."""

from __future__ import annotations

import msgspec

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster import calls, node
from hotspare.cluster.remote import RemoteEngine
from tests.unit.clusters import Cluster, running


def client_of(cluster: Cluster) -> AsyncSessionReplicator:
    return AsyncSessionReplicator(Settings(), engine=RemoteEngine(cluster.names))


def test_a_short_message_is_one_frame():
    message = calls.Return(1, "short")
    assert calls.frames_to_client(message) == [calls.encode(message)]


def test_a_long_message_comes_in_parts_that_make_it_up_again():
    message = calls.Return(1, bytes(5 * calls.PART_BYTES // 2))
    frames = calls.frames_to_client(message)
    assert all(len(frame) < calls.PART_BYTES + 100 for frame in frames)
    parts = [msgspec.msgpack.decode(frame, type=calls.Part) for frame in frames]
    assert [part.is_last for part in parts] == [False, False, True]
    assert calls.decode_to_client(b"".join(part.data for part in parts)) == message


async def test_a_client_gets_a_list_that_is_longer_than_a_frame(monkeypatch):
    monkeypatch.setattr(calls, "PART_BYTES", 100)
    monkeypatch.setattr(node, "IDS_PER_TURN", 7)
    ids = [f"session-{number:03}" for number in range(100)]
    async with running(1) as cluster, client_of(cluster) as sessions:
        await sessions.store_sessions((id, {}, 60_000) for id in ids)
        assert await sessions.get_all_sessions() == ids
        await sessions.store_session("one more", {"n": 1}, 60_000)
        assert await sessions.get_session("one more") == {"n": 1}


async def test_one_answer_holds_records_of_a_limited_size_and_the_next_one_goes_on(monkeypatch):
    monkeypatch.setattr(node, "MAX_RECORDS_BYTES", 1000)
    async with running(1) as cluster, client_of(cluster) as sessions:
        await sessions.store_sessions((f"s{number}", {"text": "x" * 400}, 60_000) for number in range(5))
        await sessions.store_session("s9", {"text": "x" * 4000}, 60_000)
        pages, after = [], b""
        while page := await sessions.engine.call("records", 5000, after=after, limit=10):
            pages.append([id for id, _ in page])
            after = pages[-1][-1]
        assert pages == [[b"s0", b"s1"], [b"s2", b"s3"], [b"s4"], [b"s9"]]
