from __future__ import annotations

import enum
import random
import sys
import zoneinfo
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from struct import pack
from typing import Any, NamedTuple
from uuid import UUID
from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from hotspare.errors import ConfigError, InvalidSession, SessionTooLarge, StoreCorrupt
from hotspare.session import (
    COMPRESSED,
    ENCRYPTED,
    HEADER_BYTES,
    MAX_DATA_BYTES,
    MAX_DEPTH,
    MAX_ID_BYTES,
    MAX_TTL_MS,
    check_field_names,
    check_id,
    check_ttl_ms,
    data_checksum,
    decode_data,
    decode_record,
    digest_term,
    encode_data,
    encode_fields,
    maybe_compress,
    pack_record,
    record_checksum,
    record_data,
    record_expires_at_ms,
    record_flags,
    record_version,
    splice,
    verify_record,
    with_expiry,
)
from hotspare.settings import Settings

LIMIT_BYTES = 1 << 20
LONE_SURROGATE = "\ud800"


class Text(str):
    pass


class Number(int):
    pass


class Real(float):
    pass


class Day(date):
    pass


class Moment(datetime):
    pass


class Colour(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


class Elsewhere(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def tzname(self, moment: datetime | None) -> str:
        return "Elsewhere"

    def dst(self, moment: datetime | None) -> None:
        return None


# Ids and TTLs


@given(st.text(min_size=1, max_size=MAX_ID_BYTES // 4))
def test_an_id_becomes_its_utf8_bytes(id):
    assert check_id(id) == id.encode()


@pytest.mark.parametrize("id", ["x" * MAX_ID_BYTES, "é" * (MAX_ID_BYTES // 2), "\0", " ", "😀"])
def test_ids_up_to_the_limit_are_taken(id):
    assert check_id(id) == id.encode()


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("", "empty"),
        ("s3cret" * 50, "takes 300 bytes"),
        ("é" * 128, "takes 256 bytes"),
        ("s3cret" + LONE_SURROGATE, "surrogate"),
        (b"s3cret", "type bytes"),
        (Text("s3cret"), "type Text"),
        (None, "type NoneType"),
        (7, "type int"),
    ],
)
def test_a_bad_id_is_refused_without_being_quoted(id, reason):
    with pytest.raises(InvalidSession, match=reason) as caught:
        check_id(id)
    assert caught.value.what == "id"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("ttl", "ttl_ms"),
    [
        (1, 1),
        (MAX_TTL_MS, MAX_TTL_MS),
        (timedelta(milliseconds=1), 1),
        (timedelta(hours=1), 3_600_000),
        (timedelta(microseconds=2999), 2),
        (timedelta(milliseconds=MAX_TTL_MS), MAX_TTL_MS),
    ],
)
def test_a_ttl_is_milliseconds_or_a_timedelta(ttl, ttl_ms):
    assert check_ttl_ms(ttl) == ttl_ms


@pytest.mark.parametrize(
    ("ttl", "reason"),
    [
        (0, "at least 1 ms"),
        (-1, "at least 1 ms"),
        (timedelta(0), "at least 1 ms"),
        (timedelta(microseconds=999), "at least 1 ms"),
        (timedelta.min, "at least 1 ms"),
        (MAX_TTL_MS + 1, "hundred years"),
        (10**400, "hundred years"),
        (timedelta.max, "hundred years"),
        (True, "type bool"),
        (1.0, "type float"),
        ("1", "type str"),
        (None, "type NoneType"),
        (Number(5), "type Number"),
    ],
)
def test_a_bad_ttl_is_refused_with_the_reason(ttl, reason):
    with pytest.raises(InvalidSession, match=reason) as caught:
        check_ttl_ms(ttl)
    assert caught.value.what == "ttl_ms"


# Values that survive


def fingerprint(value: Any) -> Any:
    """Equal for two values only if nothing tells them apart: == takes 1 for True, and 0.0 for -0.0."""
    kind = type(value)
    if kind is dict:
        return dict, [(key, type(key), fingerprint(each)) for key, each in value.items()]
    if kind is list:
        return list, [fingerprint(each) for each in value]
    if kind is float:
        return float, pack(">d", value)
    if kind is Decimal:
        return Decimal, value.as_tuple()
    if kind is datetime:
        zone = value.tzinfo
        return datetime, value.isoformat(), value.fold, type(zone), str(zone), value.tzname()
    return kind, value


def as_read(value: Any) -> Any:
    """What should come back: tuples as lists, all else as it is."""
    if type(value) is dict:
        return {key: as_read(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return [as_read(each) for each in value]
    return value


def round_trip(value: Any) -> Any:
    return decode_data(encode_data({"value": value}, LIMIT_BYTES))["value"]


ZONES = sorted(zoneinfo.available_timezones())
OFFSETS = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
TIMEZONES = st.one_of(
    st.none(),
    st.just(UTC),
    OFFSETS.map(timezone),
    st.builds(timezone, OFFSETS, st.text(max_size=10)),
    *([st.sampled_from(ZONES).map(zoneinfo.ZoneInfo)] if ZONES else []),
)
DATETIMES = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
    st.datetimes(),
    TIMEZONES,
    st.sampled_from([0, 1]),
)
DECIMALS = st.one_of(
    st.decimals(),
    st.builds(
        lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
        st.sampled_from([0, 1]),
        st.lists(st.integers(0, 9), min_size=1, max_size=60).map(tuple),
        st.one_of(st.integers(-9999, 9999), st.sampled_from(["F", "n", "N"])),
    ),
)
KEYS = st.text(max_size=5)
PLAIN_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()
)
SCALARS = st.one_of(PLAIN_SCALARS, DATETIMES, st.dates(), st.uuids(), DECIMALS)


def nested(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(KEYS, inner, max_size=4),
        ),
        max_leaves=8,
    )


DATA = st.dictionaries(KEYS, nested(SCALARS), max_size=5)
SMALL_DATA = st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=2)


@given(DATA)
def test_every_allowed_value_returns_as_it_was(data):
    assert fingerprint(decode_data(encode_data(data, LIMIT_BYTES))) == fingerprint(as_read(data))


@given(st.dictionaries(st.text(), PLAIN_SCALARS))
def test_plain_data_is_ordinary_messagepack(data):
    assert encode_data(data, LIMIT_BYTES) == msgspec.msgpack.encode(data)


@pytest.mark.parametrize(
    "value",
    [
        -(2**63),
        2**64 - 1,
        float("nan"),
        float("-inf"),
        -0.0,
        5e-324,
        "",
        "\0",
        b"",
        b"\xff\x00",
        [],
        {},
        {"": {"": []}},
        datetime.min,
        datetime.max,
        datetime(2026, 10, 25, 2, 30, fold=1),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, seconds=7, microseconds=9))),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(0), "GMT")),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET]\0[é")),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "")),
        date.min,
        date.max,
        UUID(int=0),
        UUID(int=2**128 - 1),
        *map(
            Decimal, ["NaN", "-NaN", "NaN123", "sNaN", "-sNaN4", "Infinity", "-Infinity", "0", "-0", "-0E+5"]
        ),
        *map(Decimal, ["1.10", "1E+3", "0E-30", "9" * 400, "1E+999999", "-1E-999999"]),
    ],
    ids=repr,
)
def test_the_edges_of_each_type_survive(value):
    assert fingerprint(round_trip(value)) == fingerprint(value)


