"""Known bugs, put into the real code on purpose: a simulation that does not find them proves nothing.

A bug is a change of a line or two in the source of a function, so that everybody can see what it is, and
that a bug whose place has moved is noticed instead of being tested no more. Nothing in the production code
knows of this.

Where a random run would meet a bug too rarely, a *directed* scenario (drawn from a seed, too) makes the
circumstances likely that it needs: the same scenario without the bug must find nothing.
"""

from __future__ import annotations
import __future__

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from textwrap import dedent
from typing import Any
from unittest.mock import patch

from hotspare.protocol import forking, founding, membership
from hotspare.protocol import leases as protocol_leases
from hotspare.protocol.clock import ClusterClock
from hotspare.protocol.leases import Leases
from hotspare.protocol.messages import ReadRequest
from hotspare.protocol.operations import Operations
from hotspare.protocol.origin import Origin
from hotspare.protocol.reads import Freshness
from hotspare.protocol.snapshot import SnapshotReceiver
from hotspare.raft import node as raft_node
from hotspare.raft.messages import AppendReply, Member
from hotspare.raft.node import Node
from hotspare.replica import Now, Replica
from hotspare.store.plain import PlainSnapshot, PlainSpace
from hotspare.table import Table, _Sessions
from tests.simulation import directed
from tests.simulation.nodes import SimulatedNode
from tests.simulation.world import Scenario

Plant = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Bug:
    name: str
    plant: Plant
    scenario: Callable[[int], Scenario] | None
    """None: any run."""
    within: int
    """Seeds."""


BUGS: list[Bug] = []


def bug(
    within: int, scenario: Callable[[int], Scenario] | None = None
) -> Callable[[Callable[[], AbstractContextManager[object]]], Plant]:
    def add(plant: Callable[[], AbstractContextManager[object]]) -> Plant:
        BUGS.append(Bug(plant.__name__, plant, scenario, within))
        return plant

    return add


def changed(owner: Any, name: str, right: str, wrong: str, **names: object) -> AbstractContextManager[object]:
    """The function (or method, or property) with `wrong` in the place of `right` in its source."""
    present = inspect.getattr_static(owner, name)
    function: Any = present.fget if isinstance(present, property) else present
    source = dedent(inspect.getsource(function))
    assert source.count(right) == 1, f"{right!r} is not (once) in {name}: where is it now?"
    source = source[source.index("def ") :].replace(right, wrong)
    code = compile(source, f"<broken {name}>", "exec", __future__.annotations.compiler_flag)
    namespace: dict[str, Any] = {}
    function.__globals__.update(names)
    exec(code, function.__globals__, namespace)
    broken = namespace[name]
    replaced = patch.object(owner, name, property(broken) if isinstance(present, property) else broken)
    return both(replaced, *_in_dispatch_tables(function, broken))


def _in_dispatch_tables(function: Any, broken: object) -> list[AbstractContextManager[object]]:
    """Tables of the module that name the function itself, not its place in a class."""
    tables = [table for table in function.__globals__.values() if isinstance(table, dict)]
    return [
        patch.dict(table, {key: broken for key, value in table.items() if value is function})
        for table in tables
        if any(value is function for value in table.values())
    ]


@contextmanager
def both(*plants: AbstractContextManager[object]) -> Iterator[None]:
    with ExitStack() as stack:
        for plant in plants:
            stack.enter_context(plant)
        yield


# --- consensus ------------------------------------------------------------------------------------------


@bug(within=40, scenario=directed.restarting_voters)
def a_vote_is_forgotten_in_a_restart() -> AbstractContextManager[object]:
    return changed(Node, "__init__", "self.vote = hard_state.vote", "self.vote = NOBODY")


@bug(within=40, scenario=directed.slow_elections)
def a_vote_leaves_before_it_is_written() -> AbstractContextManager[object]:
    return changed(
        Node, "_send_when_durable", "if number > self._persisted:", "if number > self._persisted + 9:"
    )


@bug(within=40, scenario=directed.slow_elections)
def a_vote_is_told_before_it_is_written() -> AbstractContextManager[object]:
    return changed(
        Node,
        "_on_vote_request",
        "self._send_when_durable(VoteReply",
        "self._send(VoteReply",
    )


