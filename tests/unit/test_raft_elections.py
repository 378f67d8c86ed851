"""Who leads, and who does not: elections, pre-vote, stickiness, check-quorum, pauses, transfers."""

from __future__ import annotations

import pytest

from hotspare.raft.messages import (
    NOBODY,
    Append,
    Entry,
    EntryKind,
    Heartbeat,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from hotspare.raft.node import ChangeRefused, NotLeader, Role, Timing
from tests.unit.raft_network import TICK_MS, Disk, Network, Server, configuration, founding

TIMEOUT_MS = Timing().election_timeout_ms


def vote_request(
    sender: str, receiver: str, term: int, last_index: int = 99, *, pre: bool = False, transfer: bool = False
) -> VoteRequest:
    return VoteRequest(sender, receiver, term, last_index, term, pre=pre, transfer=transfer)


def test_silence_makes_exactly_one_server_lead() -> None:
    net = Network("abcd")
    net.advance(3 * TIMEOUT_MS)
    (leader,) = net.leaders
    assert {server.node.leader for server in net.servers.values()} == {leader}
    assert {server.node.commit for server in net.servers.values()} == {
        2
    }  # the founding and the leader's no-op


def test_a_server_alone_leads_only_after_its_vote_is_durable() -> None:
    net = Network("a")
    net.servers["a"].slow_disk = True
    net.node("a").campaign(net.now_ms)
    net.settle()
    assert net.node("a").role is Role.CANDIDATE
    net.servers["a"].persist()
    assert net.node("a").is_leader


def test_a_server_alone_that_comes_back_waits_for_nobody() -> None:
    net = Network("a")
    net.elect("a")
    net.crash("a")
    net.restart("a")
    net.advance(TICK_MS)
    assert net.node("a").is_leader


def test_a_new_leader_commits_an_empty_entry_of_its_own_term() -> None:
    net = Network("abc")
    leader = net.elect("b")
    last = leader.log.entry(leader.commit)
    assert (last.kind, last.term) == (EntryKind.NOOP, leader.term)
    assert leader.has_committed_in_term


def test_a_leader_keeps_leading_while_it_is_heard() -> None:
    net = Network("abcd")
    leader = net.elect("c")
    term = leader.term
    net.advance(20 * TIMEOUT_MS)
    assert (net.leaders, leader.term) == (["c"], term)


# -- votes -----------------------------------------------------------------------------------------------


def test_a_vote_is_given_once_a_term() -> None:
    net = Network("abc")
    node = net.node("c")
    node.step(vote_request("a", "c", 2), net.now_ms)
    node.step(vote_request("b", "c", 2), net.now_ms)
    node.step(vote_request("a", "c", 2), net.now_ms)
    net.collect()
    assert [(reply.receiver, reply.granted) for reply in net.take_sent() if isinstance(reply, VoteReply)] == [
        ("b", False),  # a refusal promises nothing and need not wait for the disk
        ("a", True),
        ("a", True),
    ]


def test_a_vote_is_given_only_to_a_log_that_is_at_least_as_up_to_date() -> None:
    disk = Disk([*founding(configuration("abc")), Entry(2, 3, 0), Entry(3, 3, 0)], term=3)
    for last_term, last_index, granted in [(3, 2, False), (2, 9, False), (3, 3, True), (4, 2, True)]:
        server = Server("a", disk, 0)
        server.node.step(VoteRequest("b", "a", 5, last_index, last_term, pre=False), 0)
        (reply,) = server.take() + server.take()
        assert isinstance(reply, VoteReply)
        assert reply.granted is granted


def test_a_vote_leaves_only_once_it_is_durable() -> None:
    net = Network("abc")
    net.servers["b"].slow_disk = True
    net.node("b").step(vote_request("a", "b", 2), net.now_ms)
    net.collect()
    assert net.take_sent() == []
    net.servers["b"].persist()
    net.collect()
    (reply,) = net.take_sent()
    assert isinstance(reply, VoteReply)
    assert reply.granted
    assert net.servers["b"].disk.hard_state.vote == "a"


def test_who_has_given_its_vote_waits_an_election_timeout_before_it_campaigns() -> None:
    net = Network("abc")
    net.advance(TIMEOUT_MS - TICK_MS)
    voter = net.node("c")
    voter.step(vote_request("a", "c", 2), net.now_ms)
    for _ in range(0, TIMEOUT_MS - TICK_MS, TICK_MS):
        net.now_ms += TICK_MS
        voter.tick(net.now_ms)
    assert voter.role is Role.FOLLOWER


def test_a_vote_is_remembered_through_a_crash() -> None:
    net = Network("abc")
    net.node("c").step(vote_request("a", "c", 2), net.now_ms)
    net.settle()
    net.crash("c")
    net.restart("c")
    net.take_sent()
    net.node("c").step(vote_request("b", "c", 2), net.now_ms)
    net.collect()
    (reply,) = net.take_sent()
    assert isinstance(reply, VoteReply)
    assert not reply.granted


def test_a_candidate_asks_only_once_its_own_vote_is_durable() -> None:
    net = Network("abc")
    net.servers["a"].slow_disk = True
    net.node("a").campaign(net.now_ms)
    net.settle()
    sent = net.take_sent()
    assert not [message for message in sent if isinstance(message, VoteRequest) and not message.pre]
    net.servers["a"].persist()
    net.collect()
    assert [message.receiver for message in net.take_sent() if isinstance(message, VoteRequest)] == ["b", "c"]


def test_messages_for_an_earlier_incarnation_are_dropped() -> None:
    net = Network("abc")
    net.node("b").step(vote_request("a", "b-before", 9), net.now_ms)
    assert net.node("b").term == 1
    assert not net.node("b").has_ready()


def test_a_voter_that_believes_itself_a_learner_still_votes() -> None:
    net = Network("abc", learners="d")
    net.node("d").step(vote_request("a", "d", 2), net.now_ms)
    net.settle()
    assert net.node("d").vote == "a"


def test_a_server_outside_the_configuration_is_voted_for_by_the_same_rules() -> None:
    net = Network("abc")
    net.node("a").step(vote_request("z", "a", 2), net.now_ms)
    net.settle()
    assert net.node("a").vote == "z"


def test_a_server_without_a_vote_never_campaigns() -> None:
    net = Network("abc", learners="d")
    for id in "abc":
        net.crash(id)
    net.advance(5 * TIMEOUT_MS)
    net.node("d").campaign(net.now_ms)
    net.node("d").step(TimeoutNow("a", "d", 1), net.now_ms)
    assert (net.node("d").role, net.node("d").term) == (Role.FOLLOWER, 1)


# -- pre-vote and stickiness --------------------------------------------------------------------------------


def test_a_server_that_was_cut_off_comes_back_without_disturbing_anybody() -> None:
    net = Network("abcd")
    leader = net.elect("a")
    term = leader.term
    net.cut_off("d")
    net.advance(10 * TIMEOUT_MS)
    assert net.node("d").term == term  # it asked, many times, but no term grew
    net.heal()
    net.advance(2 * TIMEOUT_MS)
    assert (net.leaders, leader.term) == (["a"], term)
    assert net.node("d").leader == "a"


def test_asking_whether_a_vote_would_be_given_moves_no_term() -> None:
    net = Network("abc")
    net.node("a").step(vote_request("b", "a", 7, pre=True), net.now_ms)
    net.collect()
    (reply,) = net.take_sent()
    assert reply == VoteReply("a", "b", 7, pre=True, granted=True)
    assert net.node("a").term == 1
    assert net.node("a").vote == NOBODY


def test_a_pre_vote_for_a_term_that_is_over_tells_the_term() -> None:
    net = Network("abc")
    net.node("a").step(vote_request("b", "a", 5), net.now_ms)
    net.settle()
    net.take_sent()
    net.node("a").step(vote_request("c", "a", 5, pre=True), net.now_ms)
    net.collect()
    assert net.take_sent() == [VoteReply("a", "c", 5, pre=True, granted=False)]
    net.node("c").step(VoteReply("a", "c", 5, pre=True, granted=False), net.now_ms)
    assert net.node("c").term == 5


def test_who_hears_a_leader_ignores_candidates_unless_the_leader_sent_them() -> None:
    net = Network("abc")
    net.elect("a")
    follower = net.node("b")
    term = follower.term
    for pre in (True, False):
        follower.step(vote_request("c", "b", term + 5, pre=pre), net.now_ms)
        net.node("a").step(vote_request("c", "a", term + 5, pre=pre), net.now_ms)
    assert (follower.term, net.leaders) == (term, ["a"])
    follower.step(vote_request("c", "b", term + 5, transfer=True), net.now_ms)
    net.collect()
    assert (follower.term, follower.vote) == (term + 5, "c")


def test_stickiness_ends_when_the_leader_has_been_silent_for_an_election_timeout() -> None:
    net = Network("abc")
    net.elect("a")
    follower = net.node("b")
    term = follower.term
    follower.step(vote_request("c", "b", term + 1), net.now_ms + TIMEOUT_MS - 1)
    assert follower.term == term
    follower.step(vote_request("c", "b", term + 1), net.now_ms + TIMEOUT_MS)
    assert follower.term == term + 1


def test_a_server_stuck_in_a_later_term_is_taken_back_by_a_new_election() -> None:
    """It won a pre-vote, its votes got lost, and the old leader lives on: the stale leader is told the
    term."""
    net = Network("abc")
    leader = net.elect("a")
    net.node("c").step(vote_request("b", "c", leader.term + 1, transfer=True), net.now_ms)
    net.settle()
    net.advance(3 * TIMEOUT_MS)
    (id,) = net.leaders
    assert net.node(id).term > 2
    assert {server.node.term for server in net.servers.values()} == {net.node(id).term}


def test_lost_pre_votes_are_repeated_soon_and_no_term_grows() -> None:
    net = Network("abc")
    net.lose(VoteReply)
    net.node("a").campaign(net.now_ms)
    net.settle()
    net.take_sent()
    for id in "bc":
        net.crash(id)
    net.advance(TIMEOUT_MS)
    asked = [message for message in net.take_sent() if isinstance(message, VoteRequest)]
    assert 2 * 6 <= len(asked) <= 2 * 21  # every 50 to 150 ms, two receivers
    assert all(request.pre for request in asked)
    assert net.node("a").term == 1


def test_a_split_vote_is_seen_to_be_lost_when_the_silent_voter_is_dead() -> None:
    """Four voters, one dead, the others two against one: no majority of four can come any more."""
    net = Network("abcd")
    net.crash("d")
    candidate = net.node("a")
    candidate.server_lost("d", net.now_ms)
    candidate.campaign(net.now_ms)
    for voter in "bc":
        candidate.step(VoteReply(voter, "a", 2, pre=True, granted=True), net.now_ms)
    while candidate.has_ready():
        net.servers["a"].take()
    assert candidate.vote == "a"
    candidate.step(VoteReply("b", "a", 2, pre=False, granted=True), net.now_ms)
    candidate.step(VoteReply("c", "a", 2, pre=False, granted=False), net.now_ms)
    assert candidate.role is Role.FOLLOWER
    assert candidate.next_deadline_ms <= net.now_ms + 150


# -- a leader that is gone, or gone astray ------------------------------------------------------------------


def test_a_closed_connection_starts_an_election_at_once_and_the_first_by_name_wins() -> None:
    net = Network("abcd")
    net.elect("b")
    net.crash("b")
    for id in "acd":
        net.node(id).server_lost("b", net.now_ms)
    assert net.node("a").leader == NOBODY
    net.advance(40)
    assert net.leaders == ["a"]


def test_those_who_remain_wait_in_the_order_of_their_names() -> None:
    net = Network("abcd", learners="e")
    net.elect("b")
    deadlines = {}
    for id in "acd":
        net.node(id).server_lost("b", net.now_ms)
        deadlines[id] = net.node(id).next_deadline_ms - net.now_ms
    assert 0 <= deadlines["a"] < 20 <= deadlines["c"] < 40 <= deadlines["d"] < 60


def test_a_follower_that_lost_another_follower_goes_on_following() -> None:
    net = Network("abc")
    net.elect("a")
    net.node("b").server_lost("c", net.now_ms)
    assert net.node("b").leader == "a"


def test_a_leader_that_no_majority_answers_steps_down() -> None:
    net = Network("abcd")
    net.elect("a")
    net.cut_off("a", "b")
    net.advance(TIMEOUT_MS - 200)
    assert net.node("a").is_leader
    net.advance(400)
    assert not net.node("a").is_leader


def test_a_leader_whose_connections_are_gone_steps_down_at_once() -> None:
    net = Network("abcd")
    leader = net.elect("a")
    leader.server_lost("b", net.now_ms)
    assert leader.is_leader
    leader.server_lost("c", net.now_ms)
    assert not leader.is_leader


def test_a_leader_that_stepped_down_has_heard_a_leader_while_a_majority_heard_it() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.advance(2000)
    confirmed_ms = leader.confirmed_ms
    leader.server_lost("b", net.now_ms)
    leader.server_lost("c", net.now_ms)
    assert not leader.is_leader
    assert leader.heard_ms == confirmed_ms


def test_a_leader_that_only_learners_answer_steps_down() -> None:
    net = Network("abc", learners="de")
    net.elect("a")
    net.cut_off("b", "c")
    net.advance(2 * TIMEOUT_MS)
    assert net.leaders == []


def test_a_follower_that_was_paused_asks_before_it_acts() -> None:
    net = Network("abc")
    net.elect("a")
    paused = net.node("b")
    before_ms = net.now_ms
    net.now_ms += 10 * TIMEOUT_MS
    paused.tick(net.now_ms)
    assert (paused.role, paused.has_ready()) == (Role.FOLLOWER, False)
    assert paused.heard_ms == before_ms
    paused.tick(net.now_ms + 1)
    assert paused.role is Role.FOLLOWER


def test_a_leader_that_was_paused_begins_a_round_and_gives_the_others_time_to_answer() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.advance(1000)
    confirmed_ms = leader.confirmed_ms
    net.take_sent()
    net.now_ms += 10 * TIMEOUT_MS
    leader.tick(net.now_ms)
    assert leader.is_leader
    assert leader.confirmed_ms == confirmed_ms
    assert not any(progress.active for progress in leader.progress.values())
    net.collect()
    beats = {message.receiver for message in net.take_sent() if isinstance(message, Heartbeat)}
    assert beats == {"b", "c"}
    for _ in range(0, TIMEOUT_MS, 100):
        net.now_ms += 100
        leader.tick(net.now_ms)
    assert not leader.is_leader


def test_a_pause_is_noticed_by_a_message_too() -> None:
    net = Network("abc")
    leader = net.elect("a")
    late_ms = net.now_ms + 10 * TIMEOUT_MS
    leader.step(VoteReply("z", "a", 1, pre=False, granted=False), late_ms)
    leader.tick(late_ms)
    assert leader.is_leader


def test_deadlines_are_near_enough_to_tell_a_pause_from_an_idle_hour() -> None:
    net = Network("abc", learners="d")
    net.elect("a")
    for id in "abcd":
        assert net.node(id).next_deadline_ms - net.now_ms <= TIMEOUT_MS // 2


def test_a_late_message_of_an_old_leader_tells_it_the_term_and_nothing_else() -> None:
    net = Network("abc")
    old = net.elect("a").term
    net.elect("b")
    net.take_sent()
    node = net.node("c")
    before = node.log.last_index
    node.step(Append("a", "c", old, before, old, [Entry(before + 1, old, EntryKind.BATCH)], 0), net.now_ms)
    net.collect()
    (reply,) = net.take_sent()
    assert (reply.receiver, reply.term) == ("a", node.term)
    assert (node.leader, node.log.last_index) == ("b", before)


# -- transfer -----------------------------------------------------------------------------------------------


def test_leadership_moves_to_the_chosen_server_without_waiting() -> None:
    net = Network("abcd")
    leader = net.elect("a")
    term = leader.term
    leader.transfer("c", net.now_ms)
    net.settle()
    assert net.leaders == ["c"]
    assert net.node("c").term == term + 1
    assert {server.node.leader for server in net.servers.values()} == {"c"}


def test_the_successor_first_gets_the_whole_log_and_nothing_is_proposed_meanwhile() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.cut_off("c")
    net.propose("a", b"one")
    net.settle()
    net.heal()
    net.take_sent()
    leader.transfer("c", net.now_ms)
    assert not leader.accepts_proposals
    assert leader.transferee == "c"
    with pytest.raises(NotLeader):
        net.propose("a")
    with pytest.raises(ChangeRefused):
        net.change("a", configuration("abc", "d"))
    net.collect()
    assert not [message for message in net.take_sent() if isinstance(message, TimeoutNow)]
    net.advance(600)
    assert net.leaders == ["c"]
    assert net.payloads("c") == [b"one"]


def test_a_transfer_is_given_up_after_an_election_timeout() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.lose(TimeoutNow)
    leader.transfer("b", net.now_ms)
    net.advance(TIMEOUT_MS - 100)
    assert not leader.accepts_proposals
    net.advance(200)
    assert leader.accepts_proposals
    assert net.leaders == ["a"]


def test_a_transfer_is_given_up_when_the_successor_is_lost() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.crash("b")
    leader.transfer("b", net.now_ms)
    leader.server_lost("b", net.now_ms)
    assert leader.accepts_proposals


@pytest.mark.parametrize("to", ["a", "d", "z"])
def test_leadership_goes_only_to_another_voter(to: str) -> None:
    net = Network("abc", learners="d")
    leader = net.elect("a")
    with pytest.raises(ChangeRefused):
        leader.transfer(to, net.now_ms)
    with pytest.raises(NotLeader):
        net.node("b").transfer("c", net.now_ms)


def test_the_best_successor_is_the_most_up_to_date_voter_that_answers() -> None:
    net = Network("abcd", learners="e")
    leader = net.elect("a")
    net.cut_off("b")
    net.propose("a")
    net.settle()
    assert leader.best_successor() == "c"
    leader.server_lost("c", net.now_ms)
    assert leader.best_successor() == "d"
    net.cut_off("a")
    net.advance(TIMEOUT_MS - 200)
    net.now_ms += 10 * TIMEOUT_MS
    leader.tick(net.now_ms)
    assert leader.best_successor() == NOBODY
