"""A whole copy for a server that the log no longer reaches, sent in parts while writes go on.

The sender reads a consistent view and keeps a few unacknowledged parts; the receiver takes them strictly in
order and says which one it wants next, so lost, repeated and late parts do no harm. Parts are staged
aside and become the copy all at once, with the last one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from hotspare.errors import UNDECODABLE
from hotspare.protocol.outbox import Outbox
from hotspare.raft.messages import ServerId, SnapshotChunk, SnapshotMark, SnapshotReply
from hotspare.raft.node import Node, Timing
from hotspare.store import EXPIRY_BYTES, MAX_KEY_BYTES, Row, SnapshotReader
from hotspare.table import COUNTERS_KEY

CHUNK_BYTES = 256 * 1024
WINDOW_CHUNKS = 8
"""Parts on the way at once."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Row]).decode
_CHECKSUM_BYTES = 4


def pack_rows(rows: list[Row]) -> bytes:
    body = _encode(rows)
    return zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big") + body


def unpack_rows(data: bytes) -> list[Row] | None:
    """None when the part was damaged on its way: as good as lost, it will be sent again. And when there is
    something in it that no store could hold."""
    body = data[_CHECKSUM_BYTES:]
    if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big") != data[:_CHECKSUM_BYTES]:
        return None
    try:
        rows: list[Row] = _decode(body)
    except UNDECODABLE:
        return None
    return rows if all(map(_is_storable, rows)) else None


def ends_at(rows: list[Row], index: int) -> bool:
    """Whether nothing in these rows says that the copy ends elsewhere, and would go on with a wrong entry."""
    ends = (value for space, key, value in rows if space == "table" and key == COUNTERS_KEY)
    return all(value[:8] == index.to_bytes(8, "big") for value in ends)


def _is_storable(row: Row) -> bool:
    space, key, value = row
    if not 0 < len(key) <= MAX_KEY_BYTES:
        return False
    return len(value) >= EXPIRY_BYTES if space == "sessions" else space == "table"


@dataclass(slots=True)
class SnapshotSender:
    """The leader's side of one transfer."""

    sender: ServerId
    receiver: ServerId
    term: int
    mark: SnapshotMark
    transfer: int
    reader: SnapshotReader
    last_heard_ms: int
    _unacknowledged: dict[int, tuple[bool, bytes]] = field(default_factory=dict)
    """sequence -> (last, data), at most WINDOW_CHUNKS of them, in order."""
    _next: int = 0
    _sent: int = 0
    """Parts before this one have been handed out since the last time something was lost: _sent <= _next."""
    _complete: bool = False

    def chunks(self) -> list[SnapshotChunk]:
        """What may be sent now."""
        self._fill()
        ready = [self._chunk(sequence) for sequence in range(self._first_unsent(), self._next)]
        self._sent = self._next
        return ready

    def acknowledged(self, wanted: int, now_ms: int) -> None:
        self.last_heard_ms = now_ms
        for sequence in [sequence for sequence in self._unacknowledged if sequence < wanted]:
            del self._unacknowledged[sequence]

    def starts_over(self, wanted: int) -> bool:
        """The receiver wants a part that was let go: it began anew, and so must we."""
        oldest = min(self._unacknowledged, default=self._next)
        return wanted < oldest

    def send_again(self, now_ms: int) -> None:
        """Something was lost: hand out again what is not acknowledged."""
        self.last_heard_ms = now_ms
        self._sent = 0

    def close(self) -> None:
        self.reader.close()

    def _first_unsent(self) -> int:
        oldest = min(self._unacknowledged, default=self._next)
        return max(self._sent, oldest)

    def _fill(self) -> None:
        while not self._complete and len(self._unacknowledged) < WINDOW_CHUNKS:
            rows = self.reader.read(CHUNK_BYTES)
            self._complete = not rows
            self._unacknowledged[self._next] = (self._complete, pack_rows(rows))
            self._next += 1

    def _chunk(self, sequence: int) -> SnapshotChunk:
        last, data = self._unacknowledged[sequence]
        return SnapshotChunk(
            self.sender, self.receiver, self.term, self.mark, self.transfer, sequence, last, data
        )


