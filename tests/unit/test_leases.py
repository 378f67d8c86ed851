"""Who may answer reads until when, and when a barrier is passed."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hotspare.protocol.leases import WATCH_MS, Barriers, Leases, WatchedCopy, longest_ms

LEASE_MS = 1000
RETRY_MS = 400
T_MS = 50_000
"""Some time."""


class Leader:
    """A leader whose commit index and clock the test sets."""

    def __init__(self, *, has_predecessor: bool = False) -> None:
        self.leases = Leases(LEASE_MS, RETRY_MS)
        self.now_ms = T_MS
        self.commit = 0
        self.leases.begin(self.now_ms, has_predecessor=has_predecessor)

    def grant(self, server: str, *, applied: int = 0, wanted_ms: int = LEASE_MS, context: int = 0) -> int:
        name = f"node {server}"
        return self.leases.grant(server, name, context, wanted_ms, applied, self.commit, self.now_ms)

    def ask(self, index: int, home: str = "home") -> None:
        self.leases.ask(home, index, self.now_ms)

    def passed(self) -> dict[str, int]:
        return dict(self.leases.passed(self.commit, self.now_ms))

    def to_watch(self) -> set[str]:
        return set(self.leases.to_watch(self.now_ms))


@pytest.fixture
def leader() -> Leader:
    return Leader()


# How long a lease lasts


@pytest.mark.parametrize("lease_ms", [1, 99, 100, 101, 1000, 3_600_000])
@pytest.mark.parametrize("rate", [Fraction(100, 101), Fraction(1), Fraction(101, 100)])
@pytest.mark.parametrize("phase", [Fraction(0), Fraction(1, 3), Fraction(999, 1000)])
def test_a_copys_lease_is_over_when_the_leader_takes_it_to_be(lease_ms: int, rate: Fraction, phase: Fraction):
    """The copy's clock runs at `rate`; the question arrives at once, the worst case. Both read whole ms."""
    asked_at = 5000 + phase
    lease_end = int(asked_at * rate) + lease_ms
    bound = int(asked_at) + longest_ms(lease_ms)

    over_at = bound + 1  # the first time that counts as later
    assert over_at * rate > lease_end


