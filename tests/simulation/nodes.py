"""A node in the simulated world: what `cluster/node.py` is in the real one, around the same `Replica`.

A process is a `Replica` over a store, fed with frames, connections and time. The process may die, with its
store or without; it may be paused, and finds its inputs in the kernel's buffers afterwards; and its storage
may be slow, so that inputs come while transactions are under way, as with the storage thread of the real
one. A transaction counts from its commit on: whoever dies before has only what was committed, whatever else
was handed out to be written. So the death of a process is the loss of power, too.

Other processes of the same host may read the node's copy under its lease: also while it is paused, after it
died and while it is started again, unless its state ended with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from hotspare.commands import RawGroup, Registered, Results, UnknownOrigin
from hotspare.protocol import messages
from hotspare.protocol.commit import perform
from hotspare.raft.messages import NOBODY
from hotspare.raft.node import Node
from hotspare.record import record_expires_at_ms
from hotspare.replica import (
    LeaderChanged,
    Now,
    OperationDone,
    ReadReady,
    Reborn,
    Replica,
    ReplicaConfig,
    Retired,
    ShownEverywhere,
    Work,
)
from hotspare.store import journal
from hotspare.store.journal import Identity
from hotspare.store.plain import PlainStore, PlainTransaction
from tests.simulation.clocks import NodeClock
from tests.simulation.scheduler import Timer

if TYPE_CHECKING:
    from tests.simulation.world import World


LAST_WORDS_MS = 20
"""From a process's goodbye to its end."""


class Home(Protocol):
    """Where the outcomes of an origin go: a client here, or the connection of a remote one."""

    def registered(self, nonce: bytes, origin: int) -> None: ...

    def answered(self, origin: int, first: int, results: list[int]) -> None: ...

    def unknown(self, origin: int) -> None: ...


class Resident(Protocol):
    """A client in the node's own process."""

    def flush(self) -> None: ...


class ProcessDied(BaseException):
    """In the middle of a transaction."""


class CrashingStore(PlainStore):
    """A store that outlives its process, which may die just before a commit; unless it is volatile."""

    def __init__(self, *, volatile: bool) -> None:
        super().__init__(undo=True, volatile=volatile)
        self.is_doomed = False
        self._doomed: _DoomedTransaction | None = None

    def begin(self) -> PlainTransaction:
        transaction = super().begin()
        if self.is_doomed:
            self._doomed = transaction = _DoomedTransaction(self)
        return transaction

    def process_died(self) -> None:
        """What was not committed is lost."""
        if self._doomed is not None and self._in_transaction:
            self._doomed.abort()
        self._doomed = None
        self.is_doomed = False


class _DoomedTransaction(PlainTransaction):
    def commit(self) -> None:
        raise ProcessDied


@dataclass(slots=True)
class Storage:
    """How long transactions take. In order; one at a time is under way, and what gathers meanwhile shares
    the next one."""

    random: Random
    usual_ms: tuple[int, int] = (0, 0)
    """(0, 0): in memory, at once. Else a disk."""
    slow: float = 0.0
    """How often one takes long."""
    slow_ms: tuple[int, int] = (1, 60)

    def delay_ms(self) -> int:
        return self.random.randint(*(self.slow_ms if self.random.random() < self.slow else self.usual_ms))


