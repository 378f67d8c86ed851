"""What a session is: the rules for ids, TTLs and data, and its two encodings, as data and as a record.

**Data** travels as MessagePack. What `get_session` returns must be what was stored, down to the types, or
the call that stores it must say no. A serializer alone does not give that: msgspec turns UUID, Decimal and
naive datetime into str, forgets the UTC offset of aware ones, and makes lists of sets. So data is walked
before it is encoded: exact types only, and what MessagePack lacks goes into extension types of ours. The walk
looks at containers, not at values: one set operation in C tells that all values of a container are plain.
A usual flat session is thus checked faster than it is decoded, and only containers that hold something
special are rebuilt.

These survive unchanged: None, bool, int (of 64 bits: -2**63 to 2**64 - 1), float, str, bytes, list, dict with
str keys, datetime, date, UUID and Decimal; a tuple comes back as a list. A datetime may be naive or have a
`timezone` or a `ZoneInfo`, and keeps its fold, its UTC offset and its zone with its name. A reader without
that zone, or with other rules for it, gets the same moment at the same offset, in a fixed `timezone`.

**A record** is what the stores keep: one immutable `bytes`, a fixed header before the encoded data.

    0   expires_at_ms  u64     first, so that a touch replaces a prefix
    8   version        u64
    16  checksum       u32     of data and id: it outlives a touch
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

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from enum import Enum
from functools import lru_cache
from struct import Struct
from types import NoneType
from typing import Any, Final, NoReturn, Protocol
from uuid import UUID
from zlib import crc32
from zoneinfo import ZoneInfo

import msgspec
from msgspec.msgpack import Ext

from hotspare.errors import ConfigError, InvalidSession, SessionTooLarge, StoreCorrupt, Undecryptable

__all__ = [
    "COMPRESSED",
    "ENCRYPTED",
    "HEADER_BYTES",
    "MAX_DATA_BYTES",
    "MAX_DEPTH",
    "MAX_ID_BYTES",
    "MAX_TTL_MS",
    "Cipher",
    "Session",
    "check_field_names",
    "check_id",
    "check_ttl_ms",
    "data_checksum",
    "decode_data",
    "decode_record",
    "decrypt_record",
    "digest_term",
    "encode_data",
    "encode_fields",
    "maybe_compress",
    "pack_record",
    "record_checksum",
    "record_data",
    "record_expires_at_ms",
    "record_flags",
    "record_version",
    "splice",
    "verify_record",
    "with_expiry",
]

MAX_ID_BYTES: Final = 255
"""In UTF-8. Ids are keys of the store, and LMDB's keys end at 511 bytes."""

MAX_TTL_MS: Final = 100 * 366 * 24 * 3600 * 1000
"""A hundred years: far enough for "never", and no sum of times leaves 64 bits."""

MAX_DEPTH: Final = 64
"""How many containers deep data may be, itself included. It ends cycles too."""

MAX_DATA_BYTES: Final = 2**20
"""The largest `max_session_size_bytes` there is: what decompresses to more is hostile or broken."""


class Session(msgspec.Struct, frozen=True):
    """A session as it was read. Changing `data` changes nothing until it is stored."""

    id: str
    data: dict[str, Any]
    version: int
    """Unique within a cluster, and only ever grows; otherwise opaque."""
    expires_at_ms: int
    """UNIX time in cluster time."""


# Ids and TTLs


def check_id(id: str) -> bytes:
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


def check_ttl_ms(ttl: int | timedelta) -> int:
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


# Data, encoded


def encode_data(data: Mapping[str, Any], limit_bytes: int) -> bytes:
    """`data` as MessagePack. Any mapping is taken as a dict; inside it, exact types only.

    Raises `InvalidSession` with the place of what cannot be kept, and `SessionTooLarge` above `limit_bytes`.
    """
    try:
        encoded = _encode(_checked("data", data, limit_bytes))
    except (UnicodeEncodeError, OverflowError):
        raise _unencodable("data", data, limit_bytes) from None
    if len(encoded) > limit_bytes:
        raise SessionTooLarge(len(encoded), limit_bytes)
    return encoded


