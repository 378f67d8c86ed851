from __future__ import annotations

import pytest

from hotspare.errors import StoreCorrupt, StoreForeign
from hotspare.raft.messages import NOBODY, Configuration, Entry, EntryKind, HardState, Member, SnapshotMark
from hotspare.store import Transaction, journal
from hotspare.store.journal import BEGINNING, FORMAT, Identity, State
from hotspare.store.plain import PlainStore

CONFIGURATION = Configuration("c1", (Member("n1", "127.0.0.1:7401", "a" * 32, True),))


def entries(first: int, last: int, term: int = 1) -> list[Entry]:
    return [Entry(index, term, EntryKind.BATCH, b"payload %d" % index) for index in range(first, last + 1)]


def mark(index: int, term: int = 1) -> SnapshotMark:
    return SnapshotMark(index, term, CONFIGURATION)


@pytest.fixture
def txn() -> Transaction:
    return PlainStore().begin()


def stored_indexes(txn: Transaction) -> list[int]:
    return [int.from_bytes(key, "big") for key, _ in txn.log.scan()]


def test_an_empty_store_has_no_identity_and_no_state(txn):
    assert journal.load_identity(txn) is None
    assert journal.load(txn) is None


def test_an_identity_comes_back(txn):
    identity = Identity("b" * 32, "n1", "c1")
    journal.save_identity(txn, identity)
    assert journal.load_identity(txn) == identity
    assert journal.load(txn) is None


def test_an_identity_of_a_newer_format_is_refused(txn):
    journal.save_identity(txn, Identity("b" * 32, "n1", "c1", FORMAT + 1))
    with pytest.raises(StoreForeign, match=f"format {FORMAT + 1}"):
        journal.load_identity(txn)


def test_what_another_node_wrote_is_refused_by_name():
    identity = Identity("b" * 32, "127.0.0.1:7401", "c1")
    journal.check_owner(identity, "127.0.0.1:7401")
    with pytest.raises(StoreForeign, match=r"127\.0\.0\.1:7401.*127\.0\.0\.1:7402"):
        journal.check_owner(identity, "127.0.0.1:7402")


def test_hard_state_and_entries_come_back(txn):
    journal.save_ready(txn, HardState(3, "a" * 32), entries(1, 5))
    assert journal.load(txn) == State(HardState(3, "a" * 32), BEGINNING, entries(1, 5))


def test_what_did_not_change_need_not_be_saved_again(txn):
    journal.save_ready(txn, HardState(3, NOBODY), entries(1, 2))
    journal.save_ready(txn, None, entries(3, 4))
    journal.save_ready(txn, HardState(4, NOBODY))
    journal.save_ready(txn)
    assert journal.load(txn) == State(HardState(4, NOBODY), BEGINNING, entries(1, 4))


@pytest.mark.parametrize("last_new", [2, 3, 5, 6, 9])
def test_appended_entries_replace_everything_from_their_first_index_on(txn, last_new):
    journal.save_ready(txn, HardState(1), entries(1, 6))
    journal.save_ready(txn, None, entries(2, last_new, term=2))
    state = journal.load(txn)
    assert state is not None
    assert state.entries == entries(1, 1) + entries(2, last_new, term=2)


def test_compaction_deletes_the_entries_up_to_the_mark(txn):
    journal.save_ready(txn, HardState(1), entries(1, 10))
    journal.compact(txn, mark(4))
    assert journal.load(txn) == State(HardState(1), mark(4), entries(5, 10))
    journal.compact(txn, mark(10))
    assert journal.load(txn) == State(HardState(1), mark(10), [])
    journal.save_ready(txn, None, entries(11, 12))
    assert stored_indexes(txn) == [11, 12]


@pytest.mark.parametrize("snapshot_index", [3, 6, 20])
def test_a_snapshot_takes_the_place_of_the_whole_log(txn, snapshot_index):
    journal.save_ready(txn, HardState(1), entries(1, 6))
    journal.compact(txn, mark(2))
    following = entries(snapshot_index + 1, snapshot_index + 2)
    journal.save_ready(txn, HardState(2), following, mark(snapshot_index))
    assert journal.load(txn) == State(HardState(2), mark(snapshot_index), following)


