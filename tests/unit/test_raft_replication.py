"""Entries on their way: commit rules, durability, divergence, bounds, what a leader knows of its
followers."""

from __future__ import annotations

import pytest

from hotspare.raft import node as node_module
from hotspare.raft.log import Log
from hotspare.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Member,
    VoteReply,
)
from hotspare.raft.node import MAX_APPEND_BYTES, Node, NotLeader, Role, StateLost, Timing
from hotspare.raft.progress import MAX_IN_FLIGHT_APPENDS, MAX_IN_FLIGHT_BYTES, State
from tests.unit.raft_network import EMPTY, Disk, Network, configuration, founding

HEARTBEAT_MS = Timing().heartbeat_ms


def noop(index: int, term: int) -> Entry:
    return Entry(index, term, EntryKind.NOOP)


def network_of_logs(logs: dict[str, list[int]], term: int) -> Network:
    """Servers whose logs have entries of these terms after the founding."""
    net = Network("".join(logs))
    for id, terms in logs.items():
        entries = [noop(at + 2, each) for at, each in enumerate(terms)]
        net.add(id, Disk([*founding(configuration("".join(logs))), *entries], term=term))
    return net


def terms(net: Network, id: str) -> list[int]:
    log = net.node(id).log
    return [log.term_at(index) or 0 for index in range(2, log.last_index + 1)]


def test_what_a_majority_holds_is_applied_everywhere_in_order() -> None:
    net = Network("abcd")
    net.elect("a")
    for number in range(20):
        net.propose("a", b"%d" % number)
    net.settle()
    assert all(net.payloads(id) == [b"%d" % number for number in range(20)] for id in "abcd")


def test_what_no_majority_holds_is_not_applied() -> None:
    net = Network("abcd")
    net.elect("a")
    net.cut_off("c", "d")
    net.propose("a")
    net.settle()
    assert net.payloads("a") == net.payloads("b") == []


def test_only_a_leader_takes_proposals_and_others_say_who_it_is() -> None:
    net = Network("abc")
    net.elect("a")
    with pytest.raises(NotLeader) as refused:
        net.propose("b")
    assert refused.value.leader == "a"


def test_the_commit_index_travels_at_once() -> None:
    """Without waiting for a heartbeat or another entry, also to a follower that was too late to be
    counted."""
    net = Network("abcd")
    leader = net.elect("a")
    net.filter = lambda message: message.receiver != "d"
    net.propose("a")
    net.settle()
    assert net.node("c").commit == leader.commit
    net.filter = lambda message: not isinstance(message, Heartbeat) or message.round == 0
    leader.server_back("d", net.now_ms)
    net.progress("a", "d").probe()
    net.settle()
    assert net.node("d").commit == leader.commit


def test_entries_of_an_earlier_term_are_not_committed_by_counting() -> None:
    """The paper, figure 8: `a` leads again in term 4 and spreads its entry of term 2 to a majority. Should
    it die now, a server with an entry of term 3 may still win and overwrite it. So it is not committed
    yet."""
    net = Network("abcde")
    server = net.add("a", Disk([*founding(configuration("abcde")), noop(2, 2)], term=3))
    leader = server.node
    leader.campaign(net.now_ms)
    for pre in (True, False):
        for voter in "bc":
            leader.step(VoteReply(voter, "a", 4, pre=pre, granted=True), net.now_ms)
        server.take()
    assert (leader.role, leader.log.last_index) == (Role.LEADER, 3)
    for follower in "bcd":
        leader.step(AppendReply(follower, "a", 4, False, 2), net.now_ms)
    assert leader.commit == 0
    leader.step(AppendReply("b", "a", 4, False, 3), net.now_ms)
    assert leader.commit == 0
    leader.step(AppendReply("c", "a", 4, False, 3), net.now_ms)
    assert leader.commit == 3


def test_entries_of_an_earlier_term_are_committed_together_with_one_of_the_own() -> None:
    net = network_of_logs({"a": [2, 2], "b": [2], "c": []}, term=2)
    leader = net.elect("a")
    assert leader.commit == 4
    assert {tuple(terms(net, id)) for id in "abc"} == {(2, 2, 3)}