@dataclass(slots=True)
class SnapshotReceiver:
    """The follower's side. At most one transfer at a time; a newer one takes its place."""

    transfer: int = 0
    wanted: int = 0
    staged: int = 0
    """Parts that are in the store: <= wanted. Only they are acknowledged, so no more than a window of parts
    ever waits for a slow disk."""

    def accepts(self, chunk: SnapshotChunk) -> bool:
        """Whether this is the part to stage now. The first part of another transfer begins anew."""
        if chunk.transfer != self.transfer and chunk.sequence == 0:
            self.transfer, self.wanted, self.staged = chunk.transfer, 0, 0
        if chunk.transfer != self.transfer or chunk.sequence != self.wanted:
            return False
        self.wanted += 1
        return True

    def note_staged(self, chunk: SnapshotChunk) -> None:
        if chunk.transfer == self.transfer:
            self.staged = chunk.sequence + 1

    def wanted_of(self, transfer: int) -> int:
        """Which part to ask for: the first one that is not staged."""
        return self.staged if transfer == self.transfer else 0

    def reset(self) -> None:
        self.transfer, self.wanted, self.staged = 0, 0, 0


class Transfers:
    """All snapshots that a leader is sending."""

    def __init__(self, outbox: Outbox, random_transfer: Callable[[], int]) -> None:
        self._outbox = outbox
        self._random_transfer = random_transfer
        self._senders: dict[ServerId, SnapshotSender] = {}

    def oldest_index(self) -> int | None:
        """Entries after this index are needed by a receiver once it has its snapshot."""
        return min((sender.mark.index for sender in self._senders.values()), default=None)

    def begin(self, node: Node, follower: ServerId, mark: SnapshotMark, reader: SnapshotReader) -> None:
        self.end(follower)
        now_ms = self._outbox.now.boot_ms
        sender = SnapshotSender(node.id, follower, node.term, mark, self._random_transfer(), reader, now_ms)
        self._senders[follower] = sender
        self._post(sender)

    def replied(self, node: Node, reply: SnapshotReply) -> None:
        sender = self._senders.get(reply.sender)
        if sender is None or sender.transfer != reply.transfer:
            return
        now_ms = self._outbox.now.boot_ms
        if reply.installed:
            self.end(reply.sender)
            node.snapshot_installed(reply.sender, reply.index, now_ms)
        elif sender.starts_over(reply.wanted):
            self._fail(node, sender)
        else:
            sender.acknowledged(reply.wanted, now_ms)
            self._post(sender)

    def nudge(self, node: Node, is_up: Callable[[ServerId], bool], timing: Timing) -> None:
        """Sends lost parts again; ends transfers to those who are gone."""
        now_ms = self._outbox.now.boot_ms
        for follower, sender in list(self._senders.items()):
            quiet_ms = now_ms - sender.last_heard_ms
            if follower not in node.progress:
                self.end(follower)
            elif not is_up(follower) and quiet_ms >= timing.election_timeout_ms:
                self._fail(node, sender)
            elif is_up(follower) and quiet_ms >= 2 * timing.heartbeat_ms:
                sender.send_again(now_ms)
                self._post(sender)

    def end(self, follower: ServerId) -> None:
        sender = self._senders.pop(follower, None)
        if sender is not None:
            sender.close()

    def end_all(self) -> None:
        for follower in list(self._senders):
            self.end(follower)

    def _fail(self, node: Node, sender: SnapshotSender) -> None:
        self.end(sender.receiver)
        node.snapshot_failed(sender.receiver, self._outbox.now.boot_ms)

    def _post(self, sender: SnapshotSender) -> None:
        for chunk in sender.chunks():
            self._outbox.post(chunk)
