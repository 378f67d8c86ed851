"""How bytes on a connection become frames, and frames bytes: see `wire` for what a frame is.

Nothing here does I/O. `Inbound` lends out its buffer, is told how much arrived in it, and cuts frames from
it. Every frame is copied once, out of a buffer that is used again: that measured two to five times faster
for large frames than joining the chunks which asyncio would allocate, and no slower for small ones.
"""

from __future__ import annotations

from hotspare.cluster.wire import (
    FAREWELL,
    HEADER,
    MAX_FRAME_BYTES,
    MAX_HANDSHAKE_BYTES,
    PREAMBLE,
    Rejected,
    decode_farewell,
    is_whole_preamble,
)
from hotspare.errors import ProtocolError

FIRST_READ_BYTES = 16 * 1024
"""A connection's buffer to begin with: many connections are idle, and each has one."""

MAX_READ_BYTES = 256 * 1024
"""What the buffer of a busy connection grows to, and shrinks back to after a frame that needed more."""


def with_headers(frames: list[bytes]) -> bytes:
    """What to write so that these frames arrive."""
    pieces: list[bytes] = []
    for frame in frames:
        size = len(frame)
        assert 0 < size <= MAX_FRAME_BYTES, f"a frame of {size} bytes cannot be sent"
        pieces.append(HEADER.pack(size))
        pieces.append(frame)
    return b"".join(pieces)


class Inbound:
    """One connection's incoming bytes, until they are complete frames.

    `buffer[start:end]` has arrived and is not taken yet; there is always room behind it. The caller fills
    `room()`, says how much it filled with `received()`, and then takes what is there.
    """

    __slots__ = ("_buffer", "_end", "_start", "_view", "farewell", "limit_bytes")

    def __init__(self) -> None:
        self._buffer = bytearray(FIRST_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self.limit_bytes = MAX_HANDSHAKE_BYTES
        """The longest frame allowed now; raised once the other end is known."""
        self.farewell: Rejected | None = None
        """Why the other end closes the connection; nothing follows it."""

    @property
    def pending_bytes(self) -> int:
        """What has arrived of a frame that is not complete."""
        return self._end - self._start

    def room(self) -> memoryview:
        """Where the next bytes go."""
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """So many bytes were written into `room()`."""
        self._end += count

    def take_preamble(self) -> bool:
        """Whether the other end's preamble is complete, and then takes it.

        Raises ProtocolError at the first byte that does not fit.
        """
        if not is_whole_preamble(bytes(self._view[self._start : self._end][:16])):
            return False
        self._consume(self._start + len(PREAMBLE))
        return True

    def take_frames(self, at_most: int = -1) -> list[bytes]:
        """All complete frames (or the first few), in order.

        Raises ProtocolError, after which nothing more can be taken.
        """
        start, end, buffer, view, limit = self._start, self._end, self._buffer, self._view, self.limit_bytes
        unpack = HEADER.unpack_from
        frames: list[bytes] = []
        while end - start >= 4 and len(frames) != at_most:
            (size,) = unpack(buffer, start)
            if not 0 < size <= limit:
                start = self._take_farewell(start, size)
                break
            stop = start + 4 + size
            if stop > end:
                break
            frames.append(bytes(view[start + 4 : stop]))
            start = stop
        self._consume(start)
        return frames

    def _take_farewell(self, start: int, header: int) -> int:
        """The place behind it, or `start` while it is incomplete."""
        size = header & ~FAREWELL
        if not header & FAREWELL or not 0 < size <= MAX_HANDSHAKE_BYTES:
            raise ProtocolError(f"it sent a frame of {header} bytes", f"1 to {self.limit_bytes}")
        stop = start + 4 + size
        if stop > self._end:
            return start
        self.farewell = decode_farewell(bytes(self._view[start + 4 : stop]))
        return stop

    def _consume(self, start: int) -> None:
        """All before `start` was taken. Ensures room for what comes next."""
        size = len(self._buffer)
        self._start = start
        if start == self._end:
            self._start = self._end = 0
            if size > MAX_READ_BYTES:
                self._move(MAX_READ_BYTES)
        elif self._end == size:
            # Full: either a busy connection that deserves a larger buffer, or a frame that needs one. It
            # grows with what has arrived, never with what was announced.
            crowded = size < MAX_READ_BYTES or self.pending_bytes > size // 2
            self._move(2 * size if crowded else size)

    def _move(self, size: int) -> None:
        """What is pending begins a buffer of this size."""
        pending = self._view[self._start : self._end]
        if size != len(self._buffer):
            self._buffer = bytearray(size)
            self._view = memoryview(self._buffer)
        self._view[: len(pending)] = pending
        self._start, self._end = 0, len(pending)
