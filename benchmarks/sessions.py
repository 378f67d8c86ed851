"""The sessions that every row stores and reads: the same on both sides, made from a fixed seed."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

SEED = 20_260_101
TTL_MS = 3_600_000
CREATED_MS = 1_790_000_000_000
ENCODED_BYTES = 200

SessionData = dict[str, Any]

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


def small_session(random: Random) -> SessionData:
    """What a web application keeps about a visitor: 200 bytes once packed as msgpack."""
    data: SessionData = {
        "user_id": "alice",
        "role": "admin",
        "csrf": f"{random.getrandbits(128):032x}",
        "created_ms": CREATED_MS,
        "cart": [1, 2, 3],
        "lang": "en",
        "note": "",
    }
    # A text of 32 to 255 bytes has one byte more of header than an empty one.
    padding_bytes = ENCODED_BYTES - len(encode(data)) - 1
    data["note"] = "".join(random.choices("abcdefghijklmnopqrstuvwxyz ", k=padding_bytes))
    return data


def small_sessions(count: int, seed: int = SEED) -> list[SessionData]:
    """`count` sessions that differ in content, not in size."""
    random = Random(seed)
    return [small_session(random) for _ in range(count)]


class FreshIds:
    """Ids never handed out before in this run: every store is an insertion, at a random place."""

    def __init__(self, seed: int = SEED) -> None:
        self._random = Random(seed)

    def take(self, count: int) -> list[str]:
        return [f"{self._random.getrandbits(128):032x}" for _ in range(count)]
