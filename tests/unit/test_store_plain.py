from __future__ import annotations

import subprocess
import sys

import pytest

from hotspare.errors import StoreError
from hotspare.store.plain import PlainStore

EVER = 1 << 62


def test_importing_the_store_does_not_import_lmdb():
    program = "import sys, hotspare.store.plain, hotspare.store.journal; sys.exit('lmdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_touches_leave_nothing_behind():
    store = PlainStore()
    txn = store.begin()
    for turn in range(50):
        for number in range(20):
            id = b"%d" % number
            if turn:
                txn.expiry.discard(turn * 1_000 + number, id)
            txn.expiry.add((turn + 1) * 1_000 + number, id)
    assert len(txn.expiry.due(EVER, 1_000)) == 20
    for expires_at_ms, id in txn.expiry.due(EVER, 1_000):
        txn.expiry.discard(expires_at_ms, id)
    assert txn.expiry._buckets == {}
    assert txn.expiry.due(EVER, 1_000) == []
    assert txn.expiry._moments == []
    txn.commit()


def test_touching_again_and_again_within_an_open_bucket_leaves_no_debris_there():
    store = PlainStore()
    txn = store.begin()
    txn.expiry.add(100, b"due")
    assert txn.expiry.due(100, 1) == [(100, b"due")]
    for _ in range(1_000):
        txn.expiry.add(200, b"touched")
        txn.expiry.discard(200, b"touched")
    assert len(txn.expiry._moments) <= 2
    txn.commit()


def test_a_deleted_session_is_not_kept_alive_by_the_index():
    store = PlainStore()
    txn = store.begin()
    id = b"a session id that nobody else has"
    before = sys.getrefcount(id)
    for expires_at_ms in (5, 70_000):
        txn.expiry.add(expires_at_ms, id)
        txn.expiry.add(expires_at_ms, b"neighbour")
        txn.expiry.discard(expires_at_ms, id)
    txn.expiry.discard(5, b"neighbour")
    assert sys.getrefcount(id) == before
    txn.commit()


def test_a_touch_keeps_no_second_copy_of_the_id():
    store = PlainStore()
    txn = store.begin()
    first = b"".join([b"an ", b"id"])
    txn.expiry.add(5, first)
    txn.expiry.add(5, b"neighbour")
    for expires_at_ms in range(6, 10):
        again = b"".join([b"an ", b"id"])
        assert again is not first
        txn.expiry.discard(expires_at_ms - 1, again)
        txn.expiry.add(expires_at_ms, again)
    assert next(id for _, id in txn.expiry.due(9, 9) if id == first) is first
    txn.commit()


def test_without_undo_an_abort_makes_the_store_refuse_to_go_on():
    store = PlainStore()
    txn = store.begin()
    txn.sessions[b"half"] = b"done"
    txn.abort()
    with pytest.raises(StoreError, match="aborted"):
        store.begin()


def test_transactions_do_not_overlap():
    store = PlainStore()
    store.begin()
    with pytest.raises(AssertionError):
        store.begin()
    with pytest.raises(AssertionError):
        store.snapshot()


def test_writing_costs_no_more_than_a_dictionary_unless_somebody_watches():
    store = PlainStore()
    sessions = store.begin().sessions
    assert type(sessions).__setitem__ is dict.__setitem__
    assert type(sessions).get is dict.get
    store = PlainStore()
    readers = [store.snapshot(), store.snapshot()]
    readers[0].close()
    assert type(store._copy.sessions).__setitem__ is not dict.__setitem__
    readers[1].close()
    assert type(store._copy.sessions).__setitem__ is dict.__setitem__


def test_a_reader_keeps_only_what_it_still_has_to_read():
    store = PlainStore()
    txn = store.begin()
    txn.sessions[b"a"] = b"old"
    txn.commit()
    reader = store.snapshot()
    txn = store.begin()
    txn.sessions[b"new"] = b"x"
    txn.sessions[b"a"] = b"changed"
    txn.commit()
    assert reader._before == {b"a": b"old"}
    assert reader.read(1) == [("sessions", b"a", b"old")]
    assert reader._before == {}
    reader.close()
