"""What callers bring, as commands: checked, encoded, compressed and encrypted here, at the origin.

Nodes keep, send and apply what comes out of it as it is. For those who store a hundred thousand sessions at
once, this is half of the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hotspare.commands import UNCONDITIONAL, Command, Put
from hotspare.data import encode_data
from hotspare.errors import InvalidSession
from hotspare.record import Cipher, data_checksum, maybe_compress
from hotspare.rules import check_id, check_ttl_ms

MAX_SLICE_BYTES: Final = 128 * 1024
COMPRESS_ABOVE_BYTES: Final = 1024
UNSET_DEADLINE: Final = 0
"""The deadline is set as a command leaves, in cluster time."""


class Encoder:
    def __init__(
        self, limit_bytes: int, default_ttl_ms: int | None, compresses: bool, cipher: Cipher | None
    ) -> None:
        self._limit_bytes = limit_bytes
        self._default_ttl_ms = default_ttl_ms
        self._compresses = compresses
        self._cipher = cipher

    def put(self, id: object, data: Mapping[str, Any], ttl: object, condition: int) -> Put:
        """Stores `data` for `ttl` (milliseconds, a timedelta, None: the default). Raises InvalidSession,
        SessionTooLarge, ConfigError."""
        if ttl is None:
            ttl = self._default_ttl_ms
            if ttl is None:
                raise InvalidSession(
                    "ttl_ms", "none was given, and the setting default_ttl_ms has none either"
                )
        return self.encoded_put(id, data, check_ttl_ms(ttl), condition)

    def encoded_put(self, id: object, data: Mapping[str, Any], ttl_ms: int, condition: int) -> Put:
        """As `put`, with a TTL that was checked, or KEEP_EXPIRY_MS."""
        key = check_id(id)
        flags = 0
        encoded = encode_data(data, self._limit_bytes)
        if self._compresses:
            flags, encoded = maybe_compress(encoded, COMPRESS_ABOVE_BYTES)
        if self._cipher is not None:
            flags, encoded = self._cipher.encrypt(key, flags, encoded)
        return Put(key, encoded, flags, data_checksum(key, encoded, flags), ttl_ms, UNSET_DEADLINE, condition)

    def slices(self, items: Sequence[object]) -> Iterator[list[Command]]:
        """The puts of (id, data, ttl) or (id, data) each, in parts of `MAX_SLICE_BYTES` at most.

        One part after the other, so that not all of them are in memory together.
        """
        commands: list[Command] = []
        size_bytes = 0
        for item in items:
            put = self._put_item(item)
            size_bytes += len(put.data)
            if size_bytes > MAX_SLICE_BYTES and commands:
                yield commands
                commands, size_bytes = [], len(put.data)
            commands.append(put)
        yield commands

    def _put_item(self, item: object) -> Put:
        if isinstance(item, (tuple, list)):
            if len(item) == 3:
                return self.put(item[0], item[1], item[2], UNCONDITIONAL)
            if len(item) == 2:
                return self.put(item[0], item[1], None, UNCONDITIONAL)
        raise InvalidSession("item", "store_sessions takes (id, data, ttl_ms) or (id, data)")
