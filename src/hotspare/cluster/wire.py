"""How bytes on a connection become frames, and how two ends find out that they fit together.

Both ends open with the same eight bytes, a magic and the protocol's version, without waiting for each
other: whatever else is at the other end (a web server, another version, noise) is recognised by its first
bytes and called by its name. Then the end that dialled sends a `Hello` and gets a `Welcome`; from then on
there are just frames. Where the cluster has a key, a `Challenge` and its `Proof` go between the two: see
`authentication`.

A frame is a length (u32, big-endian) and that many bytes, at least one. A length with the highest bit set
announces the last frame of a connection, a farewell: it says why the connection ends, so that nobody has to
guess.

Nothing here does I/O. `Inbound` lends out its buffer, is told how much arrived in it, and cuts frames from
it. Every frame is copied once, out of a buffer that is used again: that measured two to five times faster
for large frames than joining the chunks which asyncio would allocate, and no slower for small ones.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from itertools import chain
from typing import Literal, TypeAlias

import msgspec

from hotspare.cluster.authentication import NONCE_BYTES, PROOF_BYTES
from hotspare.errors import UNDECODABLE, ProtocolError, fault_of

PROTOCOL_VERSION = 1
"""What a greeting consists of belongs to it: proofs are made over whole greetings."""

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Far above the largest message (a chunk of a snapshot, a full batch): longer is a mistake or an attack."""

MAX_CLIENT_FRAME_BYTES = 5 * 1024 * 1024
"""A group of one command takes less, however large its session is."""

MAX_HANDSHAKE_BYTES = 4 * 1024
"""What anyone may make a node hold before it is known who they are."""

MAX_TEXT_LENGTH = 1000
"""Of names and reasons in the handshake; the longest host name has 253 characters."""

FIRST_READ_BYTES = 16 * 1024
"""A connection's buffer to begin with: many connections are idle, and each has one."""

MAX_READ_BYTES = 256 * 1024
"""What the buffer of a busy connection grows to, and shrinks back to after a frame that needed more."""

_HEADER = struct.Struct(">I")
_FAREWELL = 1 << 31

# The first byte is neither text nor UTF-8, so that no text protocol begins like this.
_MAGIC = b"\x89HSPR\n"
_VERSION = struct.Struct(">H")
PREAMBLE = _MAGIC + _VERSION.pack(PROTOCOL_VERSION)

_TLS = (b"\x16\x03", b"\x15\x03")
"""How a handshake of TLS begins, and an alert."""


# The handshake


class Hello(msgspec.Struct, array_like=True, frozen=True, tag="hello"):
    """Who dials, and whom they think they reach."""

    kind: Literal["node", "client"]
    name: str = ""
    incarnation: str = ""
    cluster_id: str = ""
    address: str = ""
    """Where to dial back; empty for clients."""
    role: str = ""
    expected: str = ""
    """The name of the node that was dialled, when it is known: an address may lead elsewhere by now."""
    authentication: bytes = b""
    """A nonce from whoever has a key; empty otherwise."""


class Challenge(msgspec.Struct, array_like=True, frozen=True, tag="challenge"):
    """The first answer to whoever has a key."""

    nonce: bytes


class Proof(msgspec.Struct, array_like=True, frozen=True, tag="proof"):
    """The answer to a challenge."""

    code: bytes


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag="welcome"):
    """Who answers."""

    name: str
    incarnation: str
    cluster_id: str = ""
    address: str = ""
    primary: str = ""
    """The name of the primary as far as this node knows; empty otherwise."""
    authentication: bytes = b""
    """The proof of this end, made over all else that was said; empty without a key."""


class RejectionCode(StrEnum):
    OTHER_CLUSTER = "other cluster"
    VERSION = "version"
    AUTHENTICATION = "authentication"
    UNEXPECTED_NAME = "unexpected name"
    NOT_LOOPBACK = "not loopback"
    BUSY = "busy"
    SHUTTING_DOWN = "shutting down"
    PRESENT = "present"
    """A node of that name, or this very incarnation, is there already."""


class Rejected(msgspec.Struct, array_like=True, frozen=True, tag="rejected"):
    """Why a connection ends: the answer to a `Hello`, or the farewell of one that was open."""

    code: str
    """A `RejectionCode`, or one of a later version."""
    reason: str
    """A sentence for people, without a full stop."""
    cluster_id: str = ""
    """With OTHER_CLUSTER: which it is, and those that it came from by forced promotions."""
    ancestors: tuple[str, ...] = ()


def is_passing(rejected: Rejected) -> bool:
    """Whether the same connection may well be accepted a little later."""
    return rejected.code in (RejectionCode.BUSY, RejectionCode.SHUTTING_DOWN)


_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_answer_decoder = msgspec.msgpack.Decoder(Welcome | Challenge)
_proof_decoder = msgspec.msgpack.Decoder(Proof)
_rejected_decoder = msgspec.msgpack.Decoder(Rejected)


