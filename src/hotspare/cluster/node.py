"""A node in the world: sockets, timers and a store around the pure `Replica`.

Everything runs on one event loop. Inputs (frames, connections, requests, time) go into the replica at once;
what follows from all inputs of one turn of the loop is done together by `_pump`: one group commit, one write
per peer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from itertools import accumulate
from secrets import token_hex
from typing import Any, Protocol

from hotspare.cluster import clocks, status
from hotspare.cluster.complaints import Complaints
from hotspare.cluster.feeds import Feed, Feeds
from hotspare.cluster.lease import LeasePage
from hotspare.cluster.local import NoTransport
from hotspare.cluster.reading import LocalReads
from hotspare.cluster.security import Security
from hotspare.cluster.service import ClientSession, traceback_of
from hotspare.cluster.statistics import Statistics
from hotspare.cluster.storage import AtOnce, OnThread, Storage
from hotspare.cluster.transport import Accepted, Transport
from hotspare.cluster.wire import Hello, Rejected, RejectionCode, Welcome
from hotspare.cluster.writer import Writer, size_of
from hotspare.commands import Command, RawGroup, Registered, Results, UnknownOrigin
from hotspare.engine import Read
from hotspare.errors import (
    UNDECODABLE,
    ClusterMismatch,
    ConfigError,
    HotspareError,
    NotReady,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    StaleRead,
    StoreError,
    Unavailable,
    UnknownNode,
    fault_of,
)
from hotspare.events import Event, PrimaryChanged, RoleChanged
from hotspare.protocol import messages
from hotspare.protocol.commit import Work
from hotspare.protocol.forking import WATCH_ELECTIONS
from hotspare.protocol.messages import Envelope
from hotspare.raft.node import Timing
from hotspare.replica import (
    LeaderChanged,
    Now,
    OperationDone,
    PeersChanged,
    ReadReady,
    Reborn,
    Replica,
    ReplicaConfig,
    Retired,
    ShownEverywhere,
    Troubled,
)
from hotspare.settings import Address, Settings
from hotspare.store import Store

logger = logging.getLogger("hotspare.cluster")

INCARNATION_BYTES = 16
MAX_TURN_MS = 20
"""After so long the loop gets a chance to read and send before more is applied."""
PATIENCE_MS = 3
"""So long may wait what nobody needs at once (see `Replica.work`): a little longer than it takes until a new
write carries it along (`replica.PATIENCE_MS`)."""
DISMISSAL_MS = 100
"""How long a client's answer may take to leave a node that was removed."""
FLUSH_PAUSE_MS = 1
"""Between two questions whether a slow copy shows everything by now."""
MAX_RECORDS = 1000
MAX_RECORDS_BYTES = 8 * 1024 * 1024
"""In one answer to `records`: neither the loop nor the memory should be taken up by one question."""
IDS_PER_TURN = 1000
"""After so many the loop gets a chance to do something else."""


class Home(Protocol):
    """Who waits here for the outcomes of an origin: this process, or a client's connection."""

    def registered(self, nonce: bytes, origin: int) -> None: ...

    def answered(self, origin: int, first: int, results: list[int]) -> None: ...

    def unknown(self, origin: int) -> None: ...


class _Timer(Protocol):
    """What an event loop gives for a call to come: each loop has a class of its own."""

    def cancel(self) -> None: ...


