"""Values that data may hold, and some that it may not."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from struct import pack
from typing import Any

from hypothesis import strategies as st

LIMIT_BYTES = 1 << 20
LONE_SURROGATE = "\ud800"


class Text(str):
    pass


class Number(int):
    pass


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
