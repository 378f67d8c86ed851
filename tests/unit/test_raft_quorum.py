"""Quorum arithmetic, against a second implementation that counts instead of sorting."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotspare.raft.quorum import Outcome, committed_index, lower_median, majority, tally

sizes = st.integers(1, 9)
indexes = st.lists(st.integers(0, 20), min_size=1, max_size=9)


def naive_committed_index(matches: list[int]) -> int:
    """The greatest index that more than half of them hold, found by trying."""
    best = 0
    for index in range(max(matches) + 1):
        if sum(match >= index for match in matches) * 2 > len(matches):
            best = index
    return best


def naive_tally(voters: list[str], votes: dict[str, bool]) -> Outcome:
    """Plays every way in which the silent ones could still vote."""
    silent = [voter for voter in voters if voter not in votes]
    granted = [voter for voter in voters if votes.get(voter)]
    ways = [extra for count in range(len(silent) + 1) for extra in combinations(silent, count)]
    won = {(len(granted) + len(extra)) * 2 > len(voters) for extra in ways}
    return Outcome.PENDING if len(won) == 2 else Outcome.WON if won == {True} else Outcome.LOST


@given(sizes)
def test_two_majorities_always_share_a_voter(voters: int) -> None:
    assert 2 * majority(voters) > voters
    assert 2 * (majority(voters) - 1) <= voters


@given(indexes)
def test_an_index_is_committed_when_more_than_half_hold_it(matches: list[int]) -> None:
    assert committed_index(matches) == naive_committed_index(matches)


@given(indexes)
def test_the_lower_median_has_at_most_half_of_the_values_strictly_below_and_above_it(
    values: list[int],
) -> None:
    median = lower_median(values)
    assert median in values
    assert sum(value < median for value in values) * 2 < len(values)
    assert sum(value > median for value in values) * 2 <= len(values)


@given(
    st.lists(st.sampled_from("abcdefg"), min_size=1, unique=True),
    st.dictionaries(st.sampled_from("abcdefgxyz"), st.booleans()),
)
def test_a_vote_stands_as_every_possible_ending_says(voters: list[str], votes: dict[str, bool]) -> None:
    assert tally(voters, votes) is naive_tally(voters, votes)


@pytest.mark.parametrize(("voters", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_majorities_of_the_usual_clusters(voters: int, needed: int) -> None:
    assert majority(voters) == needed


def test_votes_of_servers_that_do_not_vote_change_nothing() -> None:
    assert tally("abc", {"a": True, "x": True, "y": True}) is Outcome.PENDING
