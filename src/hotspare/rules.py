"""The rules for the id and the TTL of a session."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from hotspare.errors import InvalidSession

MAX_ID_BYTES: Final = 255
"""In UTF-8. Ids are keys of the store, and LMDB's keys end at 511 bytes."""

MAX_TTL_MS: Final = 100 * 366 * 24 * 3600 * 1000
"""A hundred years: far enough for "never", and no sum of times leaves 64 bits."""


def check_id(id: object) -> bytes:
    """The UTF-8 bytes of a valid id: the key of the session in every store.

    Raises `InvalidSession`, which never holds the id.
    """
    if type(id) is str:
        try:
            key = id.encode()
        except UnicodeEncodeError:
            raise InvalidSession("id", "it has a lone surrogate, which UTF-8 cannot express") from None
        if 0 < len(key) <= MAX_ID_BYTES:
            return key
        if not key:
            raise InvalidSession("id", f"it is empty; 1 to {MAX_ID_BYTES} bytes of UTF-8 are allowed")
        raise InvalidSession(
            "id", f"it takes {len(key)} bytes of UTF-8, and at most {MAX_ID_BYTES} are allowed"
        )
    raise InvalidSession("id", f"it must be exactly a str, and is of type {type(id).__name__}")


def check_ttl_ms(ttl: object) -> int:
    """A valid time to live in milliseconds, 1 to `MAX_TTL_MS`; of a timedelta, whole milliseconds count.

    Raises `InvalidSession`.
    """
    if type(ttl) is timedelta:
        ttl_ms = ttl // timedelta(milliseconds=1)
    elif type(ttl) is int:
        ttl_ms = ttl
    else:
        kind = type(ttl).__name__
        raise InvalidSession(
            "ttl_ms", f"it must be an int (milliseconds) or a timedelta, and is of type {kind}"
        )
    if 0 < ttl_ms <= MAX_TTL_MS:
        return ttl_ms
    if ttl_ms > MAX_TTL_MS:
        raise InvalidSession("ttl_ms", f"it is longer than a hundred years ({MAX_TTL_MS} ms)")
    raise InvalidSession("ttl_ms", "it must be at least 1 ms; to end a session, delete it")