def test_local_times_that_happen_twice_or_never_keep_their_side():
    if "Europe/Berlin" not in ZONES:
        pytest.skip("this machine has no time zones")
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    for local in (datetime(2026, 10, 25, 2, 30), datetime(2026, 3, 29, 2, 30), datetime(1800, 1, 1)):
        for fold in (0, 1):
            value = local.replace(tzinfo=berlin, fold=fold)
            back = round_trip(value)
            assert back.tzinfo is berlin
            assert fingerprint(back) == fingerprint(value)


@pytest.mark.parametrize("key", ["Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "", "a\0b"])
def test_a_zone_that_the_reader_lacks_leaves_the_moment_at_its_offset(key):
    payload = msgspec.msgpack.encode(["2026-07-01T12:00:00+02:00", 0, key, None])
    back = decode_data(msgspec.msgpack.encode({"at": Ext(1, payload)}))["at"]
    assert fingerprint(back) == fingerprint(datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=2))))


def test_a_zone_with_other_rules_at_the_reader_leaves_the_moment_at_its_offset():
    if "Europe/Berlin" not in ZONES:
        pytest.skip("this machine has no time zones")
    payload = msgspec.msgpack.encode(["2026-07-01T12:00:00+05:00", 0, "Europe/Berlin", None])
    back = decode_data(msgspec.msgpack.encode({"at": Ext(1, payload)}))["at"]
    assert fingerprint(back) == fingerprint(datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=5))))


