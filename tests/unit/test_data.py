from __future__ import annotations

import enum
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

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from hotspare.data import MAX_DEPTH, check_field_names, decode_data, encode_data, encode_fields, splice
from hotspare.errors import InvalidSession, SessionTooLarge, StoreCorrupt
from tests.unit.data_helpers import (
    DATA,
    LIMIT_BYTES,
    LONE_SURROGATE,
    PLAIN_SCALARS,
    SCALARS,
    SMALL_DATA,
    ZONES,
    Number,
    Text,
    as_read,
    fingerprint,
    nested,
)


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


# Values that survive


def round_trip(value: Any) -> Any:
    return decode_data(encode_data({"value": value}, LIMIT_BYTES))["value"]


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


def test_the_encoding_of_a_moment_in_a_zone_is_pinned():
    if "Europe/Berlin" not in ZONES:
        pytest.skip("this machine has no time zones")
    twice = datetime(2026, 10, 25, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1)
    assert encode_data({"at": twice}, LIMIT_BYTES) == (
        b"\x81\xa2at\xc7\x2b\x01\x94\xb92026-10-25T02:30:00+01:00\x01\xadEurope/Berlin\xc0"
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