@bug(within=20, scenario=directed.power_losses)
def entries_are_acknowledged_before_they_are_written() -> AbstractContextManager[object]:
    return changed(Node, "_on_append", "self._send_when_durable(", "self._send(")


@bug(within=60, scenario=directed.power_losses)
def a_leader_counts_its_own_copy_before_it_is_written() -> AbstractContextManager[object]:
    return changed(
        Node, "_hand_out_write", "self._held.append((self._write_number, own))", "self._release(own)"
    )


@bug(within=60, scenario=directed.rewritten_logs)
def a_write_is_known_by_its_index() -> AbstractContextManager[object]:
    """Once an entry of that index has been written, one that took its place counts as written."""
    hand_out, send = Node._hand_out_write, Node._send_when_durable

    def noting_hand_out(self: Node, ready: Any) -> None:
        hand_out(self, ready)
        if ready.append:
            self.__dict__.setdefault("_ends", {})[ready.number] = ready.append[-1].index

    def by_index(self: Node, message: Any) -> None:
        ends = self.__dict__.get("_ends", {})
        written = max((index for number, index in ends.items() if number <= self._persisted), default=0)
        if isinstance(message, AppendReply) and message.index <= written:
            self._release(message)
        else:
            send(self, message)

    return both(
        patch.object(Node, "_hand_out_write", noting_hand_out),
        patch.object(Node, "_send_when_durable", by_index),
    )


@bug(within=40, scenario=directed.inherited_entries)
def an_entry_of_an_older_term_is_committed_by_counting() -> AbstractContextManager[object]:
    return changed(
        Node,
        "_advance_commit",
        " and index >= self._term_start:\n        assert log.term_at(index) == self.term",
        ":\n        pass",
    )


@bug(within=20, scenario=directed.false_alarms)
def voters_desert_a_leader_that_they_hear() -> AbstractContextManager[object]:
    """No stickiness."""
    return changed(Node, "_on_vote_request", "(self._hears_leader() and", "(False and")


@bug(within=60, scenario=directed.candidates_behind)
def a_vote_for_a_log_that_is_behind() -> AbstractContextManager[object]:
    return changed(
        Node,
        "_on_vote_request",
        "is_up_to_date = self.log.is_up_to_date(message.last_term, message.last_index)",
        "is_up_to_date = True",
    )


@bug(within=80, scenario=directed.lost_states)
def progress_is_kept_by_name() -> AbstractContextManager[object]:
    """What the leader knew of a server is taken to be true of the new one under its name."""

    def keep(self: Node) -> None:
        known = self.__dict__.setdefault("_by_name", {})
        old = self.progress
        self.progress = {}
        for member in self.log.configuration.servers:
            if member.id != self.id:
                progress = old.get(member.id) or known.get(member.name) or self._new_progress(member.id)
                progress.id = member.id
                self.progress[member.id] = known[member.name] = progress

    return patch.object(Node, "_follow_configuration", keep)


@bug(within=20, scenario=directed.lost_states)
def a_swap_instead_of_two_changes() -> AbstractContextManager[object]:
    return both(
        changed(
            membership,
            "_next_for",
            "return vacated(member)",
            "return msgspec.structs.replace(member, id=presence.id)",
        ),
        patch.object(raft_node, "refuse_unsafe_change", lambda old, new: None),
    )


@bug(within=60, scenario=directed.changing_members)
def a_change_before_the_first_commit_of_the_term() -> AbstractContextManager[object]:
    return both(
        changed(
            Node,
            "change_configuration",
            "if not self.has_committed_in_term:",
            "if False:",
        ),
        changed(
            Node,
            "may_change_configuration",
            "self.has_committed_in_term and ",
            "",
        ),
    )


@bug(within=60, scenario=directed.removed_votes)
def a_learner_is_counted_as_a_voter() -> AbstractContextManager[object]:
    return changed(
        Node,
        "_advance_commit",
        "[self._own_match if voter == own else progress[voter].match for voter in log.voters]",
        "sorted([self._own_match, *(each.match for each in progress.values())])"
        "[-majority(len(log.voters)) :][:1]",
    )