def decode_data(encoded: bytes | memoryview) -> dict[str, Any]:
    """What `encode_data` encoded, as a fresh dict. Raises `StoreCorrupt` for anything else."""
    try:
        return _decode(encoded)
    # Of bytes that we did not write, a decoder may say anything, even RecursionError: the bytes are at fault.
    except Exception as exc:
        raise _corrupt(f"a session's data does not decode ({_fault(exc)})") from None


def _fault(exc: Exception) -> str:
    """What a decoder found, without the data that some exceptions quote."""
    return str(exc) if type(exc) in (msgspec.DecodeError, msgspec.ValidationError) else type(exc).__name__


def encode_fields(changes: Mapping[str, Any], limit_bytes: int) -> list[tuple[str, bytes]]:
    """Top-level fields and their encoded values, for `splice` to set, under the rules of `encode_data`."""
    try:
        fields = [(key, _encode(value)) for key, value in _checked("changes", changes, limit_bytes).items()]
        size_bytes = sum(len(key.encode()) + len(value) for key, value in fields)
    except (UnicodeEncodeError, OverflowError):
        raise _unencodable("changes", changes, limit_bytes) from None
    if size_bytes > limit_bytes:
        raise SessionTooLarge(size_bytes, limit_bytes)
    return fields


def check_field_names(names: Iterable[str]) -> list[str]:
    """The names of top-level fields to remove: no more than could be there. Raises `InvalidSession`."""
    if isinstance(names, str | bytes):
        raise InvalidSession("remove", "it must be a collection of field names, and is a single one")
    checked = list(names)
    for name in checked:
        if type(name) is not str:
            kind = type(name).__name__
            raise InvalidSession("remove", f"field names must be exactly str, and one is of type {kind}")
        try:
            _encodable_str(name)
        except _Refused as refused:
            raise refused.explain("remove") from None
    if sum(len(name.encode()) + 1 for name in checked) > MAX_DATA_BYTES:
        raise InvalidSession("remove", f"the names take more than {MAX_DATA_BYTES} bytes, as in no session")
    return checked


def splice(data: bytes, set: Iterable[tuple[str, bytes]], remove: Iterable[str]) -> bytes:
    """Encoded `data` without the fields `remove`, then with the fields `set`.

    As in a dict, a field that was there keeps its place and a new one goes to the end. Raises `StoreCorrupt`
    if `data` is no encoded mapping.

    Every node must get the same bytes, whichever msgspec it has. Values are carried, neither decoded nor
    encoded. What is written anew are the lengths of the mapping and of its keys, always in the shortest form,
    as MessagePack asks for; a test pins that.
    """
    _check_depth(data)
    try:
        fields = _split(data)
    except Exception as exc:
        raise _corrupt(f"a session's data cannot be patched ({_fault(exc)})") from None
    for key in remove:
        fields.pop(key, None)
    for key, value in set:
        fields[key] = msgspec.Raw(value)
    return _encode(fields)


_CONTAINERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""The first bytes of arrays and mappings in MessagePack."""


_SPLITTABLE_DEPTH: Final = 256
"""Far beyond `MAX_DEPTH`, so that data with long lists is hardly ever walked through, and far below every
limit of the decoder's."""


def _check_depth(data: bytes) -> None:
    """Raises `StoreCorrupt` for containers deeper than any that a checked walk has let pass.

    The decoder has a limit too, but that depends on how deep the stack is at the moment: what one node takes
    for a mapping, the next one might not.
    """
    if len(data) - len(data.translate(None, _CONTAINERS)) > _SPLITTABLE_DEPTH and _is_too_deep(data):
        raise _corrupt(f"a session's data is more than {_SPLITTABLE_DEPTH} containers deep")


def _is_too_deep(data: bytes) -> bool:
    left = [1]  # of each open container, how many values are still to come
    at = 0
    while left and at < len(data):
        left[-1] -= 1
        count, at = _enter(data, data[at], at + 1)
        if count:
            left.append(count)
            if len(left) - 1 > _SPLITTABLE_DEPTH:
                return True
        while left and not left[-1]:
            left.pop()
    return False


