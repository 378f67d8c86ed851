"""One simulated run: a cluster, its clients, its faults, and the judgement at the end.

A run has four parts. Nodes start and a cluster is founded; then clients work while faults strike; then the
faults stop, and within bounded time there must be a primary, every node must be a voter again and up to
date, and every write must have its answer; at last every session is read on every node, the copies are
compared row by row, and the history is judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any, NamedTuple

import hotspare.protocol.origin
import hotspare.protocol.snapshot
import hotspare.raft.node
import hotspare.raft.progress
import hotspare.replica
import hotspare.table
from hotspare.commands import EXPIRED, FORGOTTEN, FULL, TAKEN, Registered, Results
from hotspare.protocol.commit import Work
from hotspare.protocol.messages import Envelope
from hotspare.raft.messages import Configuration, VoteReply, VoteRequest
from hotspare.raft.node import Timing
from hotspare.record import record_expires_at_ms
from hotspare.store import Row
from tests.simulation import linearizability
from tests.simulation.checkers import Ledger, RaftInvariants, ReadInvariants, Violation
from tests.simulation.clients import Client, LocalClient, RemoteClient, Workload, judge
from tests.simulation.clocks import EPOCH_MS, NodeClock
from tests.simulation.faults import PRIMARY, Fault, draw_plan
from tests.simulation.history import Operation, Verb, Verdict
from tests.simulation.network import Conditions, Network
from tests.simulation.nodes import LAST_WORDS_MS, SimulatedNode, Storage
from tests.simulation.scheduler import Scheduler, Trace

MAX_STALENESS_MS = 1000
RECOVERY_MS = 40_000
"""After the faults have stopped: many election timeouts, and founding anew if it has to be."""
PROBE_MS = 5_000
POLL_MS = 50


@dataclass(slots=True)
class Scenario:
    """Everything about a run that is drawn beforehand. Directed scenarios change some of it."""

    nodes: int
    """Those that found the cluster."""
    spares: int
    """Empty nodes beside them, which may be added."""
    observers: int
    chaos_ms: int
    conditions: Conditions
    start_ms: list[int]
    """When each node is started."""
    by_settings: bool
    """The founding: everyone has `replica_nodes`; otherwise operators found the cluster."""
    founders: list[tuple[int, int]]
    """(when, which node)."""
    workload: Workload
    remote_clients: list[int]
    local_clients: list[int]
    """The homes of the clients, as positions."""
    untrusted: frozenset[int]
    """Whose clocks may go wrong: one at most, which must not move cluster time."""
    limits: dict[tuple[Any, str], int]
    replica_options: dict[str, Any]
    faults: list[Fault] = field(default_factory=list)
    disk_ms: tuple[int, int] = (0, 0)
    """How long a transaction takes on every node; (0, 0): they are in memory."""
    voters_die: float = 0.0
    """How often a server dies just after it has voted."""
    one_primary_from_ms: int | None = None
    """From then on until the faults stop nobody may be elected."""
    is_volatile: bool = False
    """Whether the state of the nodes ends with their processes."""
    for_all: float = 0.0
    """How many of the writes wait until all copies show them."""

    @staticmethod
    def draw(random: Random) -> Scenario:
        nodes = random.choice([1, 2, 3, 3, 3, 3, 3, 4, 5])
        spares, observers = random.choice([0, 0, 0, 1, 2]), random.choice([0, 0, 0, 1, 2])
        everybody = nodes + spares + observers
        chaos_ms = random.choice([2000, 4000, 6000])
        late = random.random() < 0.3
        by_settings = random.random() < 0.3
        founders = [(random.randrange(100), random.randrange(nodes))]
        if random.random() < 0.3:
            founders.append((random.randrange(200), random.randrange(nodes)))
        names = tuple(f"n{number + 1}" for number in range(nodes))
        scenario = Scenario(
            nodes=nodes,
            spares=spares,
            observers=observers,
            chaos_ms=chaos_ms,
            conditions=Conditions.draw(random),
            start_ms=[random.randrange(1500 if late else 30) for _ in range(everybody)],
            by_settings=by_settings,
            founders=[] if by_settings else founders,
            workload=Workload(random),
            remote_clients=[random.randrange(everybody) for _ in range(random.choice([0, 1, 2]))],
            local_clients=[random.randrange(everybody) for _ in range(random.choice([1, 2]))],
            untrusted=frozenset(random.sample(range(nodes), 1 if nodes > 1 else 0)),
            limits=_draw_limits(random),
            replica_options={
                "replica_nodes": names if by_settings else (),
                "timing": Timing(*random.choice([(100, 500), (100, 500), (200, 1000), (50, 300)])),
                "max_staleness_ms": MAX_STALENESS_MS,
                "cleanup_interval_ms": random.choice([200, 2000]),
                "max_memory_bytes": random.choice([1 << 30, 1 << 30, 1200, 600]),
                "log_keep_bytes": random.choice([1 << 20, 3000, 800]),
            },
        )
        scenario.faults = draw_plan(random, everybody, 300, chaos_ms)
        scenario.is_volatile = random.random() < 0.25
        scenario.for_all = random.choice([0.0, 0.3, 1.0])
        scenario.disk_ms = random.choice([(0, 0), (0, 0), (0, 3), (1, 15)])
        return scenario

    @property
    def everybody(self) -> int:
        return self.nodes + self.spares + self.observers


def _draw_limits(random: Random) -> dict[tuple[Any, str], int]:
    """Bounds of the production code, small enough to be met in a short run."""
    protocol, raft = hotspare.protocol, hotspare.raft
    choices: dict[tuple[Any, str], list[int]] = {
        (protocol.snapshot, "CHUNK_BYTES"): [200, 2000, 256 * 1024],
        (protocol.origin, "MAX_GROUPS_IN_FLIGHT"): [2, 48],
        (protocol.origin, "MAX_WAITING_COMMANDS"): [3, 20_000],
        (hotspare.table, "PRUNE_PER_BATCH"): [2, 10, 512],
        (hotspare.table, "ORIGIN_TTL_MS"): [1500, 600_000, 600_000, 600_000],
        (hotspare.replica, "BATCH_BYTES"): [200, 256 * 1024],
        (raft.node, "MAX_APPEND_BYTES"): [300, 1024 * 1024],
        (raft.node, "MAX_APPLY_BYTES"): [300, 1024 * 1024],
        (raft.progress, "MAX_IN_FLIGHT_APPENDS"): [2, 64],
    }
    return {limit: random.choice(values) for limit, values in choices.items()}


@contextmanager
def limited(limits: dict[tuple[Any, str], int]) -> Iterator[None]:
    usual = {(module, name): getattr(module, name) for module, name in limits}
    try:
        for (module, name), value in limits.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in usual.items():
            setattr(module, name, value)


class World:
    def __init__(
        self,
        seed: int | str,
        write_trace: Callable[[str], None] | None = None,
        scenario: Scenario | None = None,
    ) -> None:
        self.scheduler = Scheduler(seed)
        self.trace = Trace(self.scheduler, write_trace)
        self.random = self.scheduler.stream("world")
        self.scenario = scenario or Scenario.draw(self.scheduler.stream("scenario"))
        self.network = Network(self.scheduler, self.trace, self.scenario.conditions)
        self.raft_invariants = RaftInvariants()
        self.read_invariants = ReadInvariants(MAX_STALENESS_MS)
        self.ledger = Ledger()
        self.operations: list[Operation] = []
        self.is_healed = False
        self.met: Counter[str] = Counter()
        """How often rare things happened: a simulator that never meets them proves nothing about them."""
        self._ids = self.scheduler.stream("ids")
        self._begun = 0
        self._moment = 0
        self._stamp_ms = 0
        self._was_led_alone = False
        """The greatest that any copy has applied."""
        self._open: list[tuple[int, int, Operation]] = []
        """Writes of unknown outcome, by deadline: each may yet take effect until stamps are beyond it."""
        self.nodes = [self._new_node(position) for position in range(self.scenario.everybody)]
        self.clients = self._new_clients()

    def _options_of(self, position: int) -> dict[str, Any]:
        scenario = self.scenario
        options = scenario.replica_options
        if position < scenario.nodes:
            return options
        if position < scenario.nodes + scenario.spares:
            return options | {"replica_nodes": ()}
        founders = tuple(f"n{number + 1}" for number in range(scenario.nodes))
        return options | {"replica_nodes": founders[: self.random.randint(1, 2)], "role": "observer"}

    def new_id(self) -> str:
        return f"{self._ids.getrandbits(128):032x}"

    def _new_node(self, position: int) -> SimulatedNode:
        name = f"n{position + 1}"
        clock = NodeClock.draw(self.scheduler.stream(f"clock {name}"))
        storage = Storage(self.scheduler.stream(f"storage {name}"), self.scenario.disk_ms)
        node = SimulatedNode(self, name, clock, storage, self._options_of(position))
        self.network.add(node)
        return node

    def _new_clients(self) -> list[Client]:
        scenario = self.scenario
        clients: list[Client] = []
        for number, home in enumerate(scenario.local_clients, 1):
            clients.append(LocalClient(self, f"local{number}", self.nodes[home], scenario.workload))
        for number, home in enumerate(scenario.remote_clients, 1):
            clients.append(RemoteClient(self, f"remote{number}", self.nodes[home], scenario.workload))
        return clients

    # --- the run --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Violation, or whatever the code under test raises."""
        with limited(self.scenario.limits):
            self._begin()
            self._run_with_faults()
            self._heal()
            self._recover()
            self._probe()
        self._compare_copies()
        self._judge()
        self._count_operations()

    def _run_with_faults(self) -> None:
        steady_from_ms = self.scenario.one_primary_from_ms
        if steady_from_ms is not None:
            self.scheduler.run_until(steady_from_ms)
        elections = self.raft_invariants.elections
        self.scheduler.run_until(self.scenario.chaos_ms)
        if steady_from_ms is not None and self.raft_invariants.elections > elections:
            raise Violation("a primary that a majority heard all the time was deposed")

    def _begin(self) -> None:
        scenario, scheduler = self.scenario, self.scheduler
        for node, start_ms in zip(self.nodes, scenario.start_ms, strict=True):
            scheduler.at(start_ms, node.start)
        for at_ms, position in scenario.founders:
            scheduler.at(at_ms, partial(self._found, self.nodes[position]))
        for client in self.clients:
            client.start()
        for fault in scenario.faults:
            scheduler.at(fault.at_ms, partial(self._strike, fault))

    def _strike(self, fault: Fault) -> None:
        if not self.is_healed:
            self.trace("fault", fault.what)
            fault.strike(self)

    def _found(self, founder: SimulatedNode) -> None:
        names = [node.name for node in self.nodes[: self.scenario.nodes]]
        founder.run(lambda: founder.found(names, patience_ms=3000))

    def _heal(self) -> None:
        self.trace("world", "the faults stop")
        self.is_healed = True
        self.network.heal()
        for node in self.nodes:
            node.clock.repair()
            node.storage.slow = 0.0
            node.store.is_doomed = False
            node.start()
            node.resume()
        for client in self.clients:
            client.is_working = False

    def _recover(self) -> None:
        """Waits until all is well again; the operator founds the cluster if nobody did."""
        end_ms = self.scheduler.now_ms + RECOVERY_MS
        next_founding_ms = self.scheduler.now_ms + 2000
        takes_all_in = self.random.random() < 0.5
        while not self._is_well(takes_all_in):
            if self.scheduler.now_ms >= end_ms:
                raise Violation(
                    f"no progress within {RECOVERY_MS} ms after the faults stopped: {self._state()}"
                )
            if self.scheduler.now_ms >= next_founding_ms:
                next_founding_ms += 3500
                self._help_founding()
                self._help_belonging(takes_all_in)
            self._move_clients_of_strangers()
            self.scheduler.run_until(self.scheduler.now_ms + POLL_MS)
        self.trace("world", "all is well")

    def _help_founding(self) -> None:
        if not self._has_cluster() and not self.scenario.by_settings:
            founders = self.nodes[: self.scenario.nodes]
            empty = [node for node in founders if node.is_up and node.replica.node is None]  # type: ignore[union-attr]
            if empty:
                self._found(empty[0])

    def _has_cluster(self) -> bool:
        return any(len(entries) > 1 for entries in self.raft_invariants.committed.values())

    def _move_clients_of_strangers(self) -> None:
        """A node that is in no cluster tells its clients that it takes no writes."""
        copies = self._copies
        for client in self.clients:
            if isinstance(client, RemoteClient) and self._members and client.home not in copies:
                client.move()

    def _help_belonging(self, takes_all_in: bool) -> None:
        """Operators discard what another history left behind, and perhaps take everybody in."""
        for node in self.nodes:
            if node.stored_identity.superseded_by:
                node.crash(keep_state=False)
                node.start()
        leaders = [node for node in self.nodes if node.replica is not None and node.replica.is_leader]
        for leader in leaders[:1] if takes_all_in else []:
            for node in self.nodes:
                if not node.is_observer and node not in self._members:
                    self.operate(leader, "add", node.name)

    @property
    def _members(self) -> list[SimulatedNode]:
        """Those that the primary's configuration names."""
        leaders = [node for node in self.nodes if node.replica is not None and node.replica.is_leader]
        if not leaders:
            return []
        configuration = leaders[0].replica.configuration  # type: ignore[union-attr]
        return [node for node in self.nodes if configuration.by_name(node.name) is not None]

    def _waiting_clients(self) -> list[Client]:
        """In the process of a node that was removed, what was sent never gets its answer: there it is enough
        that everybody was told that the outcome is unknown."""
        copies = self._copies
        return [
            client
            for client in self.clients
            if (not client.origin.idle if client.home in copies else client.under_way)
        ]

    @property
    def _copies(self) -> list[SimulatedNode]:
        """Those that are to have a copy at the end."""
        members = self._members
        return [node for node in self.nodes if node in members or node.is_observer]

    def _is_well(self, takes_all_in: bool = False) -> bool:
        leaders = [node for node in self.nodes if node.replica is not None and node.replica.is_leader]
        if len(leaders) != 1 or self._waiting_clients():
            return False
        leader = leaders[0].replica
        assert leader is not None
        assert leader.node is not None
        members, copies = self._members, self._copies
        if leader.configuration.voters != {node.incarnation for node in members}:
            return False
        others = [node for node in self.nodes if node not in copies]
        if takes_all_in and others:
            return False
        last = leader.node.log.last_index
        replicas = [node.replica for node in copies if node.replica is not None]
        have_all = all(each.table.applied_index == last and each.node is not None for each in replicas)
        know_it = all(each.node is None or each.is_retired for node in others if (each := node.replica))
        return have_all and know_it and all(node.is_fresh and not node.barriers for node in copies)

    def _state(self) -> str:
        lines = []
        for node in self.nodes:
            replica = node.replica
            if replica is None or replica.node is None:
                lines.append(f"{node.name}: {'down' if replica is None else 'empty'}")
                continue
            raft = replica.node
            lines.append(
                f"{node.name} ({replica.id[:4]}): {raft.role.value} in term {raft.term} of "
                f"{replica.leader or 'nobody'}, log {raft.log.first_index}..{raft.log.last_index}, "
                f"commit {raft.commit}, applied {raft.applied}, fresh {node.is_fresh}, "
                f"barriers {len(node.barriers)}, configuration "
                + " ".join(f"{m.name}={m.id[:4]}{'' if m.voter else '?'}" for m in raft.configuration.members)
            )
        waiting = [client.name for client in self._waiting_clients()]
        return "\n    ".join(["", *lines, f"clients that wait: {', '.join(waiting) or 'none'}"])

    def _probe(self) -> None:
        """Every node takes a write, shows it everywhere, and answers a linearizable read of every session."""
        probes = [
            LocalClient(self, f"probe {node.name}", node, self.scenario.workload) for node in self._copies
        ]
        self.clients += probes
        asked: list[Operation] = []
        for probe in probes:
            probe.start()
            probe.is_working = False
            asked += [probe.read_primary(id, PROBE_MS) for id in (*self.scenario.workload.ids, "new")]
            asked.append(probe.write(Verb.PUT, "probe", PROBE_MS, for_all=True))
        end_ms = self.scheduler.now_ms + PROBE_MS
        while any(operation.verdict is Verdict.UNKNOWN for operation in asked) or not self._is_well():
            if self.scheduler.now_ms >= end_ms:
                open = "\n    ".join(str(each) for each in asked if each.verdict is Verdict.UNKNOWN)
                raise Violation(f"the healthy cluster does not answer:\n    {open}{self._state()}")
            self.scheduler.run_until(self.scheduler.now_ms + POLL_MS)
        for node in self._copies:
            self.read_local(node)

    # --- faults ---------------------------------------------------------------------------------------

    def victim(self, which: int) -> SimulatedNode:
        """That node, or whoever leads (if nobody does, anybody)."""
        if which != PRIMARY:
            return self.nodes[which]
        leaders = [node for node in self.nodes if node.replica is not None and node.replica.is_leader]
        return max(leaders, key=_term, default=None) or self.random.choice(self.nodes)

    def untrusted(self, node: SimulatedNode) -> SimulatedNode | None:
        """A node whose clock may go wrong, that one if possible."""
        positions = sorted(self.scenario.untrusted)
        if not positions:
            return None
        position = self.nodes.index(node)
        return self.nodes[position if position in positions else positions[position % len(positions)]]

    def crash(self, node: SimulatedNode, *, keep_state: bool, down_ms: int) -> None:
        if not node.is_up or self.is_healed:
            return
        loses = (node.is_volatile or not keep_state) and self._may_lose(node)
        if node.is_volatile and not loses:
            return
        node.crash(keep_state=not loses)
        self.scheduler.after(down_ms, node.start)

    def stop(self, node: SimulatedNode, *, down_ms: int) -> None:
        if not node.is_up or node.is_paused or node.is_stopping or self.is_healed:
            return
        if not node.is_volatile or self._may_lose(node):
            node.stop()
            self.scheduler.after(LAST_WORDS_MS + down_ms, node.start)

    def restart_soon(self, node: SimulatedNode) -> None:
        self.scheduler.after(self.random.choice([0, 5, 500]), node.start)

    def process_died(self, node: SimulatedNode, server: str) -> None:
        self.network.process_died(node.name)
        self.raft_invariants.process_died(server)
        for client in self.clients:
            if client.home is node and client.is_attached:
                client.home_died()

    def _may_lose(self, victim: SimulatedNode) -> bool:
        """What is promised holds while no majority of the current voters has lost its state. A vote that is
        about to be taken away leaves fewer voters, whoever they are."""
        if any(node.operations for node in self.nodes):
            return False
        lost = victim.stored_identity.incarnation
        for configuration in self._acting_configurations():
            voters = configuration.voters
            remaining = [
                node
                for node in self.nodes
                if node is not victim
                and not node.is_stopping
                and node.stored_identity.incarnation in voters
                and node.stored_identity.cluster_id == configuration.cluster_id
            ]
            if lost in voters and 2 * len(remaining) <= len(voters):
                return False
        return True

    def operate(self, asked: SimulatedNode, verb: str, name: str) -> None:
        """An operator's word: not given while a voter is gone for good and has not been replaced."""
        stored = {node.stored_identity.incarnation for node in self.nodes}
        if all(configuration.voters <= stored for configuration in self._acting_configurations()):
            asked.operate(verb, name)

    def lose_majority(self, *, keeps_state: SimulatedNode | None = None) -> SimulatedNode | None:
        """All members but the one whose log is the most up to date lose their state (but for the one named,
        which stays away), and that one is told to go on alone. None if there is nothing to lose yet."""
        members = [node for node in self.nodes if node.raft is not None and not node.is_observer]
        up = [node for node in members if node.is_up and node.raft.is_voter]  # type: ignore[union-attr]
        survivor = max(up, key=_secondary_with_everything, default=None)
        is_best = survivor is not None and all(_log_end(node) <= _log_end(survivor) for node in members)
        if survivor is None or not is_best or self.is_healed or any(node.operations for node in self.nodes):
            return None
        for node in self.nodes:
            if node is not survivor and not node.is_observer:
                node.start()
                node.crash(keep_state=node is keeps_state and not node.is_volatile)
        survivor.resume()
        survivor.run(survivor.fork)
        return survivor

    def _acting_configurations(self) -> list[Configuration]:
        """All that may act: the latest committed one, and those after it in any log."""
        rafts = [raft for node in self.nodes if (raft := node.raft) is not None]
        committed = max(
            (max(index for index in raft.log.configurations if index <= max(raft.commit, raft.log.mark.index))
             for raft in rafts),
            default=0,
        )  # fmt: skip
        return [
            configuration
            for raft in rafts
            for index, configuration in raft.log.configurations.items()
            if index >= committed and configuration.members
        ]

    def move_clients(self) -> None:
        for client in self.clients:
            if isinstance(client, RemoteClient):
                client.move()

    def store_crowd(self, count: int, ttl_ms: int) -> None:
        for client in self.clients[:1]:
            client.store_crowd(count, ttl_ms)

    # --- what happens, for the checkers ---------------------------------------------------------------

    def sent(self, envelope: Envelope) -> None:
        self.raft_invariants.sent(envelope)
        message = envelope.message
        if isinstance(message, VoteReply | VoteRequest):
            self._check_may_vote(envelope.sender)
        voted = isinstance(message, VoteReply) and message.granted and not message.pre
        if voted and self.random.random() < self.scenario.voters_die:
            voter = next(node for node in self.nodes if node.incarnation == envelope.sender)
            self.scheduler.after(0, lambda: self.crash(voter, keep_state=True, down_ms=0))

    def _check_may_vote(self, server: str) -> None:
        for node in self.nodes:
            replica = node.replica
            if replica is not None and replica.id == server and (replica.is_retired or node.is_observer):
                raise Violation(f"{node.name} takes part in elections, and is no member")

    def after_step(self, node: SimulatedNode) -> None:
        replica = node.replica
        assert replica is not None
        self.raft_invariants.after_step(replica)
        if replica.table.stamp_ms > self._stamp_ms:
            self._stamp_ms = replica.table.stamp_ms
            self._close_unknown()
        if replica.is_leader:
            ahead_ms = replica.cluster_ms(node.now) - self._true_ms
            self.read_invariants.leader_clock(ahead_ms)
            # One broken clock must not move cluster time. Two might: of five voters the votes of three do.
            # And who once led alone had nobody to ask: cluster time does not go back from there.
            self._was_led_alone = self._was_led_alone or len(replica.configuration.voters) < 2
            if not self._was_led_alone and ahead_ms > ReadInvariants.MAX_SKEW_MS:
                raise Violation(f"{node.name} leads with a clock that is {ahead_ms} ms ahead")

    def applied(self, work: Work) -> None:
        self.met["a snapshot installed"] += work.ready.snapshot is not None
        for outcome in work.outcomes:
            if isinstance(outcome, Results):
                self.ledger.applied(outcome)
                for result in outcome.results:
                    if result in _REMARKABLE:
                        self.met[_REMARKABLE[result]] += 1
            elif not isinstance(outcome, Registered):
                self.met[type(outcome).__name__] += 1

    @property
    def _true_ms(self) -> int:
        return EPOCH_MS + self.scheduler.now_ms

    def check_estimate(self, node: SimulatedNode) -> None:
        self.read_invariants.estimates(node.name, node.cluster_ms() - self._true_ms)

    def read_local(self, node: SimulatedNode) -> None:
        if node.replica is not None and node.is_fresh:
            self.check_estimate(node)
            self.read_invariants.answers(node.name, node.replica.table.applied_index, self.scheduler.now_ms)

    def check_readers(self, node: SimulatedNode) -> None:
        """Somebody may read on that host at this very moment."""
        shown = node.readers_see
        if shown is not None:
            self.read_invariants.may_show(node.name, shown)

    def shown_everywhere(self, index: int) -> None:
        """A write for all copies has returned, or could have."""
        self.met["a barrier passed"] += 1
        self.read_invariants.shown_everywhere(index)
        for node in self.nodes:
            self.check_readers(node)

    def begin(self, client: Client, verb: Verb, id: str) -> Operation:
        self._begun += 1
        self._moment += 1
        return Operation(self._begun, client.name, verb, id, invoked=self._moment, earliest_ms=self._stamp_ms)

    def end(self, operation: Operation, home: SimulatedNode) -> None:
        """The client is told."""
        self._moment += 1
        operation.returned = self._moment
        if operation.verb is not Verb.READ:
            operation.latest_ms = self._stamp_ms
            if operation.verdict is Verdict.DONE:
                self.read_invariants.write_told(home.name, operation.version, self.scheduler.now_ms)
        self.operations.append(operation)
        if self.trace.on:
            self.trace(operation.client, str(operation))

    def leave_unknown(self, operation: Operation, deadline_ms: int) -> None:
        """The client does not know what came of it; nor do we, until stamps are beyond its deadline."""
        operation.verdict = Verdict.UNKNOWN
        operation.latest_ms = deadline_ms
        heappush(self._open, (deadline_ms, operation.number, operation))
        self.operations.append(operation)
        self._close_unknown()
        if self.trace.on:
            self.trace(operation.client, str(operation))

    def _close_unknown(self) -> None:
        while self._open and self._open[0][0] < self._stamp_ms:
            _, _, operation = heappop(self._open)
            self._moment += 1
            operation.returned = self._moment

    # --- the judgement --------------------------------------------------------------------------------

    def _compare_copies(self) -> None:
        first, *others = self._copies
        rows = _rows(first)
        for other in others:
            if _rows(other) != rows:
                raise Violation(
                    f"the rows of {first.name} and {other.name} differ:{_difference(first, other)}"
                )
        for node in self._copies:
            _check_expiry_index(node)

    def _count_operations(self) -> None:
        self.met["an election"] += self.raft_invariants.elections
        self.met["a new server under an old name"] += max(0, self.raft_invariants.servers - len(self.nodes))
        for operation in self.operations:
            self.met[f"{operation.verb.value}: {operation.verdict.value}"] += 1

    def _judge(self) -> None:
        for operation in self.operations:
            if operation.verdict is Verdict.UNKNOWN and operation.verb is not Verb.READ:
                result = self.ledger.result_of(operation)
                if result is None:
                    operation.verdict = Verdict.REFUSED
                elif result != FORGOTTEN:
                    judge(operation, result)
        failure = linearizability.check(self.operations)
        if failure is not None:
            raise Violation(str(failure))