def test_decimals_do_not_depend_on_the_context_of_the_caller():
    value = Decimal("1.23456789E+50")
    plain = encode_data({"value": value}, LIMIT_BYTES)
    with localcontext(Context(prec=2, capitals=0, Emax=3, Emin=-3, traps=[])):
        assert encode_data({"value": value}, LIMIT_BYTES) == plain
        assert fingerprint(decode_data(plain)["value"]) == fingerprint(value)


@pytest.mark.parametrize(
    "mapping", [UserDict(a=1), OrderedDict(a=1), defaultdict(int, a=1)], ids=lambda each: type(each).__name__
)
def test_any_mapping_is_taken_as_data(mapping):
    assert decode_data(encode_data(mapping, LIMIT_BYTES)) == {"a": 1}


def test_encoding_leaves_the_callers_data_alone():
    inner = {"at": date(2026, 1, 1), "pair": (1, Decimal(2))}
    data = {"inner": inner, "list": [inner]}
    encode_data(data, LIMIT_BYTES)
    assert data == {"inner": inner, "list": [inner]}
    assert data["inner"] is inner
    assert inner == {"at": date(2026, 1, 1), "pair": (1, Decimal(2))}


def test_the_encoding_of_every_type_is_pinned():
    data = {
        "none": None,
        "date": date(2026, 1, 2),
        "naive": datetime(2026, 1, 2, 3, 4, 5, fold=1),
        "utc": datetime(2026, 1, 2, tzinfo=UTC),
        "named": datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1), "CET")),
        "uuid": UUID(int=1),
        "decimal": Decimal("-1.50"),
    }
    assert encode_data(data, LIMIT_BYTES) == (
        b"\x87"
        b"\xa4none\xc0"
        b"\xa4date\xc7\x0a\x022026-01-02"
        b"\xa5naive\xc7\x18\x01\x94\xb32026-01-02T03:04:05\x01\xc0\xc0"
        b"\xa3utc\xc7\x1e\x01\x94\xb92026-01-02T00:00:00+00:00\x00\xc0\xc0"
        b"\xa5named\xc7\x21\x01\x94\xb92026-01-02T00:00:00+01:00\x00\xc0\xa3CET"
        b"\xa4uuid\xd8\x03" + bytes(15) + b"\x01"
        b"\xa7decimal\xc7\x05\x04-1.50"
    )


# Values that are refused

REFUSED: list[tuple[Any, str]] = [
    (Text("s3cret"), "base class str"),
    (Number(5), "base class int"),
    (Real(5), "base class float"),
    (Day(2026, 1, 1), "base class date"),
    (Moment(2026, 1, 1), "base class datetime"),
    (Colour.RED, "enumeration"),
    (OrderedDict(a=1), "base class dict"),
    (defaultdict(list), "base class dict"),
    (UserDict(), "type UserDict"),
    (Point(1, 2), "base class tuple"),
    ({1}, "sets"),
    (frozenset(), "sets"),
    (bytearray(b"s3cret"), "store bytes"),
    (memoryview(b"s3cret"), "store bytes"),
    (2**64, "64 bits"),
    (-(2**63) - 1, "64 bits"),
    (10**5000, "64 bits"),
    (LONE_SURROGATE, "surrogate"),
    ({LONE_SURROGATE: 1}, "surrogate"),
    ({1: 1}, "keys must be exactly str, and one is of type int"),
    ({Text("a"): 1}, "keys must be exactly str, and one is of type Text"),
    ({None: 1}, "keys must be exactly str"),
    (1j, "type complex"),
    (Fraction(1, 2), "type Fraction"),
    (timedelta(1), "type timedelta"),
    (time(1), "type time"),
    (UTC, "type timezone"),
    (range(3), "type range"),
    (object(), "type object"),
    (int, "type type"),
    (len, "type builtin_function"),
    (..., "type ellipsis"),
    (msgspec.Raw(b"\x01"), "type Raw"),
    (Ext(1, b""), "type Ext"),
    (datetime(2026, 1, 1, tzinfo=Elsewhere()), "tzinfo of type .*Elsewhere"),
    (datetime(2026, 1, 1, tzinfo=timezone(timedelta(0), LONE_SURROGATE)), "surrogate"),
]