def test_no_copy_gets_more_than_it_asks_for_nor_more_than_the_leader_has(leader: Leader):
    assert leader.grant("a", wanted_ms=LEASE_MS // 2) == LEASE_MS // 2
    assert leader.grant("a", wanted_ms=10 * LEASE_MS) == LEASE_MS


# Barriers


def test_a_barrier_is_passed_when_every_copy_with_a_lease_shows_it(leader: Leader):
    leader.grant("a")
    leader.grant("b")
    leader.commit = 7
    leader.ask(7)
    assert leader.passed() == {}

    leader.leases.applied("a", 7)
    assert leader.passed() == {}
    leader.leases.applied("b", 6)
    assert leader.passed() == {}
    leader.leases.applied("b", 8)

    assert leader.passed() == {"home": 7}
    assert leader.passed() == {}
    assert not leader.leases.has_barriers


def test_a_copy_that_says_nothing_holds_a_barrier_up_for_its_lease_and_no_longer(leader: Leader):
    leader.grant("dead")
    leader.commit = 7
    leader.ask(7)

    leader.now_ms = T_MS + longest_ms(LEASE_MS)
    assert leader.passed() == {}
    leader.now_ms += 1

    assert leader.passed() == {"home": 7}


def test_a_lease_asked_for_after_the_write_was_committed_holds_nothing_up(leader: Leader):
    """It can only begin with that write: a copy that asks and asks and applies nothing is waited for once."""
    leader.grant("hanging")
    leader.commit = 7
    leader.ask(7)
    for leader.now_ms in range(T_MS, T_MS + longest_ms(LEASE_MS) + 1, 100):
        leader.grant("hanging")
        assert leader.passed() == {}

    leader.now_ms = T_MS + longest_ms(LEASE_MS) + 1

    assert leader.passed() == {"home": 7}


def test_a_lease_asked_for_before_the_write_was_committed_counts(leader: Leader):
    leader.grant("a")
    leader.now_ms += LEASE_MS // 2
    leader.grant("a")
    leader.commit = 7
    leader.ask(7)

    leader.now_ms = T_MS + longest_ms(LEASE_MS) + 1

    assert leader.passed() == {}


def test_barriers_pass_in_the_order_of_the_log_and_many_at_once(leader: Leader):
    leader.grant("a")
    leader.commit = 9
    for home, index in (("one", 5), ("two", 6), ("two", 8), ("three", 9)):
        leader.ask(index, home)

    leader.leases.applied("a", 6)
    assert leader.passed() == {"one": 6, "two": 6}
    leader.leases.applied("a", 9)

    assert leader.passed() == {"two": 9, "three": 9}


def test_a_barrier_waits_until_its_index_is_committed_here(leader: Leader):
    """A new leader may not know yet that what its predecessor has answered is committed."""
    leader.ask(7)
    assert leader.passed() == {}

    leader.commit = 7

    assert leader.passed() == {"home": 7}


def test_a_copy_that_says_goodbye_is_not_waited_for(leader: Leader):
    leader.grant("a", context=70)
    leader.grant("a", context=72)
    leader.commit = 7
    leader.ask(7)

    leader.leases.given_up("a", 70, 72)

    assert leader.passed() == {"home": 7}


def test_a_late_goodbye_ends_no_lease_of_the_next_life(leader: Leader):
    leader.grant("a", context=70)
    leader.grant("a", context=9001)
    leader.commit = 7
    leader.ask(7)

    leader.leases.given_up("a", 70, 72)

    assert leader.passed() == {}


def test_two_incarnations_of_a_node_have_leases_of_their_own(leader: Leader):
    """Of the lost one there may still be readers."""
    leader.leases.grant("old", "n1", 1, LEASE_MS, 0, 0, T_MS)
    leader.leases.grant("new", "n1", 2, LEASE_MS, 0, 0, T_MS)
    leader.commit = 7
    leader.ask(7)

    leader.leases.applied("new", 7)

    assert leader.passed() == {}


# A new leader


def test_a_new_leader_passes_no_barrier_while_its_predecessors_leases_may_last():
    leader = Leader(has_predecessor=True)
    leader.commit = 7
    leader.ask(7)

    leader.now_ms = T_MS + longest_ms(LEASE_MS)
    assert leader.passed() == {}
    leader.now_ms += 1

    assert leader.passed() == {"home": 7}


def test_the_first_leader_of_a_cluster_need_not_wait(leader: Leader):
    leader.commit = 2
    leader.ask(2)

    assert leader.passed() == {"home": 2}


def test_who_leads_again_has_forgotten_its_grants_and_waits_like_anybody(leader: Leader):
    leader.grant("a")
    leader.ask(7)
    leader.commit = 7

    leader.leases.end()
    leader.leases.begin(leader.now_ms, has_predecessor=True)

    assert not leader.leases.has_barriers
    leader.ask(7)
    assert leader.passed() == {}


# Copies that are far behind


def test_a_copy_that_is_more_than_a_lease_behind_gets_none(leader: Leader):
    for step in range(12):
        leader.now_ms = T_MS + 200 * step
        leader.commit = 10 * step
        leader.leases.observe(leader.commit, leader.now_ms)

    assert leader.grant("far behind", applied=10) == 0
    assert leader.grant("behind", applied=leader.commit - 30) == LEASE_MS
    leader.ask(leader.commit)
    leader.leases.applied("behind", leader.commit)
    assert leader.passed() == {"home": leader.commit}


def test_a_leader_that_has_just_begun_takes_nobody_for_far_behind(leader: Leader):
    leader.commit = 100
    leader.leases.observe(leader.commit, leader.now_ms)

    assert leader.grant("a", applied=0) == LEASE_MS


# Asking the copies for their word


def test_copies_are_asked_once_and_again_when_their_word_may_be_lost(leader: Leader):
    leader.grant("a")
    leader.grant("b")
    leader.commit = 7
    leader.ask(7)
    leader.leases.applied("a", 7)

    assert leader.to_watch() == {"node a", "node b"}
    leader.now_ms += RETRY_MS - 1
    assert leader.to_watch() == set()
    leader.now_ms += 1
    assert leader.to_watch() == {"node b"}
    leader.now_ms = T_MS + WATCH_MS // 2
    assert leader.to_watch() == {"node a"}


def test_commits_are_told_at_once_for_a_while_after_a_barrier(leader: Leader):
    assert not leader.leases.expects_barriers(leader.now_ms)

    leader.ask(7)

    assert leader.leases.expects_barriers(leader.now_ms + WATCH_MS)
    assert not leader.leases.expects_barriers(leader.now_ms + WATCH_MS + 1)


def test_a_watched_copy_says_what_it_shows_whenever_that_is_more():
    copy = WatchedCopy()
    assert copy.to_tell(5, T_MS) == ""

    copy.begin("leader", T_MS)

    assert copy.to_tell(5, T_MS) == "leader"
    assert copy.to_tell(5, T_MS) == ""
    assert copy.to_tell(6, T_MS + WATCH_MS) == "leader"
    assert copy.to_tell(7, T_MS + WATCH_MS + 1) == ""
    copy.begin("another", T_MS + WATCH_MS + 1)
    assert copy.to_tell(7, T_MS + WATCH_MS + 1) == "another"


# At the node where the write was made


def test_those_who_wait_for_the_same_index_are_one_question():
    barriers = Barriers(100, RETRY_MS)
    first, second, later = barriers.start(7), barriers.start(7), barriers.start(9)
    assert len({first, second, later}) == 3

    assert barriers.to_ask(T_MS) == [7, 9]
    assert barriers.to_ask(T_MS + RETRY_MS - 1) == []
    another = barriers.start(7)
    assert barriers.to_ask(T_MS + RETRY_MS - 1) == []

    assert barriers.passed(8) == [first, second, another]
    assert barriers.to_ask(T_MS + RETRY_MS) == [9]
    assert barriers.to_ask(T_MS + RETRY_MS, at_once=True) == [9]


def test_what_has_passed_once_has_passed_for_good():
    barriers = Barriers(100, RETRY_MS)
    assert not barriers.has_passed(7)

    assert barriers.passed(7) == []
    assert barriers.passed(3) == []

    assert barriers.has_passed(7)
    assert not barriers.has_passed(8)
    barriers.reset()
    assert not barriers.has_passed(1)


def test_a_barrier_that_was_given_up_is_asked_for_no_more():
    barriers = Barriers(100, RETRY_MS)
    context = barriers.start(7)

    barriers.forget(context)

    assert barriers.to_ask(T_MS) == []
    assert barriers.passed(7) == []
