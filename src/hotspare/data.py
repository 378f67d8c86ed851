"""A session's data as MessagePack.

What `get_session` returns must be what was stored, down to the types, or the call that stores it must say no.
A serializer alone does not give that: msgspec turns UUID, Decimal and naive datetime into str, forgets the
UTC offset of aware ones, and makes lists of sets. So data is walked before it is encoded: exact types only,
and what MessagePack lacks goes into extension types of ours. The walk looks at containers, not at values: one
set operation in C tells that all values of a container are plain. A usual flat session is thus checked faster
than it is decoded, and only containers that hold something special are rebuilt.

These survive unchanged: None, bool, int (of 64 bits: -2**63 to 2**64 - 1), float, str, bytes, list, dict with
str keys, datetime, date, UUID and Decimal; a tuple comes back as a list. A datetime may be naive or have a
`timezone` or a `ZoneInfo`, and keeps its fold, its UTC offset and its zone with its name. A reader without
that zone, or with other rules for it, gets the same moment at the same offset, in a fixed `timezone`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timezone
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from enum import Enum
from functools import lru_cache
from types import NoneType
from typing import Any, Final, NoReturn, TypeAlias, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec.msgpack import Ext

from hotspare.errors import InvalidSession, SessionTooLarge, corrupt

__all__ = [
    "MAX_DATA_BYTES",
    "MAX_DEPTH",
    "check_field_names",
    "decode_data",
    "decode_unguarded",
    "encode_data",
    "encode_fields",
    "splice",
]

MAX_DEPTH: Final = 64
"""How many containers deep data may be, itself included. It ends cycles too."""

MAX_DATA_BYTES: Final = 2**20
"""The largest `max_session_size_bytes` there is: what decompresses to more is hostile or broken."""


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
        return decode_unguarded(encoded)
    # Of bytes that we did not write, a decoder may say anything, even RecursionError: the bytes are at fault.
    except Exception as exc:
        raise corrupt(f"a session's data does not decode ({_fault(exc)})") from None


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


def check_field_names(names: object) -> list[str]:
    """The names of top-level fields to remove: no more than could be there. Raises `InvalidSession`."""
    if isinstance(names, str | bytes):
        raise InvalidSession("remove", "it must be a collection of field names, and is a single one")
    if not isinstance(names, Iterable):
        kind = type(names).__name__
        raise InvalidSession("remove", f"it must be a collection of field names, and is of type {kind}")
    checked: list[str] = []
    for name in names:
        if type(name) is not str:
            kind = type(name).__name__
            raise InvalidSession("remove", f"field names must be exactly str, and one is of type {kind}")
        try:
            checked.append(_encodable_str(name))
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
        raise corrupt(f"a session's data cannot be patched ({_fault(exc)})") from None
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
        raise corrupt(f"a session's data is more than {_SPLITTABLE_DEPTH} containers deep")


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


def _checked(what: str, data: Mapping[str, Any], limit_bytes: int) -> dict[Any, Any]:
    """`data` with nothing in it that msgspec would alter."""
    plain = data if type(data) is dict else _as_dict(what, data)
    if _are_plain(map(type, plain.values())) and _are_str(map(type, plain)):
        return plain
    try:
        return _Walk(limit_bytes, _PLAIN).mapping(plain, 1)
    except _Refused as refused:
        raise refused.explain(what) from None


def _as_dict(what: str, data: Mapping[str, Any]) -> dict[Any, Any]:
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

    def mapping(self, source: dict[Any, Any], depth: int) -> dict[Any, Any]:
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


def _check_keys(mapping: dict[Any, Any]) -> None:
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

_Moment: TypeAlias = tuple[str, int, str | None, str | None]
"""The payload of a datetime: its `isoformat`, with the UTC offset of an aware one; its fold; the key of its
`ZoneInfo`; the name of a `timezone` that has one of its own, as after `astimezone()`."""


def _carry_datetime(value: datetime) -> Ext:
    zone = value.tzinfo
    key = name = None
    if type(zone) is timezone:
        name = _own_name(zone)
    elif type(zone) is ZoneInfo:
        key = cast(Any, zone).key  # which is None for one that was read from a file
        if key is None:
            raise _Refused("a ZoneInfo without a key cannot be found again by a reader: use ZoneInfo(key)")
    elif zone is not None:
        kind = f"{type(zone).__module__}.{type(zone).__name__}"
        raise _Refused(f"a tzinfo of type {kind} cannot be kept: use zoneinfo.ZoneInfo or datetime.timezone")
    return Ext(_DATETIME, _encode((value.isoformat(), value.fold, key, name)))


def _own_name(zone: timezone) -> str | None:
    if zone is UTC:
        return None
    name = zone.tzname(None)
    return None if name == timezone(zone.utcoffset(None)).tzname(None) else _encodable_str(name)


def _read_datetime(payload: memoryview) -> datetime:
    iso, fold, key, name = _decode_moment(payload)
    value = datetime.fromisoformat(iso).replace(fold=fold)
    offset = value.utcoffset()
    if offset is None:
        return value
    if name is not None:
        return value.replace(tzinfo=timezone(offset, name))
    zone = None if key is None else _find_zone(key)
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
decode_unguarded: Final = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=_read_extension).decode
"""`decode_data` with the decoder's own errors: for those who cannot afford a call more."""

_decode_moment = msgspec.msgpack.Decoder(_Moment).decode
_split = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