class ClusterNode:
    """A member of a cluster, and the engine of an in-process replicator."""

    def __init__(self, settings: Settings, store: Store, page: LeasePage | None = None) -> None:
        """With a `page` beside its store, processes of this host can read the copy without asking."""
        self.settings = settings
        self.name = settings.node
        self.store = store
        self.statistics = Statistics()
        self.has_copy = True
        self._replica: Replica | None = None
        self._transport: Transport | NoTransport | None = None
        self._storage: Storage = AtOnce()
        self._homes: dict[int, Home] = {}
        self._enrolling: dict[bytes, Home] = {}
        self._contexts: dict[int, asyncio.Future[Any]] = {}
        """Reads and operations under way."""
        self._barriers = 0
        """How many writes of this process wait until they are shown everywhere."""
        self._watchers: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        """Those who wait for something to become true of this node."""
        self._writer = Writer(
            settings.batch_size, settings.batch_timeout_ms, settings.max_clock_skew_ms, self._schedule
        )
        self._feeds = Feeds()
        self._is_watched = False
        """Whether anybody listens to events, or did until the last one came."""
        self._role = ""
        """The one that listeners know of."""
        self._page = page
        self._reads = LocalReads(store, self._not_fresh, settings.max_clock_skew_ms, page)
        self.read_local = self._reads.read
        self._complaints = Complaints()
        self._is_pump_scheduled = False
        self._is_catching_up = False
        self._is_stopping = False
        self._timer: _Timer | None = None
        self._timer_ms = 0

    # --- life -------------------------------------------------------------------------------------------

    @property
    def replica(self) -> Replica:
        if self._replica is None:
            raise NotReady("it does not run")
        return self._replica

    @property
    def listening(self) -> Address:
        """Where, once it was started."""
        assert self._transport is not None
        return self._transport.address

    async def start(self) -> None:
        """Listens and takes part. Raises ConfigError (address in use, …) or StoreError."""
        if self._is_stopping:
            raise Refused("start", "this node was stopped: make another one")
        if self._replica is not None:
            return
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        """Gets the error that makes this node stop by itself."""
        self.failed.add_done_callback(_retrieve)
        settings = self.settings
        transport = self._transport = self._new_transport()
        await transport.start()
        address = settings.advertise or (settings.node if settings.listen is None else str(transport.address))
        try:
            self._replica = Replica(
                _replica_config(settings, address),
                self.store,
                random.SystemRandom().randrange,
                lambda: token_hex(INCARNATION_BYTES),
                clocks.now(),
            )
        except HotspareError:
            await transport.stop()
            raise
        if settings.storage_mode == "disk":
            self._storage = OnThread(self._on_stored)
        self._dial()
        self._on_timer()
        if not settings.enabled:
            await self._be_alone()

    def _new_transport(self) -> Transport | NoTransport:
        listen = self.settings.listen_address
        if not self.settings.enabled:
            return NoTransport(listen)
        return Transport(
            listen=listen,
            hello=self._hello,
            admit=self._admit,
            on_frames=self._on_frames,
            on_up=self._on_up,
            on_down=self._on_down,
            on_client=self._on_client,
            security=Security.load(self.settings),
            on_refused=self._on_refused,
        )

    async def _be_alone(self) -> None:
        """A cluster of this node and nobody else, founded when it starts for the first time."""
        timeout_ms = self.settings.replication_rpc_timeout_ms
        if self.replica.node is None:
            await self._call_found(timeout_ms, [])
        await self._until_fresh(timeout_ms)

    async def stop(self) -> None:
        """Answers what is pending, hands the leadership over, and leaves."""
        if self._replica is None or self._is_stopping:
            return
        self._is_stopping = True
        await self._settle_writes()
        await self._hand_over()
        if self._page is None:  # other processes go on reading a daemon's copy
            self._give_up_lease()
        self._pump(patience=False)
        await self._shut_down()

    async def abort(self) -> None:
        """Leaves at once, as if it had died: waits for nothing and hands nothing over."""
        if self._replica is not None:
            self._is_stopping = True
            await self._shut_down()

    async def _settle_writes(self) -> None:
        timeout_ms = self.settings.replication_rpc_timeout_ms
        with suppress(TimeoutError):  # close() tells their callers
            async with asyncio.timeout(timeout_ms / 1000):
                while self._writer.is_busy or self._barriers:
                    await self._writer.settle()
                    await asyncio.sleep(0)  # who was answered may wait on
                    await self._until(lambda: not self._barriers)

    async def _hand_over(self) -> None:
        replica = self.replica
        others = [member for member in replica.configuration.members if member.voter]
        if not replica.is_leader or len(others) < 2:
            return
        try:
            await self._operate("stop", self.name, self.settings.election_timeout_ms)
        except HotspareError as exc:
            logger.warning("%s stops without a successor: %s", self.name, exc)

    def _give_up_lease(self) -> None:
        """Nobody reads this copy any more, so no write of the others has to wait for its lease to run out."""
        self._reads.close()
        self.replica.give_up_lease(clocks.now())

    async def _shut_down(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close("this node was stopped")
        for future in [*self._contexts.values(), *(future for _, future in self._watchers)]:
            if not future.done():
                future.set_exception(Unavailable("this node was stopped"))
        self._watchers.clear()
        self._feeds.close()
        if self._transport is not None:
            await self._transport.stop()
        replica, self._replica = self._replica, None
        self._reads.close()
        await self._storage.stop()
        if replica is not None:
            replica.stop()
        self.store.close()

    def _fail(self, error: BaseException) -> None:
        """The store cannot go on, or there is a bug: this node must not go on either."""
        if isinstance(error, HotspareError):
            logger.error("%s stops: %s", self.name, error)
        else:  # a defect, whose own words may quote a session
            logger.error("%s stops: %s", self.name, traceback_of(error))
        if not self.failed.done():
            self.failed.set_exception(error)
        self._is_stopping = True
        self._loop.create_task(self._shut_down())

    # --- reading ----------------------------------------------------------------------------------------

    async def fetch(self, id: bytes, how: Read, timeout_ms: int) -> bytes | None:
        """The record of a live session. Raises NotReady, StaleRead, or Unavailable when no primary confirms
        a linearizable read in time."""
        if how == "local":
            return self.read_local(id)
        if how == "primary":
            await self.confirm(timeout_ms)
        elif how != "stale":
            raise ProtocolError(f"it asked for a read that is {how!r:.40}", "a kind that this version knows")
        return self._read_any_age(id)

    def _read_any_age(self, id: bytes) -> bytes | None:
        if self.replica.table.applied_index == 0:  # a copy of nothing knows of no session that it is absent
            raise self._not_fresh(None)
        return self._reads.read_any_age(id, clocks.now())

    @property
    def is_fresh(self) -> bool:
        """Whether local reads are answered now."""
        return self._reads.is_fresh(clocks.boot_ms())

    def count(self) -> int:
        """Live sessions in this copy, however old it is."""
        replica = self.replica
        return replica.table.totals.sessions - self.store.due_count(replica.clock.read_ms(clocks.boot_ms()))

    def _check_fresh(self) -> None:
        self._reads.check_fresh(clocks.boot_ms())

    def _not_fresh(self, overdue_ms: int | None) -> HotspareError:
        """The error for a copy whose lease has been over for so long; None: it has none."""
        replica, limit_ms = self._replica, self.settings.max_staleness_ms
        if replica is None:
            return NotReady("it does not run")
        if replica.is_retired:
            return NotReady(replica.trouble)
        if overdue_ms is not None:
            return StaleRead(limit_ms + overdue_ms, limit_ms)
        if self._is_stopping:
            return NotReady("it is being stopped")
        if replica.node is None:
            return NotReady(replica.trouble or "it belongs to no cluster yet")
        return NotReady("it has not learned yet what is committed")

    async def confirm(self, timeout_ms: int) -> None:
        """Returns when this copy shows all that was committed before the call. Raises Unavailable."""
        context = self.replica.read(clocks.now())
        try:
            await self._wait(context, timeout_ms, "no primary confirmed the read in time")
        finally:
            if self._replica is not None:
                self._replica.forget_read(context)

    @property
    def pending_writes(self) -> int:
        """Writes of this process that have no answer yet."""
        return self._writer.origin.pending

    # --- writing ----------------------------------------------------------------------------------------

    def write(self, commands: list[Command], timeout_ms: int) -> Awaitable[list[int]]:
        """One result a command. Raises Unavailable or OutcomeUnknown."""
        self.check_writable()
        return self._writer.write(commands, size_of(commands), clocks.boot_ms(), timeout_ms)

    @property
    def failed_writes(self) -> int:
        """Writes of this process that ended as Unavailable or OutcomeUnknown."""
        return self._writer.lost_commands

    async def barrier(self, timeout_ms: int) -> None:
        """See `hotspare.engine.Engine.barrier`."""
        if self._replica is None:
            raise OutcomeUnknown("this node was stopped before every copy showed it", is_applied=True)
        self._barriers += 1
        try:
            await self._call_barrier(timeout_ms, self._replica.table.applied_index)
        finally:
            self._barriers -= 1

    async def _call_barrier(self, timeout_ms: int, index: int) -> None:
        """Returns when every copy that may answer reads shows the log up to there. Raises OutcomeUnknown."""
        if type(index) is not int:
            raise TypeError(f"an index of type {type(index).__name__}")
        context = self.replica.barrier(index, clocks.now())
        try:
            await self._wait(context, timeout_ms, "not every copy that may answer reads showed it in time")
        except Unavailable as exc:
            raise OutcomeUnknown(exc.reason, is_applied=True) from None
        finally:
            if self._replica is not None:
                self._replica.forget_barrier(context)

    async def _call_flush(self, timeout_ms: int) -> None:
        """Returns when nothing that was written here is pending; on the primary, when all copies that answer
        show it."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._writer.settle()
                begun = self.replica.pending_groups
                await self._until(lambda: begun.isdisjoint(self.replica.pending_groups))
                target = self.replica.node.log.last_index if self.replica.node is not None else 0
                while not self.replica.is_applied_everywhere(target):
                    await self.confirm(timeout_ms)  # in a round of heartbeats they tell how far they are
                    await asyncio.sleep(FLUSH_PAUSE_MS / 1000)
        except TimeoutError:
            raise Unavailable("not everything was replicated in time") from None

    def check_writable(self) -> None:
        """Raises Unavailable if writes have no chance here."""
        replica = self.replica
        if self._is_stopping:
            raise Unavailable("this node is being stopped")
        if replica.is_retired:
            raise Unavailable(replica.trouble)
        if replica.node is None and not self.settings.replica_nodes and not replica.is_founding:
            raise Unavailable(
                "this node belongs to no cluster yet: found one with start_cluster, or take it into one with "
                f"`hotspare add {self.name}`"
            )

    # --- operations -------------------------------------------------------------------------------------

    async def _call_found(self, timeout_ms: int, nodes: list[str]) -> str:
        """Founds a cluster of this node and those. Returns when it has a primary and this copy is ready."""
        others = self.settings.changed(replica_nodes=tuple(nodes)).replica_nodes  # raises ConfigError
        context = self.replica.found({name: name for name in others}, timeout_ms, clocks.now())
        self._schedule()
        outcome = await self._wait_for_operation("start_cluster", "", context, timeout_ms + 1000)
        await self._until_fresh(timeout_ms)
        return outcome

    async def until_ready(self) -> None:
        """Returns once its status says so. Raises Unavailable when it is stopped before."""
        await self._until(lambda: status.is_ready(self))

    async def _until_fresh(self, timeout_ms: int) -> None:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._until(lambda: self.is_fresh)
        except TimeoutError:
            raise Unavailable("this node was not ready in time") from None

    async def _call_promote(self, timeout_ms: int) -> str:
        """Makes this node the primary, in an orderly way; what is pending is written first."""
        await self._call_flush(timeout_ms)
        return await self._operate("promote", self.name, timeout_ms)

    async def _call_fork(self, timeout_ms: int) -> str:
        """Goes on alone from what this node has, unless a primary or a majority is to be seen."""
        watch_ms = (WATCH_ELECTIONS + 1) * self.settings.election_timeout_ms
        context = self.replica.fork(clocks.now())
        self._schedule()
        text = await self._wait_for_operation("promote --force", "", context, timeout_ms + watch_ms)
        await self._until_fresh(timeout_ms)
        return text

    async def _call_failover(self, timeout_ms: int, node: str) -> str:
        return await self._operate("failover", node, timeout_ms)

    async def _call_add(self, timeout_ms: int, node: str) -> str:
        """Returns when it votes; or, if that takes longer, once it is a member that will."""
        until_ms = clocks.boot_ms() + timeout_ms
        self.settings.changed(replica_nodes=(node,))  # raises ConfigError
        text = await self._operate("add", node, timeout_ms)
        try:
            async with asyncio.timeout(max(0, until_ms - clocks.boot_ms()) / 1000):
                await self._until(lambda: self._is_voter(node))
        except TimeoutError:
            return f"{text}; it votes once it has caught up"
        return f"{text}, and votes"

    def _is_voter(self, name: str) -> bool:
        member = self.replica.configuration.by_name(name)
        return member is not None and member.voter

    async def _call_remove(self, timeout_ms: int, node: str) -> str:
        if node == self.name:
            await self._call_flush(timeout_ms)
        return await self._operate("remove", node, timeout_ms)

    async def _operate(self, verb: str, argument: str, timeout_ms: int) -> str:
        if self.replica.is_retired:
            raise Refused(verb, self.replica.trouble)
        if self.replica.node is None:
            raise Refused(verb, "this node belongs to no cluster yet: ask a member")
        context = self.replica.operate(verb, argument, clocks.now())
        self._schedule()
        return await self._wait_for_operation(verb, argument, context, timeout_ms)

    async def _wait_for_operation(self, verb: str, argument: str, context: int, timeout_ms: int) -> str:
        try:
            done = await self._wait(context, timeout_ms, "no primary carried it out in time")
        finally:
            if self._replica is not None:
                self._replica.forget_operation(context)
        if done.outcome == "unknown":
            raise UnknownNode(argument, tuple(done.text.split(", ")))
        if done.outcome == "mismatch":
            raise ClusterMismatch(argument, self.replica.cluster_id, done.text)
        if done.outcome == "refused":
            raise Refused(verb, done.text)
        text: str = done.text
        return text

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Returns at the end of the first turn after which the condition holds."""
        if not condition():
            future: asyncio.Future[None] = self._loop.create_future()
            self._watchers.append((condition, future))
            await future

    def _notify_watchers(self) -> None:
        for watcher in list(self._watchers):
            condition, future = watcher
            if future.done() or condition():
                self._watchers.remove(watcher)
                if not future.done():
                    future.set_result(None)

    async def _wait(self, context: int, timeout_ms: int, complaint: str) -> Any:
        future = self._contexts[context] = self._loop.create_future()
        self._schedule()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError:
            raise Unavailable(complaint) from None
        finally:
            del self._contexts[context]

    # --- the engine's other verbs -----------------------------------------------------------------------

    async def call(self, verb: str, timeout_ms: int, **arguments: Any) -> Any:
        """See `hotspare.engine.Engine.call`; `get` is for clients, who have no copy."""
        answer = _VERBS.get(verb)
        if answer is None:
            raise ProtocolError(f"it called {verb!r:.40}", f"one of {', '.join(_VERBS)}")
        try:
            return await answer(self, timeout_ms, **arguments)
        except StoreError as exc:
            self._fail(exc)  # what is damaged in one place may be so in others
            raise

    async def _call_get(self, timeout_ms: int, id: bytes, how: Read) -> bytes | None:
        _check_key(id)
        return await self.fetch(id, how, timeout_ms)

    async def _call_ids(self, timeout_ms: int) -> list[bytes]:
        self._check_fresh()
        ids, live = self.store.ids(), []
        for start in range(0, len(ids), IDS_PER_TURN):
            some = ids[start : start + IDS_PER_TURN]
            live += [id for id in some if self._read_any_age(id) is not None]
            await asyncio.sleep(0)
        return live

    async def _call_count(self, timeout_ms: int) -> int:
        self._check_fresh()
        return self.count()

    async def _call_records(self, timeout_ms: int, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Some sessions in id order, at most `limit`, from the first id greater than `after` on, expired ones
        included: whoever walks through all of them must be able to tell the end, where there is none."""
        _check_key(after)
        self._check_fresh()
        records = self.store.records(after, max(0, min(limit, MAX_RECORDS)))
        sizes_bytes = accumulate(len(id) + len(record) for id, record in records)
        fitting = sum(1 for size_bytes in sizes_bytes if size_bytes <= MAX_RECORDS_BYTES)
        return records[: max(1, fitting)]

    async def _call_status(self, timeout_ms: int) -> dict[str, Any]:
        return status.status(self)

    async def _call_metrics(self, timeout_ms: int) -> dict[str, Any]:
        return status.metrics(self)

    async def _call_attach(self, timeout_ms: int) -> dict[str, Any]:
        """Where a process of this host finds the copy. What it may do there, the files' modes say."""
        if self._page is None:
            reason = (
                f"{self.name} keeps its copy inside a process; only a daemon (hotspare serve) can be read"
            )
            raise Refused("attach", reason)
        return {
            "directory": str(self._page.directory),
            "environment": self._page.id,
            "max_staleness_ms": self.settings.max_staleness_ms,
        }

    # --- events -----------------------------------------------------------------------------------------

    def watch(self, max_waiting: int) -> Feed:
        """What happens from now on, to this copy and this node. Raises NotReady."""
        replica = self.replica
        if not self._is_watched:
            self._is_watched = True
            self._role = status.role_of(replica)
            replica.is_watched = True
        return self._feeds.open(max_waiting)

    def _publish(self, events: list[Event]) -> None:
        self._feeds.publish(events)
        if not self._feeds:
            self._is_watched = False
            self.replica.is_watched = False

    def _publish_role(self, replica: Replica) -> None:
        role, previous = status.role_of(replica), self._role
        if role != previous:
            self._role = role
            self._publish([RoleChanged(role, previous)])

    # --- origins: ours and those of clients -----------------------------------------------------------

    def enrol(self, nonce: bytes, home: Home) -> None:
        self._enrolling[nonce] = home
        self.replica.enrol(nonce, clocks.now())
        self._schedule()

    def submit(self, group: RawGroup, home: Home) -> None:
        self._homes[group.origin] = home
        self.replica.submit(group, clocks.now())
        self._schedule()

    def leave(self, home: Home) -> None:
        """Nobody waits behind that home any more."""
        for origin in [origin for origin, each in self._homes.items() if each is home]:
            del self._homes[origin]
            if self._replica is not None:
                self._replica.forget_origin(origin)
        for nonce in [nonce for nonce, each in self._enrolling.items() if each is home]:
            del self._enrolling[nonce]
            if self._replica is not None:
                self._replica.forget_enrolment(nonce)

    def _send_own_writes(self, now: Now) -> None:
        origin, replica = self._writer.origin, self.replica
        nonce = origin.wants_registration()
        if nonce and nonce not in self._enrolling:
            self._enrolling[nonce] = origin
            replica.enrol(nonce, now)
        if not replica.leader:  # what does not leave this process has a certain outcome
            return
        for group in origin.take_groups(now.boot_ms, replica.cluster_ms(now)):
            self._homes[group.origin] = origin
            replica.submit(group, now)

    # --- the pump ---------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._is_pump_scheduled:
            self._is_pump_scheduled = True
            self._loop.call_soon(self._pump_as_scheduled)

    def _go_on_writing_soon(self) -> None:
        """What waits may leave after an answer, and so may what is written next by who was answered: in the
        very turn of the loop in which it is told."""
        if self._writer.origin.has_waiting:
            self._schedule()
        else:
            self._loop.call_soon(self._go_on_writing)

    def _go_on_writing(self) -> None:
        if self._writer.origin.has_waiting:
            self._pump()

    def _pump_as_scheduled(self) -> None:
        if self._is_pump_scheduled:  # else it was done already
            self._pump()

    def _pump(self, now: Now | None = None, *, patience: bool = True) -> None:
        """Does everything that follows from the inputs so far."""
        self._is_pump_scheduled = False
        if self._replica is None or self.failed.done():  # after a failed group commit, nothing may follow
            return
        try:
            self._turn(now or clocks.now(), patience=patience)
        except Exception as exc:
            self._fail(exc)

    def _on_stored(self) -> None:
        """On the storage's thread."""
        with suppress(RuntimeError):  # the loop may be closed by now, if whoever ran it did not wait
            self._loop.call_soon_threadsafe(self._schedule)

    def _catch_up(self) -> None:
        """Does what has waited long enough for company, unless it has found some."""
        self._is_catching_up = False
        replica = self._replica
        if replica is None or not replica.postponed_ms:
            return
        rest_ms = PATIENCE_MS - (clocks.boot_ms() - replica.postponed_ms)
        if rest_ms <= 0:
            self._pump(patience=False)
        else:
            self._catch_up_later(rest_ms)

    def _catch_up_later(self, delay_ms: int = PATIENCE_MS) -> None:
        if not self._is_catching_up:
            self._is_catching_up = True
            self._loop.call_later(delay_ms / 1000, self._catch_up)

    def _turn(self, now: Now, *, patience: bool) -> None:
        replica = self.replica
        if self._writer.origin.has_waiting:
            self._send_own_writes(now)
        storage = self._storage
        for done in storage.done():
            self._finish(replica, done, now)
        while (work := replica.work(now, patience=patience)) is not None:
            self._send_out(replica)  # before the work: the others begin while we write
            for done in storage.submit(work):
                self._finish(replica, done, now)
            if clocks.boot_ms() - now.boot_ms >= MAX_TURN_MS:
                self._schedule()  # heartbeats never wait behind a long log or snapshot
                break
        self._send_out(replica)
        self._reads.publish(replica.lease_end_ms, replica.clock, now.boot_ms, replica.id)
        events = replica.take_events()
        if events:
            self._dispatch(events)
        if self._is_watched:
            self._publish_role(replica)
        if self._watchers:
            self._notify_watchers()
        if replica.postponed_ms:
            self._catch_up_later()
        self._arm_timer(replica, now)

    def _finish(self, replica: Replica, work: Work, now: Now) -> None:
        replica.finish(work, now)
        if work.events:
            self._publish(work.events)

    def _send_out(self, replica: Replica) -> None:
        outbox = replica.take_outbox()
        if not outbox:
            return
        transport = self._transport
        assert transport is not None
        for_each: dict[str, list[Envelope]] = {}
        for name, envelope in outbox:
            if name in for_each:
                for_each[name].append(envelope)
            else:
                for_each[name] = [envelope]
        for name, envelopes in for_each.items():
            transport.send(name, [messages.encode(envelope) for envelope in envelopes])
        if replica.is_leader:
            assert replica.node is not None
            self.statistics.note_proposed(replica.node)

    def _dispatch(self, events: list[Any]) -> None:
        for event in events:
            _REACTIONS[type(event)](self, event)
        self._writer.notice()

    def _on_results(self, event: Results) -> None:
        self.statistics.total_replicated += len(event.results)
        home = self._homes.get(event.origin)
        if home is not None:
            home.answered(event.origin, event.first, event.results)
            if home is self._writer.origin:
                self._go_on_writing_soon()

    def _on_unknown_origin(self, event: UnknownOrigin) -> None:
        home = self._homes.pop(event.origin, None)
        if home is not None:
            home.unknown(event.origin)
            self._schedule()

    def _on_registered(self, event: Registered) -> None:
        home = self._enrolling.pop(event.nonce, None)
        if home is not None:
            for former in [origin for origin, each in self._homes.items() if each is home]:
                del self._homes[former]
            home.registered(event.nonce, event.origin)
            self._schedule()

    def _on_read_ready(self, event: ReadReady) -> None:
        self._settle(event.context, None)

    def _on_shown_everywhere(self, event: ShownEverywhere) -> None:
        self._settle(event.context, None)

    def _on_operation_done(self, event: OperationDone) -> None:
        self._settle(event.context, event)

    def _settle(self, context: int, value: Any) -> None:
        future = self._contexts.get(context)
        if future is not None and not future.done():
            future.set_result(value)

    def _on_leader_changed(self, event: LeaderChanged) -> None:
        statistics = self.statistics
        previous, failovers = statistics.last_leader, statistics.failovers
        statistics.note_leader(event.leader, clocks.boot_ms())
        if event.leader != self.name:
            statistics.stop_leading()
        if self._is_watched:
            lost_ms = statistics.recovery_time_ms if statistics.failovers > failovers else 0
            self._publish([PrimaryChanged(event.leader, previous, event.term, lost_ms)])
        if event.leader:
            self._schedule()  # writes may have waited for it
            logger.info("%s: the primary is %s (term %d)", self.name, event.leader, event.term)
        else:
            logger.info("%s: there is no primary (term %d)", self.name, event.term)

    def _on_troubled(self, event: Troubled) -> None:
        if event.text:
            logger.warning("%s: %s", self.name, event.text)

    def _on_retired(self, event: Retired) -> None:
        """Clients go on at another node; those whose question brought this about get their answer first."""
        self._loop.call_later(DISMISSAL_MS / 1000, self._dismiss_clients)

    def _dismiss_clients(self) -> None:
        if self._transport is not None and self._replica is not None and self._replica.is_retired:
            self._transport.dismiss_clients(f"{self.name} belongs to its cluster no more")

    def _on_peers_changed(self, event: PeersChanged) -> None:
        self._dial()

    def _on_reborn(self, event: Reborn) -> None:
        assert self._transport is not None
        logger.info("%s is another server from now on: %s", self.name, event.why)
        for name in list(self._transport.dialled):
            self._transport.cut(name)

    # --- time -------------------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        self._timer = None
        if self._replica is None or self.failed.done():
            return
        now = clocks.now()
        try:
            self.replica.tick(now)
        except Exception as exc:
            self._fail(exc)
            return
        self._writer.origin.expire(now.boot_ms)
        self._writer.notice()
        self._pump()

    def _arm_timer(self, replica: Replica, now: Now) -> None:
        due_ms = replica.next_deadline_ms()
        flush_ms = self._writer.origin.next_flush_ms()
        if flush_ms is not None and flush_ms < due_ms:
            due_ms = flush_ms
        if self._timer is not None:
            if due_ms >= self._timer_ms:
                return
            self._timer.cancel()
        self._timer_ms = due_ms
        delay_ms = max(1, due_ms - now.boot_ms)
        self._timer = self._loop.call_later(delay_ms / 1000, self._on_timer)

    # --- connections ------------------------------------------------------------------------------------

    def _hello(self) -> Hello:
        replica = self._replica
        if replica is None:  # nobody is dialled yet: only the name is of interest
            return Hello(kind="node", name=self.name)
        return Hello(
            kind="node",
            name=self.name,
            incarnation=replica.id,
            cluster_id=replica.cluster_id,
            address=replica.config.address,
            role=self.settings.role,
        )

    def _admit(self, hello: Hello) -> Welcome | Rejected:
        if self._replica is None or self._is_stopping:
            return Rejected(RejectionCode.SHUTTING_DOWN, f"{self.name} is shutting down")
        replica = self._replica
        if hello.expected and hello.expected != self.name:
            return Rejected(
                RejectionCode.UNEXPECTED_NAME, f"this is {self.name}, not {hello.expected}: check the address"
            )
        if hello.kind == "node":
            rejected = self._object_to(hello, replica)
            if rejected is not None:
                return rejected
        return Welcome(self.name, replica.id, replica.cluster_id, replica.config.address, replica.leader)

    def _object_to(self, hello: Hello, replica: Replica) -> Rejected | None:
        if hello.cluster_id and replica.cluster_id and hello.cluster_id != replica.cluster_id:
            mismatch = ClusterMismatch(self.name, ours=hello.cluster_id, theirs=replica.cluster_id)
            ancestors = replica.introduction().ancestors
            return Rejected(RejectionCode.OTHER_CLUSTER, str(mismatch), replica.cluster_id, ancestors)
        if hello.name == self.name or hello.incarnation == replica.id:
            return Rejected(RejectionCode.PRESENT, f"there is a node {self.name} already: this one")
        peer = replica.peers.get(hello.name)
        if peer is not None and peer.up and peer.id not in ("", hello.incarnation):
            return Rejected(RejectionCode.PRESENT, f"another node answers as {hello.name}")
        return None

    def _dial(self) -> None:
        assert self._transport is not None
        targets = self.replica.dial_targets()
        for name in set(self._transport.dialled) - set(targets):
            self._transport.undial(name)
        for name, address in targets.items():
            try:
                parsed = Address.parse(address)
            except ConfigError as exc:  # it said so itself: no reason to stop
                logger.warning("%s: %s has an address that cannot be dialled: %s", self.name, name, exc)
            else:
                self._transport.dial(name, parsed)

    def _on_up(self, name: str, incarnation: str, address: str) -> None:
        if self._replica is not None:
            logger.info("%s: connected to %s", self.name, name)
            self._replica.peer_up(name, incarnation, address, clocks.now())
            self._schedule()

    def _on_down(self, name: str) -> None:
        if self._replica is not None:
            logger.info("%s: %s does not answer", self.name, name)
            self._replica.peer_down(name, clocks.now())
            self._schedule()

    def _on_refused(self, name: str, rejected: Rejected) -> None:
        if self._replica is not None and rejected.cluster_id:
            self._replica.met_stranger(name, rejected.cluster_id, rejected.ancestors, clocks.now())
            self._schedule()

    def _on_frames(self, name: str, incarnation: str, frames: list[bytes]) -> None:
        replica = self._replica
        if replica is None:
            return
        now = clocks.now()
        for frame in frames:
            try:
                envelope = messages.decode(frame)
            except UNDECODABLE as exc:
                self._complain(name, f"it sent what is no message: {fault_of(exc)}")
                continue
            if envelope.sender != incarnation:
                self._complain(name, "it sent a message in the name of another incarnation")
                continue
            try:
                replica.receive(name, envelope, now)
            except ProtocolError as exc:
                self._complain(name, f"{exc.problem}; expected {exc.expected}")
            except StoreError as exc:
                self._fail(exc)
                return
        if replica.is_leader:
            self._note_acknowledged(name, replica)
        if self._is_pump_scheduled or not replica.has_outputs:
            return
        if replica.awaits_copies:
            self._schedule()  # the others' answers may come in the same turn of the loop
        else:
            self._pump(now)

    def _complain(self, name: str, problem: str) -> None:
        """About a message that was dropped, once for each peer and problem: there may be many of them."""
        complaint = f"{name}: {problem}"
        level = self._complaints.level(complaint)
        logger.log(level, "%s dropped a message from %s", self.name, complaint)

    def _note_acknowledged(self, name: str, replica: Replica) -> None:
        assert replica.node is not None
        progress = replica.node.progress.get(replica.peers[name].id) if name in replica.peers else None
        if progress is not None:
            self.statistics.note_acknowledged(progress.id, progress.match)

    def _on_client(self, connection: Accepted) -> ClientSession:
        return ClientSession(self, connection)


def _check_key(id: object) -> None:
    """Raises TypeError: to look for what is no id must not look like a session that is not there."""
    if type(id) is not bytes:
        raise TypeError(f"an id of type {type(id).__name__}")


def _retrieve(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting for the error: asyncio need not complain about that, it is logged."""
    if not future.cancelled():
        future.exception()


def _replica_config(settings: Settings, address: str) -> ReplicaConfig:
    others = settings.replica_nodes if settings.enabled else ()
    names = tuple(sorted({settings.node, *others})) if others else ()
    return ReplicaConfig(
        name=settings.node,
        address=address,
        replica_nodes=names,
        role=settings.role,
        timing=Timing(settings.health_check_interval_ms, settings.election_timeout_ms),
        max_staleness_ms=settings.max_staleness_ms,
        cleanup_interval_ms=settings.cleanup_interval_ms,
        max_memory_bytes=settings.max_memory_bytes,
    )


_VERBS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "get": ClusterNode._call_get,
    "ids": ClusterNode._call_ids,
    "count": ClusterNode._call_count,
    "records": ClusterNode._call_records,
    "status": ClusterNode._call_status,
    "metrics": ClusterNode._call_metrics,
    "barrier": ClusterNode._call_barrier,
    "flush": ClusterNode._call_flush,
    "promote": ClusterNode._call_promote,
    "fork": ClusterNode._call_fork,
    "failover": ClusterNode._call_failover,
    "add": ClusterNode._call_add,
    "remove": ClusterNode._call_remove,
    "found": ClusterNode._call_found,
    "attach": ClusterNode._call_attach,
}

_REACTIONS: dict[type, Callable[[ClusterNode, Any], None]] = {
    Results: ClusterNode._on_results,
    UnknownOrigin: ClusterNode._on_unknown_origin,
    Registered: ClusterNode._on_registered,
    ReadReady: ClusterNode._on_read_ready,
    ShownEverywhere: ClusterNode._on_shown_everywhere,
    OperationDone: ClusterNode._on_operation_done,
    LeaderChanged: ClusterNode._on_leader_changed,
    PeersChanged: ClusterNode._on_peers_changed,
    Reborn: ClusterNode._on_reborn,
    Retired: ClusterNode._on_retired,
    Troubled: ClusterNode._on_troubled,
}
