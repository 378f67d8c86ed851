from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hotspare.commands import (
    BATCH,
    MAX_COMMANDS_PER_BATCH,
    REGISTRATION,
    Command,
    RawGroup,
    Registration,
    check_group,
    decode_batch,
    encode_batch,
    encode_commands,
    stamp_of,
)
from hotspare.errors import ProtocolError
from tests.unit.table_helpers import START_MS, delete, group, patch, put, rotate, rotate_anew, touch

CONFIGURATION = 1


def raw_group(commands: Any, count: int = 1) -> RawGroup:
    return RawGroup(1, 1, count, 0, msgspec.Raw(msgspec.msgpack.encode(commands)))


PUT_FIELDS = list(msgspec.to_builtins(put(b"x"), builtin_types=(bytes,)))


class TestAdmission:
    @pytest.mark.parametrize(
        "garbage",
        [
            pytest.param(RawGroup(1, 1, 1, 0, msgspec.Raw(b"")), id="nothing"),
            pytest.param(RawGroup(1, 1, 1, 0, msgspec.Raw(b"\xc1\xff")), id="no msgpack"),
            pytest.param(raw_group({}), id="no list"),
            pytest.param(raw_group([[99, b"x"]]), id="unknown command"),
            pytest.param(raw_group([PUT_FIELDS[:3]]), id="fields missing"),
            pytest.param(raw_group([[*PUT_FIELDS, "more"]]), id="a field too many"),
            pytest.param(raw_group([[0, "x", *PUT_FIELDS[2:]]]), id="an id that is no bytes"),
            pytest.param(raw_group([[*PUT_FIELDS[:3], 16, *PUT_FIELDS[4:]]]), id="flags of five bits"),
            pytest.param(raw_group([[*PUT_FIELDS[:4], -1, *PUT_FIELDS[5:]]]), id="a negative checksum"),
            pytest.param(raw_group([PUT_FIELDS], count=2), id="count too high"),
            pytest.param(raw_group([PUT_FIELDS], count=0), id="count too low"),
            pytest.param(raw_group([[*PUT_FIELDS[:2], b"\x81", *PUT_FIELDS[3:]]]), id="damaged data"),
            pytest.param(raw_group([[4, b"x", b"y", 0, 1, b"data", 2, 1]]), id="damaged data of a rotation"),
            pytest.param(RawGroup(1, 1, 1, 0, msgspec.Raw(b"\x91" * 100_000)), id="deeply nested"),
        ],
    )
    def test_garbage_does_not_enter_the_log(self, garbage: RawGroup) -> None:
        with pytest.raises(ProtocolError):
            check_group(garbage)

    def test_what_origins_send_passes(self) -> None:
        commands: list[Command] = [
            put(b"x"),
            delete(b"x"),
            touch(b"x"),
            patch(b"x", {"a": 1}, ["b"]),
            rotate(b"x", b"y"),
            rotate_anew(b"x", b"y", 1),
        ]
        check_group(group(1, 1, *commands))

    @pytest.mark.parametrize(
        ("origin", "first", "count", "seen"), [(-1, 1, 0, 0), (1, 0, 0, 0), (1, 1, 0, -1)]
    )
    def test_a_group_with_impossible_numbers_does_not_decode(
        self, origin: int, first: int, count: int, seen: int
    ) -> None:
        encoded = msgspec.msgpack.encode([origin, first, count, seen, []])
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(encoded, type=RawGroup)

    def test_a_group_from_a_newer_version_does_not_decode(self) -> None:
        encoded = msgspec.msgpack.encode([1, 1, 0, 0, [], "a field that we do not know"])
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(encoded, type=RawGroup)

    def test_the_bytes_of_the_origin_enter_the_log_unchanged(self) -> None:
        commands: list[Command] = [put(b"x", {"a": 1}), patch(b"x", {"b": 2})]
        raw = msgspec.msgpack.decode(msgspec.msgpack.encode(group(5, 7, *commands, seen=3)), type=RawGroup)
        payload = encode_batch(START_MS, False, [raw])
        assert bytes(encode_commands(commands)) in payload
        (decoded,) = decode_batch(payload).groups
        assert (decoded.origin, decoded.first, decoded.count, decoded.seen) == (5, 7, 2, 3)
        assert decoded.commands == commands

    def test_a_batch_has_no_more_commands_than_versions(self) -> None:
        half = RawGroup(1, 1, MAX_COMMANDS_PER_BATCH // 2, 0, msgspec.Raw(b"\x90"))
        encode_batch(START_MS, False, [half, half])
        with pytest.raises(ValueError, match="65537"):
            encode_batch(START_MS, False, [half, half, raw_group([PUT_FIELDS])])


class TestStamps:
    def test_they_can_be_read_from_an_entry(self) -> None:
        assert stamp_of(BATCH, encode_batch(START_MS, True, [])) == START_MS
        assert stamp_of(REGISTRATION, Registration(b"n", START_MS + 1).encode()) == START_MS + 1
        assert stamp_of(CONFIGURATION, b"") is None