@bug(within=10)
def who_is_not_in_the_vanguard_gets_nothing() -> AbstractContextManager[object]:
    return changed(Node, "_send_entries", "self._has_left_out = True", "pass")


@bug(within=60, scenario=directed.deposed_leaders)
def a_read_is_served_by_a_deposed_leader() -> AbstractContextManager[object]:
    return changed(
        Node,
        "request_read",
        "self._waiting_reads.append(context)",
        "self._reads.append(ReadReady(context, self.log.commit))",
    )


@bug(within=60, scenario=directed.changing_leaders)
def reads_are_answered_before_the_first_commit_is_learned() -> AbstractContextManager[object]:
    return both(
        changed(Node, "_begin_round", "if self.has_committed_in_term:", "if True:"),
        changed(Node, "_read_round_due", " or not self.has_committed_in_term", ""),
    )


# --- members, observers, histories ----------------------------------------------------------------------


@bug(within=40, scenario=directed.looking_on)
def an_observer_is_counted_in_a_quorum() -> AbstractContextManager[object]:
    return changed(
        Node,
        "_advance_commit",
        "[self._own_match if voter == own else progress[voter].match for voter in log.voters]",
        "[self._own_match, *(each.match for each in progress.values())]",
    )


@bug(within=20, scenario=directed.coming_and_going)
def one_goes_and_another_one_comes_in_one_change() -> AbstractContextManager[object]:
    wanted = Operations.wanted_change

    def at_once(self: Operations, node: Node, present: Any) -> Any:
        change = wanted(self, node, present)
        if change is None:
            return None
        for name in sorted(self.invited):
            if name in present and change.by_name(name) is None:
                change = change.with_member(Member(name, name, present[name].id, True))
        return change

    return both(
        patch.object(Operations, "wanted_change", at_once),
        patch.object(raft_node, "refuse_unsafe_change", lambda old, new: None),
    )


@bug(within=20, scenario=directed.removed_while_away)
def a_removed_server_goes_on_voting() -> AbstractContextManager[object]:
    return both(
        changed(Node, "_may_campaign", "not self.abstains and ", ""),
        changed(Node, "_on_vote_request", "self.abstains or ", ""),
    )


@bug(within=20, scenario=directed.removed_while_away)
def nobody_tells_a_removed_server() -> AbstractContextManager[object]:
    return patch.object(Replica, "_tell_if_removed", lambda *_: None)


@bug(within=10, scenario=directed.forced_for_no_reason)
def a_promotion_is_forced_while_a_primary_answers() -> AbstractContextManager[object]:
    return patch.object(forking, "refusal", lambda *_: "")


@bug(within=20, scenario=directed.lost_majorities)
def a_fork_keeps_the_cluster_id() -> AbstractContextManager[object]:
    return changed(forking, "forked", "Configuration(cluster_id,", "Configuration(old.cluster_id,")


@bug(within=20, scenario=directed.lost_majorities)
def a_fork_goes_on_with_the_next_index() -> AbstractContextManager[object]:
    return changed(forking, "forked", " + GAP_ENTRIES", " + 1")


@bug(within=40, scenario=directed.lost_majorities)
def a_fork_lacks_what_was_not_known_to_be_committed() -> AbstractContextManager[object]:
    return changed(
        Replica,
        "_fork",
        "if node.applied < node.log.last_index else []",
        "if False else []",
    )


# --- founding -------------------------------------------------------------------------------------------


@bug(within=40, scenario=directed.competing_founders)
def a_founding_is_adopted_twice() -> AbstractContextManager[object]:
    return changed(
        Replica,
        "_on_founding",
        "if self.node is None and",
        "if (self.node is None or self.node.log.last_index == 1) and",
    )


@bug(within=60, scenario=directed.abandoned_foundings)
def a_founding_is_given_up_with_entries_in_the_log() -> AbstractContextManager[object]:
    return both(
        changed(Replica, "_give_up_founding", " or node.log.last_index > 1", ""),
        patch.object(founding, "may_yet_lead", lambda *_: False),
    )


