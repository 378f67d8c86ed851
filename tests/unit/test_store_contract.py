"""The contract of the store's port, for every adapter: `hotspare.store` in its own words."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from hotspare.record import pack_record, record_expires_at_ms
from hotspare.store import EXPIRY_BYTES, MAX_KEY_BYTES, Row, SnapshotReader, Store, Transaction
from hotspare.store.lmdb import LmdbStore
from hotspare.store.plain import PlainStore

SPACES = ["node", "log", "table", "sessions"]
EVER = 1 << 62


@pytest.fixture(params=["plain", "plain with undo", "lmdb in memory", "lmdb on disk"])
def store(request, tmp_path) -> Iterator[Store]:
    opened: Store
    if "plain" in request.param:
        opened = PlainStore(undo="undo" in request.param)
    else:
        opened = LmdbStore.open(tmp_path, durable="disk" in request.param, map_size_bytes=1 << 26)
    yield opened
    opened.close()


@pytest.fixture
def undoing_store(store: Store) -> Store:
    if isinstance(store, PlainStore) and store._undo is None:
        pytest.skip("keeps no notes for an abort")
    return store


def record(expires_at_ms: int = 1_000, data: bytes = b"\x80") -> bytes:
    return pack_record(1 << 16, expires_at_ms, 0, 0, data)


def put(txn: Transaction, id: bytes, expires_at_ms: int = 1_000, data: bytes = b"\x80") -> None:
    txn.sessions[id] = record(expires_at_ms, data)
    txn.expiry.add(expires_at_ms, id)


def fill(store: Store, *ids: bytes) -> None:
    txn = store.begin()
    for id in ids:
        put(txn, id)
    txn.commit()


def staged_rows(*ids: bytes, expires_at_ms: int = 1_000) -> list[Row]:
    return [("table", b"stamp", b"7"), *(("sessions", id, record(expires_at_ms)) for id in ids)]


def read_all(reader: SnapshotReader, max_bytes: int = 100) -> list[Row]:
    rows: list[Row] = []
    while part := reader.read(max_bytes):
        rows += part
    return rows


# Spaces


@pytest.mark.parametrize("name", SPACES)
def test_a_transaction_sees_its_own_writes_and_so_do_later_ones(store, name):
    txn = store.begin()
    space = getattr(txn, name)
    space[b"k"] = b"old"
    space[b"k"] = b"new"
    assert space.get(b"k") == b"new"
    txn.commit()
    later = store.begin()
    assert getattr(later, name).get(b"k") == b"new"
    assert getattr(later, name).get(b"absent") is None
    later.commit()


@pytest.mark.parametrize("name", SPACES)
def test_pop_deletes_and_tells_what_was_there(store, name):
    txn = store.begin()
    getattr(txn, name)[b"k"] = b"v"
    txn.commit()
    txn = store.begin()
    space = getattr(txn, name)
    assert space.pop(b"k") == b"v"
    assert space.pop(b"k") is None
    assert space.get(b"k") is None
    assert list(space.scan()) == []
    txn.commit()
    txn = store.begin()
    assert getattr(txn, name).get(b"k") is None
    txn.commit()


def test_what_is_popped_and_written_again_is_there(store):
    fill(store, b"a")
    txn = store.begin()
    txn.sessions.pop(b"a")
    txn.sessions[b"a"] = b"again"
    txn.commit()
    assert store.get(b"a") == b"again"


def test_spaces_do_not_share_keys(store):
    txn = store.begin()
    for name in SPACES:
        getattr(txn, name)[b"k"] = name.encode()
    assert [getattr(txn, name).get(b"k") for name in SPACES] == [name.encode() for name in SPACES]
    txn.commit()


def test_scan_goes_through_the_keys_in_order_from_a_start_on(store):
    txn = store.begin()
    for key in (b"b", b"\xff", b"aa", b"a", b"\x00"):
        txn.log[key] = b"stored " + key
    txn.commit()
    txn = store.begin()
    txn.log[b"ab"] = b"new"
    txn.log.pop(b"b")
    assert [key for key, _ in txn.log.scan()] == [b"\x00", b"a", b"aa", b"ab", b"\xff"]
    assert list(txn.log.scan(b"aa")) == [
        (b"aa", b"stored aa"),
        (b"ab", b"new"),
        (b"\xff", b"stored \xff"),
    ]
    assert list(txn.log.scan(b"\xff\xff")) == []
    txn.commit()


def test_keys_and_values_may_be_as_large_as_the_contract_says(store):
    key, value = b"\xff" * MAX_KEY_BYTES, bytes(300_000)
    txn = store.begin()
    txn.sessions[key] = value
    txn.expiry.add(5, key)
    txn.commit()
    assert store.get(key) == value
    txn = store.begin()
    assert txn.expiry.due(5, 1) == [(5, key)]
    txn.commit()


def test_an_empty_transaction_changes_nothing(store):
    fill(store, b"a")
    store.begin().commit()
    assert store.ids() == [b"a"]


def test_an_aborted_transaction_leaves_nothing_behind(undoing_store):
    store = undoing_store
    fill(store, b"kept", b"changed", b"deleted")
    txn = store.begin()
    txn.stage(staged_rows(b"staged"))
    txn.commit()
    before = record()

    txn = store.begin()
    for name in SPACES:
        getattr(txn, name)[b"new"] = b"x"
    txn.sessions[b"changed"] = b"x"
    txn.sessions[b"changed"] = b"y"
    txn.sessions.pop(b"deleted")
    txn.expiry.add(5, b"new")
    for expires_at_ms, id in txn.expiry.due(EVER, 9):
        txn.expiry.discard(expires_at_ms, id)
    assert txn.expiry.due(EVER, 9) == []
    txn.stage(staged_rows(b"staged too late"))
    txn.abort()

    assert store.ids() == [b"changed", b"deleted", b"kept"]
    assert store.get(b"changed") == before
    txn = store.begin()
    assert [list(getattr(txn, name).scan()) for name in ("node", "log", "table")] == [[], [], []]
    assert txn.expiry.due(EVER, 9) == [(1_000, b"changed"), (1_000, b"deleted"), (1_000, b"kept")]
    txn.install_staged()
    txn.commit()
    assert store.ids() == [b"staged"]


def test_an_aborted_install_leaves_the_copy_and_the_staging_area_as_they_were(undoing_store):
    store = undoing_store
    fill(store, b"old")
    txn = store.begin()
    txn.stage(staged_rows(b"new"))
    txn.commit()
    txn = store.begin()
    txn.install_staged()
    put(txn, b"after the install")
    txn.discard_staged()
    txn.abort()
    assert store.ids() == [b"old"]
    txn = store.begin()
    txn.install_staged()
    assert [id for id, _ in txn.sessions.scan()] == [b"new"]
    txn.commit()


# The expiry index


def test_due_sessions_come_in_the_order_of_expiry_and_id(store):
    pairs = [(5, b"b"), (5, b"a"), (1, b"z"), (70_000, b"a"), (1 << 41, b"a"), (65_535, b"c"), (65_536, b"c")]
    txn = store.begin()
    for pair in pairs:
        txn.expiry.add(*pair)
    assert txn.expiry.due(EVER, 100) == sorted(pairs)
    txn.commit()
    txn = store.begin()
    assert txn.expiry.due(EVER, 3) == sorted(pairs)[:3]
    assert txn.expiry.due(65_535, 100) == sorted(pairs)[:4]
    assert txn.expiry.due(0, 100) == []
    txn.commit()


def test_a_session_is_due_from_its_very_millisecond_on(store):
    moments = (1, 65_535, 65_536, 65_537, 131_072, 1 << 41)
    txn = store.begin()
    for moment in moments:
        txn.expiry.add(moment, b"a")
    for moment in moments:
        assert txn.expiry.due(moment - 1, 9) == []
        assert txn.expiry.due(moment, 9) == [(moment, b"a")]
        txn.expiry.discard(moment, b"a")
    txn.commit()


def test_due_takes_nothing_away(store):
    fill(store, b"a", b"b")
    txn = store.begin()
    txn.expiry.add(1_002, b"later")
    assert txn.expiry.due(1_000, 1) == txn.expiry.due(1_000, 1) == [(1_000, b"a")]
    assert txn.expiry.due(1_001, 9) == txn.expiry.due(1_001, 9) == [(1_000, b"a"), (1_000, b"b")]
    txn.commit()


def test_discarding_removes_exactly_that_pair(store):
    txn = store.begin()
    for pair in [(5, b"a"), (5, b"b"), (6, b"a")]:
        txn.expiry.add(*pair)
    txn.commit()
    txn = store.begin()
    txn.expiry.discard(5, b"a")
    txn.expiry.discard(6, b"b")
    txn.expiry.discard(7, b"a")
    txn.expiry.discard(5, b"never there")
    assert txn.expiry.due(EVER, 9) == [(5, b"b"), (6, b"a")]
    txn.commit()


def test_adding_a_pair_twice_adds_it_once(store):
    txn = store.begin()
    for pair in [(5, b"a"), (5, b"a"), (6, b"b"), (6, b"c"), (6, b"b")]:
        txn.expiry.add(*pair)
    assert txn.expiry.due(EVER, 9) == [(5, b"a"), (6, b"b"), (6, b"c")]
    txn.expiry.discard(5, b"a")
    txn.expiry.discard(6, b"b")
    assert txn.expiry.due(EVER, 9) == [(6, b"c")]
    txn.commit()


def test_a_session_added_before_those_already_looked_at_comes_first(store):
    txn = store.begin()
    txn.expiry.add(200_000, b"later")
    assert txn.expiry.due(300_000, 9) == [(200_000, b"later")]
    txn.expiry.add(5, b"earlier")
    assert txn.expiry.due(5, 9) == [(5, b"earlier")]
    txn.expiry.add(199_999, b"just before")
    assert txn.expiry.due(300_000, 9) == [(5, b"earlier"), (199_999, b"just before"), (200_000, b"later")]
    txn.commit()


def test_sessions_that_expire_together_come_in_slices_and_in_order(store):
    ids = sorted(b"%08x" % (i * 2_654_435_761 % 2**32) for i in range(2_000))
    txn = store.begin()
    for id in reversed(ids):
        txn.expiry.add(5_000, id)
    txn.commit()
    pruned: list[bytes] = []
    while True:
        txn = store.begin()
        due = txn.expiry.due(5_000, 300)
        for expires_at_ms, id in due:
            txn.expiry.discard(expires_at_ms, id)
        txn.commit()
        if not due:
            break
        assert {expires_at_ms for expires_at_ms, _ in due} == {5_000}
        pruned += [id for _, id in due]
    assert pruned == ids


def test_a_crowd_that_changes_while_it_is_taken_stays_exact(store):
    ids = [b"%03d" % number for number in range(100)]
    txn = store.begin()
    for id in ids[1:]:
        txn.expiry.add(5, id)
    assert txn.expiry.due(5, 3) == [(5, id) for id in ids[1:4]]
    for taken_or_next in (1, 3, 4):
        txn.expiry.discard(5, ids[taken_or_next])
    assert txn.expiry.due(5, 3) == [(5, ids[2]), (5, ids[5]), (5, ids[6])]
    txn.expiry.add(5, ids[0])
    txn.expiry.add(5, ids[3])
    assert txn.expiry.due(5, 3) == [(5, ids[0]), (5, ids[2]), (5, ids[3])]
    for id in ids:
        txn.expiry.discard(5, id)
    txn.expiry.add(5, b"another")
    assert txn.expiry.due(5, 3) == [(5, b"another")]
    txn.commit()


# Reading from outside


def test_reads_from_outside_see_what_is_committed(store):
    fill(store, b"c", b"a", b"b")
    assert store.get(b"a") == record()
    assert store.get(b"absent") is None
    assert store.ids() == [b"a", b"b", b"c"]


def test_records_come_in_pages_after_an_id(store):
    ids = [b"%02d" % number for number in range(25)]
    fill(store, *reversed(ids))
    pages, after = [], b""
    while page := store.records(after, 10):
        assert all(found == record() for _, found in page)
        pages.append([id for id, _ in page])
        after = page[-1][0]
    assert pages == [ids[:10], ids[10:20], ids[20:]]
    assert [id for id, _ in store.records(b"03x", 1)] == [b"04"]


def test_sessions_that_expire_together_may_enter_the_index_together(store):
    txn = store.begin()
    txn.expiry.add(5, b"b")
    txn.expiry.add_all(5, [b"c", b"a"])
    txn.expiry.add_all(4, [b"d"])
    txn.expiry.add_all(70_000, [b"f", b"e"])
    txn.expiry.discard(5, b"c")
    assert txn.expiry.due(5, 9) == [(4, b"d"), (5, b"a"), (5, b"b")]
    assert txn.expiry.due(EVER, 9)[3:] == [(70_000, b"e"), (70_000, b"f")]
    txn.commit()
    assert store.due_count(EVER) == 5


def test_due_count_counts_what_is_expired_and_not_pruned(store):
    assert store.due_count(EVER) == 0
    txn = store.begin()
    for pair in [(5, b"a"), (5, b"b"), (65_536, b"c"), (65_537, b"d"), (1 << 41, b"e")]:
        txn.expiry.add(*pair)
    txn.commit()
    assert [store.due_count(now_ms) for now_ms in (4, 5, 65_535, 65_536, EVER)] == [0, 2, 2, 3, 5]
    assert [store.due_count(EVER, at_most=limit) for limit in (0, 1, 4, 9)] == [0, 1, 4, 5]
    txn = store.begin()
    for expires_at_ms, id in txn.expiry.due(EVER, 3):
        txn.expiry.discard(expires_at_ms, id)
    txn.commit()
    assert [store.due_count(now_ms) for now_ms in (65_536, EVER)] == [0, 2]


def test_another_thread_reads_while_this_one_writes(store):
    fill(store, b"always")
    seen: list[bytes | None] = []
    started, finished = threading.Event(), threading.Event()

    def read() -> None:
        while not finished.is_set():
            seen.append(store.get(b"always"))
            store.ids()
            store.due_count(EVER)
            store.records(b"", 3)
            started.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert started.wait(timeout=30)
        for number in range(300):
            fill(store, b"always", b"%d" % number)
    finally:
        finished.set()
        reader.join(timeout=30)
    assert set(seen) == {record()}


def test_no_reader_misses_a_session_while_snapshots_are_installed(store):
    fill(store, b"always")
    seen: list[tuple[bool, bool]] = []
    started, finished = threading.Event(), threading.Event()

    def read() -> None:
        while not finished.is_set():
            seen.append((store.get(b"always") is not None, b"always" in store.ids()))
            started.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert started.wait(timeout=30)
        for number in range(60):
            for rows in (staged_rows(b"%d" % number), staged_rows(b"always")):
                txn = store.begin()
                txn.stage(rows)
                txn.commit()
            txn = store.begin()
            txn.install_staged()
            txn.commit()
    finally:
        finished.set()
        reader.join(timeout=30)
    assert set(seen) == {(True, True)}
    assert store.ids() == [b"59", b"always"]


# Snapshots out


def test_a_snapshot_shows_the_copy_as_it_was_when_it_was_opened(store):
    fill(store, b"kept", b"changed", b"deleted", b"replaced")
    txn = store.begin()
    txn.table[b"stamp"] = b"1"
    txn.node[b"never"] = b"copied"
    txn.commit()
    reader = store.snapshot()
    txn = store.begin()
    txn.sessions[b"changed"] = b"twice"
    txn.sessions[b"changed"] = b"over"
    txn.sessions.pop(b"deleted")
    txn.sessions.pop(b"replaced")
    txn.sessions[b"replaced"] = b"anew"
    txn.sessions[b"new"] = b"x"
    txn.table[b"stamp"] = b"2"
    txn.table[b"other"] = b"2"
    txn.commit()
    old = record()
    assert sorted(read_all(reader)) == [
        ("sessions", b"changed", old),
        ("sessions", b"deleted", old),
        ("sessions", b"kept", old),
        ("sessions", b"replaced", old),
        ("table", b"stamp", b"1"),
    ]
    reader.close()


def test_a_snapshot_is_read_in_parts_of_about_the_size_asked_for(store):
    fill(store, *(b"%02d" % number for number in range(40)))
    reader = store.snapshot()
    parts = []
    while part := reader.read(100):
        parts.append(part)
    row_bytes = 2 + len(record())
    assert {len(part) for part in parts[:-1]} == {-(-100 // row_bytes)}
    assert sum(map(len, parts)) == 40
    assert reader.read(100) == []
    reader.close()


def test_one_row_is_read_however_little_is_asked_for(store):
    fill(store, b"a", b"b")
    reader = store.snapshot()
    assert [len(reader.read(1)) for _ in range(3)] == [1, 1, 0]
    reader.close()


def test_snapshots_opened_at_different_times_do_not_disturb_each_other(store):
    fill(store, b"a")
    first = store.snapshot()
    fill(store, b"b")
    second = store.snapshot()
    txn = store.begin()
    txn.sessions[b"a"] = txn.sessions[b"b"] = b"x"
    txn.commit()
    third = store.snapshot()
    first.close()
    assert sorted(read_all(second)) == [("sessions", b"a", record()), ("sessions", b"b", record())]
    second.close()
    second.close()
    assert sorted(read_all(third)) == [("sessions", b"a", b"x"), ("sessions", b"b", b"x")]
    third.close()


def test_a_snapshot_outlives_the_installation_of_another_one(store):
    fill(store, b"old")
    reader = store.snapshot()
    for ids in ([b"new"], [b"newer"]):
        txn = store.begin()
        txn.stage(staged_rows(*ids))
        txn.install_staged()
        txn.commit()
    assert read_all(reader) == [("sessions", b"old", record())]
    reader.close()


def test_a_closed_snapshot_reads_nothing(store):
    fill(store, b"a")
    reader = store.snapshot()
    reader.close()
    assert reader.read(100) == []


# Snapshots in


def test_staged_rows_are_not_there_before_they_are_installed(store):
    fill(store, b"old")
    txn = store.begin()
    txn.stage(staged_rows(b"new"))
    assert txn.sessions.get(b"new") is None
    assert txn.table.get(b"stamp") is None
    txn.commit()
    assert store.ids() == [b"old"]
    assert store.due_count(EVER) == 1


def test_installing_replaces_the_copy_and_the_index_follows_from_it(store):
    fill(store, b"old")
    txn = store.begin()
    assert txn.expiry.due(999, 9) == []
    txn.node[b"kept"] = txn.log[b"kept"] = b"x"
    txn.table[b"gone"] = b"x"
    txn.stage([("sessions", b"z", record(7)), ("sessions", b"b", record(70_000))])
    txn.commit()
    txn = store.begin()
    txn.stage([("table", b"stamp", b"7"), ("sessions", b"a", record(70_000))])
    txn.install_staged()
    assert list(txn.table.scan()) == [(b"stamp", b"7")]
    assert [id for id, _ in txn.sessions.scan()] == [b"a", b"b", b"z"]
    assert txn.expiry.due(7, 9) == [(7, b"z")]
    assert txn.expiry.due(EVER, 9) == [(7, b"z"), (70_000, b"a"), (70_000, b"b")]
    put(txn, b"written after it", 8)
    txn.commit()
    assert store.ids() == [b"a", b"b", b"written after it", b"z"]
    assert store.get(b"old") is None
    assert store.due_count(69_999) == 2
    txn = store.begin()
    assert (txn.node.get(b"kept"), txn.log.get(b"kept")) == (b"x", b"x")
    txn.commit()


def test_writes_before_an_installation_in_the_same_transaction_are_replaced_too(store):
    txn = store.begin()
    put(txn, b"before")
    txn.table[b"before"] = b"x"
    txn.stage(staged_rows(b"staged"))
    txn.install_staged()
    txn.commit()
    assert store.ids() == [b"staged"]
    assert store.due_count(EVER) == 1


def test_what_was_staged_can_be_discarded(store):
    txn = store.begin()
    txn.stage(staged_rows(b"a lost transfer"))
    txn.commit()
    txn = store.begin()
    txn.discard_staged()
    txn.stage(staged_rows(b"a"))
    txn.commit()
    txn = store.begin()
    txn.install_staged()
    txn.commit()
    assert store.ids() == [b"a"]
    assert store.due_count(EVER) == 1


@pytest.mark.parametrize("in_one_transaction", [True, False])
def test_the_staging_area_is_empty_after_an_installation(store, in_one_transaction):
    fill(store, b"old")
    txn = store.begin()
    txn.stage(staged_rows(b"new"))
    txn.install_staged()
    if not in_one_transaction:
        txn.commit()
        txn = store.begin()
    txn.install_staged()
    assert list(txn.sessions.scan()) == list(txn.table.scan()) == txn.expiry.due(EVER, 9) == []
    txn.commit()
    assert store.ids() == []
    assert store.due_count(EVER) == 0


def test_a_snapshot_of_one_store_is_installed_in_another(store):
    other = PlainStore()
    fill(other, *(b"%03d" % (number * 7 % 100) for number in range(100)))
    reader = other.snapshot()
    txn = store.begin()
    txn.stage(read_all(reader))
    txn.install_staged()
    txn.commit()
    reader.close()
    assert store.ids() == other.ids()
    assert store.records(b"", 100) == other.records(b"", 100)
    assert store.due_count(1_000) == 100


def test_a_record_begins_with_its_expiry_as_the_stores_assume():
    assert (
        int.from_bytes(record(123_456)[:EXPIRY_BYTES], "big")
        == record_expires_at_ms(record(123_456))
        == 123_456
    )
