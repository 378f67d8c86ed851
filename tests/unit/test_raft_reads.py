"""ReadIndex: a read is answered only by a leader that led when it was asked for."""

from __future__ import annotations

import pytest

from hotspare.raft.messages import AppendReply, Heartbeat, HeartbeatReply
from hotspare.raft.node import NEVER_MS, NotLeader, ReadReady
from tests.unit.raft_network import Network


def test_a_read_is_answered_after_a_round_begun_after_it() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.advance(1000)
    leader.request_read(7, net.now_ms)
    net.collect()
    assert net.servers["a"].reads == []
    net.settle()
    assert net.servers["a"].reads == [ReadReady(7, leader.commit)]


def test_answers_to_rounds_begun_before_the_read_do_not_count() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.advance(1000)
    net.lose(HeartbeatReply)
    net.advance(200)
    before = max(beat.round for beat in net.take_sent() if isinstance(beat, Heartbeat))
    leader.request_read(7, net.now_ms)
    net.collect()
    for follower in "bc":
        leader.step(HeartbeatReply(follower, "a", leader.term, before), net.now_ms)
    net.collect()
    assert net.servers["a"].reads == []
    leader.step(HeartbeatReply("b", "a", leader.term, before + 1), net.now_ms)
    net.collect()
    assert [read.context for read in net.servers["a"].reads] == [7]


def test_a_read_sees_every_entry_that_was_committed_when_it_was_asked_for() -> None:
    net = Network("abc")
    leader = net.elect("a")
    index = net.propose("a")
    net.settle()
    leader.request_read(1, net.now_ms)
    net.settle()
    assert net.servers["a"].reads[0].read_index >= index


def test_a_deposed_leader_answers_no_read() -> None:
    net = Network("abc")
    old = net.elect("a")
    net.cut_off("a")
    net.node("b").server_lost("a", net.now_ms)
    net.node("c").server_lost("a", net.now_ms)
    net.advance(300)
    assert net.leaders == ["a", "b"]
    old.request_read(7, net.now_ms)
    net.advance(3000)
    net.heal()
    net.advance(3000)
    assert net.servers["a"].reads == []


def test_a_new_leader_answers_no_read_before_it_has_committed_in_its_term() -> None:
    net = Network("abc")
    net.lose(AppendReply)
    leader = net.elect("a")
    leader.request_read(7, net.now_ms)
    net.advance(600)
    assert leader.is_leader
    assert net.servers["a"].reads == []
    net.heal()
    net.advance(1000)
    assert net.servers["a"].reads == [ReadReady(7, leader.log.last_index)]


def test_a_cluster_of_one_answers_at_once() -> None:
    net = Network("a")
    leader = net.elect("a")
    leader.request_read(7, net.now_ms)
    assert leader.ready().reads == [ReadReady(7, leader.commit)]


def test_learners_do_not_confirm_rounds() -> None:
    net = Network("abc", learners="de")
    leader = net.elect("a")
    net.cut_off("b", "c")
    leader.request_read(7, net.now_ms)
    net.settle()
    assert net.servers["a"].reads == []


def test_reads_that_come_together_share_a_round() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.take_sent()
    for context in range(10):
        leader.request_read(context, net.now_ms)
    net.collect()
    for context in range(10, 20):
        leader.request_read(context, net.now_ms)
    net.settle()
    assert [read.context for read in net.servers["a"].reads] == list(range(20))
    rounds = {beat.round for beat in net.take_sent() if isinstance(beat, Heartbeat)} - {0}
    assert len(rounds) == 2


def test_a_lost_round_is_made_good_by_the_next_heartbeat() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.lose(Heartbeat)
    leader.request_read(7, net.now_ms)
    net.settle()
    net.heal()
    net.advance(300)
    assert [read.context for read in net.servers["a"].reads] == [7]


def test_only_a_leader_takes_reads() -> None:
    net = Network("abc")
    net.elect("a")
    with pytest.raises(NotLeader):
        net.node("b").request_read(1, net.now_ms)


def test_the_last_confirmed_round_is_dated_by_its_beginning() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.advance(1000)
    net.lose(HeartbeatReply)
    net.take_sent()
    net.advance(200)
    (beat,) = [each for each in net.take_sent() if isinstance(each, Heartbeat) and each.receiver == "b"]
    began_ms = net.now_ms
    confirmed_before_ms = leader.confirmed_ms
    assert confirmed_before_ms < began_ms
    leader.step(HeartbeatReply("b", "a", leader.term, beat.round), net.now_ms + 150)
    assert began_ms - 200 < leader.confirmed_ms <= began_ms
    assert leader.heard_ms == leader.confirmed_ms
    assert net.node("b").confirmed_ms == NEVER_MS
