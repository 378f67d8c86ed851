from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hotspare import table as table_module
from hotspare.commands import (
    ABSENT,
    BATCH,
    CONFLICT_ABSENT,
    EXPIRED,
    FORGOTTEN,
    FULL,
    IF_ABSENT,
    IF_PRESENT,
    INVALID,
    KEEP_EXPIRY_MS,
    REGISTRATION,
    TAKEN,
    TOO_LARGE,
    UNCONDITIONAL,
    UNMERGEABLE,
    Command,
    Gap,
    Registered,
    Registration,
    Results,
    UnknownOrigin,
    conflicting_version,
    encode_batch,
)
from hotspare.errors import ProtocolError, StoreCorrupt
from hotspare.record import (
    COMPRESSED,
    ENCRYPTED,
    decode_record,
    record_data,
    record_expires_at_ms,
    record_flags,
    record_version,
    verify_record,
)
from hotspare.rules import MAX_TTL_MS
from hotspare.store import Store
from hotspare.store.lmdb import LmdbStore
from hotspare.store.plain import PlainStore
from hotspare.table import ORIGIN_TTL_MS, PRUNE_PER_BATCH, SESSION_OVERHEAD_BYTES, Table, TableState, recount
from tests.unit.table_helpers import (
    START_MS,
    Copy,
    Driver,
    delete,
    group,
    patch,
    put,
    rotate,
    rotate_anew,
    touch,
)

NOOP, CONFIGURATION = 0, 1