# -- durability -------------------------------------------------------------------------------------------


def test_an_entry_is_acknowledged_only_once_it_is_durable() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.servers["b"].slow_disk = net.servers["c"].slow_disk = True
    index = net.propose("a")
    net.settle()
    assert net.progress("a", "b").match == index - 1
    assert leader.commit == index - 1
    net.servers["b"].persist()
    net.settle()
    assert leader.commit == index


def test_the_leaders_own_copy_counts_only_once_it_is_durable() -> None:
    net = Network("abcd")
    leader = net.elect("a")
    net.servers["a"].slow_disk = True
    net.crash("d")
    index = net.propose("a")
    net.settle()
    assert net.progress("a", "b").match == net.progress("a", "c").match == index  # sent while it was written
    assert leader.commit == index - 1
    net.servers["a"].persist()
    assert leader.commit == index


def test_others_may_commit_what_the_leader_has_not_written_yet() -> None:
    net = Network("abc")
    net.elect("a")
    net.servers["a"].slow_disk = True
    index = net.propose("a")
    net.settle()
    assert net.node("a").commit == index
    assert net.payloads("b") == [b"x"]


def test_committed_entries_never_come_out_before_the_write_of_themselves() -> None:
    net = Network("abc")
    net.elect("a")
    follower = net.node("b")
    index, term = follower.log.last_index + 1, follower.term
    message = Append("a", "b", term, index - 1, term, [noop(index, term), noop(index + 1, term)], index)
    follower.step(message, net.now_ms)
    ready = follower.ready()
    assert [entry.index for entry in ready.append] == [index, index + 1]
    assert [entry.index for entry in ready.committed] == [index]


def test_a_write_that_completes_late_does_not_vouch_for_what_replaced_it() -> None:
    """Two writes of the same index are under way; only the second one makes the second entry durable."""
    net = Network("abc")
    server = net.servers["c"]
    server.slow_disk = True
    server.node.step(Append("a", "c", 2, 1, 1, [noop(2, 2), noop(3, 2)], 1), net.now_ms)
    net.collect()
    server.node.step(Append("b", "c", 3, 1, 1, [noop(2, 3)], 1), net.now_ms)
    net.collect()
    assert len(server.writes) == 2
    assert net.take_sent() == []
    server.persist(1)
    net.collect()
    assert net.take_sent() == [AppendReply("c", "a", 2, False, 3)]
    server.persist(1)
    net.collect()
    assert net.take_sent() == [AppendReply("c", "b", 3, False, 2)]
    assert [entry.term for entry in server.disk.entries] == [1, 3]


def test_the_same_index_and_term_written_twice_waits_for_the_second_write() -> None:
    """An entry is truncated in memory and comes back while its first write is still under way."""
    net = Network("abc")
    server = net.servers["c"]
    server.slow_disk = True
    for term, sender, entries in [
        (2, "a", [noop(2, 2)]),
        (3, "b", [noop(2, 3)]),
        (4, "a", [noop(2, 2), noop(3, 4)]),
    ]:
        server.node.step(Append(sender, "c", term, 1, 1, entries, 1), net.now_ms)
        net.collect()
    server.persist(2)
    net.collect()
    assert [reply.term for reply in net.take_sent()] == [2, 3]
    server.persist(1)
    net.collect()
    assert [reply.term for reply in net.take_sent()] == [4]
    assert [entry.term for entry in server.disk.entries] == [1, 2, 4]


def test_an_old_leaders_late_write_does_not_count_in_its_next_term() -> None:
    net = Network("abc")
    net.elect("a")
    net.servers["a"].slow_disk = True
    net.cut_off("a")
    index = net.propose("a")
    net.settle()
    net.node("a").step(Heartbeat("b", "a", 9, 0, 1), net.now_ms)
    net.settle()
    assert net.node("a").role is Role.FOLLOWER
    net.servers["a"].persist()
    assert net.node("a").commit < index


