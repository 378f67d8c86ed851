"""Changes of membership: one server at a time, acting from the log, never two at once."""

from __future__ import annotations

import pytest

from hotspare.raft.messages import (
    NOBODY,
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    Member,
    VoteReply,
)
from hotspare.raft.node import ChangeRefused, NotLeader, refuse_unsafe_change
from tests.unit.raft_network import EMPTY, Network, configuration


def vacancy(name: str) -> Member:
    return Member(name, f"host-{name}", NOBODY, False)


def test_a_change_acts_from_the_moment_it_is_appended() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.add("d")
    changed = configuration("abc", "d")
    net.change("a", changed)
    assert leader.configuration == changed
    assert "d" in leader.progress
    net.settle()
    assert {net.node(id).configuration for id in "abcd"} == {changed}


def test_no_change_before_an_entry_of_the_own_term_is_committed() -> None:
    net = Network("abc")
    net.lose(AppendReply)
    leader = net.elect("a")
    assert not leader.may_change_configuration
    with pytest.raises(ChangeRefused, match="own term"):
        net.change("a", configuration("abc", "d"))
    net.heal()
    net.advance(1000)
    assert leader.may_change_configuration
    net.change("a", configuration("abc", "d"))


def test_no_change_while_another_one_is_uncommitted() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.change("a", configuration("abc", "d"))
    assert not leader.may_change_configuration
    with pytest.raises(ChangeRefused, match="not committed"):
        net.change("a", configuration("abc", "de"))
    net.settle()
    net.change("a", configuration("abc", "de"))


def test_only_the_leader_changes_the_configuration() -> None:
    net = Network("abc")
    net.elect("a")
    with pytest.raises(NotLeader):
        net.change("b", configuration("ab"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(configuration("abcde"), id="two added"),
        pytest.param(configuration("a"), id="two removed"),
        pytest.param(configuration("abd"), id="one swapped for another"),
        pytest.param(configuration(""), id="nobody left"),
        pytest.param(Configuration("other", configuration("abc").members), id="another cluster"),
        pytest.param(
            configuration("abc").with_member(Member("c", "host-c", "c2", True)),
            id="a new incarnation in place of a voter",
        ),
        pytest.param(
            configuration("abc").with_member(Member("c", "host-c", "c2", False)),
            id="a learning incarnation in place of a voter",
        ),
        pytest.param(
            configuration("abc").with_member(Member("d", "host-d", "c", False)), id="a server twice"
        ),
        pytest.param(
            configuration("abc").with_member(Member("d", "host-d", NOBODY, True)), id="a vote for nobody"
        ),
    ],
)
def test_unsafe_changes_are_refused(change: Configuration) -> None:
    net = Network("abc")
    leader = net.elect("a")
    last = leader.log.last_index
    with pytest.raises(ChangeRefused):
        net.change("a", change)
    assert leader.log.last_index == last


@pytest.mark.parametrize(
    "change",
    [
        configuration("abcd"),
        configuration("ab"),
        configuration("ab", "c"),
        configuration("abc", "def"),
        configuration("abc").with_member(vacancy("c")),
        configuration("abc").with_member(vacancy("d")),
    ],
)
def test_changes_of_one_voter_or_of_any_learners_are_safe(change: Configuration) -> None:
    refuse_unsafe_change(configuration("abc"), change)


def test_an_uncommitted_change_is_reverted_with_its_entry() -> None:
    net = Network("abcd")
    leader = net.elect("a")
    net.cut_off("a")
    net.change("a", configuration("abcd", "e"))
    net.settle()
    assert leader.configuration == configuration("abcd", "e")
    net.advance(5000)
    net.heal()
    net.advance(1000)
    assert leader.log.configurations == {0: EMPTY.configuration, 1: configuration("abcd")}
    assert leader.configuration == configuration("abcd")


def test_learners_get_everything_and_count_for_nothing() -> None:
    net = Network("abc", learners="de")
    leader = net.elect("a")
    net.propose("a", b"one")
    net.settle()
    assert net.payloads("d") == net.payloads("e") == [b"one"]
    net.cut_off("b", "c")
    index = net.propose("a", b"two")
    net.settle()
    assert net.progress("a", "d").match == net.progress("a", "e").match == index
    assert leader.commit == index - 1


def test_learners_votes_count_for_nothing() -> None:
    net = Network("abc", learners="de")
    candidate = net.node("a")
    candidate.campaign(net.now_ms)
    for id in "de":
        candidate.step(VoteReply(id, "a", 2, pre=True, granted=True), net.now_ms)
    net.collect()
    assert candidate.term == 1


