from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotspare.errors import InvalidSession
from hotspare.rules import MAX_ID_BYTES, MAX_TTL_MS, check_id, check_ttl_ms
from tests.unit.data_helpers import LONE_SURROGATE, Number, Text


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
