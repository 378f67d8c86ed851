"""A session's record: what the stores keep of it.

One immutable `bytes`, a fixed header before the encoded data:

    0   expires_at_ms  u64     first, so that a touch replaces a prefix
    8   version        u64
    16  checksum       u32     of format, flags, data and id: it outlives a touch
    20  format, flags  u4, u4

What writes a session may compress its data, and then encrypt it; flags say so. Nodes store and replicate what
comes of that as it is.

**The digest** of a table is the sum of its records' `digest_term`s modulo 2**64, kept up to date by adding
and subtracting. A CRC would be a bad term: crc(a ^ d) ^ crc(a) depends on d alone, so the same change made to
two records cancels under XOR, and often enough in a sum. A term is the *square* of the header's CRC:
different CRCs have different squares, and what a change adds depends on everything else in that header.
Tables that differ have equal digests about once in 2**32 times: fit to find defects, not to stop a forger.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, Protocol
from zlib import crc32

from hotspare.data import MAX_DATA_BYTES, decode_data, decode_unguarded
from hotspare.errors import ConfigError, Undecryptable, corrupt
from hotspare.rules import check_id

__all__ = [
    "COMPRESSED",
    "ENCRYPTED",
    "HEADER_BYTES",
    "RECORD_FORMAT",
    "Cipher",
    "data_checksum",
    "decode_record",
    "decrypt_record",
    "digest_term",
    "maybe_compress",
    "pack_header",
    "pack_record",
    "read_session",
    "record_checksum",
    "record_data",
    "record_expires_at_ms",
    "record_flags",
    "record_version",
    "unpack_expiry",
    "verify_record",
    "with_expiry",
]

COMPRESSED: Final = 1
"""Flag of a record whose data is a zstd frame, made by its origin."""

ENCRYPTED: Final = 2
"""Flag of a record whose data was encrypted, after compression, by its origin."""

_HEADER: Final = Struct(">QQIB")
_U64: Final = Struct(">Q")
_U32: Final = Struct(">I")

HEADER_BYTES: Final = _HEADER.size

_FORMAT: Final = 1 << 4
_FLAGS_AT: Final = HEADER_BYTES - 1
_PLAIN_FORMAT: Final = bytes([_FORMAT])
_FLAGS_MASK: Final = 0x0F
_BEGUN_WITH: Final = [crc32(bytes([_FORMAT | flags])) for flags in range(_FLAGS_MASK + 1)]
"""The CRC-32 of the byte with these flags."""


def pack_record(version: int, expires_at_ms: int, flags: int, checksum: int, data: bytes) -> bytes:
    """One record; `checksum` is the `data_checksum` of the session's id, `data` and `flags`."""
    return _HEADER.pack(expires_at_ms, version, checksum, _FORMAT | flags) + data


pack_header: Final = _HEADER.pack
"""The beginning of a record, of (expires_at_ms, version, checksum, `RECORD_FORMAT` | flags): for those who
cannot afford a call more."""

RECORD_FORMAT: Final = _FORMAT


def data_checksum(id: bytes, data: bytes, flags: int) -> int:
    """A CRC-32 of the record from its last byte of header on, and of the id it belongs to.

    Data comes before the id: it tells its own length, so that no two pairs make the same bytes.
    """
    return crc32(id, crc32(data, _BEGUN_WITH[flags]))


def record_version(record: bytes) -> int:
    version: int = _U64.unpack_from(record, 8)[0]
    return version


unpack_expiry: Final = _U64.unpack_from
"""`(expires_at_ms,)` of a record: for those who cannot afford a call more."""


def record_expires_at_ms(record: bytes) -> int:
    expires_at_ms: int = _U64.unpack_from(record)[0]
    return expires_at_ms


def record_checksum(record: bytes) -> int:
    checksum: int = _U32.unpack_from(record, 16)[0]
    return checksum


def record_flags(record: bytes) -> int:
    return record[_FLAGS_AT] & _FLAGS_MASK


def record_data(record: bytes) -> bytes:
    """The data as stored, which may be compressed. A copy: up to some kilobytes it is cheaper than a view."""
    return record[HEADER_BYTES:]