_REMARKABLE = {EXPIRED: "a write after its deadline", FULL: "no room", TAKEN: "a taken id"}


def _term(node: SimulatedNode) -> int:
    assert node.replica is not None
    assert node.replica.node is not None
    return node.replica.node.term


def _log_end(node: SimulatedNode) -> tuple[int, int]:
    raft = node.raft
    return (raft.log.last_term, raft.log.last_index) if raft is not None else (0, 0)


def _secondary_with_everything(node: SimulatedNode) -> tuple[int, int, bool]:
    """A secondary learns late what is committed, so there is most to be lost."""
    return (*_log_end(node), node.raft is not None and not node.raft.is_leader)


def _rows(node: SimulatedNode) -> list[Row]:
    assert node.replica is not None
    transaction = node.store.begin()  # a volatile copy writes some rows only when they are asked for
    node.replica._table.save(transaction)
    transaction.commit()
    reader = node.store.snapshot()
    rows: list[Row] = []
    while part := reader.read(1 << 20):
        rows += part
    reader.close()
    return sorted(rows)


def _difference(one: SimulatedNode, other: SimulatedNode) -> str:
    ours, theirs = set(_rows(one)), set(_rows(other))
    return f"\n    only here: {sorted(ours - theirs)}\n    only there: {sorted(theirs - ours)}"


def _check_expiry_index(node: SimulatedNode) -> None:
    transaction = node.store.begin()
    due = transaction.expiry.due(1 << 62, 1 << 30)
    expected = sorted((record_expires_at_ms(record), id) for id, record in transaction.sessions.scan())
    transaction.commit()
    if due != expected:
        raise Violation(f"the expiry index of {node.name} is {due}, and its sessions say {expected}")


class Outcome(NamedTuple):
    """Of one run."""

    seed: int
    failure: str
    """Empty if nothing was wrong."""


def run_seed(seed: int) -> Outcome:
    try:
        World(seed).run()
    except Exception as exc:
        return Outcome(seed, f"{type(exc).__name__}: {exc}")
    return Outcome(seed, "")
