"""Real sockets on the loopback interface: what a node makes of peers, clients and strangers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import socket
import struct
import sys

import msgspec
import pytest
import pytest_asyncio

from hotspare.cluster import connection as connection_module
from hotspare.cluster import listener, shortcut
from hotspare.cluster import transport as transport_module
from hotspare.cluster.connection import Connection, Dialled, connect_client
from hotspare.cluster.framing import with_headers
from hotspare.cluster.security import Security
from hotspare.cluster.transport import Transport
from hotspare.cluster.wire import (
    MAX_FRAME_BYTES,
    PREAMBLE,
    Hello,
    Rejected,
    RejectionCode,
    Welcome,
    encode_greeting,
)
from hotspare.errors import ConfigError, ProtocolError, Refused, Unavailable
from hotspare.settings import Address

ANYWHERE = Address("127.0.0.1", 0)
OTHER_VERSION = PREAMBLE[:6] + struct.pack(">H", 77)


async def until(condition, timeout_s=20):
    """Waits for what must happen; how long it takes says nothing."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is awaited here has no event
            await asyncio.sleep(0.001)


class Echo:
    """A client's handler at the node: sends everything back."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.received: list[bytes] = []
        self.reason = None

    def frames_received(self, frames):
        self.received += frames
        if b"malformed" in frames:
            raise msgspec.ValidationError("Expected `str`, got `int`")
        self.connection.send(frames)

    def closed(self, reason):
        self.reason = reason


class Client:
    """A client's handler at the client."""

    def __init__(self):
        self.received: list[bytes] = []
        self.reason = None

    def frames_received(self, frames):
        self.received += frames

    def closed(self, reason):
        self.reason = reason


class Node:
    """A transport whose owner only takes notes."""

    def __init__(self, name, listen=ANYWHERE, incarnation="", **options):
        self.name = name
        self.incarnation = incarnation or f"{name}-1"
        self.refusal = None
        self.events: list[tuple[str, ...]] = []
        self.frames: list[tuple[str, bytes]] = []
        self.clients: list[Echo] = []
        self.transport = Transport(
            listen,
            hello=self._hello,
            admit=self._admit,
            on_frames=lambda peer, _, frames: self.frames.extend((peer, frame) for frame in frames),
            on_up=lambda *up: self.events.append(("up", *up)),
            on_down=lambda peer: self.events.append(("down", peer)),
            on_client=self._on_client,
            **options,
        )

    @property
    def address(self):
        return self.transport.address

    def _hello(self):
        return Hello("node", self.name, self.incarnation, "cluster", str(self.address))

    def _admit(self, hello):
        return self.refusal or Welcome(self.name, self.incarnation, "cluster", str(self.address))

    def _on_client(self, connection):
        self.clients.append(Echo(connection))
        return self.clients[-1]

    def up(self, peer):
        return ("up", peer.name, peer.incarnation, str(peer.address))


@pytest_asyncio.fixture
async def start():
    nodes = []

    async def start(name, **options):
        node = Node(name, **options)
        await node.transport.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        await node.transport.stop()


@pytest.fixture(params=["the short way", "TCP"])
def way(request, monkeypatch):
    """How nodes and clients reach a node of this machine: not every system has a short way."""
    if request.param == "TCP":
        monkeypatch.setattr(shortcut, "listen", lambda address: None)


@pytest_asyncio.fixture
async def pair(way, start):
    a, b = await start("a"), await start("b")
    a.transport.dial("b", b.address)
    b.transport.dial("a", a.address)
    await until(lambda: a.events and b.events)
    return a, b


@pytest.fixture
def quick_strangers(monkeypatch):
    monkeypatch.setattr(transport_module, "HANDSHAKE_TIMEOUT_MS", 50)


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, "hotspare.cluster")
    return caplog