def test_one_message_for_many_proposals() -> None:
    net = Network("abc")
    net.elect("a")
    net.take_sent()
    for _ in range(10):
        net.propose("a")
    net.collect()
    appends = [message for message in net.take_sent() if isinstance(message, Append)]
    assert [(append.receiver, len(append.entries)) for append in appends] == [("b", 10), ("c", 10)]


# -- divergence -------------------------------------------------------------------------------------------


def test_followers_logs_become_the_leaders() -> None:
    """The paper, figure 7."""
    net = network_of_logs(
        {
            "a": [1, 1, 4, 4, 5, 5, 6, 6, 6],
            "b": [1, 1, 4, 4, 5, 5, 6, 6],
            "c": [1],
            "d": [1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
            "e": [1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
            "f": [1, 1, 4, 4, 4, 4],
            "g": [1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
        },
        term=7,
    )
    net.elect("a")
    assert {tuple(terms(net, id)) for id in "abcdefg"} == {(1, 1, 4, 4, 5, 5, 6, 6, 6, 8)}


def test_a_divergence_costs_one_rejection_a_term() -> None:
    net = network_of_logs(
        {"a": [2] * 50 + [5] * 50, "b": [3] * 80 + [4] * 10, "c": [2] * 50 + [5] * 50}, term=5
    )
    net.elect("a")
    rejections = [message for message in net.sent if isinstance(message, AppendReply) and message.rejected]
    assert terms(net, "b") == terms(net, "a")
    assert 1 <= len(rejections) <= 2


def test_an_old_append_that_comes_late_cuts_nothing_off() -> None:
    net = Network("abc")
    net.elect("a")
    net.propose("a", b"one")
    net.collect()
    (late,) = [
        each for each in net.sent if isinstance(each, Append) and each.receiver == "b" and each.entries
    ][-1:]
    net.settle()
    net.propose("a", b"two")
    net.settle()
    net.deliver(late)
    net.settle()
    assert net.payloads("b") == [b"one", b"two"]
    assert net.node("b").log.last_index == net.node("a").log.last_index


def test_an_append_below_the_commit_index_is_accepted_for_what_is_new_in_it() -> None:
    net = Network("abc")
    net.elect("a")
    follower = net.node("b")
    commit, term = follower.commit, follower.term
    known = follower.log.entries(2, 1 << 20)
    message = Append("a", "b", term, 1, 1, [*known, noop(commit + 1, term)], commit)
    follower.step(message, net.now_ms)
    net.take_sent()
    net.collect()
    assert net.take_sent() == [AppendReply("b", "a", term, False, commit + 1)]


def test_an_append_that_begins_below_the_compacted_part_is_accepted_for_what_is_new_in_it() -> None:
    net = Network("abc")
    net.elect("a")
    net.propose("a")
    net.settle()
    follower = net.node("b")
    known = follower.log.entries(2, 1 << 20)
    commit, term = follower.commit, follower.term
    follower.compact(follower.applied)
    follower.step(Append("a", "b", term, 1, 1, [*known, noop(commit + 1, term)], commit), net.now_ms)
    net.take_sent()
    net.collect()
    assert net.take_sent() == [AppendReply("b", "a", term, False, commit + 1)]


def test_a_follower_commits_no_further_than_it_is_known_to_agree() -> None:
    """It has entries of its own beyond that, and the leader has committed others in their place."""
    net = network_of_logs({"a": [], "b": [2, 2], "c": []}, term=2)
    follower = net.node("b")
    follower.step(Append("a", "b", 3, 1, 1, [], 3), net.now_ms)
    assert follower.commit == 1
    follower.step(Append("a", "b", 3, 1, 1, [noop(2, 3), noop(3, 3)], 3), net.now_ms)
    assert follower.commit == 3


def test_a_server_that_holds_less_than_it_told_its_leader_goes_no_further() -> None:
    """A restored backup, say."""
    net = Network("abc")
    with pytest.raises(StateLost, match="entry 50 was acknowledged") as caught:
        net.node("b").step(Heartbeat("a", "b", 2, 50, 1), net.now_ms)
    assert (caught.value.acknowledged, caught.value.held) == (50, net.node("b").log.last_index)
    assert net.node("b").commit == 0


def test_repeated_and_reordered_messages_change_nothing() -> None:
    net = Network("abc")
    net.elect("a")
    net.take_sent()
    for number in range(5):
        net.propose("a", b"%d" % number)
        net.collect()
    for message in reversed([*net.take_sent(), *net.queue]):
        net.deliver(message)
        net.collect()
    net.advance(1000)
    assert net.payloads("a") == net.payloads("b") == net.payloads("c") == [b"0", b"1", b"2", b"3", b"4"]


# -- what a leader knows of a follower ----------------------------------------------------------------------


def test_a_follower_that_answers_is_streamed_to_without_waiting() -> None:
    net = Network("abc")
    net.elect("a")
    net.lose(AppendReply)
    for _ in range(5):
        net.propose("a")
        net.settle()
    assert net.node("b").log.last_index == net.node("a").log.last_index
    assert len(net.progress("a", "b").in_flight) == 5


def test_messages_in_flight_are_bounded_by_count() -> None:
    net = Network("abc")
    net.elect("a")
    net.lose(AppendReply)
    for _ in range(MAX_IN_FLIGHT_APPENDS + 10):
        net.propose("a")
        net.settle()
    progress = net.progress("a", "b")
    assert len(progress.in_flight) == MAX_IN_FLIGHT_APPENDS
    assert progress.next == net.node("a").log.last_index - 10 + 1
    net.heal()
    net.advance(1000)
    assert net.node("b").commit == net.node("a").log.last_index
    assert (len(progress.in_flight), progress.in_flight_bytes) == (0, 0)


def test_messages_in_flight_are_bounded_by_bytes() -> None:
    net = Network("abc")
    net.elect("a")
    net.lose(AppendReply)
    for _ in range(20):
        net.propose("a", b"x" * MAX_APPEND_BYTES)
        net.settle()
    progress = net.progress("a", "b")
    assert progress.in_flight_bytes <= MAX_IN_FLIGHT_BYTES + MAX_APPEND_BYTES + 32
    assert len(progress.in_flight) < 20


def test_a_message_has_at_most_so_many_bytes_but_an_oversize_entry_is_sent_alone() -> None:
    net = Network("abc")
    net.elect("a")
    net.take_sent()
    for size in (MAX_APPEND_BYTES // 2, MAX_APPEND_BYTES // 3, 3 * MAX_APPEND_BYTES, 10):
        net.propose("a", b"x" * size)
    net.collect()
    sent = [message for message in net.take_sent() if isinstance(message, Append) and message.receiver == "b"]
    assert [len(message.entries) for message in sent] == [2, 1, 1]


def test_what_was_lost_is_sent_again_after_two_heartbeats() -> None:
    net = Network("abc")
    leader = net.elect("a")
    net.lose(Append)
    index = net.propose("a")
    net.settle()
    net.heal()
    net.advance(3 * HEARTBEAT_MS)
    assert leader.commit == index
    assert net.progress("a", "b").match == net.progress("a", "c").match == index


def test_a_follower_whose_probe_was_lost_is_probed_again_when_it_answers_a_heartbeat() -> None:
    net = Network("abc")
    net.elect("a")
    progress = net.progress("a", "b")
    net.propose("a")
    progress.probe()
    net.lose(Append)
    net.settle()
    net.heal()
    assert not progress.may_send(net.node("a").log.last_index)
    net.node("a").step(HeartbeatReply("b", "a", net.node("a").term, 1), net.now_ms)
    net.settle()
    assert (progress.state, progress.match) == (State.REPLICATE, net.node("a").log.last_index)


def test_a_lost_follower_is_sent_nothing_until_it_is_back() -> None:
    net = Network("abc")
    leader = net.elect("a")
    leader.server_lost("b", net.now_ms)
    progress = net.progress("a", "b")
    assert (progress.state, progress.active) == (State.PROBE, False)
    net.take_sent()
    index = net.propose("a")
    net.collect()
    assert not [each for each in net.take_sent() if isinstance(each, Append) and each.receiver == "b"]
    leader.server_back("b", net.now_ms)
    net.settle()
    assert progress.match == index


def test_a_message_from_a_lost_follower_brings_it_back() -> None:
    net = Network("abc")
    leader = net.elect("a")
    leader.server_lost("b", net.now_ms)
    net.propose("a")
    net.settle()
    leader.step(HeartbeatReply("b", "a", leader.term, 1), net.now_ms)
    net.settle()
    assert net.progress("a", "b").match == leader.log.last_index
    assert net.progress("a", "b").active


def test_a_follower_is_active_while_it_was_heard_within_an_election_timeout() -> None:
    net = Network("abcd")
    net.elect("a")
    net.advance(1000)
    net.cut_off("d")
    net.advance(500)
    assert net.progress("a", "d").active
    net.advance(800)
    assert not net.progress("a", "d").active
    assert net.progress("a", "b").active


def test_progress_belongs_to_an_incarnation_and_never_passes_to_the_next_one() -> None:
    """`b` lost its state and is another server: what its predecessor held says nothing about it."""
    net = Network("abc")
    leader = net.elect("a")
    net.propose("a")
    net.settle()
    net.crash("b")
    vacant = leader.configuration.with_member(Member("b", "host-b", "", False))
    net.change("a", vacant)
    net.settle()
    assert "b" not in leader.progress
    net.add("b2")
    newcomer = vacant.with_member(Member("b", "host-b", "b2", False))
    net.change("a", newcomer)
    assert leader.progress["b2"].match == 0
    leader.step(AppendReply("b", "a", leader.term, False, leader.log.last_index), net.now_ms)
    assert leader.progress["b2"].match == 0
    net.settle()
    assert leader.progress["b2"].match == leader.log.last_index
    assert net.payloads("b2") == [b"x"]


def test_a_leader_does_not_tell_a_follower_of_a_commit_beyond_what_it_is_known_to_hold() -> None:
    net = Network("abcd")
    leader = net.elect("a")
    net.advance(1000)
    held = net.node("d").log.last_index
    net.filter = lambda message: not (isinstance(message, Append) and message.receiver == "d")
    net.propose("a")
    net.settle()
    net.take_sent()
    net.advance(2 * HEARTBEAT_MS)
    beats = [beat for beat in net.take_sent() if isinstance(beat, Heartbeat) and beat.receiver == "d"]
    assert {beat.commit for beat in beats} == {held}
    assert leader.commit == held + 1


def test_catching_up_is_applied_in_bounded_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "MAX_APPLY_BYTES", 100)
    entries = [
        *founding(configuration("a")),
        *[Entry(at, 1, EntryKind.BATCH, b"x" * 60) for at in range(2, 9)],
    ]
    node = Node("a", "a", Log(EMPTY, entries), HardState(1), 0, Timing(), lambda n: 0, 0)
    node.campaign(0)
    portions = []
    while node.has_ready():
        ready = node.ready()
        node.persisted(ready.number)
        portions.append(len(ready.committed))
    assert sum(portions) == 9
    assert max(portions) == 1


def test_a_reply_of_a_server_that_is_no_follower_is_ignored() -> None:
    net = Network("abc")
    leader = net.elect("a")
    leader.step(AppendReply("z", "a", leader.term, False, 99), net.now_ms)
    leader.step(HeartbeatReply("z", "a", leader.term, 99), net.now_ms)
    leader.step(VoteReply("z", "a", leader.term, pre=False, granted=True), net.now_ms)
    assert set(leader.progress) == {"b", "c"}


def test_a_follower_learns_the_configuration_from_the_log_it_gets() -> None:
    net = Network("ab", learners="c")
    net.add("c")
    net.elect("a")
    net.advance(1000)
    expected: Configuration = configuration("ab", "c")
    assert net.node("c").configuration == expected