def test_a_learner_may_become_a_voter() -> None:
    net = Network("abc")
    net.elect("a")
    net.add("d")
    net.change("a", configuration("abc", "d"))
    net.settle()
    net.change("a", configuration("abcd"))
    net.settle()
    net.cut_off("b", "c")
    net.propose("a")
    net.settle()
    assert net.payloads("d") == []  # two of four are no majority


def test_taking_a_vote_away_lets_four_servers_survive_two_deaths_one_after_the_other() -> None:
    net = Network("abcd")
    net.elect("a")
    net.crash("d")
    net.change("a", configuration("abc", "d"))
    net.settle()
    net.crash("c")
    net.propose("a", b"still here")
    net.settle()
    assert net.payloads("b") == [b"still here"]


def test_a_leader_that_was_removed_steps_down_once_that_is_committed_and_not_before() -> None:
    net = Network("abcd")
    leader = net.elect("a")
    net.cut_off("c", "d")
    net.change("a", configuration("bcd"))
    net.settle()
    assert leader.is_leader
    assert not leader.is_voter
    net.heal()
    net.advance(600)
    assert not leader.is_leader
    (successor,) = net.leaders
    assert successor in "bcd"
    assert net.node(successor).configuration == configuration("bcd")
    assert net.node(successor).commit >= 3


def test_a_leader_that_was_removed_stays_while_only_earlier_entries_are_committed() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.cut_off("b", "c")
    index = net.propose("a")
    net.change("a", configuration("bc"))
    for follower in "bc":
        leader.step(AppendReply(follower, "a", leader.term, False, index), net.now_ms)
    assert (leader.commit, leader.is_leader) == (index, True)
    for follower in "bc":
        leader.step(AppendReply(follower, "a", 2, False, index + 1), net.now_ms)
    assert (leader.commit, leader.is_leader) == (index + 1, False)


def test_a_removed_leader_hands_over_without_an_election_timeout() -> None:
    net = Network("abcd")
    net.elect("a")
    net.change("a", configuration("bcd"))
    net.settle()
    (successor,) = net.leaders
    assert successor != "a"
    assert {net.node(id).leader for id in "bcd"} == {successor}


def test_a_server_whose_removal_is_uncommitted_campaigns_while_the_others_need_it() -> None:
    """The dissertation, figure 4.6. `a` alone has the entry that removes it: `b` cannot win against its
    log."""
    net = Network("ab")
    net.elect("a")
    net.cut_off("a", "b")
    net.change("a", configuration("b"))
    net.settle()
    net.advance(3000)
    net.heal()
    net.advance(5000)
    assert net.leaders == ["b"]
    assert net.node("b").configuration == configuration("b")
    assert net.node("b").has_committed_in_term


def test_the_own_copy_of_a_leader_that_does_not_vote_is_not_counted() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.cut_off("c")
    index = net.change("a", configuration("bc"))
    net.settle()
    assert net.progress("a", "b").match == index
    assert leader.commit == index - 1  # one of two


def test_a_server_that_does_not_know_the_configuration_yet_accepts_entries() -> None:
    net = Network("abc")
    net.elect("a")
    newcomer = net.add("z").node
    entries = net.node("a").log.entries(1, 1 << 20)
    newcomer.step(Append("a", "z", 2, 0, 0, entries, 2), net.now_ms)
    net.collect()
    assert (newcomer.configuration, newcomer.commit) == (configuration("abc"), 2)


def test_a_cluster_shrinks_to_one_and_grows_again() -> None:
    net = Network("abc")
    leader = net.elect("a")
    for voters in ("ab", "a"):
        net.change("a", configuration(voters))
        net.settle()
    net.crash("b")
    net.crash("c")
    net.propose("a", b"alone")
    net.settle()
    assert net.payloads("a") == [b"alone"]
    net.add("x")
    net.change("a", configuration("a", "x"))
    net.settle()
    net.change("a", configuration("ax"))
    net.settle()
    assert leader.commit == leader.log.last_index
    assert net.payloads("x") == [b"alone"]


def test_the_configuration_survives_a_restart() -> None:
    net = Network("abc")
    net.elect("a")
    net.change("a", configuration("abc", "d"))
    net.settle()
    net.crash("b")
    net.restart("b")
    assert net.node("b").configuration == configuration("abc", "d")


def test_entries_of_a_kind_raft_does_not_know_are_only_carried() -> None:
    net = Network("abc")
    net.elect("a")
    net.node("a").propose(EntryKind.REGISTRATION, b"anything")
    net.settle()
    applied: Entry = net.servers["c"].disk.applied[-1]
    assert (applied.kind, applied.payload) == (EntryKind.REGISTRATION, b"anything")