def test_a_snapshot_may_come_with_no_entries(txn):
    journal.save_ready(txn, HardState(1), entries(1, 6))
    journal.save_ready(txn, None, [], mark(4))
    assert stored_indexes(txn) == []
    assert journal.load(txn) == State(HardState(1), mark(4), [])


def test_reset_leaves_nothing_of_the_old_server(txn):
    journal.save_identity(txn, Identity("b" * 32, "n1", "c1"))
    journal.save_ready(txn, HardState(1), entries(1, 6), mark(0))
    txn.sessions[b"a"] = bytes(25)
    txn.expiry.add(0, b"a")
    txn.table[b"stamp"] = b"1"
    txn.stage([("sessions", b"staged", bytes(25))])
    journal.reset(txn)
    assert journal.load_identity(txn) is None
    assert journal.load(txn) is None
    assert [list(space.scan()) for space in (txn.node, txn.log, txn.table, txn.sessions)] == [[]] * 4
    assert txn.expiry.due(1 << 60, 9) == []
    txn.install_staged()
    assert list(txn.sessions.scan()) == []


# Damage


def damaged(value: bytes, at: int) -> bytes:
    return value[:at] + bytes([value[at] ^ 0x40]) + value[at + 1 :]


def test_every_damaged_byte_of_an_entry_is_noticed_and_the_entry_named(txn):
    journal.save_ready(txn, HardState(1), entries(1, 3))
    key = (2).to_bytes(8, "big")
    whole = txn.log.get(key)
    assert whole is not None
    for at in range(len(whole)):
        txn.log[key] = damaged(whole, at)
        with pytest.raises(StoreCorrupt, match=r"entry 2 .*move the directory away"):
            journal.load(txn)


def test_a_truncated_entry_is_noticed(txn):
    journal.save_ready(txn, HardState(1), entries(1, 1))
    key = (1).to_bytes(8, "big")
    whole = txn.log.get(key)
    assert whole is not None
    for length in range(len(whole)):
        txn.log[key] = whole[:length]
        with pytest.raises(StoreCorrupt, match="entry 1 "):
            journal.load(txn)


def test_an_entry_in_the_place_of_another_one_is_noticed(txn):
    journal.save_ready(txn, HardState(1), entries(1, 3))
    second = txn.log.get((2).to_bytes(8, "big"))
    assert second is not None
    txn.log[(3).to_bytes(8, "big")] = second
    with pytest.raises(StoreCorrupt, match="entry 3 "):
        journal.load(txn)


@pytest.mark.parametrize(
    ("missing", "sentence"), [(1, "entry 1 .* 2 was found"), (2, "entry 2 .* 3 was found")]
)
def test_a_hole_in_the_log_is_noticed(txn, missing, sentence):
    journal.save_ready(txn, HardState(1), entries(1, 3))
    txn.log.pop(missing.to_bytes(8, "big"))
    with pytest.raises(StoreCorrupt, match=sentence):
        journal.load(txn)


def test_a_log_that_does_not_begin_where_its_mark_says_is_noticed(txn):
    journal.save_ready(txn, HardState(1), entries(1, 6))
    journal.compact(txn, mark(3))
    txn.node.pop(b"mark")
    with pytest.raises(StoreCorrupt, match="entry 1 "):
        journal.load(txn)


@pytest.mark.parametrize("row", [b"identity", b"hard_state", b"mark"])
def test_damaged_rows_are_noticed(txn, row):
    journal.save_identity(txn, Identity("b" * 32, "n1"))
    journal.save_ready(txn, HardState(7, "a" * 32), (), mark(9))
    whole = txn.node.get(row)
    assert whole is not None
    for at in range(len(whole)):
        txn.node[row] = damaged(whole, at)
        with pytest.raises(StoreCorrupt, match="does not match its checksum"):
            journal.load(txn) if row != b"identity" else journal.load_identity(txn)


def test_rows_that_are_whole_but_make_no_sense_are_refused(txn):
    journal.save_identity(txn, Identity("b" * 32, "n1"))
    journal._write(txn.node, b"hard_state", Identity("b" * 32, "n1"))
    with pytest.raises(StoreCorrupt, match="cannot be decoded"):
        journal.load(txn)


def test_a_log_without_term_and_vote_is_refused(txn):
    journal.save_ready(txn, HardState(1), entries(1, 2))
    txn.node.pop(b"hard_state")
    with pytest.raises(StoreCorrupt, match="term and vote is missing"):
        journal.load(txn)
