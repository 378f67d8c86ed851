"""What a node does when its store fails, and with input that no well-behaved client or peer sends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster import calls, service
from hotspare.cluster.connection import Resolver, connect, connect_client
from hotspare.cluster.node import ClusterNode
from hotspare.cluster.security import NO_SECURITY
from hotspare.cluster.wire import Hello
from hotspare.commands import Delete, RawGroup, encode_commands
from hotspare.errors import HotspareError, StoreError, StoreFull
from hotspare.protocol import messages
from hotspare.protocol.messages import Enrol, Envelope
from hotspare.protocol.origin import Origin
from hotspare.store.plain import PlainStore, PlainTransaction
from tests.unit.clusters import FAST, eventually, free_addresses, node_of, running

MINUTE_MS = 60_000


class FailingStore(PlainStore):
    """Once `is_full`, the next transaction fails, and those after it would not."""

    def __init__(self) -> None:
        super().__init__(undo=True)
        self.is_full = False
        self.has_failed = False
        self.later_transactions = 0

    def begin(self) -> PlainTransaction:
        self.later_transactions += self.has_failed
        if self.is_full and not self.has_failed:
            self.has_failed = True
            raise StoreFull("memory", "no room")
        return super().begin()


async def test_after_a_failed_group_commit_a_node_writes_nothing_more():
    store = FailingStore()
    (name,) = free_addresses(1)
    node = ClusterNode(Settings(node=name, **FAST), store)
    sessions = AsyncSessionReplicator(node.settings, engine=node)
    await sessions.start()
    await sessions.start_cluster()
    address = node.settings.listen_address
    _, connection = await asyncio.open_connection(address.host, address.port)  # to be closed when it stops
    store.is_full = True
    # What is on its way in when it fails:
    node.failed.add_done_callback(lambda _: node.enrol(b"nonce", Origin(lambda: b"")))

    with pytest.raises(HotspareError):
        await sessions.store_session("s1", {}, MINUTE_MS)
    connection.close()
    await sessions.stop()

    assert isinstance(node.failed.exception(), StoreError)
    assert store.later_transactions == 0


# Clients that do what no client of ours does


class Stranger:
    """The handler of a client's connection: notes what comes, and how it ends."""

    def __init__(self) -> None:
        self.messages: list[calls.ToClient] = []
        self.end = ""

    def frames_received(self, frames: list[bytes]) -> None:
        self.messages += [calls.decode_to_client(frame) for frame in frames]

    def closed(self, reason: str) -> None:
        self.end = reason


def group(first: int, commands: int = 1, id: bytes = b"s1") -> RawGroup:
    return RawGroup(1 << 40, first, commands, 0, encode_commands([Delete(id, 1 << 50)] * commands))


TOO_MANY = [group(first, 0) for first in range(1, service.MAX_GROUPS + 2)]
NO_UTF8 = RawGroup(1, 1, 1, 0, msgspec.Raw(b"\x91\x97\x03\xc4\x01s\x90\x91\xa1\xff\x01\x00\x01"))
DEEP = b"\x93\xa4call\x01" + b"\x91" * 100_000


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(calls.encode(calls.Submit([group(1, 20_000, b"x" * 250)])), id="a group too large"),
        pytest.param(calls.encode(calls.Submit(TOO_MANY)), id="too many groups"),
        pytest.param(calls.encode(calls.EnrolClient(bytes(1000))), id="a long nonce"),
        pytest.param(calls.encode(calls.EnrolClient(b"")), id="no nonce"),
        pytest.param(DEEP, id="deeply nested"),
        pytest.param(b"\x95\xa4call\x01\xa2\xff\xfe\x80\x01", id="no UTF-8"),
        pytest.param(calls.encode(calls.Submit([NO_UTF8])), id="no UTF-8 among the commands"),
    ],
)
async def test_who_sends_too_much_is_cut_off_and_nothing_else_suffers(frame: bytes):
    async with running(1) as cluster:
        stranger = Stranger()
        address = cluster[0].settings.listen_address
        connection = await connect_client(address, stranger)
        assert connection.send([frame])
        await eventually(lambda: stranger.end)

        await cluster[0].store_session("s1", {"n": 1}, MINUTE_MS)
        assert await cluster[0].get_session("s1", read="primary") == {"n": 1}


async def test_a_client_enrols_once_at_a_time():
    async with running(1) as cluster:
        stranger = Stranger()
        connection = await connect_client(cluster[0].settings.listen_address, stranger)
        connection.send([calls.encode(calls.EnrolClient(nonce)) for nonce in (b"one", b"two")])
        await eventually(lambda: stranger.end)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("get", {"id": 5, "how": "local"}),
        ("get", {"id": b"", "how": "whatever"}),
        ("records", {"after": "text", "limit": 5}),
        ("records", {"after": b"", "limit": "many"}),
        ("found", {"nodes": [5]}),
        ("found", {"nodes": ["no address"]}),
        ("ids", {"timeout_ms": 5}),
        ("no such verb", {}),
    ],
)
async def test_a_call_that_does_not_fit_is_answered_with_an_error(verb: str, arguments: dict[str, object]):
    async with running(1) as cluster:
        stranger = Stranger()
        connection = await connect_client(cluster[0].settings.listen_address, stranger)
        connection.send([calls.encode(calls.Call(1, verb, arguments, 1000))])
        await eventually(lambda: stranger.messages)
        connection.close()

        assert isinstance(stranger.messages[0], calls.Failure)
        assert await cluster[0].get_session("s1", read="primary") is None


# Nodes that do what no node of ours does


async def test_a_node_that_sends_what_it_should_not_is_complained_about_once_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG, "hotspare.cluster")
    async with running(1) as cluster:
        replica = node_of(cluster[0]).replica
        hello = Hello("node", "127.0.0.1:9", "its incarnation", replica.cluster_id, "127.0.0.1:9", "member")
        address = cluster[0].settings.listen_address
        connection = await connect(
            address, hello, Stranger(), resolver=Resolver(), timeout_ms=2000, security=NO_SECURITY
        )

        def envelope(sender: str, message: Any) -> bytes:
            return messages.encode(Envelope(replica.cluster_id, sender, replica.id, 0, 0, message))

        connection.send(
            [
                b"\xc1",
                b"\x91" * 5,
                envelope("another incarnation", Enrol(b"nonce")),
                envelope(replica.id, Enrol(b"nonce")),
                *[envelope("its incarnation", Enrol(b""))] * 100,
            ]
        )
        await eventually(lambda: "a nonce of 0 bytes" in caplog.text)
        await cluster[0].store_session("s1", {"n": 1}, MINUTE_MS)
        assert await cluster[0].get_session("s1", read="primary") == {"n": 1}
        said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert len([text for text in said if "a nonce of 0 bytes" in text]) == 1
        assert len([text for text in said if "in the name of another incarnation" in text]) == 1
        assert len([text for text in said if "what is no message" in text]) == 2
        connection.abort()
        await connection.ended
