"""One node's whole deterministic self: consensus, protocol, state machine and store in one pure object.

The shell around it (`cluster/node.py`, and the simulator in its place) brings messages, time and requests in,
performs the group commits it asks for, and takes messages and events away. There is nothing else to a node's
behaviour, so what is simulated is what runs.

The cycle: any number of inputs; then `work()` until it returns None, performing each piece of work and
handing it back with `finish()` in the same order (in memory at once, on a disk by another thread, while
inputs and more work come); then `take_outbox()` and `take_events()`. What the table is between `work` and
`finish` is the business of whoever performs: here `table` is what it was after the work finished last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import msgspec

from hotspare.commands import (
    Gap,
    Outcome,
    RawGroup,
    Registered,
    Registration,
    Results,
    UnknownOrigin,
    check_group,
    encode_batch,
    stamp_of,
)
from hotspare.errors import ClusterMismatch, ConfigError, ProtocolError, StoreOutdated
from hotspare.protocol import belonging, forking, founding, membership
from hotspare.protocol.clock import ClusterClock
from hotspare.protocol.commit import Work
from hotspare.protocol.failovers import Failover, Failovers
from hotspare.protocol.forking import Forking
from hotspare.protocol.founding import Attempt
from hotspare.protocol.leases import Barriers, Leases, WatchedCopy
from hotspare.protocol.membership import Presence
from hotspare.protocol.messages import (
    Barrier,
    BarrierPassed,
    Enrol,
    Envelope,
    Forward,
    Founding,
    FoundingReply,
    Introduction,
    LeaseEnd,
    OperationReply,
    OperationRequest,
    ReadReply,
    ReadRequest,
    Removed,
    Shows,
    Watch,
)
from hotspare.protocol.operations import OperationDone, Operations, Route
from hotspare.protocol.origin import MAX_GROUPS_IN_FLIGHT
from hotspare.protocol.outbox import Now, Outbox
from hotspare.protocol.peers import Peers
from hotspare.protocol.reads import Asker, Askers, Freshness, Reads
from hotspare.protocol.relay import Relay
from hotspare.protocol.snapshot import SnapshotReceiver, Transfers, ends_at, unpack_rows
from hotspare.protocol.validation import (
    check_enrolment,
    check_failover,
    check_founding,
    check_operation,
    check_raft,
    check_texts,
)
from hotspare.raft.log import Log
from hotspare.raft.messages import (
    NOBODY,
    Append,
    Configuration,
    EntryKind,
    HardState,
    Heartbeat,
    ServerId,
    SnapshotChunk,
    SnapshotMark,
    SnapshotReply,
    VoteReply,
)
from hotspare.raft.node import ChangeRefused, Node, Ready, StateLost, Timing
from hotspare.raft.progress import State
from hotspare.store import Row, Store, Transaction, journal
from hotspare.store.journal import Identity
from hotspare.table import Table

BATCH_BYTES = 256 * 1024
"""An entry of the log is at most this large, unless a single group is larger."""
GROUP_OVERHEAD_BYTES = 32
"""What a group counts beyond its commands, so that many empty ones are bounded too."""
FORWARD_BYTES = 1024 * 1024
"""Groups are forwarded in messages of about this size."""
MAX_UNCOMMITTED_ENTRIES = 512
"""Past it a leader proposes nothing more until some are committed: some ten MB of batches, ordinarily."""
MAX_PEERS = 128
"""Nodes known at a time, members or not."""
MAX_PROPOSALS = 256 * MAX_GROUPS_IN_FLIGHT
"""Groups that wait to be proposed; more are dropped, and sent again by their home nodes."""
CAUGHT_UP_ENTRIES = 64
"""A learner that is at most so many entries behind may vote: it has them before a vote could matter."""
GIVE_UP_ELECTIONS = 10
"""A founding that hears of no leader for this many election timeouts is given up."""
FORGET_ELECTIONS = 30
"""A node that is away for so many election timeouts, and that no configuration or setting names, is looked
for no more."""


PATIENCE_MS = 2
"""What was postponed for so long goes along with the next thing that is done."""
MAX_ANCESTORS = 16
"""Of the clusters that ours came from, so many are told to those who may still belong to one of them."""


class ReplicaConfig(NamedTuple):
    name: str
    address: str
    replica_nodes: tuple[str, ...] = ()
    """All first members, ours included, ordered by name; empty: founded by `found` or joins. An observer's
    are the members that it asks for the others."""
    role: str = "member"
    """Or "observer": it has a copy and no vote, and stands in no configuration."""
    timing: Timing = Timing()
    max_staleness_ms: int = 1000
    cleanup_interval_ms: int = 30_000
    max_memory_bytes: int = 1 << 30
    log_keep_bytes: int = 32 * 1024 * 1024


class ReadReady(NamedTuple):
    """The copy may be read now for the read that got this context."""

    context: int


class ShownEverywhere(NamedTuple):
    """The barrier that got this context is passed."""

    context: int


class LeaderChanged(NamedTuple):
    leader: str
    """A node's name; empty while there is none."""
    term: int


class PeersChanged(NamedTuple):
    """Somebody is to be dialled who was not before, or no longer."""


class Reborn(NamedTuple):
    """This node is another server from here on. A handshake tells who speaks on a connection, so all of them
    are to be made anew: nobody takes a new incarnation's word on a connection of the old one."""

    why: str


class Troubled(NamedTuple):
    """What keeps this node from taking part has changed."""

    text: str
    """Half a sentence; empty: nothing any more."""


class Retired(NamedTuple):
    """This node learned that it belongs to its cluster no more."""


Event: TypeAlias = (
    Results
    | UnknownOrigin
    | Registered
    | ReadReady
    | ShownEverywhere
    | OperationDone
    | LeaderChanged
    | PeersChanged
    | Reborn
    | Troubled
    | Retired
)


