"""The record of failovers."""

from __future__ import annotations

from hotspare.protocol.failovers import MAX_RECORDS, Failover, Failovers
from hotspare.raft.node import Parting


def followed(*leaders: str) -> Failovers:
    failovers = Failovers()
    for term, leader in enumerate(leaders, 1):
        failovers.follow(leader, term, Parting("killed", 100 * term), 100 * term + 30, 5)
    return failovers


def test_the_first_primary_and_the_same_one_again_are_no_failover():
    assert not followed("a", "a").records


def test_another_primary_is_recorded_with_what_this_node_saw():
    (record,) = followed("a", "b").records
    assert record == Failover(5, 2, "a", "b", "killed", 30)


def test_the_new_primary_knows_better():
    failovers = followed("a", "b")
    failovers.told(Failover(6, 2, "a", "b", "ordered", 3))
    assert [record.why for record in failovers.records] == ["ordered"]
    assert (failovers.counts["killed"], failovers.counts["ordered"]) == (0, 1)


def test_its_word_may_come_before_it_is_seen_to_lead():
    failovers = followed("a")
    failovers.told(Failover(6, 2, "a", "b", "stopped", 3))
    assert not failovers.records
    failovers.follow("b", 2, Parting("silent", 0), 999, 5)
    assert [record.why for record in failovers.records] == ["stopped"]


def test_only_the_latest_are_kept():
    failovers = followed(*(f"n{number}" for number in range(MAX_RECORDS + 10)))
    assert len(failovers.records) == MAX_RECORDS
    assert failovers.counts["killed"] == MAX_RECORDS + 9
