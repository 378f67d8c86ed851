"""How a good frame becomes a bad one.

Bytes that are merely damaged are refused by the first decoder. So most mutations take the frame for what it
is, MessagePack, and change what it means: numbers at the edges of their fields, parts left out, doubled or
exchanged with others, texts and bytes of odd sizes. What comes out often decodes, and has to be refused by
those who know what it means.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

EDGES = (0, 1, 2, 15, 16, 255, 256, 2**16, 2**31, 2**32 - 1, 2**53, 2**62, 2**62 + 1, 2**63 - 1, 2**64 - 1)
TEXTS = ("", "a", "n1", "\x1b[2J", "x" * 5000, "call", "append", "\N{SNOWMAN}")


def mutate(rng: Random, frame: bytes) -> bytes:
    """Another frame. The good one stays as it is."""
    if rng.random() < 0.25:
        return damage(rng, frame)
    try:
        value = msgspec.msgpack.decode(frame)
    except (ValueError, RecursionError):
        return damage(rng, frame)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        value = _change(rng, value)
    return msgspec.msgpack.encode(value)


def damage(rng: Random, frame: bytes) -> bytes:
    """Bytes changed, cut out, put in, and nothing known about what they mean."""
    damaged = bytearray(frame)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(damaged) + 1)
        match rng.randrange(4):
            case 0 if at < len(damaged):
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                damaged[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case 2:
                del damaged[at : at + rng.choice((1, 4, 64))]
            case _:
                del damaged[at:]
    return bytes(damaged)


def _change(rng: Random, value: Any) -> Any:
    """The same with something in it changed, however deep; mostly it stays of its type."""
    if rng.random() < 0.05:
        return _anything(rng)
    match value:
        case list() if value:
            return _change_list(rng, list(value))
        case dict() if value:
            key = rng.choice(list(value))
            return value | {key: _change(rng, value[key])}
        case bytes():
            return _change_bytes(rng, value)
        case bool():
            return not value
        case int() if rng.random() < 0.7:
            return min(max(value + rng.choice((-2, -1, 1, 2, 100)), -(2**63)), 2**64 - 1)
        case int():
            return rng.choice(EDGES)
        case str():
            return rng.choice(TEXTS)
    return _anything(rng)


def _change_list(rng: Random, values: list[Any]) -> list[Any]:
    at = rng.randrange(len(values))
    match rng.randrange(10):
        case 0:
            del values[at]
        case 1:
            values.insert(at, values[at])
        case 2:
            other = rng.randrange(len(values))
            values[at], values[other] = values[other], values[at]
        case _:
            values[at] = _change(rng, values[at])
    return values


def _change_bytes(rng: Random, value: bytes) -> bytes:
    """Payloads are frames within frames."""
    try:
        return msgspec.msgpack.encode(_change(rng, msgspec.msgpack.decode(value)))
    except (ValueError, RecursionError):
        return damage(rng, value)


def _anything(rng: Random) -> Any:
    match rng.randrange(7):
        case 0:
            return rng.choice(EDGES)
        case 1:
            return -rng.choice(EDGES[:-1])
        case 2:
            return rng.choice(TEXTS)
        case 3:
            return rng.randbytes(rng.choice((0, 1, 16, 300)))
        case 4:
            return []
        case 5:
            return rng.choice((None, True, False, 1.5))
        case _:
            return [_anything(rng) for _ in range(rng.randrange(4))]