def _enter(data: bytes, first: int, at: int) -> tuple[int, int]:
    """How many values the container that begins with the byte `first` holds (0: it is none), and where the
    next value begins."""
    if first < 0x80 or first >= 0xE0:
        return 0, at
    if first < 0x90:
        return 2 * (first & 0x0F), at
    if first < 0xA0:
        return first & 0x0F, at
    if first < 0xC0:
        return 0, at + (first & 0x1F)
    length_bytes, extra_bytes = _LENGTHS[first - 0xC0]
    length = int.from_bytes(data[at : at + length_bytes], "big")
    at += length_bytes
    if first >= 0xDC:
        return length * (2 if first >= 0xDE else 1), at
    return 0, at + length + extra_bytes


_LENGTHS: Final = (
    *((0, 0),) * 4,  # nil, unused, false, true
    *((1, 0), (2, 0), (4, 0)),  # bin
    *((1, 1), (2, 1), (4, 1)),  # ext, with its type
    *((0, 4), (0, 8)),  # float
    *((0, 1), (0, 2), (0, 4), (0, 8)) * 2,  # integers
    *((0, 2), (0, 3), (0, 5), (0, 9), (0, 17)),  # ext of a fixed size, with its type
    *((1, 0), (2, 0), (4, 0)),  # str
    *((2, 0), (4, 0)) * 2,  # array, map
)
"""By first byte, from 0xC0 on: the bytes that tell a length, and how many follow beside what that counts."""


# The checked walk

_PLAIN: Final = frozenset({NoneType, bool, int, float, str, bytes})
"""What msgspec carries unchanged or, for integers too large and strings with lone surrogates, refuses."""

_ALWAYS_ENCODABLE: Final = frozenset({NoneType, bool, float, bytes})

# Of an iterable of types.
_are_plain = _PLAIN.issuperset
_are_str = frozenset({str}).issuperset