@pytest.mark.parametrize(
    ("value", "reason"),
    REFUSED,
    ids=[f"{number}-{type(value).__name__}" for number, (value, _) in enumerate(REFUSED)],
)
@pytest.mark.parametrize("encode", [encode_data, encode_fields])
def test_everything_else_is_refused_with_its_place_and_without_its_value(encode, value, reason):
    what = "data" if encode is encode_data else "changes"
    for data, where in (
        ({"fine": 1, "odd": value}, f"{what}['odd']"),
        ({"cart": [0, date.min, {"odd": (value,)}]}, f"{what}['cart'][2]['odd'][0]"),
    ):
        with pytest.raises(InvalidSession, match=reason) as caught:
            encode(data, LIMIT_BYTES)
        assert (caught.value.what, caught.value.where) == (what, where)
        assert "s3cret" not in str(caught.value)


@given(nested(SCALARS), st.sampled_from([each for each, _ in REFUSED]), st.data())
def test_one_bad_value_anywhere_spoils_the_whole(value, bad, draw):
    def bury(host: Any) -> Any:
        if type(host) in (list, tuple) and host and draw.draw(st.booleans()):
            return [bury(host[0]), *host[1:]]
        return [host, {"bad": bad}]

    with pytest.raises(InvalidSession):
        encode_data({"value": bury(value)}, LIMIT_BYTES)


@pytest.mark.parametrize("data", [None, [], "text", b"bytes", 1, [("a", 1)], {"a"}, object])
def test_data_must_be_a_mapping(data):
    with pytest.raises(InvalidSession, match="must be a mapping") as caught:
        encode_data(data, LIMIT_BYTES)
    assert caught.value.where == ""


@pytest.mark.parametrize("key", [1, None, b"b", Text("a"), LONE_SURROGATE, ("a",)])
@pytest.mark.parametrize("encode", [encode_data, encode_fields])
def test_top_level_keys_obey_the_same_rules(encode, key):
    with pytest.raises(InvalidSession, match=r"keys must be exactly str|surrogate"):
        encode({key: 1}, LIMIT_BYTES)


def test_a_zone_without_a_key_is_refused(tmp_path):
    header = b"TZif2" + bytes(15) + pack(">6l", 0, 0, 0, 0, 1, 4)
    block = header + pack(">lBB", 3600, 0, 0) + b"ABC\0"
    path = tmp_path / "zone"
    path.write_bytes(block + block + b"\nABC-1\n")
    with path.open("rb") as file:
        zone = zoneinfo.ZoneInfo.from_file(file)
    with pytest.raises(InvalidSession, match="without a key"):
        encode_data({"at": datetime(2026, 1, 1, tzinfo=zone)}, LIMIT_BYTES)


def deep(depth: int, wrap: Callable[[Any], Any]) -> dict[str, Any]:
    """Data of so many containers, one in another."""
    value: Any = 1
    for _ in range(depth - 1):
        value = wrap(value)
    return {"value": value}


@pytest.mark.parametrize(
    "wrap",
    [lambda each: [each], lambda each: (each,), lambda each: {"in": each}],
    ids=["list", "tuple", "dict"],
)
def test_data_may_be_deep_up_to_the_limit(wrap):
    data = deep(MAX_DEPTH, wrap)
    assert decode_data(encode_data(data, LIMIT_BYTES)) == as_read(data)
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidSession, match="64 deep"):
            encode_data(deep(depth, wrap), LIMIT_BYTES)


def test_a_container_that_holds_itself_is_refused():
    mapping: dict[str, Any] = {}
    mapping["again"] = mapping
    sequence: list[Any] = []
    sequence.append(sequence)
    for data in (mapping, {"again": sequence}):
        with pytest.raises(InvalidSession, match="holds itself"):
            encode_data(data, LIMIT_BYTES)


