"""What a majority is, and what it has reached.

Everything in Raft that may not be undone rests on one fact: any two majorities of the same voters share a
server. The functions here are that fact's arithmetic and know nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum

from .messages import ServerId


class Outcome(Enum):
    """How a vote stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(voters: int) -> int:
    """How many of so many voters make a majority. Twice a majority is always more than all of them."""
    return voters // 2 + 1


def lower_median(values: Sequence[int]) -> int:
    """The greatest value that a majority of `values` reaches (of an even number, the lower middle one)."""
    assert values, "no values, no median"
    return sorted(values)[(len(values) - 1) // 2]


def committed_index(matches: Sequence[int]) -> int:
    """The greatest index that a majority of the voters holds, given up to where each voter's log matches.

    A majority that has an index is a majority that reaches it: the lower median, seen from the log.
    """
    return lower_median(matches)


def tally(voters: Collection[ServerId], votes: Mapping[ServerId, bool]) -> Outcome:
    """Won once a majority has granted, lost once the voters still silent cannot make one any more.

    Only voters count: whatever a server that does not vote has said is ignored.
    """
    needed = majority(len(voters))
    granted = sum(1 for voter in voters if votes.get(voter, False))
    if granted >= needed:
        return Outcome.WON
    silent = sum(1 for voter in voters if voter not in votes)
    return Outcome.PENDING if granted + silent >= needed else Outcome.LOST
