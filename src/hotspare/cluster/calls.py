"""What a client and its home node say to each other, after the handshake.

A client is an origin of its own: it registers, numbers its commands and sends each until it is answered,
through this home node or the next one. Everything else is a call with one answer.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from hotspare.commands import RawGroup


class EnrolClient(msgspec.Struct, array_like=True, frozen=True, tag="enrol"):
    nonce: bytes


class Submit(msgspec.Struct, array_like=True, frozen=True, tag="submit"):
    groups: list[RawGroup]
    """All of one origin."""
    proof: bytes = b""
    """The nonce of its registration: for a home that it was not registered through."""


class Call(msgspec.Struct, array_like=True, frozen=True, tag="call"):
    context: int
    verb: str
    arguments: dict[str, Any]
    timeout_ms: int


FromClient: TypeAlias = EnrolClient | Submit | Call


class Enrolled(msgspec.Struct, array_like=True, frozen=True, tag="enrolled"):
    nonce: bytes
    origin: int
    cluster_ms: int


class Answers(msgspec.Struct, array_like=True, frozen=True, tag="answers"):
    origin: int
    first: int
    results: list[int]
    cluster_ms: int
    index: int = 0
    """Up to where the home shows the log, these results included."""


class Unregistered(msgspec.Struct, array_like=True, frozen=True, tag="unregistered"):
    origin: int


class Unwritable(msgspec.Struct, array_like=True, frozen=True, tag="unwritable"):
    """The answer to an enrolment: this node takes no writes, and why."""

    reason: str


class Return(msgspec.Struct, array_like=True, frozen=True, tag="return"):
    context: int
    value: Any


class Failure(msgspec.Struct, array_like=True, frozen=True, tag="failure"):
    context: int
    error: dict[str, Any]
    """As `HotspareError.to_dict` made it."""


class Part(msgspec.Struct, array_like=True, frozen=True, tag="part"):
    """A piece of an encoded message. All pieces of one message come in a row."""

    data: bytes
    is_last: bool


ToClient: TypeAlias = Enrolled | Answers | Unregistered | Unwritable | Return | Failure | Part

PART_BYTES = 1024 * 1024
"""What is longer goes to a client in parts: frames have a limit, and a list of all ids has none."""

_encoder = msgspec.msgpack.Encoder()
_from_client = msgspec.msgpack.Decoder(FromClient)
_to_client = msgspec.msgpack.Decoder(ToClient)

encode = _encoder.encode


def frames_to_client(message: ToClient) -> list[bytes]:
    """One frame, or several that are to be sent together."""
    encoded = encode(message)
    if len(encoded) <= PART_BYTES:
        return [encoded]
    pieces = [encoded[start : start + PART_BYTES] for start in range(0, len(encoded), PART_BYTES)]
    return [encode(Part(piece, piece is pieces[-1])) for piece in pieces]


def decode_from_client(frame: bytes) -> FromClient:
    """Raises one of `errors.UNDECODABLE`."""
    message: FromClient = _from_client.decode(frame)
    return message


def decode_to_client(frame: bytes) -> ToClient:
    """Raises one of `errors.UNDECODABLE`."""
    message: ToClient = _to_client.decode(frame)
    return message
