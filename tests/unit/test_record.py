from __future__ import annotations

import random
import sys
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotspare.data import MAX_DATA_BYTES, encode_data
from hotspare.errors import ConfigError, StoreCorrupt
from hotspare.record import (
    COMPRESSED,
    ENCRYPTED,
    HEADER_BYTES,
    data_checksum,
    decode_record,
    digest_term,
    maybe_compress,
    pack_record,
    record_checksum,
    record_data,
    record_expires_at_ms,
    record_flags,
    record_version,
    verify_record,
    with_expiry,
)
from hotspare.settings import Settings
from tests.compiled import needs_source
from tests.unit.data_helpers import LIMIT_BYTES, SMALL_DATA, as_read, fingerprint

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
    return pack_record(version, expires_at_ms, flags, data_checksum(id, data, flags), data)


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
    with pytest.raises(StoreCorrupt):
        verify_record(id, bytes(record))


@pytest.mark.parametrize("flags", range(1, 16))
def test_damaged_flags_do_not_verify(flags):
    data = encode_data({"a": 1}, LIMIT_BYTES)
    record = pack_record(1, 1, flags, data_checksum(b"id", data, 0), data)
    with pytest.raises(StoreCorrupt):
        verify_record(b"id", record)


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


@needs_source
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