def test_data_that_shares_lists_exponentially_is_refused_in_bounded_time():
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 2):
        value = [value, value]
    with pytest.raises(SessionTooLarge):
        encode_data({"value": value}, LIMIT_BYTES)


@pytest.mark.parametrize("encode", [encode_data, encode_fields])
@pytest.mark.parametrize("value", ["x" * 200, [None] * 200, [[]] * 200, Decimal("9" * 200)])
def test_data_above_the_limit_is_refused_with_both_sizes(encode, value):
    with pytest.raises(SessionTooLarge) as caught:
        encode({"value": value}, 100)
    assert caught.value.limit_bytes == 100
    assert caught.value.size_bytes > 200


@given(SMALL_DATA)
def test_the_limit_is_exact(data):
    size_bytes = len(encode_data(data, LIMIT_BYTES))
    assert len(encode_data(data, size_bytes)) == size_bytes
    with pytest.raises(SessionTooLarge) as caught:
        encode_data(data, size_bytes - 1)
    assert size_bytes >= caught.value.size_bytes > caught.value.limit_bytes


# Bytes that nobody encoded


def expect_data_or_corruption(encoded: bytes) -> None:
    """Any exception but StoreCorrupt gets out, and fails the test."""
    with suppress(StoreCorrupt):
        assert type(decode_data(encoded)) is dict
    with suppress(StoreCorrupt):
        assert type(splice(encoded, [("a", b"\x01")], ["b"])) is bytes


@given(st.binary())
def test_garbage_never_decodes_to_anything_but_data_or_an_error_of_ours(garbage):
    expect_data_or_corruption(garbage)
    expect_data_or_corruption(b"\x81\xa1a" + garbage)


@given(st.integers(-128, 127), st.binary(max_size=40))
def test_garbage_in_extension_types_is_an_error_of_ours(code, payload):
    expect_data_or_corruption(msgspec.msgpack.encode({"a": [Ext(code, payload)]}))


@given(SMALL_DATA, st.integers(0), st.integers(1, 255))
def test_a_damaged_byte_is_an_error_of_ours_or_other_data(data, place, damage):
    encoded = bytearray(encode_data(data, LIMIT_BYTES))
    encoded[place % len(encoded)] ^= damage
    expect_data_or_corruption(bytes(encoded))


@given(SMALL_DATA)
def test_truncated_data_is_refused(data):
    encoded = encode_data(data, LIMIT_BYTES)
    with pytest.raises(StoreCorrupt):
        decode_data(encoded[:-1])
    with pytest.raises(StoreCorrupt):
        decode_data(encoded + b"\x00")


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x90",
        b"\xc0",
        b"\xc1",
        b"\x81\x01\x01",
        b"\x81\xa1\xff\x01",
        b"\x81\xa1a\xa1\xff",
        b"\x81\xa1a" + b"\x91" * 1_000_000,
        b"\x81\xa1a" + b"\x81\xa1a" * 1_000_000,
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\x81\x80\x01",
        msgspec.msgpack.encode({"a": Ext(99, b"")}),
        msgspec.msgpack.encode({"a": Ext(1, b"")}),
        msgspec.msgpack.encode({"a": Ext(1, msgspec.msgpack.encode(["2026-01-01T00:00:00", 2, None, None]))}),
        msgspec.msgpack.encode({"a": Ext(2, b"2026-13-01")}),
        msgspec.msgpack.encode({"a": Ext(3, b"\x00")}),
        msgspec.msgpack.encode({"a": Ext(4, b"s3cret")}),
        msgspec.msgpack.encode({"a": Ext(4, b"\xff")}),
    ],
    ids=lambda each: each[:12].hex(),
)
def test_hostile_bytes_are_refused_without_being_quoted(garbage):
    with pytest.raises(StoreCorrupt) as caught:
        decode_data(garbage)
    assert "s3cret" not in str(caught.value)


def test_data_decodes_from_a_view_into_a_larger_buffer():
    encoded = encode_data({"a": [1, date.min]}, LIMIT_BYTES)
    assert decode_data(memoryview(b"xx" + encoded + b"xx")[2:-2]) == {"a": [1, date.min]}


# Patches


