"""The log: slices, truncation, configurations, compaction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotspare.raft.log import ENTRY_OVERHEAD_BYTES, Log, size_bytes
from hotspare.raft.messages import Entry, EntryKind, SnapshotMark
from tests.unit.raft_network import EMPTY, configuration

ABC = configuration("abc")
ABCD = configuration("abc", learners="d")


def batch(index: int, term: int, payload: bytes = b"") -> Entry:
    return Entry(index, term, EntryKind.BATCH, payload)


def change(index: int, term: int, to: object = ABCD) -> Entry:
    return Entry(index, term, EntryKind.CONFIGURATION, to.encode())  # type: ignore[attr-defined]


def log_of_terms(*terms: int, after: int = 0, mark_term: int = 0) -> Log:
    mark = SnapshotMark(after, mark_term, ABC)
    return Log(mark, [batch(after + 1 + at, term) for at, term in enumerate(terms)])


def apply_all(log: Log, upto: int) -> None:
    log.commit_to(upto)
    while log.take_committed(1 << 20):
        pass
    log.applied_to(upto)


def test_a_slice_is_cut_at_its_size_but_never_empty() -> None:
    log = Log(EMPTY, [batch(index, 1, b"x" * 100) for index in range(1, 11)])
    two_entries = 2 * (100 + ENTRY_OVERHEAD_BYTES)
    assert [entry.index for entry in log.entries(3, two_entries)] == [3, 4]
    assert [entry.index for entry in log.entries(3, two_entries - 1)] == [3]
    assert [entry.index for entry in log.entries(10, 1)] == [10]
    assert [entry.index for entry in log.entries(8, 1 << 20, last=9)] == [8, 9]
    assert log.entries(11, 1 << 20) == []


def test_terms_are_known_from_the_mark_on() -> None:
    log = log_of_terms(3, 3, 4, after=10, mark_term=2)
    assert [log.term_at(index) for index in (9, 10, 11, 12, 13, 14)] == [None, 2, 3, 3, 4, None]
    assert (log.first_index, log.last_index, log.last_term) == (11, 13, 4)


def test_entries_must_follow_each_other() -> None:
    with pytest.raises(AssertionError):
        log_of_terms(1, 1).append([batch(4, 1)])


def test_a_configuration_acts_from_its_append_and_is_reverted_by_truncation() -> None:
    log = log_of_terms(1, 1)
    log.append([change(3, 1), batch(4, 1)])
    assert (log.configuration, log.configuration_index()) == (ABCD, 3)
    log.truncate(4)
    assert log.configuration == ABCD
    log.truncate(3)
    assert (log.configuration, log.configuration_index(), log.voters) == (ABC, 0, ("a", "b", "c"))


def test_what_is_committed_is_never_truncated() -> None:
    log = log_of_terms(1, 1, 1)
    log.commit_to(2)
    with pytest.raises(AssertionError):
        log.truncate(2)
    log.truncate(3)
    assert log.last_index == 2


def test_what_replaces_truncated_entries_is_written_anew() -> None:
    log = log_of_terms(1, 1, 1)
    log.merge(1, [batch(2, 2)])
    assert [entry.term for entry in log.take_unwritten()] == [2]
    assert log.take_unwritten() == []


def test_merging_what_is_there_already_changes_nothing() -> None:
    log = log_of_terms(1, 1, 2, 2)
    log.merge(1, [batch(2, 1), batch(3, 2)])
    assert (log.last_index, log.take_unwritten()) == (4, [])


def test_merging_keeps_the_common_part_and_replaces_the_rest() -> None:
    log = log_of_terms(1, 1, 2, 2)
    log.merge(1, [batch(2, 1), batch(3, 3), batch(4, 3), batch(5, 3)])
    assert [log.term_at(index) for index in range(1, 6)] == [1, 1, 3, 3, 3]
    assert [entry.index for entry in log.take_unwritten()] == [3, 4, 5]


def test_committed_entries_come_out_once_in_order_and_in_bounded_portions() -> None:
    log = log_of_terms(1, 1, 1, 1)
    log.commit_to(3)
    portions = [log.take_committed(2 * ENTRY_OVERHEAD_BYTES) for _ in range(3)]
    assert [[entry.index for entry in portion] for portion in portions] == [[1, 2], [3], []]


def test_compaction_keeps_the_mark_the_configuration_and_the_count_of_bytes() -> None:
    log = Log(EMPTY, [change(1, 1, ABC), batch(2, 1, b"xx"), change(3, 2), batch(4, 2, b"yyy")])
    apply_all(log, 4)
    log.compact(2)
    assert log.mark == SnapshotMark(2, 1, ABC)
    assert log.configurations == {2: ABC, 3: ABCD}
    assert log.bytes == size_bytes(log.entries(3, 1 << 20))
    log.compact(4)
    assert (log.mark, log.last_index, log.bytes) == (SnapshotMark(4, 2, ABCD), 4, 0)
    assert log.configuration == ABCD


def test_only_what_is_applied_is_compacted() -> None:
    log = log_of_terms(1, 1)
    log.commit_to(2)
    with pytest.raises(AssertionError):
        log.compact(1)


def test_a_log_is_compacted_down_to_the_bytes_to_keep() -> None:
    log = Log(EMPTY, [batch(index, 1, b"x" * 68) for index in range(1, 11)])
    assert log.bytes == 1000
    assert log.index_leaving(1000) == 0
    assert log.index_leaving(950) == 1
    assert log.index_leaving(300) == 7
    assert log.index_leaving(0) == 10


def test_after_a_snapshot_a_matching_suffix_is_kept_and_written_again() -> None:
    log = log_of_terms(1, 1, 2, 2)
    log.restore(SnapshotMark(3, 2, ABCD))
    assert (log.commit, log.applied, log.delivered, log.first_index, log.last_index) == (3, 3, 3, 4, 4)
    assert [entry.index for entry in log.take_unwritten()] == [4]
    assert log.configuration == ABCD


@pytest.mark.parametrize("mark_index", [3, 9])
def test_after_a_snapshot_that_does_not_match_the_log_is_empty(mark_index: int) -> None:
    log = log_of_terms(1, 1, 2, 2)
    log.restore(SnapshotMark(mark_index, 5, ABCD))
    assert (log.last_index, log.last_term, log.take_unwritten(), log.bytes) == (mark_index, 5, [], 0)


def test_a_snapshot_never_takes_back_what_is_committed() -> None:
    log = log_of_terms(1, 1)
    log.commit_to(2)
    with pytest.raises(AssertionError):
        log.restore(SnapshotMark(2, 1, ABC))


ascending_terms = st.lists(st.integers(1, 6), max_size=12).map(sorted)


@given(ascending_terms, st.integers(0, 7), st.integers(0, 3), st.data())
def test_the_hint_is_the_last_entry_of_at_most_that_term(
    terms: list[int], term: int, before: int, data: st.DataObject
) -> None:
    log = log_of_terms(*terms, after=before, mark_term=1 if before else 0)
    index = data.draw(st.integers(before, log.last_index))
    known = [at for at in range(before, index + 1) if (log.term_at(at) or 0) <= term]
    assert log.last_with_term_at_most(term, index) == (known[-1] if known else before - 1)


@given(ascending_terms, ascending_terms)
def test_two_logs_find_where_they_agree_in_a_round_per_term(mine: list[int], theirs: list[int]) -> None:
    """The follower's hint and the leader's answer to it, played until the previous entry matches."""
    leader, follower = log_of_terms(*mine), log_of_terms(*theirs)
    previous, rounds = leader.last_index, 0
    while follower.term_at(previous) != leader.term_at(previous):
        hint = follower.last_with_term_at_most(
            leader.term_at(previous) or 0, min(previous, follower.last_index)
        )
        previous = min(previous - 1, leader.last_with_term_at_most(follower.term_at(hint) or 0, hint))
        rounds += 1
    assert rounds <= len(set(mine) | set(theirs)) + 1