class _Refused(Exception):
    """A value that cannot be kept. On the way up, each container adds the step that led into it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.steps: list[str | int] = []

    def explain(self, what: str) -> InvalidSession:
        return InvalidSession(what, self.reason, _path(what, self.steps[::-1]) if self.steps else "")


def _path(what: str, steps: list[str | int]) -> str:
    shown = [f"[{step}]" if type(step) is int else f"[{step!r:.40}]" for step in steps[:8]]
    return what + "".join(shown) + ("…" if len(steps) > len(shown) else "")


def _checked(what: str, data: Mapping[str, Any], limit_bytes: int) -> dict[str, Any]:
    """`data` with nothing in it that msgspec would alter."""
    plain = data if type(data) is dict else _as_dict(what, data)
    if _are_plain(map(type, plain.values())) and _are_str(map(type, plain)):
        return plain
    try:
        return _Walk(limit_bytes, _PLAIN).mapping(plain, 1)
    except _Refused as refused:
        raise refused.explain(what) from None


def _as_dict(what: str, data: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidSession(what, f"it must be a mapping, and is of type {type(data).__name__}")
    return dict(data)


def _unencodable(what: str, data: Mapping[str, Any], limit_bytes: int) -> InvalidSession:
    """Why msgspec could not encode a checked mapping: a second walk, which looks at every value."""
    try:
        _Walk(limit_bytes, _ALWAYS_ENCODABLE).mapping(_as_dict(what, data), 1)
    except _Refused as refused:
        return refused.explain(what)
    return InvalidSession(what, "it was changed by another thread while it was being encoded")


class _Walk:
    """One walk over the containers of a value, with the types that pass unseen.

    Every value takes at least one byte, so the size limit bounds the walk too. Without that, a list that
    holds one list twice, which holds another one twice, and so on, would take 2**64 steps.
    """

    __slots__ = ("left_bytes", "limit_bytes", "unseen")

    def __init__(self, limit_bytes: int, unseen: frozenset[type]) -> None:
        self.limit_bytes = limit_bytes
        self.left_bytes = limit_bytes
        self.unseen = unseen

    def mapping(self, source: dict[str, Any], depth: int) -> dict[str, Any]:
        self.left_bytes -= 2 * len(source)
        if self.left_bytes < 0 or depth > MAX_DEPTH:
            self._stop()
        unseen = self.unseen
        if unseen is not _PLAIN or not _are_str(map(type, source)):
            _check_keys(source)
        if unseen.issuperset(map(type, source.values())):
            return source
        return {
            key: value if type(value) in unseen else self._special(value, key, depth)
            for key, value in source.items()
        }

    def _sequence(self, source: list[Any] | tuple[Any, ...], depth: int) -> list[Any] | tuple[Any, ...]:
        self.left_bytes -= len(source)
        if self.left_bytes < 0 or depth > MAX_DEPTH:
            self._stop()
        unseen = self.unseen
        if unseen.issuperset(map(type, source)):
            return source
        return [
            value if type(value) in unseen else self._special(value, index, depth)
            for index, value in enumerate(source)
        ]

    def _special(self, value: Any, step: str | int, depth: int) -> Any:
        kind = type(value)
        try:
            if kind is dict:
                return self.mapping(value, depth + 1)
            if kind is list or kind is tuple:
                return self._sequence(value, depth + 1)
            if (carry := _CARRIERS.get(kind)) is not None:
                return carry(value)
            raise _Refused(_why_not(kind))
        except _Refused as refused:
            refused.steps.append(step)
            raise

    def _stop(self) -> NoReturn:
        if self.left_bytes < 0:
            raise SessionTooLarge(self.limit_bytes - self.left_bytes, self.limit_bytes)
        raise _Refused(f"containers are more than {MAX_DEPTH} deep here, or one holds itself")


def _check_keys(mapping: dict[str, Any]) -> None:
    for key in mapping:
        if type(key) is not str:
            raise _Refused(f"keys must be exactly str, and one is of type {type(key).__name__}")
        _encodable_str(key)


_ALLOWED: Final = (
    "None, bool, int, float, str, bytes, list, tuple, dict with str keys, datetime, date, UUID and Decimal"
)


def _why_not(kind: type) -> str:
    if issubclass(kind, Enum):
        return f"{kind.__name__} is an enumeration: store the member's .value or .name"
    for base in (dict, list, tuple, str, bytes, int, float, datetime, date, UUID, Decimal):
        if issubclass(kind, base):
            plain = base.__name__
            return f"{kind.__name__} would come back as its base class {plain}: store a plain {plain}"
    if issubclass(kind, set | frozenset):
        return "sets have no order and would come back as lists: store a list, such as sorted(…)"
    if issubclass(kind, bytearray | memoryview):
        return f"{kind.__name__} would come back as bytes: store bytes(…)"
    return f"values of type {kind.__name__} cannot be kept, only {_ALLOWED}"


def _encodable_int(value: int) -> int:
    if -(2**63) <= value < 2**64:
        return value
    raise _Refused("the integer does not fit in 64 bits: store it as a str")


def _encodable_str(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Refused("a string has a lone surrogate, which UTF-8 cannot express") from None
    return value


# Extension types. Their codes and payloads are part of the format: never change one, add another.

_DATETIME: Final = 1
_DATE: Final = 2
_UUID: Final = 3
_DECIMAL: Final = 4

# A context of our own: the caller's may print exponents in small letters, or take "x" for NaN.
_EXACT: Final = Context(traps=[InvalidOperation, Overflow, DivisionByZero], capitals=1)


class _Moment(msgspec.Struct, frozen=True, array_like=True):
    """The payload of a datetime."""

    iso: str
    """As `isoformat` writes it, with the UTC offset of an aware one."""
    fold: int
    zone: str | None
    """The key of its `ZoneInfo`."""
    name: str | None
    """The name of a `timezone` that has one of its own, as after `astimezone()`."""


def _carry_datetime(value: datetime) -> Ext:
    zone = value.tzinfo
    key = name = None
    if type(zone) is timezone:
        name = _own_name(zone)
    elif type(zone) is ZoneInfo:
        key = zone.key
        if key is None:
            raise _Refused("a ZoneInfo without a key cannot be found again by a reader: use ZoneInfo(key)")
    elif zone is not None:
        kind = f"{type(zone).__module__}.{type(zone).__name__}"
        raise _Refused(f"a tzinfo of type {kind} cannot be kept: use zoneinfo.ZoneInfo or datetime.timezone")
    return Ext(_DATETIME, _encode(_Moment(value.isoformat(), value.fold, key, name)))


def _own_name(zone: timezone) -> str | None:
    if zone is UTC:
        return None
    name = zone.tzname(None)
    return None if name == timezone(zone.utcoffset(None)).tzname(None) else _encodable_str(name)


def _read_datetime(payload: memoryview) -> datetime:
    moment = _decode_moment(payload)
    value = datetime.fromisoformat(moment.iso).replace(fold=moment.fold)
    offset = value.utcoffset()
    if offset is None:
        return value
    if moment.name is not None:
        return value.replace(tzinfo=timezone(offset, moment.name))
    zone = None if moment.zone is None else _find_zone(moment.zone)
    if zone is not None and (zoned := value.replace(tzinfo=zone)).utcoffset() == offset:
        return zoned
    return value


@lru_cache(maxsize=1024)
def _find_zone(key: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(key)
    except (LookupError, ValueError, OSError):
        return None


_CARRIERS: Final[dict[type, Callable[[Any], Any]]] = {
    # For the second walk: in the first, these pass unseen.
    int: _encodable_int,
    str: _encodable_str,
    datetime: _carry_datetime,
    date: lambda value: Ext(_DATE, value.isoformat().encode()),
    UUID: lambda value: Ext(_UUID, value.bytes),
    Decimal: lambda value: Ext(_DECIMAL, _EXACT.to_sci_string(value).encode()),
}

_READERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    _DATETIME: _read_datetime,
    _DATE: lambda payload: date.fromisoformat(str(payload, "ascii")),
    _UUID: lambda payload: UUID(bytes=bytes(payload)),
    _DECIMAL: lambda payload: Decimal(str(payload, "ascii"), _EXACT),
}


def _read_extension(code: int, payload: memoryview) -> Any:
    reader = _READERS.get(code)
    if reader is None:
        raise ValueError(f"extension type {code} is unknown: a newer version may have written it")
    return reader(payload)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=_read_extension).decode
_decode_moment = msgspec.msgpack.Decoder(_Moment).decode
_split = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


# Records

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


def pack_record(version: int, expires_at_ms: int, flags: int, checksum: int, data: bytes) -> bytes:
    """One record; `checksum` is the `data_checksum` of the session's id and `data`."""
    return _HEADER.pack(expires_at_ms, version, checksum, _FORMAT | flags) + data