@given(SMALL_DATA, SMALL_DATA, st.lists(st.text(max_size=10)), st.data())
def test_a_patch_does_what_it_does_to_a_dict(data, changes, remove, draw):
    remove = [*remove, *draw.draw(st.lists(st.sampled_from(sorted(data) or [""])))]
    expected = {key: value for key, value in data.items() if key not in remove} | changes
    patched = splice(encode_data(data, LIMIT_BYTES), encode_fields(changes, LIMIT_BYTES), remove)
    assert patched == encode_data(expected, LIMIT_BYTES)


@given(SMALL_DATA)
def test_an_empty_patch_changes_no_byte(data):
    encoded = encode_data(data, LIMIT_BYTES)
    assert splice(encoded, [], ["no such field" * 2]) == encoded


def test_a_patch_carries_the_values_it_does_not_touch_byte_by_byte():
    # Integers in nine bytes where one would do: what another encoder might have written.
    roundabout = b"\x82\xa1a\xcf" + bytes(7) + b"\x01\xa1b\xcf" + bytes(7) + b"\x02"
    assert splice(roundabout, [("b", b"\x03")], []) == b"\x82\xa1a\xcf" + bytes(7) + b"\x01\xa1b\x03"


@pytest.mark.parametrize(
    ("count", "header"),
    [(15, b"\x8f"), (16, b"\xde\x00\x10"), (65535, b"\xde\xff\xff"), (65536, b"\xdf\x00\x01\x00\x00")],
)
def test_a_patched_mapping_has_the_shortest_header(count, header):
    fields = [(f"{number:05}", b"\xc0") for number in range(count)]
    assert splice(b"\x80", fields, []) == header + b"".join(
        b"\xa5" + key.encode() + value for key, value in fields
    )


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (31, b"\xbf"),
        (32, b"\xd9\x20"),
        (255, b"\xd9\xff"),
        (256, b"\xda\x01\x00"),
        (65536, b"\xdb\x00\x01\x00\x00"),
    ],
)
def test_a_patched_key_has_the_shortest_header(length, header):
    assert splice(b"\x80", [("k" * length, b"\xc0")], []) == b"\x81" + header + b"k" * length + b"\xc0"


def test_names_to_remove_are_checked():
    assert check_field_names(name for name in ("a", "")) == ["a", ""]
    bad: list[Any] = ["cart", b"cart", [1], [Text("a")], [LONE_SURROGATE]]
    for names in bad:
        with pytest.raises(InvalidSession) as caught:
            check_field_names(names)
        assert caught.value.what == "remove"


# Records

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
FLAGS = st.integers(0, 15)


@given(U64, U64, FLAGS, U32, st.binary())
def test_a_record_gives_back_what_was_packed(version, expires_at_ms, flags, checksum, data):
    record = pack_record(version, expires_at_ms, flags, checksum, data)
    assert len(record) == HEADER_BYTES + len(data)
    assert record_version(record) == version
    assert record_expires_at_ms(record) == expires_at_ms
    assert record_flags(record) == flags
    assert record_checksum(record) == checksum
    assert record_data(record) == data


@given(U64, U64, U64, FLAGS, U32, st.binary())
def test_another_expiry_changes_nothing_else(version, expires_at_ms, later_ms, flags, checksum, data):
    record = pack_record(version, expires_at_ms, flags, checksum, data)
    assert with_expiry(record, later_ms) == pack_record(version, later_ms, flags, checksum, data)


def test_the_layout_of_a_record_is_pinned():
    record = pack_record(2, 1, COMPRESSED, 3, b"data")
    assert record == bytes(7) + b"\x01" + bytes(7) + b"\x02" + bytes(3) + b"\x03" + b"\x11" + b"data"


def record_of(id: bytes, data: bytes, flags: int = 0, version: int = 1, expires_at_ms: int = 1) -> bytes:
    return pack_record(version, expires_at_ms, flags, data_checksum(id, data), data)


@given(st.binary(min_size=1, max_size=20), SMALL_DATA)
def test_a_whole_record_verifies_and_decodes(id, data):
    record = record_of(id, encode_data(data, LIMIT_BYTES))
    verify_record(id, record)
    verify_record(id, with_expiry(record, 99))
    assert fingerprint(decode_record(record)) == fingerprint(as_read(data))


