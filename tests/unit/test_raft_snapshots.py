"""Snapshots: when a log no longer reaches back, and what a follower makes of one."""

from __future__ import annotations

from hotspare.raft.messages import AppendReply, HeartbeatReply, SnapshotChunk, SnapshotMark, SnapshotReply
from hotspare.raft.node import Role
from hotspare.raft.progress import State
from tests.unit.raft_network import Network, configuration


def chunk(sender: str, receiver: str, term: int) -> SnapshotChunk:
    return SnapshotChunk(sender, receiver, term, SnapshotMark(5, 1, configuration("abc")), 1, 0, False, b"")


def compacted_network() -> Network:
    """`c` was away while the leader `a` wrote ten entries and forgot them."""
    net = Network("abc")
    leader = net.elect("a")
    net.advance(1000)
    net.cut_off("c")
    net.advance(1500)
    for number in range(10):
        net.propose("a", b"%d" % number)
    net.settle()
    leader.compact(leader.applied)
    return net


def test_a_follower_that_the_log_does_not_reach_needs_a_snapshot_and_is_named_once() -> None:
    net = compacted_network()
    net.heal()
    net.advance(3000)
    assert net.servers["a"].snapshots_wanted == ["c"]
    assert net.progress("a", "c").state is State.SNAPSHOT


def test_a_follower_with_a_snapshot_goes_on_from_there() -> None:
    net = compacted_network()
    net.heal()
    net.advance(1000)
    net.propose("a", b"meanwhile")
    net.settle()
    net.install_snapshot("a", "c")
    assert net.payloads("c") == net.payloads("a")
    net.propose("a", b"after")
    net.settle()
    assert net.payloads("c")[-2:] == [b"meanwhile", b"after"]
    assert net.progress("a", "c").state is State.REPLICATE


def test_a_silent_follower_is_given_no_snapshot() -> None:
    net = compacted_network()
    net.advance(5000)
    assert net.servers["a"].snapshots_wanted == []


def test_a_failed_snapshot_is_asked_for_again_once_the_follower_answers() -> None:
    net = compacted_network()
    net.heal()
    net.advance(600)
    leader = net.node("a")
    leader.snapshot_failed("c", net.now_ms)
    net.settle()
    assert net.servers["a"].snapshots_wanted == ["c"]
    leader.step(HeartbeatReply("c", "a", leader.term, 1), net.now_ms)
    net.settle()
    assert net.servers["a"].snapshots_wanted == ["c", "c"]


def test_a_newcomer_gets_a_snapshot_and_then_the_log() -> None:
    net = compacted_network()
    net.heal()
    net.add("d")
    net.change("a", configuration("abc", "d"))
    net.settle()
    assert "d" in net.servers["a"].snapshots_wanted
    net.install_snapshot("a", "d")
    net.advance(500)
    assert net.payloads("d") == net.payloads("a")
    assert net.node("d").configuration == configuration("abc", "d")


def test_a_snapshot_is_written_in_one_piece_with_the_log_that_follows_it() -> None:
    net = Network("abc")
    net.elect("a")
    net.filter = lambda message: message.receiver != "c" or not isinstance(message, HeartbeatReply)
    node = net.node("c")
    mark = SnapshotMark(50, 2, configuration("abc"))
    assert node.restore(mark, net.now_ms)
    ready = node.ready()
    assert (ready.snapshot, ready.append) == (mark, [])
    assert ready.number
    assert (node.commit, node.applied, node.log.first_index) == (50, 50, 51)


def test_a_snapshot_of_the_past_is_refused() -> None:
    net = Network("abc")
    net.elect("a")
    node = net.node("c")
    assert not node.restore(SnapshotMark(node.commit, node.term, configuration("abc")), net.now_ms)
    assert not node.has_ready()


def test_a_leader_takes_no_snapshot() -> None:
    net = Network("abc")
    net.elect("a")
    assert not net.node("a").restore(SnapshotMark(50, 2, configuration("abc")), net.now_ms)


def test_parts_of_a_snapshot_count_as_a_sign_of_life_of_the_leader() -> None:
    net = Network("abc")
    term = net.elect("a").term
    net.cut_off("c")
    for _ in range(15):
        net.advance(200)
        net.node("c").step(chunk("a", "c", term), net.now_ms)
    assert (net.node("c").leader, net.node("c").role) == ("a", Role.FOLLOWER)
    net.settle()
    assert len(net.servers["c"].chunks) == 15


def test_parts_of_a_snapshot_from_an_old_term_are_dropped_and_their_sender_told() -> None:
    net = Network("abc")
    old = net.elect("a").term
    net.elect("b")
    net.take_sent()
    net.node("c").step(chunk("a", "c", old), net.now_ms)
    net.collect()
    assert net.servers["c"].chunks == []
    assert [(reply.receiver, reply.term > old) for reply in net.take_sent()] == [("a", True)]


def test_replies_of_a_follower_that_gets_a_snapshot_reach_the_sender_and_count_as_contact() -> None:
    net = compacted_network()
    net.advance(2000)
    leader = net.node("a")
    assert not net.progress("a", "c").active
    reply = SnapshotReply("c", "a", leader.term, 1, 0, 3)
    leader.step(reply, net.now_ms)
    assert leader.ready().chunk_replies == [reply]
    assert net.progress("a", "c").active


def test_a_follower_that_caught_up_by_other_means_leaves_the_snapshot_state() -> None:
    net = compacted_network()
    net.heal()
    net.advance(600)
    leader = net.node("a")
    leader.step(AppendReply("c", "a", leader.term, False, leader.log.last_index), net.now_ms)
    assert net.progress("a", "c").state is not State.SNAPSHOT


def test_the_end_of_a_transfer_to_somebody_else_is_ignored() -> None:
    net = Network("abc")
    leader = net.elect("a")
    leader.snapshot_installed("z", 99, net.now_ms)
    leader.snapshot_failed("z", net.now_ms)
    leader.snapshot_failed("b", net.now_ms)
    assert net.progress("a", "b").state is State.REPLICATE