class SimulatedNode:
    def __init__(
        self, world: World, name: str, clock: NodeClock, storage: Storage, options: dict[str, Any]
    ) -> None:
        """`options` are those of its ReplicaConfig."""
        self.name = name
        self.options = options
        self.clock = clock
        self.storage = storage
        self.is_volatile = world.scenario.is_volatile
        """Its state ends with its process."""
        self.store = CrashingStore(volatile=self.is_volatile)
        self.replica: Replica | None = None
        self._last_raft: Node | None = None
        self.life = 0
        """Counts the processes that have run here."""
        self.is_paused = False
        self.is_stopping = False
        """It will end in a moment, and its state with it."""
        self.local_clients: list[Resident] = []
        self._world = world
        self._scheduler = world.scheduler
        self._random = world.scheduler.stream(f"node {name}")
        self._patience = world.scheduler.stream(f"patience {name}")
        self._inbox: list[Callable[[], None]] = []
        self._to_write: deque[Work] = deque()
        self._writing: list[Work] = []
        """The transaction under way."""
        self._written: deque[Work] = deque()
        """Committed, and the process has not noticed yet."""
        self._turn_timer: Timer | None = None
        self._tick_timer: Timer | None = None
        self._tick_boot_ms = 0
        self.lease_end_ms = -1
        """As published for all readers of this host: it outlives the process, and only grows."""
        self._leased = NOBODY
        """The server whose lease it is."""
        self._applied = 0
        """What they see."""
        self._reset_shell()

    def _reset_shell(self) -> None:
        self._homes: dict[int, Home] = {}
        self._enrolling: dict[bytes, Home] = {}
        self._waiting: dict[int, Callable[[Any], None]] = {}
        """Reads and operations under way, by context."""
        self.operations: set[int] = set()
        """Those of an operator that are not done yet."""
        self.barriers: set[int] = set()
        """Those that are not passed yet."""

    # --- life -----------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        return self.replica is not None

    @property
    def incarnation(self) -> str:
        """Who would answer a handshake."""
        return self.replica.id if self.replica is not None and not self.is_paused else NOBODY

    @property
    def raft(self) -> Node | None:
        """Of the process; of a dead one, as it was when it died."""
        return self.replica.node if self.replica is not None else self._last_raft

    @property
    def stored_identity(self) -> Identity:
        """Which server's state is here, running or not."""
        return journal.load_identity(PlainTransaction(self.store)) or Identity(NOBODY, self.name)

    @property
    def boot_ms(self) -> int:
        return self.clock.boot_ms(self._scheduler.now_ms)

    @property
    def now(self) -> Now:
        now_ms = self._scheduler.now_ms
        return Now(self.clock.boot_ms(now_ms), self.clock.wall_ms(now_ms))

    def start(self) -> None:
        if self.replica is not None:
            return
        self.life += 1
        self._world.trace(self.name, "starts")
        self.replica = Replica(
            ReplicaConfig(name=self.name, address=self.name, **self.options),
            self.store,
            self._random.randrange,
            self._world.new_id,
            self.now,
        )
        self._world.network.process_started(self.name)
        self._schedule_turn()

    def crash(self, *, keep_state: bool) -> None:
        """Ends the process. What it had not committed is lost; without `keep_state`, everything is."""
        replica = self.replica
        if replica is None:
            return
        self._world.trace(self.name, "dies" if keep_state else "dies and loses its state")
        self.store.process_died()
        if self._writing and self._random.random() < 0.5:
            self._perform(self._writing)
        self._forget_writes()
        replica.stop()
        self._last_raft = replica.node
        self.replica = None
        self.is_paused = self.is_stopping = False
        self._inbox.clear()
        self._reset_shell()
        for timer in (self._turn_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        self._turn_timer = self._tick_timer = None
        if not keep_state:
            self.store = CrashingStore(volatile=self.is_volatile)
            self._last_raft = None
            self.lease_end_ms = -1
        self._world.process_died(self, replica.id)

    def stop(self) -> None:
        """Ends the process in good order. Nobody is to read a volatile copy after it said so."""
        self._world.trace(self.name, "stops")
        if not self.is_volatile:
            self.crash(keep_state=True)
            return
        self.is_stopping = True
        self._replica.give_up_lease(self.now)
        self._schedule_turn()
        life = self.life
        self._scheduler.after(LAST_WORDS_MS, lambda: self._end(life))

    def _end(self, life: int) -> None:
        if self.life == life:
            self.crash(keep_state=False)

    def crash_at_next_commit(self) -> None:
        self.store.is_doomed = self.is_up and not self.is_volatile

    def pause(self) -> None:
        if self.replica is not None and not self.is_paused:
            self._world.trace(self.name, "is paused")
            self.is_paused = True

    def resume(self) -> None:
        if self.is_paused:
            self._world.trace(self.name, "goes on")
            self.is_paused = False
            inbox, self._inbox = self._inbox, []
            for action in inbox:
                self.run(action)
            self._tick_if_due()
            self._schedule_turn()

    # --- inputs ---------------------------------------------------------------------------------------

    def run(self, action: Callable[[], None]) -> None:
        """Something happens in the process: now, or when its pause is over, or never when it is dead."""
        if self.replica is None:
            return
        if self.is_paused:
            self._inbox.append(action)
            return
        try:
            action()
        except ProcessDied:
            self._die_and_restart()
        self._schedule_turn()

    def receive(self, sender: str, frame: bytes) -> None:
        self.run(lambda: self._replica.receive(sender, messages.decode(frame), self.now))

    def peer_up(self, peer: str, incarnation: str) -> None:
        self.run(lambda: self._replica.peer_up(peer, incarnation, peer, self.now))

    def peer_down(self, peer: str) -> None:
        self.run(lambda: self._replica.peer_down(peer, self.now))

    def admits(self, peer: str, incarnation: str) -> bool:
        """The handshake's rule: one process at a time answers under a name."""
        known = self._replica.peers.get(peer)
        return known is None or not known.up or known.id in (NOBODY, incarnation)

    @property
    def _replica(self) -> Replica:
        assert self.replica is not None
        return self.replica

    # --- for clients ----------------------------------------------------------------------------------

    def enrol(self, nonce: bytes, home: Home) -> None:
        self._enrolling[nonce] = home
        self._replica.enrol(nonce, self.now)

    def submit(self, group: RawGroup, home: Home) -> None:
        self._homes[group.origin] = home
        self._replica.submit(group, self.now)

    def leave(self, home: Home) -> None:
        for origin in [origin for origin, each in self._homes.items() if each is home]:
            del self._homes[origin]
            self._replica.forget_origin(origin)
        for nonce in [nonce for nonce, each in self._enrolling.items() if each is home]:
            del self._enrolling[nonce]
            self._replica.forget_enrolment(nonce)

    @property
    def knows_primary(self) -> bool:
        return bool(self._replica.leader)

    def cluster_ms(self) -> int:
        return self._replica.cluster_ms(self.now)

    @property
    def is_fresh(self) -> bool:
        return self.boot_ms <= self.lease_end_ms

    @property
    def readers_see(self) -> int | None:
        """The index as of which any process of this host may be answered from the copy; None: of none."""
        return self._applied if self.is_fresh else None

    def record(self, id: bytes) -> bytes | None:
        """The record of a live session in this copy."""
        record = self.store.get(id)
        if record is None or record_expires_at_ms(record) <= self.cluster_ms():
            return None
        return record

    def read_primary(self, done: Callable[[Any], None]) -> int:
        context = self._replica.read(self.now)
        self._waiting[context] = done
        return context

    def forget_read(self, context: int) -> None:
        if self._waiting.pop(context, None) is not None:
            self._replica.forget_read(context)

    def barrier(self, passed: Callable[[int], None]) -> None:
        """For everything that this node shows. `passed` gets the index."""
        index = self._applied
        context = self._replica.barrier(index, self.now)
        self.barriers.add(context)

        def done(_: Any) -> None:
            self.barriers.discard(context)
            passed(index)

        self._waiting[context] = done

    def found(self, names: list[str], patience_ms: int) -> None:
        self._world.trace(self.name, f"is told to found a cluster of {', '.join(names)}")
        context = self._replica.found({name: name for name in names}, patience_ms, self.now)
        self._waiting[context] = lambda done: self._world.trace(self.name, f"founding: {done.text}")

    @property
    def is_observer(self) -> bool:
        return self.options.get("role") == "observer"

    def fork(self) -> None:
        self._wait_for("fork", "", self._replica.fork(self.now))

    def operate(self, verb: str, argument: str) -> None:
        if self._replica.node is not None:  # otherwise the shell refuses it
            self._wait_for(verb, argument, self._replica.operate(verb, argument, self.now))

    def _wait_for(self, verb: str, argument: str, context: int) -> None:
        self._world.trace(self.name, f"is told: {verb} {argument}")
        self.operations.add(context)

        def done(event: Any) -> None:
            self.operations.discard(context)
            self._world.met[f"{verb}: {event.outcome}"] += 1
            self._world.trace(self.name, f"{verb} {argument}: {event.outcome}, {event.text}")

        self._waiting[context] = done

    # --- what follows from the inputs of one moment ---------------------------------------------------

    def _schedule_turn(self) -> None:
        if self._turn_timer is None and self.replica is not None:
            self._turn_timer = self._scheduler.after(0, self._turn)

    def _turn(self, *, patience: bool = True) -> None:
        self._turn_timer = None
        if self.replica is None or self.is_paused:
            return
        for client in self.local_clients:
            client.flush()
        try:
            self._commit_groups(patience and self._patience.random() < 0.8)
        except ProcessDied:
            self._die_and_restart()
            return
        self._send_out()
        self._note_lease()
        self._world.after_step(self)
        self._dispatch()
        self._arm_tick()
        if self.is_up and self._replica.postponed_ms:
            self._scheduler.after(1, self._catch_up)

    def _catch_up(self) -> None:
        """Does what has waited long enough for company, unless it has found some."""
        if self.replica is not None and not self.is_paused and self.replica.postponed_ms:
            self._turn(patience=False)

    def _commit_groups(self, patience: bool) -> None:
        while (work := self._replica.work(self.now, patience=patience)) is not None:
            self._send_out()
            self._to_write.append(work)
            if not self._writing:
                self._write_next()

    def _write_next(self) -> None:
        """Begins a transaction with what has gathered."""
        works = self._writing
        while self._to_write and not (works and works[-1].ends_transaction):
            works.append(self._to_write.popleft())
        self._world.met["several turns in one transaction"] += len(works) > 1
        delay_ms = 0 if self.is_volatile else self.storage.delay_ms()
        if delay_ms or self._written:
            self._later(delay_ms, self._commit_late)
        else:
            self._commit()
            self._notice_written()

    def _commit(self) -> None:
        self._perform(self._writing)
        self._written += self._writing
        self._writing = []

    def _commit_late(self) -> None:
        self._commit()
        self._later(self._random.randint(0, 5), self._notice_written)
        if self._to_write:
            self._write_next()

    def _notice_written(self) -> None:
        while self._written:
            self._replica.finish(self._written.popleft(), self.now)
            # Before the log is compacted: what was committed must be seen.
            self._world.after_step(self)

    def _perform(self, works: list[Work]) -> None:
        perform(works)
        self._applied = works[-1].table.applied_index
        for work in works:
            self._world.applied(work)

    def _later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Storage reports back, unless the process is another one by then."""
        life = self.life

        def report() -> None:
            if self.life == life:
                self.run(action)

        self._scheduler.after(delay_ms, report)

    def _forget_writes(self) -> None:
        self._to_write.clear()
        self._writing = []
        self._written.clear()

    def _die_and_restart(self) -> None:
        self._forget_writes()
        self.crash(keep_state=True)
        self._world.restart_soon(self)

    def _send_out(self) -> None:
        for receiver, envelope in self._replica.take_outbox():
            self._world.sent(envelope)
            self._world.network.send(self.name, receiver, messages.encode(envelope))

    def _note_lease(self) -> None:
        replica = self._replica
        is_the_same = replica.id == self._leased and not self.is_volatile
        self.lease_end_ms = max(replica.lease_end_ms, self.lease_end_ms if is_the_same else -1)
        self._leased = replica.id
        self._applied = replica.table.applied_index
        self._world.check_readers(self)

    def _dispatch(self) -> None:
        for event in self._replica.take_events():
            if isinstance(event, Results):
                if home := self._homes.get(event.origin):
                    home.answered(event.origin, event.first, event.results)
            elif isinstance(event, UnknownOrigin):
                if home := self._homes.pop(event.origin, None):
                    home.unknown(event.origin)
            elif isinstance(event, Registered):
                if home := self._enrolling.pop(event.nonce, None):
                    home.registered(event.nonce, event.origin)
            elif isinstance(event, ReadReady | OperationDone | ShownEverywhere):
                if done := self._waiting.pop(event.context, None):
                    done(event)
            elif isinstance(event, Reborn):
                self._world.trace(self.name, f"is another server: {event.why}")
                self._world.met["a founding given up" if self._replica.node is None else "a fork"] += 1
                self._world.network.reconnect(self.name)
            elif isinstance(event, Retired):
                self._world.trace(self.name, "learns that it does not belong any more")
                self._world.met["a server that was removed"] += 1
            elif isinstance(event, LeaderChanged):
                self._world.trace(self.name, f"follows {event.leader or 'nobody'} in term {event.term}")

    # --- time -----------------------------------------------------------------------------------------

    def _arm_tick(self) -> None:
        due_ms = self._replica.next_deadline_ms()
        if self._tick_timer is not None:
            if self._tick_boot_ms <= due_ms:
                return
            self._tick_timer.cancel()
        self._tick_boot_ms = due_ms
        at_ms = max(self.clock.when(due_ms), self._scheduler.now_ms + 1)
        self._tick_timer = self._scheduler.at(at_ms, self._on_timer)

    def _on_timer(self) -> None:
        self._tick_timer = None
        if not self.is_paused:
            self._tick()

    def _tick_if_due(self) -> None:
        if self._tick_timer is None:
            self._tick()

    def _tick(self) -> None:
        self.run(lambda: self._replica.tick(self.now))