@given(st.binary(min_size=1, max_size=20), SMALL_DATA, st.integers(0), st.integers(1, 255))
def test_a_damaged_record_does_not_verify(id, data, place, damage):
    record = bytearray(record_of(id, encode_data(data, LIMIT_BYTES)))
    # Version and expiry may change without the checksum, so damage to them is the store's business.
    place = 16 + place % (len(record) - 16)
    record[place] ^= damage
    if place == HEADER_BYTES - 1 and record[place] in (0x10, 0x11):
        return
    with pytest.raises(StoreCorrupt):
        verify_record(id, bytes(record))


def test_a_record_under_another_id_does_not_verify():
    record = record_of(b"id", encode_data({"a": 1}, LIMIT_BYTES))
    with pytest.raises(StoreCorrupt, match="checksum"):
        verify_record(b"other", record)


@pytest.mark.parametrize("record", [b"", bytes(HEADER_BYTES - 1), pack_record(1, 1, 0, 0, b"")])
def test_a_record_cut_short_does_not_verify(record):
    with pytest.raises(StoreCorrupt, match="fewer than any record"):
        verify_record(b"id", record)


@pytest.mark.parametrize("form", [0x00, 0x20, 0x10 | 4, 0x20 | ENCRYPTED, 0xFF])
def test_a_record_of_an_unknown_format_is_refused(form):
    whole = record_of(b"id", encode_data({}, LIMIT_BYTES))
    record = whole[: HEADER_BYTES - 1] + bytes([form]) + whole[HEADER_BYTES:]
    for use in (lambda: verify_record(b"id", record), lambda: decode_record(record)):
        with pytest.raises(StoreCorrupt, match="format"):
            use()


# The digest


@given(U64, U64, U32, st.sampled_from(["version", "expires_at_ms", "checksum"]), st.integers(1))
def test_a_digest_term_differs_when_any_field_differs(version, expires_at_ms, checksum, field, change):
    values = {"version": version, "expires_at_ms": expires_at_ms, "checksum": checksum}
    term = digest_term(pack_record(flags=0, data=b"", **values))
    bits = 32 if field == "checksum" else 64
    values[field] = (values[field] + 1 + change % (2**bits - 1)) % 2**bits
    other = digest_term(pack_record(flags=0, data=b"", **values))
    assert 0 <= term < 2**64
    # A CRC shows every change of up to 32 bits in a row; one spread wider hides about once in 2**32 times.
    assert term != other


@given(U64, U64, U32, st.binary(min_size=1), st.binary(min_size=1))
def test_a_digest_term_comes_from_the_header_alone(version, expires_at_ms, checksum, data, other):
    term = digest_term(pack_record(version, expires_at_ms, 0, checksum, data))
    assert term == digest_term(pack_record(version, expires_at_ms, 0, checksum, other))


def test_digest_terms_are_the_same_everywhere():
    record = pack_record(2, 1, 0, 3, b"data")
    assert digest_term(record) == crc32(record[:HEADER_BYTES]) ** 2 == 7_883_058_812_053_317_025


def test_the_same_change_to_two_records_does_not_cancel_in_the_digest():
    choose = random.Random(1)
    for _ in range(20_000):
        first, second = (
            (choose.getrandbits(40), choose.getrandbits(41), choose.getrandbits(32)) for _ in "ab"
        )
        # Two records swap their versions: how two copies differ that applied two writes in another order.
        swapped = (second[0], *first[1:]), (first[0], *second[1:])
        assert digest_of(first, second) != digest_of(*swapped)


def digest_of(*headers: tuple[int, int, int]) -> int:
    return sum(digest_term(pack_record(*fields[:2], 0, fields[2], b"")) for fields in headers) % 2**64


# Compression


@pytest.fixture
def zstandard():
    return pytest.importorskip("zstandard")


@pytest.mark.usefixtures("zstandard")
@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_data_is_compressed_only_where_that_saves_something(data, threshold_bytes):
    encoded = encode_data({"data": data}, LIMIT_BYTES)
    flags, stored = maybe_compress(encoded, threshold_bytes)
    if flags:
        assert len(encoded) >= threshold_bytes
        assert len(stored) < len(encoded)
    else:
        assert stored is encoded
    record = record_of(b"id", stored, flags)
    verify_record(b"id", record)
    assert decode_record(record) == {"data": data}