class Replica:
    """See the module's docstring. Every input takes the time at which it happened."""

    def __init__(
        self,
        config: ReplicaConfig,
        store: Store,
        randrange: Callable[[int], int],
        new_id: Callable[[], str],
        now: Now,
    ) -> None:
        self.config = config
        self.store = store
        self.node: Node | None = None
        """None while this node belongs to no cluster."""
        self.peers = Peers()
        self.clock = ClusterClock()
        self._pace_ms = config.timing.heartbeat_ms // 4
        self._randrange = randrange
        self._new_id = new_id
        self._now = now
        self._outbox = Outbox(self.peers, self.clock, now)
        self._events: list[Event] = []
        retry_ms = 2 * config.timing.heartbeat_ms
        self._relay = Relay(retry_ms)
        self._reads = Reads(randrange(1 << 48), retry_ms)
        self._askers = Askers(randrange(1 << 48))
        self._freshness = Freshness(config.max_staleness_ms)
        self._leases = Leases(config.max_staleness_ms, retry_ms)
        self._barriers = Barriers(randrange(1 << 48), retry_ms)
        self._watched = WatchedCopy()
        self._operations = Operations(config.name, self.peers, self._outbox, randrange(1 << 48), 2 * retry_ms)
        self.failovers = Failovers()
        self._trouble = ""
        self._is_retired = False
        self._unsaved_identity: Identity | None = None
        self._proposals: dict[tuple[int, int], RawGroup] = {}
        """Leader: groups to be proposed, by origin and first number."""
        self._enrolments: dict[bytes, None] = {}
        """Leader: nonces of the registrations to be proposed."""
        self._transfers = Transfers(self._outbox, lambda: randrange(1 << 62) + 1)
        self._receiver = SnapshotReceiver()
        self._installing: tuple[ServerId, int] | None = None
        """Whom to tell, under which transfer, once the arrived snapshot is installed; None: there is none."""
        self._attempt: Attempt | None = None
        self._forking: Forking | None = None
        self._is_forking = False
        self._vote_clocks: dict[ServerId, tuple[int, int, int]] = {}
        """Who voted for us -> (term, its clock, its estimate of cluster time)."""
        self._shown_lease_end_ms = self._freshness.lease_end_ms
        """The one that whoever drives us has seen."""
        self._announced: tuple[ServerId, int] = (NOBODY, 0)
        """The leader and term that everybody here was told about."""
        self._dialled = founding.EMPTY_MARK.configuration
        """The configuration whose members everybody here knows to dial."""
        self.is_watched = False
        """Whether somebody listens to what happens to the sessions: see `Work.events`."""
        self._works = 0
        """Handed out and not finished."""
        self.postponed_ms = 0
        """Since when (on the boot clock) what nobody needs at once waits for company; 0: nothing."""
        self._leading_term = 0
        self._leaderless_since_ms = now.boot_ms
        self._introduced_ms = 0
        self._next_cleanup_ms = now.boot_ms + config.cleanup_interval_ms
        self._load()

    # --- what others may know -------------------------------------------------------------------------

    @property
    def id(self) -> ServerId:
        return self.identity.incarnation

    @property
    def cluster_id(self) -> str:
        """Of the cluster we have adopted; empty while there is none."""
        return self.identity.cluster_id

    @property
    def is_leader(self) -> bool:
        node = self.node
        return node is not None and node.is_leader

    @property
    def awaits_copies(self) -> bool:
        """Whether this node leads and has entries that are not committed yet."""
        node = self.node
        return node is not None and node.is_leader and node.log.commit < node.log.last_index

    @property
    def leader(self) -> str:
        """The name of the node that leads; empty while none is known."""
        if self.node is None or self.node.leader == NOBODY or self.is_retired:
            return ""
        member = self.node.configuration.by_id(self.node.leader)
        return member.name if member is not None else self.peers.name_of(self.node.leader)

    @property
    def is_observer(self) -> bool:
        return self.config.role == "observer"

    @property
    def is_retired(self) -> bool:
        """Whether it is known not to belong to its cluster any more: it acts no more, and says so."""
        return self._is_retired

    @property
    def trouble(self) -> str:
        """What keeps this node from taking part, as half a sentence; empty if nothing does."""
        return self._trouble

    @property
    def configuration(self) -> Configuration:
        return self.node.configuration if self.node is not None else founding.EMPTY_MARK.configuration

    @property
    def fresh_as_of_ms(self) -> int:
        """Local reads show everything that was committed before this (local, monotonic) time; negative
        while it is not known what is committed."""
        return self._freshness.fresh_as_of_ms

    @property
    def lease_end_ms(self) -> int:
        """The last (local, monotonic) time at which this copy may answer local reads; negative while it has
        no lease."""
        return self._freshness.lease_end_ms

    @property
    def pending_commands(self) -> int:
        """Commands taken from our origins and not applied here yet."""
        return self._relay.pending_commands

    @property
    def pending_groups(self) -> set[tuple[int, int]]:
        """The groups of our origins that are not applied here yet: (origin, first number)."""
        return self._relay.pending_groups

    @property
    def is_founding(self) -> bool:
        """Whether a founding that was asked for here is under way."""
        return self._attempt is not None

    def has_origin(self, origin: int) -> bool:
        """Whether it is registered, as far as entries were applied here, by another thread perhaps."""
        return self._table.has_origin(origin)

    def is_registered(self, origin: int, nonce: bytes) -> bool:
        """The same, under that nonce."""
        return self._table.is_registered(origin, nonce)

    def is_applied_everywhere(self, index: int) -> bool:
        """Whether all members that answer show the log up to there. Only a leader sees who does not."""
        node = self.node
        if node is None or not node.is_leader:
            return True
        lagging = {peer.id for peer in self.peers.values() if peer.applied < index}
        return not any(each.active and each.id in lagging for each in node.progress.values())

    def cluster_ms(self, now: Now) -> int:
        return self.clock.read_ms(now.boot_ms)

    def dial_targets(self) -> dict[str, str]:
        """Whom to keep a connection to: name -> address. Where somebody is, they know best themselves."""
        targets = {name: name for name in self.config.replica_nodes}
        targets |= {member.name: member.address for member in self.configuration.members}
        targets |= {name: peer.address for name, peer in self.peers.items()}
        targets.pop(self.config.name, None)
        return targets

    def introduction(self) -> Introduction:
        config, configuration = self.config, self.configuration
        return Introduction(
            config.name,
            config.address,
            self.cluster_id,
            self.node is None,
            () if self.is_observer else config.replica_nodes,
            role=config.role,
            members=tuple((member.name, member.address) for member in configuration.members),
            leader=self.leader,
            ancestors=tuple(fork.parent for fork in configuration.forks[-MAX_ANCESTORS:]),
        )

    # --- inputs: time, connections, messages ------------------------------------------------------------

    def next_deadline_ms(self) -> int:
        """When `tick` is needed next, on the boot clock."""
        soon_ms = self._now.boot_ms + self._pace_ms
        if self.node is None:
            return soon_ms
        deadline_ms = self.node.next_deadline_ms
        return deadline_ms if deadline_ms < soon_ms else soon_ms

    def _observe(self, now: Now) -> None:
        self._now = self._outbox.now = now

    def tick(self, now: Now) -> None:
        self._observe(now)
        if self.node is not None:
            self.node.tick(now.boot_ms)
            self._transfers.nudge(self.node, self.peers.is_up, self.config.timing)
            self._notice_changes()
            self._advance_operations()
            self._send_again()
            self._renew_freshness()
            self._tend_leases(self.node)
        if self.is_leader:
            self._take_observers()
            self._change_membership()
            self._prune()
        self._found_by_settings()
        self._advance_founding()
        self._give_up_founding()
        self._advance_forking()
        self._introduce_now_and_then()
        self._notice_trouble()

    def peer_up(self, name: str, incarnation: ServerId, address: str, now: Now) -> None:
        """A connection to that node is (again) complete; what was sent before may be lost."""
        self._observe(now)
        self.peers.meet(name, address)
        peer = self.peers[name]
        if peer.id not in (NOBODY, incarnation):
            self._server_lost(peer.id)
            peer.introduction, peer.applied = None, 0
        peer.id, peer.up = incarnation, True
        self.peers.move(name, address)
        if self.node is not None:
            self.node.server_back(incarnation, now.boot_ms)
        self._introduce_to(name)
        if self.leader == name:
            self._send_again(at_once=True)

    def peer_down(self, name: str, now: Now) -> None:
        """Its connection closed and could not be made again at once."""
        self._observe(now)
        peer = self.peers.get(name)
        if peer is not None:
            peer.up, peer.seen_ms = False, now.boot_ms
            self._server_lost(peer.id)

    def met_stranger(self, name: str, cluster_id: str, ancestors: tuple[str, ...], now: Now) -> None:
        """Another cluster's node answers under that name. The two never mix; but if an operator forced that
        cluster to go on from ours, and ours is over for all that we can see, then so are we."""
        self._observe(now)
        self.peers.strangers[name] = cluster_id
        node = self.node
        if node is not None and node.leader == NOBODY and self.cluster_id in ancestors:
            self._retire(msgspec.structs.replace(self.identity, superseded_by=cluster_id))

    def receive(self, peer_name: str, envelope: Envelope, now: Now) -> None:
        """A message from the node that answers under that name. Raises ProtocolError for one that no node
        would send that keeps to the protocol: nothing has changed then; StoreOutdated if it shows that this
        server holds less than it once acknowledged: the node must stop then."""
        self._now = self._outbox.now = now
        if envelope.receiver != self.identity.incarnation and envelope.receiver != NOBODY:
            return
        message = envelope.message
        kind = type(message)
        if kind in _FOUNDING_KINDS:
            check_founding(message)  # type: ignore[arg-type]
            if kind is Introduction:
                self._compare_memories(peer_name, envelope)
            self._on_founding_message(peer_name, envelope.sender, message)  # type: ignore[arg-type]
            return
        if not self._is_of_our_cluster(envelope):
            return
        if not self.peers.heard(peer_name, envelope, now.wall_ms):
            return
        if envelope.applied:
            self._note_applied(envelope.sender, envelope.applied)
        handler = _HANDLERS.get(kind)
        if handler is None:
            self._on_raft(peer_name, envelope, message)
        else:
            handler(self, peer_name, envelope, message)
        self._notice_changes()

    # --- inputs: requests -------------------------------------------------------------------------------

    def found(self, addresses: dict[str, str], patience_ms: int, now: Now) -> int:
        """Founds a cluster of these nodes (ours among them or not); ends with OperationDone."""
        self._observe(now)
        context = self._operations.new_context()
        if self.is_observer:
            self._events.append(OperationDone(context, "refused", "an observer founds no cluster"))
            return context
        names = tuple(sorted({self.config.name, *addresses}))
        if self._attempt is not None and self._attempt.names != names:
            text = f"a founding of {', '.join(self._attempt.names)} is under way"
            self._events.append(OperationDone(context, "refused", text))
            return context
        for name, address in addresses.items():
            if name != self.config.name:
                self.peers.meet(name, address, now.boot_ms)
        if self._attempt is None:
            self._attempt = Attempt(names, now.boot_ms + patience_ms)
        self._attempt.contexts.append(context)
        self._advance_founding()
        return context

    def fork(self, now: Now) -> int:
        """Goes on from what this node has, without the others, if for a while neither a primary nor a
        majority is to be seen; ends with OperationDone."""
        self._observe(now)
        context = self._operations.new_context()
        self._notice_absence()
        if self._forking is not None:
            self._events.append(OperationDone(context, "refused", "that is under way already"))
            return context
        watch_ms = forking.WATCH_ELECTIONS * self.config.timing.election_timeout_ms
        self._forking = Forking(context, now.boot_ms + watch_ms)
        self._advance_forking()
        return context

    def enrol(self, nonce: bytes, now: Now) -> None:
        """Registers an origin; ends with Registered, when that is applied here."""
        self._observe(now)
        self._relay.enrol(nonce, now.boot_ms)
        self._pass_on([], [nonce])

    def submit(self, group: RawGroup, now: Now) -> None:
        """Takes a group of an origin and keeps at it until its outcome is applied here: Results, or
        UnknownOrigin."""
        self._observe(now)
        self._relay.add(group, now.boot_ms)
        self._pass_on([group], [])

    def forget_origin(self, origin: int) -> None:
        """Nobody waits for what that origin sent any more."""
        self._relay.forget(origin)

    def forget_enrolment(self, nonce: bytes) -> None:
        self._relay.forget_nonce(nonce)

    def read(self, now: Now) -> int:
        """Begins a linearizable read; ends with ReadReady under the context returned."""
        self._observe(now)
        context = self._reads.start(now.boot_ms)
        self._ask(context)
        return context

    def forget_read(self, context: int) -> None:
        self._reads.forget(context)

    def barrier(self, index: int, now: Now) -> int:
        """Begins a wait until every copy that may answer reads shows the log up to there; ends with
        ShownEverywhere under the context returned."""
        self._observe(now)
        context = self._barriers.start(index)
        if self._barriers.has_passed(index):
            self._pass_barriers(index)
        else:
            self._ask_barriers()
        return context

    def forget_barrier(self, context: int) -> None:
        self._barriers.forget(context)

    def give_up_lease(self, now: Now) -> None:
        """From now on nobody reads this copy: no barrier has to wait for that until the lease runs out."""
        self._observe(now)
        contexts = self._freshness.close()
        if contexts is not None:
            if self.is_leader:
                self._leases.given_up(self.id, *contexts)
            elif leader := self.leader:
                self._outbox.send(leader, LeaseEnd(*contexts))

    def operate(self, verb: str, argument: str, now: Now) -> int:
        """`promote` (this node) or `failover` (the node named); ends with OperationDone."""
        self._observe(now)
        context = self._operations.start(verb, argument)
        self._notice_absence()
        self._advance_operations()
        return context

    def forget_operation(self, context: int) -> None:
        self._operations.forget(context)
        if self._forking is not None and self._forking.context == context:
            self._forking = None
        if self._attempt is not None and context in self._attempt.contexts:
            self._attempt.contexts.remove(context)

    # --- outputs ----------------------------------------------------------------------------------------

    def work(self, now: Now, *, patience: bool = False) -> Work | None:
        """The next group commit, or None when there is nothing to do just now. With `patience`, what nobody
        waits for is postponed: see `raft.node`; and a follower that need not write applies later."""
        work = self._next_work(now, patience)
        if work is None:
            self._note_postponed()
        return work

    def _note_postponed(self) -> None:
        node = self.node
        if node is None or not (node.log.delivered < node.log.commit or node.has_postponed):
            self.postponed_ms = 0
        elif not self.postponed_ms:
            self.postponed_ms = max(1, self._now.boot_ms)

    def _next_work(self, now: Now, patience: bool) -> Work | None:
        self._now = self._outbox.now = now
        node = self.node
        if node is None or self._is_forking:
            return None
        if self._may_fork_now():
            self._works += 1
            return self._fork(node)
        is_company = not node.is_leader
        if self._proposals or self._enrolments:
            self._propose(node)
            is_company = True
        if patience and (self._is_waited_for(now) or (is_company and self._has_waited_enough(now))):
            patience = False
        apply = not patience or self._applies_at_once(node)
        while node.has_ready(patience=patience, apply=apply) or self._unsaved_identity is not None:
            ready = node.ready(patience=patience, apply=apply)
            if (node.leader, node.term) != self._announced:  # a volatile server's own vote was enough
                self._notice_changes()
                self._propose(node)
            self._take_ready(node, ready)
            staged, received = self._take_chunks(ready.chunks) if ready.chunks else ([], [])
            compacted = self._compact(node)
            identity, self._unsaved_identity = self._unsaved_identity, None
            if ready.needs_work or staged or compacted is not None or identity is not None:
                self._works += 1
                return Work(
                    self.store, self._table, ready, staged, received, compacted, self.is_watched, identity
                )
        return None

    def _is_waited_for(self, now: Now) -> bool:
        """Whether somebody, here or elsewhere, waits until copies show what is written."""
        return self._watched.is_watched(now.boot_ms) or self._leases.expects_barriers(now.boot_ms)

    def _has_waited_enough(self, now: Now) -> bool:
        return self.postponed_ms != 0 and now.boot_ms - self.postponed_ms >= PATIENCE_MS

    def _applies_at_once(self, node: Node) -> bool:
        """Where entries are written, it is cheaper to apply others in the same transaction. Where all that
        is here is committed, there is no company to be expected."""
        return (
            node.is_leader
            or not self.store.volatile
            or node.log.commit == node.log.last_index
            or bool(self._relay)
            or self._reads.is_waiting
        )

    @property
    def has_outputs(self) -> bool:
        """Whether the inputs so far have led to anything: work, messages or events."""
        node = self.node
        return bool(
            self._proposals
            or self._enrolments
            or self._outbox
            or self._events
            or self._operations.has_done
            or self.peers.changed
            or self._unsaved_identity is not None
            or self._forking is not None
            or self._freshness.lease_end_ms != self._shown_lease_end_ms
            or (node is not None and node.log.configuration is not self._dialled)
            or (node is not None and node.has_ready(patience=True))
        )

    def finish(self, work: Work, now: Now) -> None:
        """That work was performed."""
        self._now = self._outbox.now = now
        node = self.node
        assert node is not None
        self._works -= 1
        if work.state is not None:
            self.table = work.state
        if work.fork is not None:
            self._finish_fork(work)
            return
        ready = work.ready
        if ready.number:
            node.persisted(ready.number)
        if ready.committed:
            node.applied_to(ready.committed[-1].index)
            self._outbox.applied = self.table.applied_index
            self.clock.at_least(self.table.stamp_ms)
            self._deliver(work.outcomes)
        if ready.snapshot is not None:
            self._on_installed(ready.snapshot)
            self._outbox.applied = self.table.applied_index
            self.clock.at_least(self.table.stamp_ms)
        for chunk in work.received:
            self._receiver.note_staged(chunk)
            self._answer_chunk(chunk.sender, chunk.transfer, chunk.mark.index)
        if work.readers:
            self._begin_transfers(node, work)
        if self._reads.is_waiting:
            self._finish_reads()
        self._notice_changes()
        self._tell_applied()
        if not self._operations.idle:
            self._advance_operations()

    def take_outbox(self) -> list[tuple[str, Envelope]]:
        """Messages to send, in order, each with the name of its receiver."""
        return self._outbox.take()

    def take_events(self) -> list[Event]:
        self._shown_lease_end_ms = self._freshness.lease_end_ms
        configuration = self.configuration
        if configuration is not self._dialled:
            self._dialled = configuration
            self._look_where_members_are()
            self.peers.changed = True
        if self.peers.changed:
            self.peers.changed = False
            self._events.append(PeersChanged())
        if self._operations.has_done:
            self._events += self._operations.take_done()
        if not self._events:
            return []
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Lets go of what is open in the store."""
        self._transfers.end_all()

    # --- beginnings -------------------------------------------------------------------------------------

    def _load(self) -> None:
        transaction = self.store.begin()
        identity = journal.load_identity(transaction)
        assert identity is None or not self.store.volatile, "a volatile store ended with its node"
        if identity is None:
            identity = self._mint(transaction)
        journal.check_owner(identity, self.config.name)
        self._be(identity)
        state = journal.load(transaction)
        transaction.discard_staged()
        self._table = Table(transaction)
        self.table = self._table.state()
        transaction.commit()
        self._outbox.applied = self.table.applied_index
        self.clock.at_least(self.table.stamp_ms)
        if state is not None:
            self._start_node(state.hard_state, Log(state.mark, state.entries))
        elif identity.cluster_id:
            self._start_node(HardState(), Log(founding.EMPTY_MARK, []))
        self._check_role()

    def _check_role(self) -> None:
        """Raises ConfigError if this node is to be an observer and has a place among the members."""
        if self.is_observer and self.configuration.by_id(self.id) is not None and not self._is_removed:
            raise ConfigError(
                "role",
                f"{self.config.name} is a member of cluster {self.cluster_id}",
                f'"member", until `hotspare remove {self.config.name}` has ended that',
            )

    def _be(self, identity: Identity) -> None:
        self.identity = identity
        self._outbox.sender, self._outbox.cluster_id = identity.incarnation, identity.cluster_id

    def _mint(self, transaction: Transaction) -> Identity:
        """Another server, of no cluster yet."""
        identity = Identity(incarnation=self._new_id(), name=self.config.name, cluster_id="")
        journal.save_identity(transaction, identity)
        return identity

    def _start_node(self, hard_state: HardState, log: Log) -> None:
        self.node = Node(
            self.id,
            self.config.name,
            log,
            hard_state,
            self.table.applied_index,
            self.config.timing,
            self._randrange,
            self._now.boot_ms,
            volatile=self.store.volatile,
        )
        self._leaderless_since_ms = self._now.boot_ms
        self._retire_if_removed()
        for peer in self.peers.values():
            if peer.up:
                self.node.server_back(peer.id, self._now.boot_ms)

    def _become_member(self, cluster_id: str, configuration: Configuration | None) -> None:
        """Adopts a founding, or (without one) a cluster whose leader sends us its log."""
        self._be(Identity(self.id, self.config.name, cluster_id))
        transaction = self.store.begin()
        journal.save_identity(transaction, self.identity)
        entries = []
        hard_state = HardState()
        if configuration is not None:
            entries = [founding.founding_entry(configuration)]
            hard_state = founding.FOUNDING_STATE
            journal.save_ready(transaction, hard_state, entries, None)
        transaction.commit()
        self._start_node(hard_state, Log(founding.EMPTY_MARK, entries))
        self._introduce()

    # --- founding and joining ---------------------------------------------------------------------------

    def _on_founding_message(
        self, peer_name: str, sender: ServerId, message: Introduction | Founding | FoundingReply
    ) -> None:
        if isinstance(message, Introduction):
            self._on_introduction(peer_name, sender, message)
        elif isinstance(message, Founding):
            self._on_founding(peer_name, message.configuration)
        else:
            self._on_founding_reply(peer_name, message)

    def _on_introduction(self, peer_name: str, sender: ServerId, message: Introduction) -> None:
        if peer_name not in self.peers and len(self.peers) >= MAX_PEERS:
            self._forget_somebody()
        self.peers.meet(peer_name, message.address, self._now.boot_ms)
        known = self.peers[peer_name]
        if known.id != sender and not known.up:
            known.id, known.applied = sender, 0
        if known.id == sender:
            known.introduction = message
            self.peers.move(peer_name, message.address)
        if self.cluster_id and message.cluster_id not in ("", self.cluster_id):
            self.met_stranger(peer_name, message.cluster_id, message.ancestors, self._now)
            return
        self.peers.strangers.pop(peer_name, None)
        self._look_for_others(message)
        self._tell_if_removed(peer_name, sender, message)

    def _look_for_others(self, said: Introduction) -> None:
        """Whoever has no leader, or stands in no configuration, finds the members through any of them."""
        if said.cluster_id and (self.is_observer or (self.cluster_id and not self.leader)):
            for name, address in said.members:
                if name != self.config.name and len(self.peers) < MAX_PEERS:
                    self.peers.meet(name, address, self._now.boot_ms)

    def _look_where_members_are(self) -> None:
        """A member that we cannot reach may have told others where it is now."""
        for member in self.configuration.members:
            peer = self.peers.get(member.name)
            if peer is not None and not peer.up:
                self.peers.move(member.name, member.address)

    def _forget_somebody(self) -> None:
        """Nodes that are no members come and go, under ever new names. Raises ProtocolError when all are
        needed."""
        needed = self._needed_names()
        gone = [name for name, peer in self.peers.items() if not peer.up and name not in needed]
        if not gone:
            raise ProtocolError("it is one node too many", f"at most {MAX_PEERS} others at a time")
        self.peers.forget(gone[0])

    def _on_founding(self, peer_name: str, configuration: Configuration) -> None:
        is_named = configuration.by_id(self.id) is not None
        if self.node is None and is_named and not self.is_observer:
            self._become_member(configuration.cluster_id, configuration)
        adopted = self.cluster_id == configuration.cluster_id
        reason = "" if adopted else f"{self.config.name} belongs to cluster {self.cluster_id or 'none'}"
        self._outbox.send(peer_name, FoundingReply(configuration.cluster_id, adopted, reason))

    def _on_founding_reply(self, peer_name: str, message: FoundingReply) -> None:
        if self._attempt is not None:
            self._attempt.note_reply(peer_name, message)
            self._lead_founded(self._attempt)

    def _found_by_settings(self) -> None:
        if self.node is not None or self._attempt is not None or self.is_observer:
            return
        own = self.introduction()
        if founding.founder_of(own, self.peers.introduced()) == own.name:
            patience_ms = GIVE_UP_ELECTIONS * self.config.timing.election_timeout_ms
            self._attempt = Attempt(own.replica_nodes, self._now.boot_ms + patience_ms)

    def _advance_founding(self) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        if attempt.configuration is None:
            self._hand_out_founding(attempt)
        elif self.cluster_id != attempt.configuration.cluster_id:
            self._end_founding("refused", "this node gave the founding up: too few nodes took part in it")
        elif self.node is not None and self.node.leader != NOBODY and self.node.commit > 1:
            self._end_founding("done", f"cluster {self.cluster_id} of {', '.join(attempt.names)}")
        else:
            self._press_founding(attempt)

    def _hand_out_founding(self, attempt: Attempt) -> None:
        own, candidates = self.introduction(), self.peers.introduced()
        hindrance = founding.obstacle(own, attempt.names, candidates)
        missing = founding.silent(own, attempt.names, candidates)
        if hindrance:
            self._end_founding("refused", hindrance)
        elif missing and self._now.boot_ms >= attempt.give_up_ms:
            self._end_founding("refused", f"no answer from {', '.join(missing)}")
        elif not missing:
            configuration = founding.first_configuration(
                self._new_id(), self.id, own, attempt.names, candidates
            )
            attempt.configuration = configuration
            attempt.adopted = {own.name}
            self._become_member(configuration.cluster_id, configuration)
            self._press_founding(attempt)

    def _press_founding(self, attempt: Attempt) -> None:
        """Sends it to those who have not adopted it. Only as time goes by, never in answer to a refusal: two
        founders would keep each other busy with nothing else."""
        assert attempt.configuration is not None
        for name in attempt.names:
            if name not in attempt.adopted:
                self._outbox.send(name, Founding(attempt.configuration))
        self._lead_founded(attempt)

    def _lead_founded(self, attempt: Attempt) -> None:
        """Asks for the others' votes as soon as most have adopted it."""
        node = self.node
        if node is None or attempt.has_campaigned or not attempt.is_adopted_by_most:
            return
        attempt.has_campaigned = True
        if node.leader == NOBODY:
            node.campaign(self._now.boot_ms)
            self._notice_changes()

    def _end_founding(self, outcome: str, text: str) -> None:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        for context in attempt.contexts:
            self._events.append(OperationDone(context, outcome, text))

    def _give_up_founding(self) -> None:
        """Becomes a new server when the founding it adopted came to nothing."""
        node = self.node
        if node is None or node.leader != NOBODY or node.log.last_index > 1 or self._works:
            return
        patience_ms = GIVE_UP_ELECTIONS * self.config.timing.election_timeout_ms
        if self._now.boot_ms - self._leaderless_since_ms < patience_ms:
            return
        if founding.may_yet_lead(node.configuration, self.id, self.peers.introduced()):
            return
        transaction = self.store.begin()
        journal.reset(transaction)
        self._be(self._mint(transaction))
        self._table.reload(transaction)
        self.table = self._table.state()
        transaction.commit()
        self.node = None
        self._barriers.reset()
        self._unsaved_identity = None
        self._announced = (NOBODY, 0)
        for peer in self.peers.values():
            peer.introduction = None
        self._events.append(Reborn("it gave up a founding that came to nothing, and starts anew"))

    def _introduce(self) -> None:
        self._introduced_ms = self._now.boot_ms
        for name, peer in self.peers.items():
            if peer.up:
                self._introduce_to(name)

    def _introduce_to(self, name: str) -> None:
        remembered = self.peers[name].applied
        self._outbox.send(name, msgspec.structs.replace(self.introduction(), remembered=remembered))

    def _introduce_now_and_then(self) -> None:
        """Introductions may get lost like everything else; while anything is unsettled they matter."""
        heartbeat_ms = self.config.timing.heartbeat_ms
        pause_ms = heartbeat_ms if self.node is None else 5 * heartbeat_ms
        if self._now.boot_ms - self._introduced_ms >= pause_ms:
            self._introduce()
            self._forget_strangers()

    def _forget_strangers(self) -> None:
        patience_ms = FORGET_ELECTIONS * self.config.timing.election_timeout_ms
        self.peers.forget_strangers(self._needed_names(), self._now.boot_ms - patience_ms)

    def _needed_names(self) -> set[str]:
        names = {*self.config.replica_nodes, *self._operations.invited}
        names.update(member.name for member in self.configuration.members)
        names.update(self._attempt.names if self._attempt is not None else ())
        return names

    def _is_of_our_cluster(self, envelope: Envelope) -> bool:
        cluster_id = self.identity.cluster_id
        if cluster_id:
            return envelope.cluster_id == cluster_id
        named_by_a_leader = isinstance(envelope.message, Append | Heartbeat | SnapshotChunk)
        if envelope.cluster_id and envelope.receiver == self.id and named_by_a_leader:
            check_texts([envelope.cluster_id])
            self._become_member(envelope.cluster_id, None)
            return True
        return False

    # --- belonging --------------------------------------------------------------------------------------

    def _tell_if_removed(self, peer_name: str, server: ServerId, said: Introduction) -> None:
        if self.node is not None and not self.is_retired:
            removed = belonging.removal_of(server, said, self.node, self.cluster_id)
            if removed is not None:
                self._outbox.send(peer_name, removed)

    def _tell_the_removed(self) -> None:
        """At once, when a configuration is committed; later they say who they are, and are told again."""
        for name, (id, said) in self.peers.introduced().items():
            self._tell_if_removed(name, id, said)

    def _on_removed(self, peer_name: str, envelope: Envelope, message: Removed) -> None:
        node = self.node
        if node is None or self.is_observer:
            return
        if belonging.is_removed(self.id, node, message.index, message.term):
            told = msgspec.structs.replace(self.identity, removed_at=message.index, removed_in=message.term)
            self._retire(told)

    def _retire(self, identity: Identity) -> None:
        if identity != self.identity:
            self._be(identity)
            self._unsaved_identity = identity
        self._retire_if_removed()
        self._notice_changes()
        self._notice_trouble()

    def _retire_if_removed(self) -> None:
        node, identity = self.node, self.identity
        assert node is not None
        was_retired = self._is_retired
        self._is_retired = identity.superseded_by != "" or (not self.is_observer and self._is_removed)
        node.abstain(abstains=self._is_retired or self.is_observer)
        if self._is_retired and not was_retired:
            self._freshness.forget()
            self._events.append(Retired())

    @property
    def _is_removed(self) -> bool:
        identity, node = self.identity, self.node
        if node is None or not identity.removed_at:
            return False
        return belonging.is_removed(self.id, node, identity.removed_at, identity.removed_in)

    def _notice_trouble(self) -> None:
        text = self._describe_trouble()
        if text != self._trouble:
            self._trouble = text
            self._events.append(Troubled(text))

    def _describe_trouble(self) -> str:
        identity, name = self.identity, self.config.name
        if identity.superseded_by:
            return (
                f"an operator forced cluster {identity.superseded_by} to go on from {identity.cluster_id} "
                f"without {name}: start it with --discard to let it take part there"
            )
        if self.is_retired:
            return (
                f"{name} was removed from cluster {identity.cluster_id}: stop it, or take it in again with "
                f"`hotspare add {name}`"
            )
        strangers = self.peers.strangers.items()
        if self.node is None and not self.is_observer:
            return founding.hindrance(name, self.config.replica_nodes, self.peers.introduced())
        return "; ".join(str(ClusterMismatch(node, self.cluster_id, theirs)) for node, theirs in strangers)

    # --- going on alone ---------------------------------------------------------------------------------

    def _advance_forking(self) -> None:
        forking_ = self._forking
        if forking_ is None or self._is_forking:
            return
        hindrance = self._why_not_fork(asks_others=self._now.boot_ms >= forking_.act_at_ms)
        if hindrance:
            self._end_forking("refused", hindrance)

    def _why_not_fork(self, *, asks_others: bool) -> str:
        if self.is_observer:
            return "an observer has no vote: restart it as a member, and add it to a cluster"
        if self.is_retired:
            return self._describe_trouble()
        if self.node is None:
            return "this node belongs to no cluster, so there is nothing to go on from"
        said = [introduction for _, introduction in self.peers.introduced().values()] if asks_others else []
        ours = [each for each in said if each.cluster_id == self.cluster_id]
        return forking.refusal(self.node, self.peers.is_up, ours)

    def _fork(self, node: Node) -> Work:
        """Nothing else is done while this is under way: what is still to be said is the old history's."""
        self._is_forking = True
        new_id = self._new_id()
        seen_index = max((peer.applied for peer in self.peers.values()), default=0)
        fork = forking.forked(node, self._new_id(), new_id, seen_index, self._now.wall_ms)
        identity = Identity(new_id, self.config.name, fork[1].configuration.cluster_id)
        rest = node.log.entries(node.applied + 1, 1 << 62) if node.applied < node.log.last_index else []
        ready = Ready()
        ready.committed = rest
        return Work(self.store, self._table, ready, [], [], None, self.is_watched, identity, fork)

    def _finish_fork(self, work: Work) -> None:
        assert work.fork is not None
        assert work.identity is not None
        parent = self.cluster_id
        self._is_forking = False
        self._deliver(work.outcomes)
        self._go_on_as(work.identity, *work.fork)
        last_index = self.configuration.forks[-1].index
        self._end_forking(
            "done",
            f"cluster {self.cluster_id} goes on from {parent} with what {self.config.name} has, up to entry "
            f"{last_index}: what only others had is lost; to take part, they are started with --discard",
        )

    def _go_on_as(self, identity: Identity, hard_state: HardState, mark: SnapshotMark) -> None:
        """What was under way in the old history ends with it."""
        self._stop_leading()
        self._be(identity)
        self._unsaved_identity = None
        self._outbox.applied = self.table.applied_index
        self._receiver.reset()
        self._installing = None
        self._barriers.reset()
        self._reads.begin_anew()
        self._freshness.forget()
        self._announced = (NOBODY, 0)
        for peer in self.peers.values():
            peer.introduction, peer.applied = None, 0
        self._start_node(hard_state, Log(mark, []))
        assert self.node is not None
        self.node.campaign(self._now.boot_ms)
        self._events.append(Reborn(f"it goes on as cluster {self.cluster_id}"))

    def _may_fork_now(self) -> bool:
        is_idle = not self._works and self._installing is None
        is_due = self._forking is not None and self._now.boot_ms >= self._forking.act_at_ms
        return is_idle and is_due and not self._why_not_fork(asks_others=True)

    def _end_forking(self, outcome: str, text: str) -> None:
        forking_, self._forking = self._forking, None
        if forking_ is not None:
            self._events.append(OperationDone(forking_.context, outcome, text))

    # --- leading and following --------------------------------------------------------------------------

    def _on_raft(self, peer_name: str, envelope: Envelope, message: Any) -> None:
        node = self.node
        if node is None or message.sender != envelope.sender:
            return
        check_raft(node, message)
        if type(message) is VoteReply and message.granted and not message.pre:
            clocks = (message.term, envelope.wall_ms, envelope.cluster_ms)
            self._vote_clocks[message.sender] = clocks
        boot_ms = self._now.boot_ms
        try:
            node.step(message, boot_ms)
        except StateLost as exc:
            raise _outdated(peer_name, exc.acknowledged, exc.held) from exc
        if node.leader == message.sender and node.term == message.term:
            self.clock.heard(envelope.cluster_ms, boot_ms)

    def _compare_memories(self, peer_name: str, envelope: Envelope) -> None:
        """Those who follow one leader hear nothing else of each other."""
        remembered, held = envelope.message.remembered, self.table.applied_index  # type: ignore[union-attr]
        if envelope.receiver == self.id and remembered > held:
            raise _outdated(peer_name, remembered, held)
        self.peers.heard(peer_name, envelope, self._now.wall_ms)

    def _server_lost(self, server: ServerId) -> None:
        if self.node is not None and server != NOBODY:
            self.node.server_lost(server, self._now.boot_ms)
            self._notice_changes()

    def _notice_changes(self) -> None:
        """Acts on a change of leader or term; called after everything that may have caused one."""
        node = self.node
        if node is None:
            return
        if self.identity.removed_at:
            self._retire_if_removed()
        if (node.leader, node.term) == self._announced:
            return
        if node.is_leader and self._leading_term != node.term:
            self._begin_leading(node)
        elif not node.is_leader and self._leading_term:
            self._stop_leading()
        leader = NOBODY if self.is_retired else node.leader
        if (leader, node.term) == self._announced:
            return
        if leader == NOBODY and self._announced[0] != NOBODY:
            self._leaderless_since_ms = self._now.boot_ms
        self._announced = (leader, node.term)
        self._events.append(LeaderChanged(self.leader, node.term))
        if leader != NOBODY:
            self._record_failover(node)
            self._send_again(at_once=True)
        self._advance_operations()

    def _record_failover(self, node: Node) -> None:
        now = self._now
        record = self.failovers.follow(self.leader, node.term, node.parting, now.boot_ms, now.wall_ms)
        if record is not None and node.is_leader:
            for name, peer in self.peers.items():
                if peer.up:
                    self._outbox.send(name, record)

    def _on_failover(self, peer_name: str, envelope: Envelope, message: Failover) -> None:
        check_failover(message)
        self.failovers.told(message)

    def _begin_leading(self, node: Node) -> None:
        self._leading_term = node.term
        voted = [(wall, estimate) for term, wall, estimate in self._vote_clocks.values() if term == node.term]
        walls = [self._now.wall_ms, *(wall for wall, _ in voted)]
        self.clock.lead(
            self._now.boot_ms, self._last_stamp_ms(node), walls, [estimate for _, estimate in voted]
        )
        self._vote_clocks.clear()
        # With nothing but the founding before its own first entry, nobody can have led.
        self._leases.begin(self._now.boot_ms, has_predecessor=node.log.last_index > 2)
        self._next_cleanup_ms = self._now.boot_ms + self.config.cleanup_interval_ms

    def _stop_leading(self) -> None:
        self._leading_term = 0
        self._proposals.clear()
        self._enrolments.clear()
        self._askers.clear()
        self._leases.end()
        self._transfers.end_all()

    def _last_stamp_ms(self, node: Node) -> int:
        """The greatest stamp in the log, applied or not."""
        for index in range(node.log.last_index, self.table.applied_index, -1):
            (entry,) = node.log.entries(index, 0, index)
            stamp_ms = stamp_of(entry.kind, entry.payload)
            if stamp_ms is not None:
                return max(self.table.stamp_ms, stamp_ms)
        return self.table.stamp_ms

    def _change_membership(self) -> None:
        node = self.node
        assert node is not None
        if not node.may_change_configuration:
            return
        present = self.peers.present(self.cluster_id)
        present[self.config.name] = Presence(self.id, self.config.address, True)
        change = self._operations.wanted_change(node, present) or membership.next_change(
            node.configuration, present, self._has_caught_up, self._operations.leaving
        )
        if change is not None:
            with suppress(ChangeRefused):  # it follows from what others say of themselves
                node.change_configuration(change, self._now.boot_ms)

    def _take_observers(self) -> None:
        assert self.node is not None
        names = {member.name for member in self.configuration.servers}
        observers = self.peers.observers(self.cluster_id).items()
        self.node.observe_by([id for name, id in observers if name not in names], self._now.boot_ms)

    def _has_caught_up(self, server: ServerId) -> bool:
        assert self.node is not None
        progress = self.node.progress.get(server)
        if progress is None or not progress.active or progress.state is not State.REPLICATE:
            return False
        return progress.match + CAUGHT_UP_ENTRIES >= self.node.log.last_index

    def _prune(self) -> None:
        """An idle leader appends empty batches while something is due."""
        assert self.node is not None
        if self._now.boot_ms < self._next_cleanup_ms or self.node.log.last_index > self.table.applied_index:
            return  # what is still to be applied prunes too
        if self.table.prune_due(self.store, self.cluster_ms(self._now)):
            self._propose_batch([])
        else:
            self._next_cleanup_ms = self._now.boot_ms + self.config.cleanup_interval_ms

    # --- writes -----------------------------------------------------------------------------------------

    def _on_forward(self, peer_name: str, envelope: Envelope, message: Forward) -> None:
        if self.is_leader and len(self._proposals) < MAX_PROPOSALS:
            for group in message.groups:
                check_group(group)  # garbage never enters the log, whoever let it pass
            for group in message.groups:
                self._proposals[group.origin, group.first] = group

    def _on_enrol(self, peer_name: str, envelope: Envelope, message: Enrol) -> None:
        check_enrolment(message)
        if self.is_leader and len(self._enrolments) < MAX_PROPOSALS:
            self._enrolments[message.nonce] = None

    def _pass_on(self, groups: list[RawGroup], nonces: list[bytes]) -> None:
        """To whoever leads; if nobody does, the relay sends it again when somebody does."""
        if self.is_leader:
            for group in groups:
                self._proposals[group.origin, group.first] = group
            self._enrolments.update(dict.fromkeys(nonces))
        elif leader := self.leader:
            for message in _forwards(groups):
                self._outbox.send(leader, message)
            for nonce in nonces:
                self._outbox.send(leader, Enrol(nonce))

    def _send_again(self, at_once: bool = False) -> None:
        groups, nonces = self._relay.to_send_again(self._now.boot_ms, at_once)
        if groups or nonces:
            self._pass_on(groups, nonces)
        for context in self._reads.to_ask_again(self._now.boot_ms, at_once):
            self._ask(context)
        self._ask_barriers(at_once)

    def _propose(self, node: Node) -> None:
        if not node.accepts_proposals:
            return
        if node.log.last_index - node.commit > MAX_UNCOMMITTED_ENTRIES:
            return  # they wait here, and then with their origins
        if self._enrolments:
            for nonce in self._enrolments:
                node.propose(EntryKind.REGISTRATION, Registration(nonce, self._stamp_ms()).encode())
            self._enrolments.clear()
        if self._proposals:
            for groups in _batches(self._proposals.values()):
                self._propose_batch(groups)
            self._proposals.clear()

    def _propose_batch(self, groups: list[RawGroup]) -> None:
        assert self.node is not None
        if self.node.accepts_proposals:
            full = self.table.bytes_used >= self.config.max_memory_bytes
            self.node.propose(EntryKind.BATCH, encode_batch(self._stamp_ms(), full, groups))

    def _stamp_ms(self) -> int:
        return self.clock.read_ms(self._now.boot_ms)

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """Keeps the outcomes that somebody here waits for."""
        for outcome in outcomes:
            if isinstance(outcome, Results):
                if self._relay.answered(outcome.origin, outcome.first, self._now.boot_ms):
                    self._events.append(outcome)
            elif isinstance(outcome, Registered):
                if self._relay.enrolled(outcome.nonce):
                    self._events.append(outcome)
            elif isinstance(outcome, Gap):
                self._relay.stumbled(outcome.origin)
            elif self._relay.forget(outcome.origin):
                self._events.append(outcome)

    # --- reads ------------------------------------------------------------------------------------------

    def _ask(self, context: int) -> None:
        lease_ms = self._freshness.max_staleness_ms if self._freshness.is_ours(context) else 0
        request = ReadRequest(context, lease_ms)
        if self.is_leader:
            self._request_read("", self.id, self.table.applied_index, request)
        elif leader := self.leader:
            self._outbox.send(leader, request)

    def _on_read_request(self, peer_name: str, envelope: Envelope, message: ReadRequest) -> None:
        if self.is_leader:
            self._request_read(peer_name, envelope.sender, envelope.applied, message)

    def _request_read(self, asker: str, server: ServerId, applied: int, request: ReadRequest) -> None:
        node, now_ms = self.node, self._now.boot_ms
        assert node is not None
        lease_ms = request.lease_ms
        if lease_ms:
            lease_ms = self._leases.grant(
                server, asker, request.context, lease_ms, applied, node.commit, now_ms
            )
            if not lease_ms:
                return
        node.request_read(self._askers.add(Asker(asker, request.context, lease_ms)), now_ms)

    def _on_read_reply(self, peer_name: str, envelope: Envelope, message: ReadReply) -> None:
        self._note_answer(message.context, message.index, message.lease_ms)
        self._finish_reads()

    def _note_answer(self, context: int, index: int, lease_ms: int) -> None:
        if self._reads.answered(context, index):
            self._freshness.granted(context, lease_ms)

    def _finish_reads(self) -> None:
        for context in self._reads.ripe(self.table.applied_index):
            if not self._freshness.ripe(context):
                self._events.append(ReadReady(context))

    def _renew_freshness(self) -> None:
        stale = self._freshness.give_up(self._now.boot_ms)
        if stale is not None:
            self._reads.forget(stale)
        context = self._freshness.renew(self._now.boot_ms, self._reads.start)
        if context is not None:
            self._ask(context)

    # --- leases and barriers ----------------------------------------------------------------------------

    def _tend_leases(self, node: Node) -> None:
        if node.is_leader:
            self._leases.observe(node.commit, self._now.boot_ms)
            self._advance_barriers()

    def _on_lease_end(self, peer_name: str, envelope: Envelope, message: LeaseEnd) -> None:
        self._leases.given_up(envelope.sender, message.first, message.last)
        self._advance_barriers()

    def _note_applied(self, server: ServerId, index: int) -> None:
        if self._leases.applied(server, index):
            self._advance_barriers()

    def _tell_applied(self) -> None:
        """Says what is applied to those who wait for it: the leader of the copies, and we of ourselves."""
        self._note_applied(self.id, self.table.applied_index)
        watcher = self._watched.to_tell(self.table.applied_index, self._now.boot_ms)
        if watcher:
            self._outbox.send(watcher, Shows())

    def _on_watch(self, peer_name: str, envelope: Envelope, message: Watch) -> None:
        self._watched.begin(peer_name, self._now.boot_ms)
        self._tell_applied()

    def _on_shows(self, peer_name: str, envelope: Envelope, message: Shows) -> None:
        """What it says is on the envelope, and noted already."""

    def _ask_barriers(self, at_once: bool = False) -> None:
        if not self.leader:
            return
        for index in self._barriers.to_ask(self._now.boot_ms, at_once):
            if self.is_leader:
                self._take_barrier("", index)
            else:
                self._outbox.send(self.leader, Barrier(index))

    def _on_barrier(self, peer_name: str, envelope: Envelope, message: Barrier) -> None:
        if self.is_leader:
            self._take_barrier(peer_name, message.index)

    def _take_barrier(self, home: str, index: int) -> None:
        assert self.node is not None
        if index <= self.node.log.last_index:  # else nobody can have been told of it
            self._leases.ask(home, index, self._now.boot_ms)
            self._advance_barriers()

    def _advance_barriers(self) -> None:
        leases, node = self._leases, self.node
        if node is None or not leases.has_barriers:
            return
        for home, index in leases.passed(node.commit, self._now.boot_ms):
            if home:
                self._outbox.send(home, BarrierPassed(index))
            else:
                self._pass_barriers(index)
        if leases.has_barriers:
            for name in leases.to_watch(self._now.boot_ms):
                self._outbox.send(name, Watch())

    def _on_barrier_passed(self, peer_name: str, envelope: Envelope, message: BarrierPassed) -> None:
        self._pass_barriers(message.index)

    def _pass_barriers(self, index: int) -> None:
        self._events += [ShownEverywhere(context) for context in self._barriers.passed(index)]

    # --- snapshots --------------------------------------------------------------------------------------

    def _take_ready(self, node: Node, ready: Ready) -> None:
        post = self._outbox.post
        for message in ready.messages:
            post(message)
        for read in ready.reads:
            asker = self._askers.pop(read.context)
            if asker is None:
                continue
            if asker.name:
                self._outbox.send(asker.name, ReadReply(asker.context, read.read_index, asker.lease_ms))
            else:
                self._note_answer(asker.context, read.read_index, asker.lease_ms)
        for reply in ready.chunk_replies:
            self._transfers.replied(node, reply)
        if ready.reads:
            self._finish_reads()

    def _take_chunks(
        self, chunks: Sequence[SnapshotChunk]
    ) -> tuple[list[tuple[bool, list[Row]]], list[SnapshotChunk]]:
        """The parts to stage, and those of them to answer once they are."""
        assert self.node is not None
        staged: list[tuple[bool, list[Row]]] = []
        received: list[SnapshotChunk] = []
        for chunk in chunks:
            if chunk.mark.index <= self.table.applied_index:
                self._answer_chunk(chunk.sender, chunk.transfer, chunk.mark.index, installed=True)
            elif chunk.mark.index > self.node.commit and self._installing is None:
                rows = unpack_rows(chunk.data)
                is_whole = rows is not None and ends_at(rows, chunk.mark.index)
                if rows is not None and is_whole and self._receiver.accepts(chunk):
                    staged.append((chunk.sequence == 0, rows))
                    if chunk.last and self.node.restore(chunk.mark, self._now.boot_ms):
                        self._installing = (chunk.sender, chunk.transfer)  # answered once it is installed
                    else:
                        received.append(chunk)
                else:
                    self._answer_chunk(chunk.sender, chunk.transfer, chunk.mark.index)
            # What is committed here and not applied yet is answered when it is sent again; and a part of
            # another snapshot must not be staged among those that are about to be installed.
        return staged, received

    def _answer_chunk(self, sender: ServerId, transfer: int, index: int, installed: bool = False) -> None:
        assert self.node is not None
        wanted = self._receiver.wanted_of(transfer)
        self._outbox.post(SnapshotReply(self.id, sender, self.node.term, transfer, index, wanted, installed))

    def _on_installed(self, mark: SnapshotMark) -> None:
        assert self._installing is not None
        sender, transfer = self._installing
        self._installing = None
        self._receiver.reset()
        self._answer_chunk(sender, transfer, mark.index, installed=True)

    def _begin_transfers(self, node: Node, work: Work) -> None:
        for follower, reader, index in work.readers:
            is_usable = node.log.mark.index <= index <= node.commit
            if is_usable and node.is_leader and follower in node.progress:
                self._transfers.begin(node, follower, node.log.mark_at(index), reader)
            else:
                reader.close()

    def _compact(self, node: Node) -> SnapshotMark | None:
        """Lets go of old entries once there are enough of them; what a present follower or a transfer still
        needs is kept, within bounds."""
        keep = self.config.log_keep_bytes
        if node.log.bytes <= keep or node.applied <= node.log.mark.index:
            return None
        upto = node.applied
        if node.log.bytes <= 4 * keep:
            upto = min(upto, self._transfers.oldest_index() or upto)
            if node.is_leader:
                upto = min(upto, *(each.match for each in node.progress.values() if each.active), upto)
        upto = min(upto, node.log.index_leaving(keep // 2))
        if upto <= node.log.mark.index:
            return None
        node.compact(upto)
        return node.log.mark

    # --- operations -------------------------------------------------------------------------------------

    def _on_operation_request(self, peer_name: str, envelope: Envelope, message: OperationRequest) -> None:
        check_operation(message)
        self._notice_absence()
        if self.node is not None and self.is_leader:
            route = Route(peer_name, message.context)
            self._operations.perform(self.node, route, message.verb, message.argument)

    def _notice_absence(self) -> None:
        """An operator's word may be the first thing that a process hears after a pause. It must not act on
        who was there before: a vote taken away then might leave a majority that nobody can form."""
        if self.node is not None:
            self.node.tick(self._now.boot_ms)
            self._notice_changes()

    def _on_operation_reply(self, peer_name: str, envelope: Envelope, message: OperationReply) -> None:
        check_operation(message)
        self._operations.replied(message)

    def _advance_operations(self) -> None:
        """Asks whoever leads for what has not been asked yet; ends what has come true."""
        if self._operations.idle or self.node is None or not self.leader:
            return
        node, leader = self.node, self.leader
        for context, verb, argument in self._operations.to_ask((leader, node.term), node.configuration):
            if node.is_leader:
                self._operations.perform(node, Route("", context), verb, argument)
            else:
                self._outbox.send(leader, OperationRequest(context, verb, argument))
        leaving = self._operations.leaving
        self._operations.settle(leader, node)
        if leaving != self._operations.leaving:
            self._tell_the_removed()


def _outdated(peer_name: str, acknowledged: int, held: int) -> StoreOutdated:
    # Which directory it is, only the store knows; the sentence holds without it.
    reason = f"it holds the log up to entry {held}, and told {peer_name} of entry {acknowledged}"
    return StoreOutdated("this node's data directory", f"{reason}: an old copy was put in its place")


def _forwards(groups: list[RawGroup]) -> list[Forward]:
    return [Forward(part) for part in _parts(groups, FORWARD_BYTES)]


def _batches(groups: Iterable[RawGroup]) -> list[list[RawGroup]]:
    return _parts(groups, BATCH_BYTES)


def _parts(groups: Iterable[RawGroup], max_bytes: int) -> list[list[RawGroup]]:
    """Cuts into parts of at most so many bytes, in order; a part has at least one group."""
    parts: list[list[RawGroup]] = []
    size = max_bytes + 1
    for group in groups:
        length = len(group.commands) + GROUP_OVERHEAD_BYTES
        if size + length > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(group)
        size += length
    return parts


_FOUNDING_KINDS = frozenset({Introduction, Founding, FoundingReply})
_HANDLERS: dict[type, Callable[..., None]] = {
    Forward: Replica._on_forward,
    Enrol: Replica._on_enrol,
    ReadRequest: Replica._on_read_request,
    ReadReply: Replica._on_read_reply,
    LeaseEnd: Replica._on_lease_end,
    Barrier: Replica._on_barrier,
    BarrierPassed: Replica._on_barrier_passed,
    Watch: Replica._on_watch,
    Shows: Replica._on_shows,
    OperationRequest: Replica._on_operation_request,
    OperationReply: Replica._on_operation_reply,
    Removed: Replica._on_removed,
    Failover: Replica._on_failover,
}

__all__ = [
    "Event",
    "LeaderChanged",
    "Now",
    "OperationDone",
    "PeersChanged",
    "ReadReady",
    "Reborn",
    "Replica",
    "ReplicaConfig",
    "Retired",
    "ShownEverywhere",
    "Troubled",
    "Work",
]
