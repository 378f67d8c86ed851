"""What bad frames are thrown at. Each target takes one frame at a time, and fails by raising.

Allowed are the errors that the edge translates: `REFUSALS` from peers and clients, `StoreError` from a store.
Everything else would have stopped a node. A target also looks at what a frame made its victim keep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Final, Protocol
from zlib import crc32

import msgspec

from hotspare import Settings
from hotspare.cluster import calls
from hotspare.cluster.framing import MAX_READ_BYTES, Inbound, with_headers
from hotspare.cluster.node import ClusterNode
from hotspare.cluster.service import ClientSession
from hotspare.cluster.wire import (
    MAX_FRAME_BYTES,
    MAX_HANDSHAKE_BYTES,
    PREAMBLE,
    Challenge,
    Hello,
    Proof,
    Rejected,
    RejectionCode,
    Welcome,
    decode_answer,
    decode_hello,
    decode_proof,
    encode_farewell,
    encode_greeting,
)
from hotspare.commands import (
    BATCH,
    REGISTRATION,
    Command,
    Delete,
    Patch,
    Put,
    RawGroup,
    Registration,
    Rotate,
    Touch,
    encode_batch,
    encode_commands,
)
from hotspare.data import encode_data
from hotspare.errors import UNDECODABLE, ProtocolError, StoreError, StoreOutdated, Undecryptable
from hotspare.protocol import messages
from hotspare.protocol.messages import Envelope
from hotspare.protocol.snapshot import pack_rows
from hotspare.raft.messages import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Member,
    SnapshotChunk,
    SnapshotMark,
    SnapshotReply,
)
from hotspare.record import data_checksum, decode_record, maybe_compress, pack_record, verify_record
from hotspare.replica import MAX_PEERS, MAX_PROPOSALS, Now, Replica
from hotspare.store import journal
from hotspare.store.journal import Identity
from hotspare.store.plain import PlainStore
from hotspare.table import Table
from tests.fuzz.mutate import damage, mutate
from tests.unit.test_replica import NAMES, Net

REFUSALS: Final = (ProtocolError, *UNDECODABLE)
FAR_MS = 1 << 50
MINUTE_MS = 60_000


class Target(Protocol):
    def feed(self, rng: Random) -> None:
        """One more bad frame."""

    def close(self) -> None: ...


class Wire:
    """The bytes of a connection, cut into frames, before and after the handshake."""

    STREAMS = (
        PREAMBLE + encode_greeting(Hello("client")),
        PREAMBLE + encode_greeting(Hello("node", "n1", "i1", "c", "127.0.0.1:1", "member", "n2", bytes(32))),
        PREAMBLE + encode_greeting(Challenge(bytes(32))) + encode_greeting(Welcome("n1", "i1")),
        PREAMBLE + encode_greeting(Proof(bytes(32))),
        with_headers([b"one", b"two" * 100]) + encode_farewell(Rejected(RejectionCode.BUSY, "later")),
    )

    def feed(self, rng: Random) -> None:
        stream = damage(rng, rng.choice(self.STREAMS))
        inbound = Inbound()
        is_open = rng.random() < 0.5
        inbound.limit_bytes = MAX_FRAME_BYTES if is_open else MAX_HANDSHAKE_BYTES
        with suppress(ProtocolError):
            self._read(rng, inbound, stream, is_open)
        assert len(inbound.room()) + inbound.pending_bytes <= 2 * max(MAX_READ_BYTES, len(stream))

    def _read(self, rng: Random, inbound: Inbound, stream: bytes, is_open: bool) -> None:
        while stream:
            room = inbound.room()
            assert room, "there is always room for more"
            count = min(len(room), rng.choice((1, 7, 1000)), len(stream))
            room[:count], stream = stream[:count], stream[count:]
            inbound.received(count)
            is_open = is_open or inbound.take_preamble()
            for frame in inbound.take_frames() if is_open else ():
                for decode in (decode_hello, decode_answer, decode_proof):
                    _attempt(lambda decode=decode, frame=frame: decode(frame))  # type: ignore[misc]

    def close(self) -> None: ...


class Peers:
    """The messages of nodes, at a whole cluster of them, each as good as any that a node has just sent."""

    RENEW_AFTER = 300
    """Frames: what was believed of them has made the cluster another one by then."""

    def __init__(self) -> None:
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._net = Net()
        self._now_ms = 1_000
        net = self._net
        net.settle()
        net.replicas["n1"].found({name: name for name in NAMES}, 10_000, net.now)
        net.settle()
        self._write()
        net.settle()
        self._corpus = [
            (self._name_of(each.sender), self._name_of(each.receiver), messages.encode(each))
            for each in net.delivered
        ]
        self._corpus = [each for each in self._corpus if each[0] != each[1]]
        leader = net.replicas["n2"]
        for name in ("n1", "n3"):
            chunk = _snapshot(leader, net.replicas[name])
            envelope = Envelope(leader.cluster_id, leader.id, chunk.receiver, 0, 0, chunk)
            self._corpus += [("n2", name, messages.encode(envelope))] * 5
            reply = SnapshotReply(net.replicas[name].id, leader.id, chunk.term, 7, 5, 1, True)
            envelope = Envelope(leader.cluster_id, reply.sender, leader.id, 0, 0, reply)
            self._corpus += [(name, "n2", messages.encode(envelope))] * 2

    def _write(self) -> None:
        net, replica = self._net, self._net.replicas["n2"]
        for number in range(3):
            replica.enrol(b"nonce %d" % number, net.now)
            net.settle()
            origin = replica.table.applied_index
            commands = encode_commands(COMMANDS)
            replica.submit(RawGroup(origin, 1, len(COMMANDS), 0, commands), net.now)
            replica.operate("promote", "n2", net.now)
            replica.read(net.now)
            net.settle()

    def _name_of(self, server: str) -> str:
        return next((name for name, each in self._net.replicas.items() if each.id == server), "n3")

    def feed(self, rng: Random) -> None:
        self._count += 1
        if self._count % self.RENEW_AFTER == 0:
            self._begin()
        sender, receiver, frame = rng.choice(self._corpus)
        frame = self._as_of_now(rng, receiver, frame)
        if rng.random() < 0.9:
            frame = self._changed(rng, frame)
        self._now_ms += rng.choice((0, 0, 1, 50, 500))
        now = Now(self._now_ms, 1_700_000_000_000 + self._now_ms)
        replica = self._net.replicas[receiver]
        try:
            envelope = messages.decode(frame)
        except REFUSALS:
            return
        try:
            _attempt(lambda: replica.receive(sender, envelope, now))
        except StoreOutdated:  # a node believes a peer that says what it was told, and stops in good order
            self._begin()
            return
        replica.tick(now)
        self._net.turn(replica)
        replica.take_events()
        assert len(replica.peers) <= MAX_PEERS
        assert len(replica._proposals) <= MAX_PROPOSALS + len(frame)
        assert len(replica._enrolments) <= MAX_PROPOSALS

    def _changed(self, rng: Random, frame: bytes) -> bytes:
        """Mostly in what it says, and not in who says it to whom: else it would be dropped for that."""
        if rng.random() < 0.2:
            return mutate(rng, frame)
        fields = msgspec.msgpack.decode(frame)
        try:
            message = msgspec.msgpack.decode(mutate(rng, msgspec.msgpack.encode(fields[5])))
        except ValueError:
            return frame
        if isinstance(message, list) and fields[5][1:2] == [fields[1]] and rng.random() < 0.9:
            message[:3] = fields[5][:3]
        fields[5] = message
        return msgspec.msgpack.encode(fields)

    def _as_of_now(self, rng: Random, receiver: str, frame: bytes) -> bytes:
        """With the term that the receiver is in: what is old would not be looked at."""
        fields = msgspec.msgpack.decode(frame)
        node = self._net.replicas[receiver].node
        message = fields[5]
        has_term = len(message) > 3 and isinstance(message[3], int) and isinstance(message[1], str)
        if node is not None and has_term and rng.random() < 0.8:
            message[3] = node.term
        return msgspec.msgpack.encode(fields)

    def close(self) -> None: ...


COMMANDS: list[Command] = [
    Put(b"s1", b"\x81\xa1n\x01", 0, data_checksum(b"s1", b"\x81\xa1n\x01", 0), MINUTE_MS, FAR_MS),
    Patch(b"s1", [("m", b"\x02")], ["n"], FAR_MS, 0, 1000),
    Touch(b"s1", MINUTE_MS, FAR_MS),
    Rotate(b"s1", b"s2", FAR_MS),
    Delete(b"s2", FAR_MS),
]


def _snapshot(leader: Replica, follower: Replica) -> SnapshotChunk:
    """Of a cluster that is fifty entries ahead."""
    assert leader.node is not None
    store = PlainStore()
    transaction = store.begin()
    table = Table(transaction)
    table.apply(transaction, 49, 1, REGISTRATION, Registration(b"nonce", 1000).encode())
    group = RawGroup(49, 1, 1, 0, encode_commands(COMMANDS[:1]))
    table.apply(transaction, 50, 1, BATCH, encode_batch(1000, False, [group]))
    table.save(transaction)
    transaction.commit()
    rows = store.snapshot().read(1 << 20)
    mark = SnapshotMark(50, leader.node.term, leader.configuration)
    return SnapshotChunk(leader.id, follower.id, leader.node.term, mark, 7, 0, True, pack_rows(rows))


class Clients:
    """The frames of a client, at a live node."""

    CORPUS = (
        calls.encode(calls.EnrolClient(b"0123456789abcdef")),
        calls.encode(calls.Submit([RawGroup(2, 1, len(COMMANDS), 0, encode_commands(COMMANDS))], b"nonce")),
        *(
            calls.encode(calls.Call(1, verb, dict(arguments), 1000))  # type: ignore[call-overload]
            for verb, arguments in {
                "get": {"id": b"s1", "how": "primary"},
                "ids": {},
                "count": {},
                "records": {"after": b"s", "limit": 10},
                "status": {},
                "metrics": {},
                "flush": {},
                "promote": {},
                "failover": {"node": "127.0.0.1:7401"},
                "found": {"nodes": []},
            }.items()
        ),
    )
    RENEW_AFTER = 200

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._count = 0
        self._run(self._start())

    def _run(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(coroutine)

    async def _start(self) -> None:
        self._node = ClusterNode(Settings(enabled=False), PlainStore())
        await self._node.start()
        self._failures: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self._failures.append(context))
        self._come()

    def _come(self) -> None:
        self.sent_bytes = 0
        self._session = ClientSession(self._node, self)

    def send(self, frames: list[bytes]) -> bool:
        """As a connection."""
        self.sent_bytes += sum(map(len, frames))
        return True

    def _leave(self) -> None:
        self._session.closed("it was cut off")
        self._come()

    def feed(self, rng: Random) -> None:
        self._run(self._feed(rng))

    async def _feed(self, rng: Random) -> None:
        self._count += 1
        try:
            self._session.frames_received([mutate(rng, rng.choice(self.CORPUS))])
        except REFUSALS:
            self._leave()
        await asyncio.sleep(0)
        if self._count % 20 == 0:
            await asyncio.sleep(0.001)
        if self._count % self.RENEW_AFTER == 0:
            self._leave()
            assert await self._node.fetch(b"never stored", "primary", 5000) is None
        assert not self._failures, self._failures
        assert not self._node.failed.done(), self._node.failed.exception()

    def close(self) -> None:
        self._session.closed("over")
        self._run(self._node.abort())
        self._loop.close()


class Stored:
    """What a server wrote of itself, damaged; also where the checksum was made to fit."""

    def __init__(self) -> None:
        members = (Member("n1", "n1", "i1", True), Member("n2", "n2", "i2", True))
        configuration = Configuration("c", members)
        entries = [
            Entry(1, 1, EntryKind.CONFIGURATION, configuration.encode()),
            Entry(2, 2, EntryKind.NOOP),
            Entry(3, 2, EntryKind.BATCH, b"payload"),
        ]
        self._store = PlainStore()
        transaction = self._store.begin()
        journal.save_identity(transaction, Identity("i1", "n1", "c"))
        journal.save_ready(transaction, HardState(2, "i1"), entries, SnapshotMark(0, 0, configuration))
        table = Table(transaction)
        table.save(transaction)
        self._rows = [
            *(("node", key, value) for key, value in transaction.node.scan()),
            *(("log", key, value) for key, value in transaction.log.scan()),
        ]
        transaction.commit()

    def feed(self, rng: Random) -> None:
        space, key, value = rng.choice(self._rows)
        bad = self._bad(rng, key, value)
        transaction = self._store.begin()
        rows = getattr(transaction, space)
        rows[key] = bad
        try:
            journal.load_identity(transaction)
            journal.load(transaction)
        except StoreError:
            pass
        rows[key] = value
        transaction.commit()

    def _bad(self, rng: Random, key: bytes, value: bytes) -> bytes:
        if rng.random() < 0.3:
            return damage(rng, value)
        body = mutate(rng, value[4:])
        return crc32(body, crc32(key)).to_bytes(4, "big") + body

    def close(self) -> None: ...


class Rows:
    """The state machine's own rows, as a damaged store or snapshot would have them."""

    def __init__(self) -> None:
        self._store = PlainStore()
        transaction = self._store.begin()
        table = Table(transaction)
        table.apply(transaction, 1, 1, REGISTRATION, Registration(b"nonce", 1000).encode())
        group = RawGroup(1, 1, len(COMMANDS), 0, encode_commands(COMMANDS))
        table.apply(transaction, 2, 1, BATCH, encode_batch(1000, False, [group]))
        table.save(transaction)
        self._rows = list(transaction.table.scan())
        transaction.commit()

    def feed(self, rng: Random) -> None:
        key, value = rng.choice(self._rows)
        bad_key = damage(rng, key) if rng.random() < 0.3 else key
        transaction = self._store.begin()
        if bad_key and bad_key not in dict(self._rows):
            transaction.table.pop(key)
        transaction.table[bad_key or key] = damage(rng, value)
        with suppress(StoreError):
            Table(transaction)
        transaction.table.pop(bad_key or key)
        transaction.table[key] = value
        transaction.commit()

    def close(self) -> None: ...


class Records:
    """Sessions as they are stored."""

    ID = b"s1"

    def __init__(self) -> None:
        plain = encode_data({"user": 7, "cart": ["tea", {"n": 1.5}], "blob": b"x" * 50}, 10_000)
        large = encode_data({"text": "x" * 5000}, 10_000)
        self._records = [
            pack_record(1, FAR_MS, flags, data_checksum(self.ID, data, flags), data)
            for flags, data in ((0, plain), maybe_compress(large, 1000))
        ]

    def feed(self, rng: Random) -> None:
        record = damage(rng, rng.choice(self._records))
        for look in (lambda: verify_record(self.ID, record), lambda: decode_record(record)):
            with suppress(StoreError, Undecryptable):
                look()

    def close(self) -> None: ...


def _attempt(call: Callable[[], Any]) -> None:
    with suppress(*REFUSALS):
        call()


TARGETS: Final[dict[str, Callable[[], Target]]] = {
    "wire": Wire,
    "peers": Peers,
    "clients": Clients,
    "stored": Stored,
    "rows": Rows,
    "records": Records,
}