@pytest.fixture(params=["plain", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store: Store
    if request.param == "plain":
        store = PlainStore(undo=True)
    else:
        store = LmdbStore.open(tmp_path, durable=False, map_size_bytes=1 << 24)
    yield store
    store.close()


@pytest.fixture
def driver(store: Store) -> Driver:
    return Driver(store)


def record(driver: Driver, id: bytes) -> bytes:
    found = driver.store.get(id)
    assert found is not None
    verify_record(id, found)
    return found


def kept(driver: Driver) -> dict[bytes, bytes]:
    txn = driver.store.begin()
    sessions = dict(txn.sessions.scan())
    assert recount(sessions.items()) == driver.table.totals
    indexed = txn.expiry.due(1 << 62, len(sessions) + 1)
    assert indexed == sorted((record_expires_at_ms(record), id) for id, record in sessions.items())
    txn.commit()
    return sessions


ANY_COMMAND = [
    pytest.param(put(b"x", deadline_ms=START_MS - 1), id="put"),
    pytest.param(delete(b"x", deadline_ms=START_MS - 1), id="delete"),
    pytest.param(touch(b"x", deadline_ms=START_MS - 1), id="touch"),
    pytest.param(patch(b"x", {"a": 1}, deadline_ms=START_MS - 1), id="patch"),
    pytest.param(rotate(b"x", b"y", deadline_ms=START_MS - 1), id="rotate"),
]


class TestPut:
    def test_it_stores_the_data_until_its_ttl_has_passed(self, driver: Driver) -> None:
        driver.run(put(b"x", {"name": "Ada"}, ttl_ms=5_000))
        stored = record(driver, b"x")
        assert decode_record(stored) == {"name": "Ada"}
        assert record_expires_at_ms(stored) == START_MS + 5_000

    def test_its_result_is_the_version_made_of_index_and_position_in_the_entry(self, driver: Driver) -> None:
        index = driver.next_index
        outcomes = driver.batch(
            group(driver.origin, 1, put(b"a"), put(b"b")),
            group(77, 1, put(b"refused"), put(b"refused")),
            group(driver.origin, 3, put(b"c")),
        )
        versions = [index << 16, index << 16 | 1]
        assert outcomes == [
            Results(driver.origin, 1, versions),
            UnknownOrigin(77, 1, 2),
            Results(driver.origin, 3, [index << 16 | 4]),
        ]
        assert record_version(record(driver, b"c")) == index << 16 | 4

    def test_it_replaces_what_was_there_with_its_place_in_the_expiry_order(self, driver: Driver) -> None:
        driver.run(put(b"x", {"size": "small"}, ttl_ms=1_000), put(b"x", {"size": "l" * 99}, ttl_ms=9_000))
        assert [record_expires_at_ms(each) for each in kept(driver).values()] == [START_MS + 9_000]

    def test_over_an_expired_session_it_leaves_nothing_of_that(self, driver: Driver) -> None:
        driver.run(put(b"x", {"old": "o" * 50}, ttl_ms=10))
        driver.wait(10)
        assert driver.run_one(put(b"x", {"new": 1}, condition=IF_ABSENT)) > 0
        assert [decode_record(each) for each in kept(driver).values()] == [{"new": 1}]

    def test_under_an_exact_version_it_can_keep_the_expiry(self, driver: Driver) -> None:
        version = driver.run_one(put(b"x", ttl_ms=1_000))
        driver.wait(500)
        merged = put(b"x", {"merged": 1}, ttl_ms=KEEP_EXPIRY_MS, condition=version)
        after, again = driver.run(merged, merged)
        assert after > version
        assert again == -after
        stored = record(driver, b"x")
        assert decode_record(stored) == {"merged": 1}
        assert record_expires_at_ms(stored) == START_MS + 1_000
        kept(driver)

    def test_keeping_the_expiry_brings_nothing_back(self, driver: Driver) -> None:
        version = driver.run_one(put(b"x", ttl_ms=10))
        driver.wait(10)
        assert driver.run_one(put(b"x", ttl_ms=KEEP_EXPIRY_MS, condition=version)) == CONFLICT_ABSENT
        assert kept(driver) == {}


class TestDelete:
    def test_it_ends_a_session(self, driver: Driver) -> None:
        driver.run(put(b"x"))
        assert driver.run_one(delete(b"x")) > 0
        assert kept(driver) == {}

    def test_of_what_is_not_there_it_says_so(self, driver: Driver) -> None:
        assert driver.run(delete(b"x"), put(b"x"), delete(b"x"), delete(b"x"))[::3] == [ABSENT, ABSENT]


class TestTouch:
    def test_it_moves_the_expiry_and_nothing_else(self, driver: Driver) -> None:
        driver.run(put(b"x", {"cart": [1]}, ttl_ms=1_000))
        before = record(driver, b"x")
        driver.wait(500)
        assert driver.run_one(touch(b"x", 7_000)) > 0
        after = record(driver, b"x")
        assert record_expires_at_ms(after) == START_MS + 7_500
        assert record_version(after) == record_version(before)
        assert after[8:] == before[8:]
        kept(driver)

    def test_it_can_shorten_the_life_of_a_session(self, driver: Driver) -> None:
        driver.run(put(b"x", ttl_ms=60_000), touch(b"x", 10))
        driver.wait(10)
        driver.batch()
        assert kept(driver) == {}

    def test_it_brings_nothing_back(self, driver: Driver) -> None:
        driver.run(put(b"expired", ttl_ms=10), put(b"deleted"), delete(b"deleted"))
        driver.wait(10)
        assert driver.run(touch(b"expired"), touch(b"deleted"), touch(b"never there")) == [ABSENT] * 3
        assert kept(driver) == {}


class TestPatch:
    def test_it_sets_and_removes_single_fields_under_a_new_version_and_the_old_expiry(
        self, driver: Driver
    ) -> None:
        driver.run(put(b"x", {"keep": 1, "change": 2, "drop": 3}, ttl_ms=1_000))
        driver.wait(100)
        version = driver.run_one(patch(b"x", {"change": [4], "add": "5"}, ["drop", "not there"]))
        stored = record(driver, b"x")
        assert decode_record(stored) == {"keep": 1, "change": [4], "add": "5"}
        assert record_version(stored) == version
        assert record_expires_at_ms(stored) == START_MS + 1_000
        kept(driver)

    def test_two_that_change_different_fields_both_survive(self, driver: Driver) -> None:
        driver.run(put(b"x", {}), patch(b"x", {"one": 1}), patch(b"x", {"two": 2}))
        assert decode_record(record(driver, b"x")) == {"one": 1, "two": 2}

    def test_of_what_is_not_there_it_says_so(self, driver: Driver) -> None:
        assert driver.run_one(patch(b"x", {"a": 1})) == ABSENT

    def test_the_data_may_grow_to_the_limit_it_carries_and_no_further(self, driver: Driver) -> None:
        driver.run(put(b"x", {}))
        size = len(b"\x81\xa1a\x01")
        assert driver.run_one(patch(b"x", {"a": 1}, limit_bytes=size - 1)) == TOO_LARGE
        assert decode_record(record(driver, b"x")) == {}
        assert driver.run_one(patch(b"x", {"a": 1}, limit_bytes=size)) > 0

    @pytest.mark.parametrize("flags", [COMPRESSED, ENCRYPTED, COMPRESSED | ENCRYPTED, 8])
    def test_data_it_cannot_look_into_is_left_to_the_origin(self, driver: Driver, flags: int) -> None:
        version = driver.run_one(put(b"x", b"\x80", flags=flags))
        assert driver.run_one(patch(b"x", {"a": 1})) == UNMERGEABLE
        found = driver.store.get(b"x")
        assert found is not None
        assert (record_version(found), record_flags(found)) == (version, flags)

    @pytest.mark.parametrize("data", [b"\xc1", b"\x93\x01", b"\x01", b"\x81\x01\x01"])
    def test_data_that_is_no_mapping_is_left_to_the_origin(self, driver: Driver, data: bytes) -> None:
        driver.run(put(b"x", data))
        assert driver.run_one(patch(b"x", {"a": 1})) == UNMERGEABLE


class TestRotate:
    def test_it_moves_data_and_expiry_to_the_new_id_under_a_new_version(self, driver: Driver) -> None:
        driver.run(put(b"old", {"user": 7}, ttl_ms=1_000))
        driver.wait(100)
        version = driver.run_one(rotate(b"old", b"the new one"))
        assert list(kept(driver)) == [b"the new one"]
        stored = record(driver, b"the new one")
        assert decode_record(stored) == {"user": 7}
        assert record_version(stored) == version
        assert record_expires_at_ms(stored) == START_MS + 1_000

    def test_it_keeps_compressed_data_as_it_is(self, driver: Driver) -> None:
        driver.run(put(b"old", b"opaque", flags=COMPRESSED), rotate(b"old", b"new"))
        assert record_flags(record(driver, b"new")) == COMPRESSED

    def test_encrypted_data_is_bound_to_its_id_and_moves_only_with_data_for_the_new_one(
        self, driver: Driver
    ) -> None:
        version = driver.run_one(put(b"old", b"for old", flags=ENCRYPTED, ttl_ms=1_000))
        assert driver.run_one(rotate(b"old", b"new")) == UNMERGEABLE
        assert record_version(record(driver, b"old")) == version
        driver.wait(100)
        moved = driver.run_one(rotate_anew(b"old", b"new", version))
        assert list(kept(driver)) == [b"new"]
        stored = record(driver, b"new")
        assert (record_data(stored), record_flags(stored)) == (b"for new", ENCRYPTED)
        assert record_version(stored) == moved
        assert record_expires_at_ms(stored) == START_MS + 1_000

    def test_with_data_it_needs_the_version_that_this_data_was(self, driver: Driver) -> None:
        first, second = driver.run(*(put(b"old", b"data", flags=ENCRYPTED) for _ in range(2)))
        assert driver.run_one(rotate_anew(b"old", b"new", first)) == -second
        assert driver.run_one(rotate_anew(b"gone", b"new", second)) == ABSENT
        for condition in (UNCONDITIONAL, IF_PRESENT, IF_ABSENT, -3):
            assert driver.run_one(rotate_anew(b"old", b"new", condition)) == INVALID
        assert list(kept(driver)) == [b"old"]

    def test_it_may_move_data_but_not_add_any_where_there_is_no_room(self, driver: Driver) -> None:
        version = driver.run_one(put(b"old", b"for old", flags=ENCRYPTED))
        assert driver.run_one(rotate_anew(b"old", b"new", version, b"for new "), full=True) == FULL
        assert driver.run_one(rotate_anew(b"old", b"new", version), full=True) > 0

    def test_an_id_in_use_is_not_taken_from_its_session(self, driver: Driver) -> None:
        driver.run(put(b"old", {"user": 1}), put(b"new", {"user": 2}))
        assert driver.run_one(rotate(b"old", b"new")) == TAKEN
        assert {id: decode_record(each) for id, each in kept(driver).items()} == {
            b"old": {"user": 1},
            b"new": {"user": 2},
        }

    def test_an_expired_session_does_not_hold_its_id(self, driver: Driver) -> None:
        driver.run(put(b"old", {"user": 1}), put(b"new", {"user": 2}, ttl_ms=10))
        driver.wait(10)
        assert driver.run_one(rotate(b"old", b"new")) > 0
        assert {id: decode_record(each) for id, each in kept(driver).items()} == {b"new": {"user": 1}}

    def test_of_what_is_not_there_it_says_so_and_touches_nothing(self, driver: Driver) -> None:
        driver.run(put(b"expired", ttl_ms=10), put(b"new", {"user": 2}))
        driver.wait(10)
        assert driver.run(rotate(b"expired", b"new"), rotate(b"never there", b"new")) == [ABSENT] * 2
        assert decode_record(record(driver, b"new")) == {"user": 2}

    def test_to_the_same_id_it_is_refused(self, driver: Driver) -> None:
        version = driver.run_one(put(b"x"))
        assert driver.run_one(rotate(b"x", b"x")) == INVALID
        assert record_version(record(driver, b"x")) == version


def with_condition(kind: str, id: bytes, condition: int) -> Command:
    if kind == "put":
        return put(id, condition=condition)
    return delete(id, condition) if kind == "delete" else patch(id, {"a": 1}, condition=condition)


@pytest.mark.parametrize("kind", ["put", "delete", "patch"])
class TestConditions:
    def test_absent_holds_only_where_there_is_no_session(self, driver: Driver, kind: str) -> None:
        version = driver.run_one(put(b"there"))
        assert driver.run_one(with_condition(kind, b"there", IF_ABSENT)) == -version
        assert driver.run_one(with_condition(kind, b"not there", IF_ABSENT)) >= ABSENT
        assert record_version(record(driver, b"there")) == version

    def test_present_holds_only_where_there_is_one(self, driver: Driver, kind: str) -> None:
        driver.run(put(b"there"))
        assert driver.run_one(with_condition(kind, b"there", IF_PRESENT)) > 0
        assert driver.run_one(with_condition(kind, b"not there", IF_PRESENT)) == CONFLICT_ABSENT

    def test_a_version_holds_only_for_exactly_that_one(self, driver: Driver, kind: str) -> None:
        first, second = driver.run(put(b"x"), put(b"x"))
        assert driver.run_one(with_condition(kind, b"x", first)) == -second
        assert driver.run_one(with_condition(kind, b"not there", second)) == CONFLICT_ABSENT
        assert driver.run_one(with_condition(kind, b"x", second)) > 0

    def test_an_expired_session_counts_as_absent_before_it_is_pruned(self, driver: Driver, kind: str) -> None:
        version = driver.run_one(put(b"x", ttl_ms=10))
        driver.wait(10)
        assert (
            driver.run(
                with_condition(kind, b"x", version),
                with_condition(kind, b"x", IF_PRESENT),
            )
            == [CONFLICT_ABSENT] * 2
        )
        assert driver.run_one(with_condition(kind, b"x", IF_ABSENT)) >= ABSENT

    def test_one_that_does_not_exist_is_invalid(self, driver: Driver, kind: str) -> None:
        driver.run(put(b"x"))
        assert driver.run_one(with_condition(kind, b"x", -3)) == INVALID


def test_a_conflict_tells_the_version_that_was_there(driver: Driver) -> None:
    version = driver.run_one(put(b"x"))
    assert conflicting_version(driver.run_one(put(b"x", condition=IF_ABSENT))) == version
    others = (
        version,
        ABSENT,
        CONFLICT_ABSENT,
        EXPIRED,
        FULL,
        TOO_LARGE,
        UNMERGEABLE,
        TAKEN,
        FORGOTTEN,
        INVALID,
    )
    assert [conflicting_version(result) for result in others] == [None] * len(others)


class TestDeadlines:
    @pytest.mark.parametrize("command", ANY_COMMAND)
    def test_a_command_ordered_after_its_deadline_does_nothing(
        self, driver: Driver, command: Command
    ) -> None:
        driver.run(put(b"x", {"a": 0}))
        before = kept(driver)
        assert driver.run_one(command) == EXPIRED
        assert kept(driver) == before

    def test_one_ordered_at_its_deadline_runs(self, driver: Driver) -> None:
        assert driver.run_one(put(b"x", deadline_ms=START_MS)) > 0

    def test_the_number_of_an_expired_command_counts_as_done(self, driver: Driver) -> None:
        late = put(b"late", deadline_ms=START_MS - 1)
        driver.run(late)
        results = driver.run(late, put(b"next"))
        assert results[0] == EXPIRED
        assert results[1] > 0
        assert list(kept(driver)) == [b"next"]

    def test_a_command_sent_again_after_its_deadline_keeps_its_first_result(self, driver: Driver) -> None:
        sent = group(driver.origin, 1, put(b"x", deadline_ms=START_MS))
        first = driver.batch(sent)
        driver.wait(1)
        assert driver.batch(sent) == first


class TestFull:
    def test_puts_and_patches_are_refused_while_the_others_go_on(self, driver: Driver) -> None:
        driver.run(put(b"a"), put(b"b"), put(b"expiring", ttl_ms=10))
        driver.wait(10)
        results = driver.run(
            put(b"c"),
            put(b"a"),
            patch(b"a", {"x": 1}),
            touch(b"a"),
            rotate(b"a", b"d"),
            delete(b"b"),
            full=True,
        )
        assert results[:3] == [FULL] * 3
        assert min(results[3:]) > 0
        assert list(kept(driver)) == [b"d"]

    def test_bytes_used_counts_ids_records_and_an_overhead_for_each_session(self, driver: Driver) -> None:
        driver.run(put(b"a", {"x": 1}), put(b"bcd", {}))
        expected = sum(len(id) + len(each) + SESSION_OVERHEAD_BYTES for id, each in kept(driver).items())
        assert driver.table.state().bytes_used == expected
        driver.run(delete(b"a"), delete(b"bcd"))
        assert driver.table.state().bytes_used == 0


class TestInvalidCommands:
    @pytest.mark.parametrize(
        "command",
        [
            put(b""),
            put(b"i" * 256),
            put(b"x", ttl_ms=KEEP_EXPIRY_MS),
            put(b"x", ttl_ms=KEEP_EXPIRY_MS, condition=IF_PRESENT),
            put(b"x", ttl_ms=-1),
            put(b"x", ttl_ms=-1, condition=1 << 16),
            put(b"x", ttl_ms=MAX_TTL_MS + 1),
            put(b"x", ttl_ms=2**64 - 1),
            put(b"x", b""),
            delete(b""),
            delete(b"i" * 256),
            touch(b""),
            touch(b"i" * 256),
            touch(b"x", 0),
            touch(b"x", MAX_TTL_MS + 1),
            patch(b"", {}),
            patch(b"i" * 256, {}),
            rotate(b"", b"y"),
            rotate(b"x", b""),
            rotate(b"x", b"i" * 256),
        ],
    )
    def test_they_are_refused_and_the_next_ones_run(self, driver: Driver, command: Command) -> None:
        driver.run(put(b"x"))
        before = kept(driver)[b"x"]
        result, following = driver.run(command, put(b"next"))
        assert result == INVALID
        assert following > 0
        assert kept(driver)[b"x"] == before

    def test_the_longest_id_and_ttl_are_valid(self, driver: Driver) -> None:
        assert driver.run_one(put(b"i" * 255, ttl_ms=MAX_TTL_MS)) > 0

    @pytest.mark.parametrize("deadline_ms", [-(2**63), 2**64 - 1])
    def test_any_integer_may_be_a_deadline(self, driver: Driver, deadline_ms: int) -> None:
        assert (driver.run_one(put(b"x", deadline_ms=deadline_ms)) > 0) == (deadline_ms > 0)


class TestEntries:
    @pytest.mark.parametrize("kind", [REGISTRATION, BATCH])
    @pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\xff\xc2\x90", b"\x92\xc4\x00\xff"])
    def test_an_entry_that_does_not_decode_is_an_error(
        self, driver: Driver, kind: int, payload: bytes
    ) -> None:
        with pytest.raises(ProtocolError):
            driver.append(kind, payload)

    def test_an_entry_that_miscounts_its_commands_is_an_error(self, driver: Driver) -> None:
        miscounted = msgspec.msgpack.encode([START_MS, False, [[driver.origin, 1, 2, 0, []]]])
        with pytest.raises(ProtocolError, match="announced 2 commands and holds 0"):
            driver.append(BATCH, miscounted)


class TestStamps:
    def test_they_never_go_back(self, driver: Driver) -> None:
        driver.run(put(b"x", ttl_ms=100))
        driver.wait(100)
        driver.batch()
        driver.stamp_ms = START_MS
        assert driver.run_one(put(b"x", ttl_ms=50, deadline_ms=START_MS + 99)) == EXPIRED
        driver.run(put(b"x", ttl_ms=50))
        assert driver.table.stamp_ms == START_MS + 100
        assert record_expires_at_ms(record(driver, b"x")) == START_MS + 150

    @pytest.mark.parametrize("kind", [NOOP, CONFIGURATION])
    def test_entries_of_the_consensus_move_the_applied_index_and_term_only(
        self, driver: Driver, kind: int
    ) -> None:
        driver.run(put(b"x", ttl_ms=10))
        before, totals = kept(driver), driver.table.totals
        driver.wait(10)
        assert driver.table.apply(driver.begin(), 99, 7, kind, b"anything") == []
        driver.commit()
        assert (driver.table.applied_index, driver.table.applied_term) == (99, 7)
        assert driver.table.stamp_ms == START_MS
        assert (kept(driver), driver.table.totals) == (before, totals)


class TestPruning:
    def test_a_batch_deletes_what_is_due_at_its_stamp(self, driver: Driver) -> None:
        driver.run(put(b"due", ttl_ms=10), put(b"due too", ttl_ms=9), put(b"not yet", ttl_ms=11))
        driver.wait(10)
        driver.batch()
        assert list(kept(driver)) == [b"not yet"]

    def test_it_goes_by_expiry_and_id_and_takes_a_bounded_number_at_a_time(self, driver: Driver) -> None:
        ids = [b"%04d" % number for number in range(PRUNE_PER_BATCH + 10)]
        driver.run(*(put(id, ttl_ms=20) for id in reversed(ids)), put(b"zzzz", ttl_ms=19))
        driver.wait(20)
        driver.batch()
        assert list(kept(driver)) == ids[PRUNE_PER_BATCH - 1 :]
        assert driver.table.state().prune_due(driver.store, driver.stamp_ms)
        driver.batch()
        assert list(kept(driver)) == []
        assert not driver.table.state().prune_due(driver.store, driver.stamp_ms)

    def test_it_goes_on_while_the_cluster_is_full(self, driver: Driver) -> None:
        driver.run(put(b"x", ttl_ms=10))
        driver.wait(10)
        driver.batch(full=True)
        assert kept(driver) == {}

    def test_nothing_is_due_before_its_time(self, driver: Driver) -> None:
        driver.run(put(b"x", ttl_ms=10))
        assert not driver.table.state().prune_due(driver.store, START_MS + 9)
        assert driver.table.state().prune_due(driver.store, START_MS + 10)

    def test_an_origin_to_be_forgotten_is_due_too(self, driver: Driver) -> None:
        assert not driver.table.state().prune_due(driver.store, START_MS + ORIGIN_TTL_MS - 1)
        assert driver.table.state().prune_due(driver.store, START_MS + ORIGIN_TTL_MS)

    def test_only_a_session_named_by_its_index_is_missed(self, driver: Driver) -> None:
        driver.run(put(b"x", ttl_ms=10))
        driver.begin().sessions.pop(b"x")
        driver.commit()
        driver.wait(10)
        with pytest.raises(StoreCorrupt):
            driver.batch()


class TestOrigins:
    def test_the_index_of_its_registration_is_its_id(self, driver: Driver) -> None:
        index = driver.next_index
        outcomes = driver.append(REGISTRATION, Registration(b"mine", START_MS).encode())
        assert outcomes == [Registered(b"mine", index)]
        assert driver.table.has_origin(index)
        assert driver.table.state().origins_count == 2

    def test_two_registrations_under_one_nonce_are_two_origins(self, driver: Driver) -> None:
        assert driver.register() != driver.register()
        assert driver.table.state().origins_count == 3

    def test_a_command_sent_again_is_answered_from_its_stored_result_and_does_not_run(
        self, driver: Driver
    ) -> None:
        sent = group(driver.origin, 1, put(b"x", condition=IF_ABSENT), delete(b"x"), delete(b"x"))
        first = driver.batch(sent)
        after = kept(driver)
        assert driver.batch(sent) == first
        assert kept(driver) == after

    def test_within_one_entry_too(self, driver: Driver) -> None:
        sent = group(driver.origin, 1, put(b"x", condition=IF_ABSENT))
        first, second = driver.batch(sent, sent)
        assert first == second

    def test_of_a_group_that_overlaps_only_the_new_commands_run(self, driver: Driver) -> None:
        driver.batch(group(driver.origin, 1, put(b"1"), put(b"2")))
        driver.batch(group(driver.origin, 3, put(b"3")))
        versions = [record_version(record(driver, id)) for id in (b"2", b"3")]
        index = driver.next_index
        (outcome,) = driver.batch(group(driver.origin, 2, put(b"2"), put(b"3"), put(b"4"), put(b"5")))
        assert outcome == Results(driver.origin, 2, [*versions, index << 16 | 2, index << 16 | 3])
        assert [record_version(record(driver, id)) for id in (b"2", b"3")] == versions
        assert list(kept(driver)) == [b"1", b"2", b"3", b"4", b"5"]

    def test_any_part_of_what_ran_can_be_asked_for_again(self, driver: Driver) -> None:
        results = [driver.run_one(put(b"a")), *driver.run(put(b"b"), put(b"c")), driver.run_one(delete(b"a"))]
        for first in range(1, 5):
            for end in range(first + 1, 6):
                commands = [delete(b"a")] * (end - first)
                (outcome,) = driver.batch(group(driver.origin, first, *commands))
                assert outcome == Results(driver.origin, first, results[first - 1 : end - 1])

    def test_a_gap_is_refused_until_what_is_missing_has_come(self, driver: Driver) -> None:
        second = group(driver.origin, 2, put(b"second"))
        assert driver.batch(second) == [Gap(driver.origin, 2, expected=1)]
        assert kept(driver) == {}
        driver.batch(group(driver.origin, 1, put(b"first")))
        (outcome,) = driver.batch(second)
        assert isinstance(outcome, Results)
        assert list(kept(driver)) == [b"first", b"second"]

    def test_seen_results_are_forgotten(self, driver: Driver) -> None:
        driver.run(put(b"1"))
        _, three = driver.run(put(b"2"), put(b"3"))
        driver.batch(group(driver.origin, 4, put(b"4"), seen=2))
        (outcome,) = driver.batch(group(driver.origin, 1, put(b"1"), put(b"2"), put(b"3")))
        assert outcome == Results(driver.origin, 1, [FORGOTTEN, FORGOTTEN, three])

    @pytest.mark.parametrize(
        ("seen", "left"), [(0, [1, 2, 4]), (1, [2, 4]), (2, [2, 4]), (3, [4]), (4, []), (9, [])]
    )
    def test_the_rows_of_runs_seen_as_a_whole_are_deleted(
        self, driver: Driver, seen: int, left: list[int]
    ) -> None:
        driver.run(put(b"1"))
        driver.run(put(b"2"), put(b"3"))
        driver.run(put(b"4"))
        driver.batch(group(driver.origin, 5, seen=seen))
        runs = [key for space, key, _ in driver.rows() if space == "table" and key[:1] == b"r"]
        assert runs == [b"r" + driver.origin.to_bytes(8, "big") + first.to_bytes(8, "big") for first in left]

    def test_what_has_not_run_cannot_have_been_seen(self, driver: Driver) -> None:
        driver.batch(group(driver.origin, 1, put(b"1"), seen=1_000))
        again, new = driver.batch(group(driver.origin, 1, put(b"1")), group(driver.origin, 2, put(b"2")))
        assert isinstance(again, Results)
        assert again.results != [FORGOTTEN]
        assert isinstance(new, Results)

    def test_an_unknown_one_is_refused(self, driver: Driver) -> None:
        assert driver.batch(group(99, 1, put(b"x"), put(b"y"))) == [UnknownOrigin(99, 1, 2)]
        assert kept(driver) == {}

    def test_one_that_was_idle_for_ten_minutes_is_forgotten_with_its_results(self, driver: Driver) -> None:
        driver.run(put(b"x"))
        driver.wait(ORIGIN_TTL_MS - 1)
        driver.batch()
        assert driver.table.has_origin(driver.origin)
        driver.wait(1)
        assert driver.batch(group(driver.origin, 2, put(b"y"))) == [UnknownOrigin(driver.origin, 2, 1)]
        assert [key for space, key, _ in driver.rows() if space == "table"] == [b"c"]

    def test_a_registration_makes_time_pass_too(self, driver: Driver) -> None:
        driver.wait(ORIGIN_TTL_MS)
        driver.register()
        assert driver.table.stamp_ms == driver.stamp_ms
        assert not driver.table.has_origin(driver.origin)

    def test_a_group_without_commands_keeps_its_origin_alive_and_tells_what_it_has_seen(
        self, driver: Driver
    ) -> None:
        driver.run(put(b"1"))
        driver.wait(ORIGIN_TTL_MS - 1)
        assert driver.batch(group(driver.origin, 2, seen=1)) == [Results(driver.origin, 2, [])]
        driver.wait(ORIGIN_TTL_MS - 1)
        assert driver.batch(group(driver.origin, 1, put(b"1"))) == [Results(driver.origin, 1, [FORGOTTEN])]

    def test_forgetting_them_is_bounded_per_entry(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table_module, "PRUNE_PER_BATCH", 2)
        for _ in range(4):
            driver.register()
        driver.wait(ORIGIN_TTL_MS)
        counts = []
        for _ in range(3):
            driver.batch()
            counts.append(driver.table.state().origins_count)
        assert counts == [3, 1, 0]

    def test_beyond_their_greatest_number_the_one_that_was_idle_for_longest_goes(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table_module, "MAX_ORIGINS", 3)
        second, third = driver.register(), driver.register()
        driver.batch(group(driver.origin, 1, put(b"x")), group(third, 1, put(b"y")))
        fourth = driver.register()
        survivors = [driver.origin, third, fourth]
        assert [
            id for id in (driver.origin, second, third, fourth) if driver.table.has_origin(id)
        ] == survivors
        driver.register()
        assert not driver.table.has_origin(driver.origin)

    def test_one_that_never_says_what_it_has_seen_is_stopped(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table_module, "MAX_UNSEEN", 3)
        driver.run(put(b"1"), put(b"2"))
        assert driver.batch(group(driver.origin, 3, put(b"3"), put(b"4"))) == [
            Gap(driver.origin, 3, expected=3)
        ]
        assert list(kept(driver)) == [b"1", b"2"]
        (outcome,) = driver.batch(group(driver.origin, 3, put(b"3"), put(b"4"), seen=1))
        assert isinstance(outcome, Results)


def everything_in(state: TableState) -> tuple[Any, ...]:
    applied = state.applied_index, state.applied_term, state.stamp_ms
    return applied, state.totals, state.origins_count, state.origins_due_ms


class TestPersistence:
    def test_a_table_loaded_from_its_rows_goes_on_as_if_nothing_had_happened(self, driver: Driver) -> None:
        driver.register()
        driver.run(put(b"x"), put(b"y"))
        driver.batch(group(driver.origin, 3, put(b"z"), seen=1))
        again = Copy(driver.store)
        assert everything_in(again.table.state()) == everything_in(driver.table.state())
        resent = encode_batch(START_MS, False, [group(driver.origin, 1, put(b"x"), put(b"y"), put(b"z"))])
        (outcome,) = again.apply(driver.next_index, BATCH, resent)
        assert isinstance(outcome, Results)
        assert outcome.results[0] == FORGOTTEN
        assert outcome.results[1] == record_version(record(driver, b"y"))
        assert outcome.results[2] == record_version(record(driver, b"z"))

    def test_after_an_abort_it_is_as_before_the_transaction(self, driver: Driver) -> None:
        driver.run(put(b"x"))
        before, totals = driver.rows(), driver.table.totals
        txn = driver.begin()
        driver.wait(100_000)
        driver.batch(group(driver.origin, 2, put(b"y"), seen=1))
        driver.register()
        driver.table.save(txn)
        txn.abort()
        txn = driver.begin()
        driver.table.reload(txn)
        driver.commit()
        assert (driver.rows(), driver.table.totals) == (before, totals)
        assert driver.table.state().origins_count == 1
        assert driver.table.stamp_ms == START_MS

    def test_the_order_in_which_origins_are_forgotten_survives_a_restart(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table_module, "MAX_ORIGINS", 3)
        second = driver.register()
        driver.batch(group(second, 1), group(driver.origin, 1))
        third = driver.register()
        survivors = [driver.origin, second, third]
        for idlest in (second, driver.origin, third):
            driver.restart()
            survivors.remove(idlest)
            survivors.append(driver.register())
            assert [id for id in range(driver.next_index) if driver.table.has_origin(id)] == sorted(survivors)

    def test_saving_without_changes_writes_nothing(self, driver: Driver) -> None:
        driver.run(put(b"x"))
        driver.table.save(Untouchable())
        Copy(driver.store).table.save(Untouchable())

    def test_an_entry_is_not_applied_twice(self, driver: Driver) -> None:
        with pytest.raises(AssertionError):
            driver.apply(driver.next_index - 1, NOOP)

    @pytest.mark.parametrize("command", [patch(b"x", {"a": 1}), rotate(b"x", b"y")], ids=["patch", "rotate"])
    def test_damaged_data_does_not_get_a_new_checksum(self, driver: Driver, command: Command) -> None:
        driver.run(put(b"x", {"a": 0}))
        damaged = record(driver, b"x")[:-1] + b"\x07"
        driver.begin().sessions[b"x"] = damaged
        driver.commit()
        with pytest.raises(StoreCorrupt):
            driver.run(command)

    def test_missing_results_are_noticed(self, driver: Driver) -> None:
        driver.run(put(b"x"))
        driver.begin().table.pop(b"r" + driver.origin.to_bytes(8, "big") + (1).to_bytes(8, "big"))
        driver.commit()
        with pytest.raises(StoreCorrupt):
            Table(driver.begin())


class Untouchable:
    def __getattr__(self, name: str) -> Any:
        return self

    def __setitem__(self, key: bytes, value: bytes) -> None:
        raise AssertionError(f"{key!r} was written")


class TestCopies:
    """What a copy becomes follows from the log alone, wherever it began to apply it."""

    def test_one_that_began_with_a_snapshot_goes_on_like_the_one_it_came_from(self, driver: Driver) -> None:
        due = [put(b"%04d" % number, ttl_ms=20 + number % 3) for number in range(2 * PRUNE_PER_BATCH)]
        driver.run(*due, put(b"x", condition=IF_ABSENT))
        driver.batch(group(driver.origin, driver.next_number, seen=driver.next_number - 3))
        newcomer = Copy(PlainStore())
        newcomer.install(driver.rows())
        driver.wait(22)
        resent = group(
            driver.origin, driver.next_number - 2, due[-1], put(b"x", condition=IF_ABSENT), delete(b"x")
        )
        for groups in ([], [resent], [resent, group(driver.origin, 1, *due)], [], []):
            index = driver.next_index
            payload = encode_batch(driver.stamp_ms, False, groups)
            assert driver.append(BATCH, payload) == newcomer.apply(index, BATCH, payload)
            assert driver.rows() == newcomer.rows()
        assert newcomer.table.state().digest == driver.table.state().digest
        assert newcomer.table.totals == recount([])

    def test_on_another_store_it_is_equal_to_the_byte(self, driver: Driver) -> None:
        other = Driver(PlainStore())
        for each in (driver, other):
            each.run(put(b"x", {"a": 1}), put(b"y", ttl_ms=5), patch(b"x", {"b": 2}), put(b"z"))
            each.wait(5)
            each.run(touch(b"x"), rotate(b"x", b"w"), delete(b"z"), delete(b"z"))
            each.batch(group(each.origin, 9, put(b"v"), seen=4))
        assert driver.rows() == other.rows()
        assert driver.table.state().digest == other.table.state().digest


class TestDigest:
    def test_kept_as_it_goes_it_is_the_one_that_counting_anew_gives(self, driver: Driver) -> None:
        driver.run(
            put(b"x", {"a": 1}), put(b"y", {"b": 2}), delete(b"y"), put(b"y", {"c": 3}), touch(b"x", 9_000)
        )
        kept(driver)

    def test_it_changes_with_data_expiry_and_version(self, driver: Driver) -> None:
        seen = {driver.table.state().digest}
        for command in (
            put(b"x"),
            put(b"x"),
            touch(b"x", 7),
            put(b"x", {"a": 1}),
            put(b"y", {"a": 1}),
            delete(b"x"),
        ):
            driver.run(command)
            seen.add(driver.table.state().digest)
        assert len(seen) == 7

    def test_an_empty_table_has_the_digest_of_nothing(self, driver: Driver) -> None:
        empty = driver.table.state().digest
        driver.run(put(b"x"), put(b"y"), rotate(b"x", b"z"), delete(b"y"), delete(b"z"))
        assert driver.table.state().digest == empty == "0" * 16
