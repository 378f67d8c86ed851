"""What a node lets its clients do, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, TypeVar

import pytest

from hotspare.cluster import calls, service
from hotspare.cluster.connection import Dialled, connect_client
from hotspare.commands import Delete, Patch, Put, RawGroup, Touch, encode_commands
from tests.compiled import needs_source
from tests.unit.clusters import Cluster, eventually, node_of, running

FAR_MS = 1 << 50
MINUTE_MS = 60_000
Message = TypeVar("Message")


class Client:
    """One that says exactly what it is told to."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.end = ""
        self.connection: Dialled

    def frames_received(self, frames: list[bytes]) -> None:
        self.messages += [calls.decode_to_client(frame) for frame in frames]

    def closed(self, reason: str) -> None:
        self.end = reason

    def say(self, *messages: calls.FromClient) -> None:
        assert self.connection.send([calls.encode(message) for message in messages])

    async def hears(self, kind: type[Message]) -> Message:
        def first() -> Message | None:
            return next((each for each in self.messages if isinstance(each, kind)), None)

        answer: Message = await eventually(first)
        self.messages.remove(answer)
        return answer

    async def registers(self, nonce: bytes) -> int:
        self.say(calls.EnrolClient(nonce))
        return (await self.hears(calls.Enrolled)).origin


@asynccontextmanager
async def client_of(cluster: Cluster, position: int = 0) -> AsyncIterator[Client]:
    client = Client()
    client.connection = await connect_client(cluster[position].settings.listen_address, client)
    yield client
    client.connection.abort()
    await client.connection.ended


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    async with running(3) as cluster:
        yield cluster


def touches(origin: int, first: int, count: int = 1) -> RawGroup:
    commands = encode_commands([Touch(b"s1", MINUTE_MS, FAR_MS)] * count)
    return RawGroup(origin, first, count, 0, commands)


async def test_nobody_writes_under_the_registration_of_somebody_else(three: Cluster):
    async with client_of(three) as victim, client_of(three) as thief, client_of(three, 1) as other_thief:
        origin = await victim.registers(b"the victim's nonce")
        thief.say(calls.Submit([touches(origin, 1)], b"a guess"))
        await eventually(lambda: thief.end)
        other_thief.say(calls.Submit([touches(origin, 1)]))
        await eventually(lambda: other_thief.end)

        victim.say(calls.Submit([touches(origin, 1)]))
        assert (await victim.hears(calls.Answers)).results == [0]
        assert victim.end == ""


async def test_a_writer_takes_its_registration_along_to_another_home(three: Cluster):
    async with client_of(three) as before, client_of(three, 1) as after:
        origin = await before.registers(b"a nonce")
        before.say(calls.Submit([touches(origin, 1)]))
        await before.hears(calls.Answers)
        after.say(calls.Submit([touches(origin, 1), touches(origin, 2)], b"a nonce"))
        assert (await after.hears(calls.Answers)).first == 1
        assert (await after.hears(calls.Answers)).first == 2


@needs_source
async def test_a_home_whose_copy_is_behind_learns_of_a_registration_first(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
):
    async with client_of(three) as before, client_of(three, 1) as after:
        origin = await before.registers(b"a nonce")
        node, seen = node_of(three[1]), asyncio.Event()
        confirm = node.confirm
        replica = node.replica
        written = node_of(three[0]).replica.table.applied_index
        await eventually(lambda: replica.table.applied_index >= written)

        async def confirming(timeout_ms: int) -> None:
            monkeypatch.undo()
            await confirm(timeout_ms)
            seen.set()

        monkeypatch.setattr(node, "confirm", confirming)
        monkeypatch.setattr(replica, "has_origin", lambda origin: False)
        behind = copy(replica.table)
        behind.applied_index = 0
        monkeypatch.setattr(replica, "table", behind)
        after.say(calls.Submit([touches(origin, 1)], b"a nonce"))
        await eventually(seen.is_set)
        assert (await after.hears(calls.Answers)).first == 1


@pytest.mark.parametrize("origin", [1, 1 << 40], ids=["long ago", "never"])
async def test_a_registration_that_is_none_is_called_so(three: Cluster, origin: int):
    async with client_of(three) as client:
        client.say(calls.Submit([touches(origin, 1)]))
        assert (await client.hears(calls.Unregistered)).origin == origin
        assert client.end == ""


HUGE = bytes(2 << 20)


@pytest.mark.parametrize(
    "say",
    [
        lambda origin: calls.Call(1, "get", {"id": HUGE, "how": "local"}, 1000),
        lambda origin: calls.Submit([RawGroup(origin, 1, 1, 0, encode_commands([put(HUGE)]))]),
        lambda origin: calls.Submit([RawGroup(origin, 1, 1, 0, encode_commands([patch(1 << 21)]))]),
        lambda origin: calls.Submit([RawGroup(origin, 1, 1, 0, encode_commands([patch(-1)]))]),
        lambda origin: calls.Submit([RawGroup(origin, 1, 2, 0, encode_commands([patch(1)]))]),
    ],
    ids=["a large call", "a large session", "an unbounded patch", "a negative limit", "a wrong count"],
)
async def test_what_is_out_of_bounds_ends_the_connection(
    three: Cluster, say: Callable[[int], calls.FromClient]
):
    async with client_of(three) as client:
        client.say(say(await client.registers(b"a nonce")))
        await eventually(lambda: client.end)
        await three[0].store_session("s1", {"n": 1}, MINUTE_MS)


def put(data: bytes) -> Put:
    return Put(b"s1", data, 0, 0, MINUTE_MS, FAR_MS)


def patch(limit_bytes: int) -> Patch:
    return Patch(b"s1", [], [], FAR_MS, 0, limit_bytes)


async def test_what_a_client_has_under_way_is_bounded(three: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service, "MAX_PENDING_BYTES", 10_000)
    async with client_of(three) as client:
        origin = await client.registers(b"a nonce")
        large = encode_commands([Delete(b"x" * 250, FAR_MS)] * 20)
        client.say(*(calls.Submit([RawGroup(origin, 2 + 20 * n, 20, 0, large)]) for n in range(3)))
        await eventually(lambda: client.end)


@needs_source
async def test_long_answers_are_made_one_after_the_other(three: Cluster, monkeypatch: pytest.MonkeyPatch):
    node, under_way, most = node_of(three[0]), 0, 0
    call = node.call

    async def counting(verb: str, timeout_ms: int, **arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        try:
            return await call(verb, timeout_ms, **arguments)
        finally:
            under_way -= 1

    monkeypatch.setattr(node, "call", counting)
    async with client_of(three) as client:
        client.say(*(calls.Call(context, "ids", {}, 1000) for context in range(20)))
        for _ in range(20):
            await client.hears(calls.Return)
    assert most == 1
