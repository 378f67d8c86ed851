"""How two ends find out that they fit together.

Both ends open with the same eight bytes, a magic and the protocol's version, without waiting for each
other: whatever else is at the other end (a web server, another version, noise) is recognised by its first
bytes and called by its name. Then the end that dialled sends a `Hello` and gets a `Welcome`; from then on
there are just frames. Where the cluster has a key, a `Challenge` and its `Proof` go between the two: see
`authentication`.

A frame is a length (u32, big-endian) and that many bytes, at least one. A length with the highest bit set
announces the last frame of a connection, a farewell: it says why the connection ends, so that nobody has to
guess. How bytes become frames is up to `framing`.
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

HEADER = struct.Struct(">I")
"""Of a frame: how long it is."""
FAREWELL = 1 << 31
"""Set in the header of the last frame of a connection."""

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
    return HEADER.pack(len(body)) + body


def encode_farewell(rejected: Rejected) -> bytes:
    """A whole farewell frame with its header: the last thing said on a connection."""
    body = _encoder.encode(rejected)
    return HEADER.pack(FAREWELL | len(body)) + body


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


def decode_farewell(body: bytes) -> Rejected:
    """Raises ProtocolError."""
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


def is_whole_preamble(start: bytes) -> bool:
    """Whether the first bytes from the other end are its preamble, all of it.

    Raises ProtocolError at the first byte that does not fit.
    """
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
    return True