# --- the state machine ----------------------------------------------------------------------------------


@bug(within=40, scenario=directed.lost_groups)
def the_highest_number_wins() -> AbstractContextManager[object]:
    """Commands that were overtaken count as done."""
    return changed(
        Table,
        "_run_group",
        "if done < 0 or",
        "if done < 0:\n        origin.keep([version] * -done)\n        done = 0\n    if",
    )


@bug(within=60, scenario=directed.late_writes)
def deadlines_are_ignored() -> AbstractContextManager[object]:
    def run(self: _Sessions, commands: list[Any], first_version: int) -> list[int]:
        for command in commands:
            command.deadline_ms = 1 << 62
        return original(self, commands, first_version)

    original = _Sessions.run
    return patch.object(_Sessions, "run", run)


@bug(within=40)
def two_registrations_share_an_id() -> AbstractContextManager[object]:
    return changed(
        Table,
        "_register",
        "self._origins.register(txn.table, index,",
        "index &= ~7\n    self._origins.register(txn.table, index,",
    )


@bug(within=60, scenario=directed.lost_states)
def snapshots_lack_the_origins() -> AbstractContextManager[object]:
    original = PlainSnapshot.__init__

    def lacking(self: PlainSnapshot, table: PlainSpace, sessions: PlainSpace) -> None:
        original(self, table, sessions)
        counters = [("table", key, value) for key, value in table.items() if key == b"c"]
        self._rows = iter([*counters, *self._records()])  # type: ignore[assignment]

    return patch.object(PlainSnapshot, "__init__", lacking)


@bug(within=60, scenario=directed.lost_states)
def a_lost_part_of_a_snapshot_goes_unnoticed() -> AbstractContextManager[object]:
    return changed(
        SnapshotReceiver,
        "accepts",
        "chunk.sequence != self.wanted:",
        "chunk.sequence < self.wanted:",
    )


@bug(within=20)
def sessions_expire_by_the_local_clock() -> AbstractContextManager[object]:
    clock = [0]
    perform = SimulatedNode._perform

    def noting_the_clock(self: SimulatedNode, work: Any) -> None:
        clock[0] = self.now.wall_ms
        perform(self, work)

    return both(
        patch.object(SimulatedNode, "_perform", noting_the_clock),
        changed(
            Table,
            "_advance",
            "if stamp_ms > self.stamp_ms:",
            "stamp_ms = _local_clock[0]\n    if stamp_ms > self.stamp_ms:",
            _local_clock=clock,
        ),
    )


@bug(within=40, scenario=directed.expiring_crowds)
def sessions_are_pruned_outside_apply() -> AbstractContextManager[object]:
    tick = Replica.tick

    def pruning(self: Replica, now: Now) -> None:
        tick(self, now)
        transaction = self.store.begin()
        for expires_at_ms, id in transaction.expiry.due(self.cluster_ms(now), 10):
            transaction.sessions.pop(id)
            transaction.expiry.discard(expires_at_ms, id)
        transaction.commit()

    return patch.object(Replica, "tick", pruning)


@bug(within=40)
def a_touch_writes_old_data_back() -> AbstractContextManager[object]:
    return changed(
        _Sessions,
        "_touch",
        "with_expiry(record, self._stamp_ms",
        "with_expiry(_first_seen.setdefault(command.id, record), self._stamp_ms",
        _first_seen={},
    )


@bug(within=40, scenario=directed.touched_late)
def a_touch_revives_what_has_expired() -> AbstractContextManager[object]:
    return changed(_Sessions, "_touch", "self._live(command.id)", "self._get(command.id)")


# --- around it ------------------------------------------------------------------------------------------


@bug(within=60, scenario=directed.forgotten_origins)
def what_was_sent_counts_as_never_sent() -> AbstractContextManager[object]:
    return changed(Origin, "_abandon", "Lost(False, reason)", "Lost(True, reason)")


@bug(within=20, scenario=directed.wrong_clocks)
def the_fastest_clock_rules() -> AbstractContextManager[object]:
    return changed(ClusterClock, "lead", "lower_median(voters_wall_ms)", "max(voters_wall_ms)")