@pytest.mark.usefixtures("zstandard")
def test_large_repetitive_data_is_compressed():
    encoded = encode_data({"data": "x" * 10_000}, LIMIT_BYTES)
    flags, stored = maybe_compress(encoded, 1000)
    assert flags == COMPRESSED
    assert len(stored) < 100
    assert maybe_compress(encoded, 20_000) == (0, encoded)


def test_a_decompression_bomb_is_refused(zstandard):
    bomb = zstandard.ZstdCompressor().compress(bytes(MAX_DATA_BYTES + 1))
    with pytest.raises(StoreCorrupt, match="claims a size"):
        decode_record(record_of(b"id", bomb, COMPRESSED))


def test_a_frame_that_hides_its_size_is_refused(zstandard):
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(StoreCorrupt, match="claims a size"):
        decode_record(record_of(b"id", frame, COMPRESSED))


@pytest.mark.usefixtures("zstandard")
@given(st.binary())
def test_garbage_in_place_of_a_frame_is_an_error_of_ours(garbage):
    with pytest.raises(StoreCorrupt):
        decode_record(record_of(b"id", garbage, COMPRESSED))


def test_a_frame_cut_short_or_continued_is_refused(zstandard):
    frame = zstandard.ZstdCompressor().compress(encode_data({"data": "x" * 1000}, LIMIT_BYTES))
    for damaged in (frame[:-1], frame + b"\x00", frame + frame):
        with pytest.raises(StoreCorrupt, match="does not decompress"):
            decode_record(record_of(b"id", damaged, COMPRESSED))


def test_compression_that_is_not_installed_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r"hotspare\[compression\]") as caught:
        maybe_compress(bytes(1000), 100)
    assert caught.value.key == "enable_compression"
    assert maybe_compress(bytes(99), 100) == (0, bytes(99))


def test_no_setting_allows_what_could_not_be_decompressed():
    assert Settings(max_session_size_bytes=MAX_DATA_BYTES).max_session_size_bytes == MAX_DATA_BYTES
    with pytest.raises(ConfigError):
        Settings(max_session_size_bytes=MAX_DATA_BYTES + 1)


def test_more_field_names_than_any_session_has_are_refused():
    assert len(check_field_names(["x" * 100] * 1000)) == 1000
    with pytest.raises(InvalidSession, match="bytes"):
        check_field_names(["x" * 1000] * 2000)


# Depth that depends on nothing but the data


def nested_arrays(depth: int) -> bytes:
    """A mapping with one field that holds so many arrays, each within the one before."""
    return b"\x81\xa1a" + b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize("depth", [256, 400, 900, 5000])
@pytest.mark.parametrize("frames", [0, 300])
def test_what_is_too_deep_to_be_patched_does_not_depend_on_the_stack(depth: int, frames: int):
    if frames:
        test_what_is_too_deep_to_be_patched_does_not_depend_on_the_stack(depth, frames - 1)
        return
    with pytest.raises(StoreCorrupt):
        splice(nested_arrays(depth), [("b", b"\x01")], [])
    with pytest.raises(StoreCorrupt):
        splice(b"\x82\xa1b\xdc\x00\x01\xc0" + nested_arrays(depth)[1:], [], [])


def test_data_with_very_many_containers_that_are_not_deep_can_be_patched():
    moments = [datetime(2026, 1, 1), UUID(int=1), Decimal("1.5"), date(2026, 1, 1)]
    numbers = [0, -1, -40, -200, -70_000, -(2**40), 200, 70_000, 2**33, 2**63, 1.5, True, None]
    texts = ["", "x" * 40, "ж" * 300, "x" * 70_000, b"", b"\x91" * 300, b"\x91" * 70_000]
    data: dict[str, Any] = {
        "rows": [{"values": [moments, numbers, texts], "none": [], "n": n} for n in range(300)]
    }
    data["many"] = [[]] * 70_000
    encoded = encode_data(data, 2**30)

    patched = decode_data(splice(encoded, [("b", b"\x01")], ["many"]))

    assert patched == {"rows": data["rows"], "b": 1}