class Stranger:
    """A bare socket at the other end of a node's."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def dial(cls, node):
        return cls(*await asyncio.open_connection(*node.address))

    def say(self, data):
        self.writer.write(data)

    async def hear(self, count):
        return await self.reader.readexactly(count)

    async def is_hung_up_on(self):
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        await self.hang_up()
        return True

    async def hang_up(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Impostor:
    """A server that is no node: does with each connection what `behave(stranger)` says."""

    def __init__(self, behave):
        self._behave = behave
        self._strangers: list[Stranger] = []
        self.count = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = Address(*self._server.sockets[0].getsockname())
        return self

    async def _accept(self, reader, writer):
        self.count += 1
        stranger = Stranger(reader, writer)
        self._strangers.append(stranger)
        await self._behave(stranger)

    async def __aexit__(self, *_):
        self._server.close()
        for stranger in self._strangers:
            stranger.writer.transport.abort()
            await stranger.hang_up()


def welcome_from(name, incarnation):
    return PREAMBLE + encode_greeting(Welcome(name, incarnation))


# Peers


async def test_two_nodes_that_dial_each_other_are_up_and_hear_what_the_other_sends(pair):
    a, b = pair
    assert a.events == [a.up(b)]
    assert b.events == [b.up(a)]
    assert a.transport.incarnation("b") == "b-1"
    assert a.transport.send("b", [b"one", b"two"])
    assert b.transport.send("a", [b"three"])
    await until(lambda: len(b.frames) == 2 and a.frames)
    assert b.frames == [("a", b"one"), ("a", b"two")]
    assert a.frames == [("b", b"three")]


async def test_thousands_of_frames_arrive_in_order(pair):
    a, b = pair
    frames = [b"%d" % number for number in range(20_000)]
    for start in range(0, len(frames), 1000):
        assert a.transport.send("b", frames[start : start + 1000])
    await until(lambda: len(b.frames) == len(frames))
    assert [frame for _, frame in b.frames] == frames


async def test_a_frame_of_the_greatest_size_arrives(pair):
    a, b = pair
    frame = bytes(range(256)) * (MAX_FRAME_BYTES // 256)
    assert a.transport.send("b", [frame, b"next"])
    await until(lambda: len(b.frames) == 2)
    assert b.frames == [("a", frame), ("a", b"next")]


async def test_a_peer_that_starts_later_is_found(start):
    a, b = await start("a"), Node("b")
    await b.transport.start()
    address = b.address
    await b.transport.stop()
    a.transport.dial("b", address)
    await until(lambda: a.transport.trouble("b"))
    assert a.transport.trouble("b") == "nothing listens there"
    assert not a.transport.writable("b")
    b = await start("b", listen=address)
    await until(lambda: a.events)
    assert a.events == [a.up(b)]
    assert a.transport.trouble("b") == ""


async def test_a_peer_that_cannot_be_reached_is_logged_once(start, log):
    a = await start("a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = Address(*server.getsockname())
    a.transport.dial("b", nobody)
    peer = a.transport._peers["b"]
    await until(lambda: peer._pause_ms >= 160)  # after several attempts
    assert [record.getMessage() for record in log.records] == [
        "node b cannot be reached, trying on: nothing listens there"
    ]


async def test_a_name_that_does_not_resolve_at_first_is_looked_up_again(start, monkeypatch, log):
    a, b = await start("a"), await start("b")
    look_up = socket.getaddrinfo
    lookups = []

    def late(host, *arguments, **options):
        if host != "host-b":
            return look_up(host, *arguments, **options)
        lookups.append(host)
        if len(lookups) == 1:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if len(lookups) < 4:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    a.transport.dial("b", Address("host-b", b.address.port))
    await until(lambda: a.events)
    assert a.events == [a.up(b)]
    said = [record.getMessage() for record in log.records if "reached" in record.getMessage()]
    assert said == [
        "node b cannot be reached, trying on: its name does not resolve (Name or service not known)"
    ]


async def test_cut_connections_are_made_again_and_nobody_is_called_down(pair):
    a, b = pair
    a.transport.cut("b")
    await until(lambda: len(a.events) > 1 and len(b.events) > 1)
    assert set(a.events) == {a.up(b)}
    assert set(b.events) == {b.up(a)}
    a.transport.send("b", [b"to b"])
    b.transport.send("a", [b"to a"])
    await until(lambda: ("a", b"to b") in b.frames and ("b", b"to a") in a.frames)


@pytest.mark.parametrize("cut", ["outgoing", "incoming"])
async def test_a_connection_cut_alone_is_made_again_and_both_are_calm_after_it(pair, cut):
    a, b = pair
    if cut == "outgoing":
        a.transport._peers["b"].connection.abort()
    else:
        a.transport._incoming["b"].abort()
    await until(lambda: len(a.events) > 1 and len(b.events) > 1)
    # Each side dials once for its own connection and at most once because of the other's.
    with contextlib.suppress(TimeoutError):
        await until(lambda: len(a.events) + len(b.events) > 6, timeout_s=0.5)
    assert len(a.events) + len(b.events) <= 6
    assert set(a.events) == {a.up(b)}
    assert set(b.events) == {b.up(a)}


async def test_a_peer_that_is_gone_is_called_down_once_and_up_when_it_is_back(pair, start):
    a, b = pair
    await b.transport.stop()
    await until(lambda: len(a.events) > 1)
    assert not a.transport.send("b", [b"lost"])
    await until(lambda: a.transport._peers["b"]._pause_ms >= 80)  # several attempts later
    assert a.events == [a.up(b), ("down", "b")]
    assert a.transport.incarnation("b") == ""
    again = await start("b", listen=b.address, incarnation="b-2")
    await until(lambda: len(a.events) > 2)
    assert a.events == [a.up(b), ("down", "b"), a.up(again)]


async def test_a_peer_that_dials_is_dialled_back_without_waiting_for_the_next_attempt(start, monkeypatch):
    monkeypatch.setattr(transport_module, "FIRST_PAUSE_MS", 10**9)
    monkeypatch.setattr(transport_module, "LONGEST_PAUSE_MS", 10**9)
    a, b = await start("a"), Node("b")
    await b.transport.start()
    address = b.address
    await b.transport.stop()
    a.transport.dial("b", address)
    await until(lambda: a.transport._peers["b"]._pause_ms)
    b = await start("b", listen=address)
    b.transport.dial("a", a.address)
    await until(lambda: a.events)
    assert a.events == [a.up(b)]


async def test_another_incarnation_is_another_peer(pair):
    a, b = pair
    before = a.up(b)
    b.incarnation = "b-2"
    a.transport.cut("b")
    await until(lambda: a.up(b) in a.events)
    assert a.events[:3] == [before, ("down", "b"), a.up(b)]
    assert a.transport.incarnation("b") == "b-2"


async def test_a_peer_whose_connection_ends_and_who_answers_no_more_is_down(start):
    a = await start("a")
    released = asyncio.Event()

    async def behave(stranger):
        if impostor.count == 1:
            stranger.say(welcome_from("b", "b-1"))
            await released.wait()
            stranger.writer.transport.abort()
        # Later ones are accepted, as the system does for a process that is stopped, and never answered.

    async with Impostor(behave) as impostor:
        a.transport.dial("b", impostor.address)
        await until(lambda: a.events)
        released.set()
        await until(lambda: len(a.events) > 1)
        assert a.events == [("up", "b", "b-1", ""), ("down", "b")]
        assert a.transport.trouble("b") == "it does not answer"


async def test_a_peer_whose_connections_never_last_is_not_dialled_faster_and_faster(start):
    a = await start("a")

    async def behave(stranger):
        stranger.say(welcome_from("b", "b-1"))
        await stranger.writer.drain()
        await stranger.hang_up()

    async with Impostor(behave) as impostor:
        a.transport.dial("b", impostor.address)
        await until(lambda: a.transport._peers["b"]._pause_ms > transport_module.REDIAL_TIMEOUT_MS)
        assert impostor.count < 20
        assert a.transport.incarnation("b") == ""


async def test_a_peer_that_is_undialled_is_forgotten_without_a_word(pair):
    a, b = pair
    a.transport.undial("b")
    assert list(a.transport.dialled) == []
    assert not a.transport.send("b", [b"lost"])
    await until(lambda: "a" not in b.transport._incoming)
    assert a.events == [a.up(b)]
    assert b.transport.send("a", [b"still heard"])
    await until(lambda: a.frames)


async def test_a_peer_that_moves_is_dialled_at_its_new_address(pair, start):
    a, b = pair
    moved = await start("b")
    a.transport.dial("b", moved.address)
    await until(lambda: len(a.events) > 1)
    assert a.events == [a.up(b), a.up(moved)]
    a.transport.send("b", [b"hello"])
    await until(lambda: moved.frames)


async def test_a_node_that_answers_for_another_is_not_spoken_to(start, log):
    a, b = await start("a"), await start("b")
    a.transport.dial("c", b.address)
    await until(lambda: a.transport.trouble("c"))
    assert a.transport.trouble("c") == "c was dialled, and b answered: correct the address"
    assert a.events == []
    assert "c was dialled, and b answered" in log.text


async def test_a_node_that_welcomes_under_another_name_is_not_spoken_to(start):
    a = await start("a")

    async def behave(stranger):
        stranger.say(welcome_from("b", "b-1"))

    async with Impostor(behave) as impostor:
        a.transport.dial("c", impostor.address)
        await until(lambda: a.transport.trouble("c"))
        assert a.transport.trouble("c") == "c was dialled, and b answered: correct the address"
        assert a.events == []


async def test_a_second_node_of_the_same_name_is_refused(start):
    a, other = await start("a"), await start("a", incarnation="a-2")
    b = await start("b")
    b.name = "a"  # it dials as a
    b.transport.dial("a", other.address)
    await until(lambda: b.transport.trouble("a"))
    assert "give each node a name of its own" in b.transport.trouble("a")
    assert a.events == []


async def test_a_peer_that_is_not_admitted_hears_why_and_is_admitted_later(start):
    a, b = await start("a"), await start("b")
    b.refusal = Rejected(RejectionCode.OTHER_CLUSTER, "b belongs to cluster x, you to y")
    a.transport.dial("b", b.address)
    await until(lambda: a.transport.trouble("b"))
    assert a.transport.trouble("b") == "b belongs to cluster x, you to y"
    b.refusal = None
    await until(lambda: a.events)


@pytest.mark.parametrize("turns", range(5))
async def test_who_comes_at_the_moment_of_the_end_is_hung_up_on(start, turns):
    """Whatever is accepted by then must not outlive the loop."""
    node = await start("n1")
    with socket.create_connection((node.address.host, node.address.port)) as caller:
        for _ in range(turns):
            await asyncio.sleep(0)
        await node.transport.stop()
        caller.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while caller.recv(1000):
                pass


async def test_without_a_descriptor_for_them_connections_wait_until_there_is_one(start, log, monkeypatch):
    monkeypatch.setattr(listener, "RETRY_AFTER_S", 0.01)
    node = await start("n1")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as caller:
        caller.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, limit[1]))
        try:
            await asyncio.get_running_loop().sock_connect(caller, (node.address.host, node.address.port))
            await until(lambda: "no connection can be accepted for a moment: Too many open files" in log.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        await until(lambda: node.transport._strangers)


async def test_peers_of_another_machine_are_not_dialled_without_a_key(start):
    a = await start("a")
    a.transport.dial("b", Address("192.0.2.1", 7401))
    await until(lambda: a.transport.trouble("b"))
    assert "is not on this machine, and without a cluster_key" in a.transport.trouble("b")


async def test_a_server_that_is_not_hotspare_is_named(start):
    a = await start("a")

    async def behave(stranger):
        stranger.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with Impostor(behave) as impostor:
        a.transport.dial("b", impostor.address)
        await until(lambda: a.transport.trouble("b"))
        assert "it is not hotspare, it said b'HTTP/1.1 400 Bad'" in a.transport.trouble("b")


async def test_a_node_of_another_version_is_named_at_both_ends(start, log):
    a = await start("a")

    async def behave(stranger):
        stranger.say(OTHER_VERSION)

    async with Impostor(behave) as impostor:
        a.transport.dial("b", impostor.address)
        await until(lambda: a.transport.trouble("b"))
        assert "it speaks protocol 77 and this end speaks 1" in a.transport.trouble("b")
    log.clear()
    stranger = await Stranger.dial(a)
    stranger.say(OTHER_VERSION)
    assert await stranger.hear(len(PREAMBLE)) == PREAMBLE  # by which it knows our version
    assert await stranger.is_hung_up_on()
    await until(lambda: "it speaks protocol 77 and this end speaks 1" in log.text)


async def test_what_a_peer_does_not_read_is_bounded_and_dropped_and_counted(start, monkeypatch):
    monkeypatch.setattr(connection_module, "MAX_OUTGOING_BYTES", 4 * 1024 * 1024)
    a, c = await start("a"), await start("c")

    async def behave(stranger):
        stranger.say(welcome_from("b", "b-1"))
        await asyncio.Event().wait()

    async with Impostor(behave) as impostor:
        a.transport.dial("b", impostor.address)
        a.transport.dial("c", c.address)
        await until(lambda: len(a.events) == 2)
        assert a.transport.writable("b")
        sent = 0
        while a.transport.send("b", [bytes(100_000)] * 2):
            sent += 2
            assert sent < 1000
            await asyncio.sleep(0)
        assert not a.transport.writable("b")
        assert a.transport.dropped_frames == 2
        unsent = a.transport._peers["b"].connection._transport.get_write_buffer_size()
        assert connection_module.CONGESTED_BYTES < unsent <= connection_module.MAX_OUTGOING_BYTES
        a.transport.send("c", [b"nothing else suffers"])
        await until(lambda: c.frames)
        await a.transport.stop()  # in bounded time


async def test_what_was_held_back_goes_on_when_the_peer_reads_again(start):
    a = await start("a")
    reading = asyncio.Event()
    received = 0

    async def behave(stranger):
        nonlocal received
        stranger.say(welcome_from("b", "b-1"))
        await reading.wait()
        while data := await stranger.reader.read(1 << 20):
            received += len(data)

    async with Impostor(behave) as impostor:
        a.transport.dial("b", impostor.address)
        await until(lambda: a.events)
        sent = 0
        while a.transport.writable("b"):
            assert a.transport.send("b", [bytes(99_996)])
            sent += 100_000
            await asyncio.sleep(0)
        reading.set()
        await a.transport._peers["b"].connection.drained()
        assert a.transport.writable("b")
        await until(lambda: received >= sent)
        await a.transport.stop()


async def test_a_peer_that_dials_anew_leaves_nothing_of_its_old_connection(start):
    a = await start("a")
    old, new = await Stranger.dial(a), await Stranger.dial(a)
    old.say(PREAMBLE + encode_greeting(Hello("node", "b", "b-1")))
    await until(lambda: "b" in a.transport._incoming)
    new.say(PREAMBLE + encode_greeting(Hello("node", "b", "b-1")))
    assert await old.is_hung_up_on()
    new.say(with_headers([b"hello"]))
    await until(lambda: a.frames)
    assert a.frames == [("b", b"hello")]
    await new.hang_up()


async def test_a_peer_that_answers_where_only_we_send_is_cut_off(start, log):
    a = await start("a")

    async def behave(stranger):
        stranger.say(welcome_from("b", "b-1"))
        stranger.say(with_headers([b"unasked"]))

    async with Impostor(behave) as impostor:
        a.transport.dial("b", impostor.address)
        await until(lambda: "it sent frames over a connection that carries only ours" in log.text)


async def test_a_failing_callback_does_not_go_unnoticed(start):
    a, b = await start("a"), await start("b")
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    a.transport._on_up = lambda *_: 1 / 0
    a.transport.dial("b", b.address)
    await until(lambda: failures)
    assert isinstance(failures[0], ZeroDivisionError)


# Where it listens


def family_of(connection):
    return connection._transport.get_extra_info("socket").family


async def test_a_port_in_use_is_an_error_that_says_so(start):
    a = await start("a")
    with pytest.raises(ConfigError, match=f"port {a.address.port} of 127.0.0.1 is in use"):
        await start("b", listen=a.address)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no short way here")
async def test_within_a_machine_no_connection_goes_by_tcp(start):
    a, b = await start("a"), await start("b")
    a.transport.dial("b", b.address)
    await until(lambda: a.events)
    client = await connect_client(a.address, Client())
    await until(lambda: a.clients and b.transport._incoming)

    ends = [a.transport._peers["b"].connection, b.transport._incoming["a"], client, a.clients[0].connection]

    assert {family_of(end) for end in ends} == {socket.AF_UNIX}
    assert {end.remote.host for end in ends} == {"127.0.0.1"}
    client.close()
    await client.ended


@pytest.mark.skipif(sys.platform != "linux", reason="there is no short way here")
async def test_where_somebody_has_the_unix_address_a_node_is_reached_by_tcp(start, monkeypatch, log):
    with socket.create_server(("127.0.0.1", 0)) as owner:
        address = Address(*owner.getsockname())
    other = shortcut.listen(address)
    assert other is not None
    with other:
        a = await start("a", listen=address)
    assert a.address == address
    assert "is reached by TCP alone" in log.text

    client = await connect_client(a.address, Client())
    assert family_of(client) == socket.AF_INET
    client.close()
    await client.ended


async def test_where_the_system_forbids_unix_sockets_tcp_leads(start, monkeypatch):
    any_socket = socket.socket

    def no_unix_socket(family=socket.AF_INET, *args, **options):
        if family == socket.AF_UNIX:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return any_socket(family, *args, **options)

    monkeypatch.setattr(socket, "socket", no_unix_socket)
    a = await start("a")
    assert a.address.port != 0
    client = await connect_client(a.address, Client())
    client.close()
    await client.ended


async def test_a_port_is_free_again_after_the_stop(pair, start):
    _, b = pair
    await b.transport.stop()
    await start("b", listen=b.address)


async def test_localhost_is_an_address_to_listen_on(start):
    a = await start("a", listen=Address("localhost", 0))
    assert a.address.host == "localhost"
    client = await connect_client(Address("127.0.0.1", a.address.port), Client())
    client.close()
    await client.ended


@pytest.mark.parametrize(
    ("listen", "options", "problem"),
    [
        (Address("0.0.0.0", 0), {}, "0.0.0.0:0 can be reached from other machines"),
        (Address("192.0.2.1", 0), {}, "192.0.2.1:0 can be reached from other machines"),
        (
            Address("192.0.2.1", 0),
            {"security": Security(key=b"0123456789abcdef")},
            "192.0.2.1 is no address of this machine",
        ),
        (Address("nowhere.invalid", 0), {}, "its name does not resolve"),
    ],
)
async def test_an_address_that_cannot_be_listened_on_is_an_error_that_says_why(
    start, listen, options, problem
):
    with pytest.raises(ConfigError, match=problem):
        await start("a", listen=listen, **options)


async def test_a_port_that_is_not_ours_to_use_is_an_error_that_says_so(monkeypatch, start):
    def create_server(*_, **__):
        raise PermissionError(errno.EACCES, "error while attempting to bind")

    # Whoever runs the tests may well be allowed to.
    monkeypatch.setattr(socket, "create_server", create_server)
    with pytest.raises(ConfigError, match="this user may not listen on port 80"):
        await start("a", listen=Address("127.0.0.1", 80))


# Strangers


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="web browser"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="SSH client"),
        pytest.param(bytes(64), id="zeros"),
    ],
)
async def test_whoever_is_not_hotspare_is_hung_up_on_and_named_once(start, log, noise):
    a = await start("a")
    for _ in range(3):
        stranger = await Stranger.dial(a)
        stranger.say(noise)
        assert await stranger.is_hung_up_on()
    await until(lambda: not a.transport._strangers)
    (record,) = log.records
    assert f"it is not hotspare, it said {noise[:16]!r}" in record.getMessage()
    assert "127.0.0.1" in record.getMessage()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (PREAMBLE + struct.pack(">I", 5000), "it sent a frame of 5000 bytes"),
        (PREAMBLE + bytes(4), "it sent a frame of 0 bytes"),
        (PREAMBLE + with_headers([b"garbage"]), "its first frame is no greeting"),
        (PREAMBLE + encode_greeting(Hello("node")), "it does not say who it is"),
        (welcome_from("b", "b-1"), "its first frame is no greeting"),
    ],
    ids=["too long", "empty", "garbage", "nameless", "a welcome"],
)
async def test_a_stranger_with_bad_manners_is_hung_up_on_with_a_reason_in_the_log(start, log, said, problem):
    a = await start("a")
    stranger = await Stranger.dial(a)
    stranger.say(said)
    assert await stranger.is_hung_up_on()
    await until(lambda: problem in log.text)


@pytest.mark.usefixtures("quick_strangers")
@pytest.mark.parametrize(
    "said",
    [b"", PREAMBLE[:3], PREAMBLE, PREAMBLE + b"\x00\x00\x00\x40"],
    ids=["nothing", "half a preamble", "a preamble", "half a greeting"],
)
async def test_a_stranger_who_does_not_say_who_it_is_is_hung_up_on(start, log, said):
    a = await start("a")
    stranger = await Stranger.dial(a)
    stranger.say(said)
    assert await stranger.is_hung_up_on()
    await until(lambda: "it has not introduced itself in 50 ms" in log.text)


async def test_a_stranger_who_looks_in_and_leaves_is_not_worth_a_word(start, log):
    a = await start("a")
    stranger = await Stranger.dial(a)
    await until(lambda: a.transport._strangers)
    await stranger.hang_up()
    await until(lambda: not a.transport._strangers)
    assert log.records == []


async def test_a_crowd_of_strangers_does_not_keep_a_client_out(start, monkeypatch):
    monkeypatch.setattr(transport_module, "MAX_HANDSHAKES", 4)
    monkeypatch.setattr(transport_module, "HANDSHAKE_TIMEOUT_MS", 10**6)
    a = await start("a")
    crowd = [await Stranger.dial(a) for _ in range(6)]
    assert await crowd[0].is_hung_up_on()  # the one who has been silent longest
    client = await connect_client(a.address, Client())
    assert len(a.transport._strangers) < 4
    client.close()
    await client.ended
    for stranger in crowd[1:]:
        await stranger.hang_up()


async def test_a_stranger_from_another_machine_hears_why_it_is_refused(start, monkeypatch, log):
    a = await start("a")
    monkeypatch.setattr(transport_module, "is_loopback", lambda host: False)
    with pytest.raises(Refused, match="without a cluster_key this node accepts connections from its own"):
        await connect_client(a.address, Client())
    assert "without a cluster_key" in log.text


# Clients


@pytest_asyncio.fixture
async def a(way, start):
    return await start("a")


@contextlib.asynccontextmanager
async def client_of(node, **options):
    handler = Client()
    connection = await connect_client(node.address, handler, **options)
    yield handler, connection
    connection.abort()
    await connection.ended


async def test_a_client_and_its_node_talk_to_each_other(a):
    async with client_of(a) as (handler, connection):
        assert connection.welcome == Welcome("a", "a-1", "cluster", str(a.address))
        assert connection.send([b"one", b"two"])
        await until(lambda: len(handler.received) == 2)
        assert handler.received == [b"one", b"two"]
        assert a.clients[0].connection.hello.kind == "client"
    await until(lambda: a.clients[0].reason)


@pytest.mark.parametrize("turns", range(6))
async def test_dialling_may_be_cancelled_at_any_moment_and_closes_what_is_its_own(a, turns):
    dialling = asyncio.ensure_future(connect_client(a.address, Client()))
    for _ in range(turns):
        await asyncio.sleep(0)
    dialling.cancel()
    await turns_of_the_loop(10)
    with files_that_stay_open():
        with contextlib.suppress(asyncio.CancelledError):
            (await dialling).abort()
        del dialling


@pytest.mark.parametrize("closed", ["before it is greeted", "while it is greeted"])
@pytest.mark.skipif(sys.platform != "linux", reason="there is no short way here")
async def test_who_is_dialled_and_dies_at_once_takes_one_descriptor_along(closed, monkeypatch):
    ends = list(socket.socketpair())
    other = ends.pop()
    monkeypatch.setattr(shortcut, "dial", lambda address: ends.pop())
    if closed == "before it is greeted":
        other.close()
    else:
        asyncio.get_running_loop().call_soon(other.close)
    with pytest.raises(Unavailable):
        await connect_client(Address("127.0.0.1", 1), Client())
    await turns_of_the_loop(10)
    with files_that_stay_open():
        pass


async def turns_of_the_loop(count):
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.contextmanager
def files_that_stay_open():
    """Where a descriptor is closed twice, one of these gets its number in between, and is closed."""
    with contextlib.ExitStack() as opened:
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
        for file in files:
            opened.callback(os.close, file)
        yield
        gc.collect()
        for file in files:
            os.fstat(file)


async def test_a_client_that_speaks_one_byte_at_a_time_is_understood(a):
    stranger = await Stranger.dial(a)
    frames = [b"one", b"two" * 20]
    stream = PREAMBLE + encode_greeting(Hello("client")) + with_headers(frames)
    for byte in stream:
        stranger.say(bytes([byte]))
        await stranger.writer.drain()
        await asyncio.sleep(0)
    await until(lambda: a.clients and a.clients[0].received == frames)
    await stranger.hang_up()


async def test_what_comes_with_the_welcome_may_be_longer_than_a_greeting():
    frame = bytes(100_000)

    async def behave(stranger):
        stranger.say(welcome_from("b", "b-1") + with_headers([frame]))

    async with Impostor(behave) as impostor:
        handler = Client()
        connection = await connect_client(impostor.address, handler)
        await until(lambda: handler.received)
        assert handler.received == [frame]
        connection.abort()
        await connection.ended


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"\xff" * 100, "it sent a frame of"),
        (bytes(4), "it sent a frame of 0 bytes"),
        (struct.pack(">I", MAX_FRAME_BYTES + 1), f"it sent a frame of {MAX_FRAME_BYTES + 1} bytes"),
        (with_headers([b"malformed"]), "it sent a malformed message"),
    ],
    ids=["noise", "empty", "too long", "malformed"],
)
async def test_a_client_that_sends_garbage_is_cut_off_and_no_other(a, log, said, problem):
    async with client_of(a) as (good, connection):
        stranger = await Stranger.dial(a)
        stranger.say(PREAMBLE + encode_greeting(Hello("client")))
        await until(lambda: len(a.clients) == 2)
        stranger.say(said)
        assert await stranger.is_hung_up_on()
        await until(lambda: a.clients[1].reason)
        assert problem in a.clients[1].reason
        assert problem in log.text
        connection.send([b"still here"])
        await until(lambda: good.received)


async def test_a_client_that_leaves_in_the_middle_of_a_frame_harms_nobody(a):
    stranger = await Stranger.dial(a)
    stranger.say(PREAMBLE + encode_greeting(Hello("client")) + with_headers([b"whole"])[:4] + b"who")
    await until(lambda: a.clients)
    stranger.writer.write_eof()
    await until(lambda: a.clients[0].reason)
    assert a.clients[0].reason == "the other end closed it in the middle of a frame"
    assert a.clients[0].received == []
    await stranger.hang_up()


async def test_a_client_that_does_not_read_its_answers_is_not_heard_any_further(a):
    stranger = await Stranger.dial(a)
    stranger.say(PREAMBLE + encode_greeting(Hello("client")))
    question = with_headers([bytes(100_000)])
    await until(lambda: a.clients)
    echo = a.clients[0]
    asked = 0
    while echo.connection.writable:
        stranger.say(question)
        asked += 1
        await asyncio.sleep(0)
    assert not echo.connection._transport.is_reading()
    answered = 0
    while answered < asked * len(question):  # once it reads, it gets every answer
        answered += len(await stranger.reader.read(1 << 20))
    await stranger.hang_up()


async def test_a_client_that_would_miss_an_answer_is_cut_off(a, monkeypatch):
    monkeypatch.setattr(connection_module, "MAX_OUTGOING_BYTES", 4 * 1024 * 1024)
    stranger = await Stranger.dial(a)
    stranger.say(PREAMBLE + encode_greeting(Hello("client")))
    await until(lambda: a.clients)
    connection = a.clients[0].connection
    while connection.send([bytes(1_000_000)]):  # noqa: ASYNC110 - every round sends
        await asyncio.sleep(0)
    await until(lambda: a.clients[0].reason)
    assert a.clients[0].reason == "it does not read its answers"
    await stranger.hang_up()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no short way here")
async def test_what_a_node_said_last_is_read_although_nothing_can_be_said_to_it():
    with socket.create_server(("127.0.0.1", 0)) as owner:
        address = Address(*owner.getsockname())
    listening = shortcut.listen(address)
    assert listening is not None
    handler = Client()
    dialling = asyncio.ensure_future(connect_client(address, handler))
    await asyncio.sleep(0)
    with listening:
        node, _ = listening.accept()
    node.sendall(PREAMBLE + encode_greeting(Welcome("a", "a-1", "cluster", str(address))))
    client = await dialling
    assert node.recv(MAX_FRAME_BYTES).startswith(PREAMBLE)

    node.sendall(with_headers([b"last"]))
    node.close()
    assert client.send([b"too late"])

    await client.ended
    assert handler.received == [b"last"]


async def test_one_client_too_many_is_told_to_come_back(a, monkeypatch):
    monkeypatch.setattr(transport_module, "MAX_CLIENTS", 1)
    async with client_of(a):
        with pytest.raises(Unavailable, match="refused the connection: a has 1 clients already"):
            await connect_client(a.address, Client())


async def test_clients_hear_that_their_node_is_shutting_down(a):
    async with client_of(a) as (handler, connection):
        connection.send([b"a last question"])
        await until(lambda: a.clients and a.clients[0].received)
        await a.transport.stop()
        await until(lambda: handler.reason)
        assert handler.received == [b"a last question"]
        assert handler.reason == "node a is shutting down"
        assert not connection.send([b"too late"])
    with pytest.raises(Unavailable, match="cannot be reached: nothing listens there"):
        await connect_client(a.address, Client())


async def test_nothing_is_heard_any_more_after_a_farewell(a):
    stranger = await Stranger.dial(a)
    stranger.say(PREAMBLE + encode_greeting(Hello("client")))
    await until(lambda: a.clients)
    a.clients[0].connection.part(Rejected(RejectionCode.BUSY, "come back later"))
    stranger.say(with_headers([b"one more"]))
    assert b"come back later" in await stranger.reader.read()
    await stranger.hang_up()
    await until(lambda: a.clients[0].reason)
    assert a.clients[0].reason == "come back later"
    assert a.clients[0].received == []


async def test_a_stop_does_not_wait_for_a_client_that_does_not_listen(a, monkeypatch):
    monkeypatch.setattr(transport_module, "STOP_TIMEOUT_MS", 50)
    stranger = await Stranger.dial(a)
    stranger.say(PREAMBLE + encode_greeting(Hello("client")))
    await until(lambda: a.clients)
    a.clients[0].connection.send([bytes(8_000_000)])
    await a.transport.stop()
    assert a.clients[0].reason
    await stranger.hang_up()


async def test_a_client_that_is_not_admitted_is_refused_with_the_reason(a):
    a.refusal = Rejected(RejectionCode.AUTHENTICATION, "the cluster_key is another")
    with pytest.raises(Refused, match=r"the connection to .* was refused: the cluster_key is another"):
        await connect_client(a.address, Client())


async def test_a_client_that_expected_another_node_is_refused(a):
    with pytest.raises(Refused, match="b was dialled, and a answered"):
        await connect_client(a.address, Client(), expected="b")


async def test_an_address_where_nothing_listens_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = Address(*server.getsockname())
    with pytest.raises(Unavailable, match=f"{nobody} cannot be reached: nothing listens there"):
        await connect_client(nobody, Client())


async def test_a_name_that_does_not_resolve_is_unavailable():
    with pytest.raises(Unavailable, match="its name does not resolve"):
        await connect_client(Address("nowhere.invalid", 7401), Client())


async def test_a_server_that_says_nothing_is_unavailable_in_bounded_time():
    async def behave(stranger):
        await asyncio.Event().wait()

    async with Impostor(behave) as impostor:
        with pytest.raises(Unavailable, match="it does not answer"):
            await connect_client(impostor.address, Client(), timeout_ms=50)


async def test_a_server_that_hangs_up_is_unavailable():
    async def behave(stranger):
        await stranger.hang_up()

    async with Impostor(behave) as impostor:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await connect_client(impostor.address, Client())


async def test_a_server_that_is_not_hotspare_is_a_protocol_error():
    async def behave(stranger):
        stranger.say(b"SSH-2.0-OpenSSH_9.6\r\n")

    async with Impostor(behave) as impostor:
        with pytest.raises(ProtocolError, match=r"it said b'SSH-2\.0-OpenSSH_'") as caught:
            await connect_client(impostor.address, Client())
        assert caught.value.peer == str(impostor.address)


async def test_a_node_of_another_version_is_a_protocol_error():
    async def behave(stranger):
        stranger.say(OTHER_VERSION)

    async with Impostor(behave) as impostor:
        with pytest.raises(ProtocolError, match="it speaks protocol 77 and this end speaks 1"):
            await connect_client(impostor.address, Client())


async def test_a_socket_that_was_connected_to_itself_reaches_nobody():
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()
    connection = Dialled(Hello("client"), Client())
    await asyncio.get_running_loop().create_connection(lambda: connection, *nobody, local_addr=nobody)
    with pytest.raises(ConnectionRefusedError):
        await connection.welcomed
    await connection.ended