@bug(within=60, scenario=directed.readers_cut_off)
def a_copy_takes_itself_for_fresher_than_it_is() -> AbstractContextManager[object]:
    return changed(Freshness, "ripe", "_, asked_ms = self._renewal", "asked_ms = self._renewal[1] + 1000")


# --- leases ---------------------------------------------------------------------------------------------


@bug(within=20, scenario=directed.leases_cut_off)
def a_lease_counts_from_its_receipt() -> AbstractContextManager[object]:
    """Instead of from the question."""
    received: dict[int, int] = {}
    note_answer = Replica._note_answer

    def noting_the_time(self: Replica, context: int, index: int, lease_ms: int) -> None:
        received[context] = self._now.boot_ms
        note_answer(self, context, index, lease_ms)

    return both(
        patch.object(Replica, "_note_answer", noting_the_time),
        changed(
            Freshness,
            "ripe",
            "_, asked_ms = self._renewal",
            "asked_ms = _received.get(context, self._renewal[1])",
            _received=received,
        ),
    )


@bug(within=40, scenario=directed.leases_cut_off)
def clocks_are_taken_to_run_alike() -> AbstractContextManager[object]:
    return patch.object(protocol_leases, "longest_ms", lambda lease_ms: lease_ms)


@bug(within=20, scenario=directed.leases_of_the_deposed)
def a_predecessors_grants_are_forgotten() -> AbstractContextManager[object]:
    return changed(Leases, "begin", " if has_predecessor else 0", " * 0")


@bug(within=20, scenario=directed.leases_of_learners)
def learners_are_left_out_of_barriers() -> AbstractContextManager[object]:
    request_read = Replica._request_read

    def voters_only(self: Replica, asker: str, server: str, applied: int, request: ReadRequest) -> None:
        request_read(self, asker, server, applied, request)
        if server not in self.configuration.voters:
            self._leases._copies.pop(server, None)

    return patch.object(Replica, "_request_read", voters_only)


@bug(within=20, scenario=directed.leases_of_the_dead)
def a_lease_is_kept_across_a_restart() -> AbstractContextManager[object]:
    start = SimulatedNode.start
    kept: dict[str, int] = {}

    def keeping(self: SimulatedNode) -> None:
        was_up = self.is_up
        start(self)
        assert self.replica is not None
        if not was_up:
            self.replica._freshness.lease_end_ms = kept.get(self.name, -1)

    note_lease = SimulatedNode._note_lease

    def noting(self: SimulatedNode) -> None:
        note_lease(self)
        kept[self.name] = max(self.lease_end_ms, kept.get(self.name, -1))

    return both(
        patch.object(SimulatedNode, "start", keeping), patch.object(SimulatedNode, "_note_lease", noting)
    )


@bug(within=20, scenario=directed.leases_on_slow_disks)
def copies_tell_what_they_hold_instead_of_what_they_show() -> AbstractContextManager[object]:
    """A barrier is answered before it is applied."""
    return changed(
        Replica,
        "finish",
        "self._deliver(work.outcomes)",
        "self._deliver(work.outcomes)\n        self._outbox.applied = node.commit",
    )


@bug(within=20, scenario=directed.leases_of_the_dead)
def the_dead_are_taken_to_have_no_readers() -> AbstractContextManager[object]:
    peer_down = Replica.peer_down

    def forgetting(self: Replica, name: str, now: Now) -> None:
        peer_down(self, name, now)
        self._leases._copies.pop(self.peers[name].id, None)

    return patch.object(Replica, "peer_down", forgetting)


@bug(within=20, scenario=directed.leases_of_the_leaving)
def who_said_goodbye_answers_on() -> AbstractContextManager[object]:
    return changed(Freshness, "close", "self.lease_end_ms = NEVER", "pass")


@bug(within=20, scenario=directed.leases_on_slow_disks)
def a_lease_begins_before_its_index_is_applied() -> AbstractContextManager[object]:
    return changed(
        Freshness,
        "granted",
        "self._granted_ms = min(lease_ms, self.max_staleness_ms)",
        "self._granted_ms = lease_ms; self.lease_end_ms = self._renewal[1] + lease_ms",
    )