Greeting: TypeAlias = Hello | Challenge | Proof | Welcome


def encode_body(greeting: Greeting) -> bytes:
    """A frame without its header."""
    return _encoder.encode(greeting)


def encode_greeting(greeting: Greeting) -> bytes:
    """A whole frame with its header."""
    body = encode_body(greeting)
    return _HEADER.pack(len(body)) + body


def encode_farewell(rejected: Rejected) -> bytes:
    """A whole farewell frame with its header: the last thing said on a connection."""
    body = _encoder.encode(rejected)
    return _HEADER.pack(_FAREWELL | len(body)) + body


def decode_hello(frame: bytes) -> Hello:
    """Raises ProtocolError."""
    try:
        hello = _hello_decoder.decode(frame)
    except UNDECODABLE as exc:
        raise ProtocolError(f"its first frame is no greeting ({fault_of(exc)})", "a Hello") from None
    if hello.kind == "node" and not (hello.name and hello.incarnation):
        raise ProtocolError("it does not say who it is", "a node's name and incarnation")
    _check_texts(hello)
    if hello.authentication:
        _check_size(hello.authentication, NONCE_BYTES)
    return hello


def decode_answer(frame: bytes) -> Welcome | Challenge:
    """Raises ProtocolError."""
    try:
        answer: Welcome | Challenge = _answer_decoder.decode(frame)
    except UNDECODABLE as exc:
        raise ProtocolError(
            f"its answer to our greeting is malformed ({fault_of(exc)})", "a Welcome"
        ) from None
    if isinstance(answer, Challenge):
        _check_size(answer.nonce, NONCE_BYTES)
    else:
        _check_texts(answer)
    return answer


def decode_proof(frame: bytes) -> Proof:
    """Raises ProtocolError."""
    try:
        proof = _proof_decoder.decode(frame)
    except UNDECODABLE as exc:
        raise ProtocolError(
            f"its answer to our challenge is malformed ({fault_of(exc)})", "a proof"
        ) from None
    _check_size(proof.code, PROOF_BYTES)
    return proof


def _check_size(given: bytes, expected: int) -> None:
    if len(given) != expected:
        raise ProtocolError(f"it authenticates itself with {len(given)} bytes", f"{expected}")


def _decode_farewell(body: bytes) -> Rejected:
    try:
        rejected = _rejected_decoder.decode(body)
    except UNDECODABLE as exc:
        raise ProtocolError(f"its farewell is malformed ({fault_of(exc)})", "a reason") from None
    _check_texts(rejected)
    return rejected


def _check_texts(said: Hello | Welcome | Rejected) -> None:
    """They end up in logs and on terminals: nothing in them may begin a line or move a cursor."""
    values = msgspec.structs.astuple(said)
    for text in chain(values, *(value for value in values if isinstance(value, tuple))):
        if isinstance(text, str) and not (text.isprintable() and len(text) <= MAX_TEXT_LENGTH):
            raise ProtocolError(f"it said {text!r:.40}", f"at most {MAX_TEXT_LENGTH} printable characters")


# Frames


def with_headers(frames: list[bytes]) -> bytes:
    """What to write so that these frames arrive."""
    pieces: list[bytes] = []
    for frame in frames:
        size = len(frame)
        assert 0 < size <= MAX_FRAME_BYTES, f"a frame of {size} bytes cannot be sent"
        pieces.append(_HEADER.pack(size))
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
        start = bytes(self._view[self._start : self._end][:16])
        if start.startswith(_TLS):
            raise ProtocolError("it speaks TLS and this end does not", "tls_cert, tls_key and tls_ca at both")
        if not start.startswith(_MAGIC[: len(start)]):
            raise ProtocolError(f"it is not hotspare, it said {start!r}", "a hotspare node or client")
        if len(start) < len(PREAMBLE):
            return False
        (version,) = _VERSION.unpack_from(start, len(_MAGIC))
        if version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"it speaks protocol {version} and this end speaks {PROTOCOL_VERSION}",
                f"protocol {PROTOCOL_VERSION}: upgrade {'this end' if version > PROTOCOL_VERSION else 'it'}",
            )
        self._consume(self._start + len(PREAMBLE))
        return True

    def take_frames(self, at_most: int = -1) -> list[bytes]:
        """All complete frames (or the first few), in order.

        Raises ProtocolError, after which nothing more can be taken.
        """
        start, end, buffer, view, limit = self._start, self._end, self._buffer, self._view, self.limit_bytes
        unpack = _HEADER.unpack_from
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
        size = header & ~_FAREWELL
        if not header & _FAREWELL or not 0 < size <= MAX_HANDSHAKE_BYTES:
            raise ProtocolError(f"it sent a frame of {header} bytes", f"1 to {self.limit_bytes}")
        stop = start + 4 + size
        if stop > self._end:
            return start
        self.farewell = _decode_farewell(bytes(self._view[start + 4 : stop]))
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