def with_expiry(record: bytes, expires_at_ms: int) -> bytes:
    """The same record, expiring at another time; version, checksum and data stay."""
    return _U64.pack(expires_at_ms) + record[8:]


class Cipher(Protocol):
    """Encrypts data for one id where it is written, and decrypts it where it is read. `flags`: a record's."""

    def encrypt(self, id: bytes, flags: int, data: bytes) -> tuple[int, bytes]: ...

    def decrypt(self, id: bytes, flags: int, data: bytes) -> tuple[int, bytes]:
        """Raises `Undecryptable`, also for data that is not encrypted and should be."""


def read_session(
    read: Callable[[bytes], bytes | None], id: str, cipher: Cipher | None
) -> dict[str, Any] | None:
    """The data of the record that `read` finds under this id: a whole local read in one compiled call.

    Raises as `check_id`, `read` and `decode_record`.
    """
    key = check_id(id)
    record = read(key)
    return None if record is None else decode_record(record, key, cipher)


def decode_record(record: bytes, id: bytes = b"", cipher: Cipher | None = None) -> dict[str, Any]:
    """The data of the record stored under `id`, decrypted, decompressed and decoded.

    Raises `StoreCorrupt` or `Undecryptable`.
    """
    if cipher is None and record[_FLAGS_AT : _FLAGS_AT + 1] == _PLAIN_FORMAT:
        try:
            data: dict[str, Any] = decode_unguarded(record[HEADER_BYTES:])
        except Exception:
            return decode_data(record[HEADER_BYTES:])  # which says what is wrong
        return data
    flags, encoded = decrypt_record(record, id, cipher)
    return decode_data(_decompress(encoded) if flags & COMPRESSED else encoded)


def decrypt_record(record: bytes, id: bytes, cipher: Cipher | None) -> tuple[int, bytes]:
    """Its flags and data as they were before they were encrypted. Raises as `decode_record`."""
    _check_format(record)
    flags, data = record_flags(record), record_data(record)
    if cipher is not None:
        return cipher.decrypt(id, flags, data)
    if flags & ENCRYPTED:
        raise Undecryptable("it is encrypted, and this process has no key: set encryption_keys")
    return flags, data


def verify_record(id: bytes, record: bytes) -> None:
    """Raises `StoreCorrupt` unless `record` is whole and belongs to `id`."""
    _check_format(record)
    if data_checksum(id, record_data(record), record_flags(record)) != record_checksum(record):
        raise corrupt("a session's record does not match its checksum")


def digest_term(record: bytes) -> int:
    """What a record adds to its table's digest: below 2**64, from the header alone, equal everywhere."""
    crc = crc32(record[:HEADER_BYTES])
    return crc * crc


def _check_format(record: bytes) -> None:
    if len(record) <= HEADER_BYTES:
        raise corrupt(f"a session's record has {len(record)} bytes, fewer than any record")
    if record[_FLAGS_AT] & ~(COMPRESSED | ENCRYPTED) != _FORMAT:
        raise corrupt(
            f"a session's record has the format {record[_FLAGS_AT]:#04x}, which this version does not know"
        )


# Compression: by origins only. What is applied on every node must not depend on the version of a library.


def maybe_compress(data: bytes, threshold_bytes: int) -> tuple[int, bytes]:
    """The record's flags, and `data` as a zstd frame where it is large enough and shrinks; else as it is.

    Raises `ConfigError` if compression would be worth trying and is not installed.
    """
    if not threshold_bytes <= len(data) <= MAX_DATA_BYTES:
        return 0, data
    compressed: bytes = _zstandard().ZstdCompressor().compress(data)
    return (COMPRESSED, compressed) if len(compressed) < len(data) else (0, data)


def _decompress(compressed: bytes) -> bytes:
    zstandard = _zstandard()
    try:
        size_bytes = zstandard.frame_content_size(compressed)
        if not 0 <= size_bytes <= MAX_DATA_BYTES:
            raise corrupt(f"a session's compressed data claims a size of {size_bytes} bytes")
        data: bytes = zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise corrupt(f"a session's data does not decompress ({exc})") from exc
    return data


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(
            "enable_compression",
            "the package zstandard is missing",
            "pip install 'hotspare[compression]' on every node",
        ) from None
    return zstandard