pack_header: Final = _HEADER.pack
"""The beginning of a record, of (expires_at_ms, version, checksum, `RECORD_FORMAT` | flags): for those who
cannot afford a call more."""

RECORD_FORMAT: Final = _FORMAT


def data_checksum(id: bytes, data: bytes) -> int:
    """A CRC-32 of `data` as stored, and of the id it belongs to.

    Data comes first: it tells its own length, so that no two pairs make the same bytes.
    """
    return crc32(id, crc32(data))


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


def decode_record(record: bytes, id: bytes = b"", cipher: Cipher | None = None) -> dict[str, Any]:
    """The data of the record stored under `id`, decrypted, decompressed and decoded.

    Raises `StoreCorrupt` or `Undecryptable`.
    """
    if cipher is None and record[_FLAGS_AT : _FLAGS_AT + 1] == _PLAIN_FORMAT:
        try:
            data: dict[str, Any] = _decode(record[HEADER_BYTES:])
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
    if data_checksum(id, record_data(record)) != record_checksum(record):
        raise _corrupt("a session's record does not match its checksum")


def digest_term(record: bytes) -> int:
    """What a record adds to its table's digest: below 2**64, from the header alone, equal everywhere."""
    crc = crc32(record[:HEADER_BYTES])
    return crc * crc


def _check_format(record: bytes) -> None:
    if len(record) <= HEADER_BYTES:
        raise _corrupt(f"a session's record has {len(record)} bytes, fewer than any record")
    if record[_FLAGS_AT] & ~(COMPRESSED | ENCRYPTED) != _FORMAT:
        raise _corrupt(
            f"a session's record has the format {record[_FLAGS_AT]:#04x}, which this version does not know"
        )


def _corrupt(reason: str) -> StoreCorrupt:
    # Which store it is, only its adapter knows; the sentence holds without it.
    return StoreCorrupt("this node's data directory", reason)


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
            raise _corrupt(f"a session's compressed data claims a size of {size_bytes} bytes")
        data: bytes = zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise _corrupt(f"a session's data does not decompress ({exc})") from exc
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
