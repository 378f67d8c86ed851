"""The same verbs as plain calls: one event loop on a thread of its own, and a portal to it.

A local read does not go through the portal: it is a look-up in memory, on the caller's thread. An attached
process has a portal only from its first write on, to keep the connection to its daemon; reading takes none.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from hotspare.engine import Ack, Engine, Read
from hotspare.errors import ForkedProcess, NotReady
from hotspare.events import Event
from hotspare.portal import NOT_RUNNING, BehindPortal, Portal, run
from hotspare.record import read_session
from hotspare.replicator import (
    MAX_SLICES_UNDER_WAY,
    MAX_WAITING_EVENTS,
    AsyncSessionReplicator,
    EventStream,
    Item,
    session_of,
    version_of,
)
from hotspare.rules import check_id
from hotspare.session import Session
from hotspare.settings import Settings

if TYPE_CHECKING:
    from hotspare.cluster.attached import AttachedEngine

T = TypeVar("T")


class SessionReplicator:
    """Replicated sessions, for programs without an event loop. Every verb is safe from any thread.

    With settings (or keyword arguments of the same names) it runs a node of the cluster in this process, on
    a background thread; it cannot be used in a forked child, which has no such thread. With `attach` it reads
    the copy of a daemon on this host and writes through it, in forked children as well. Raises ConfigError.

        with SessionReplicator(node="127.0.0.1:7401") as sessions:
            sessions.start_cluster(["127.0.0.1:7402", "127.0.0.1:7403"])
            sessions.store_session("s1", {"user": "alice"}, ttl_ms=3_600_000)

    The verbs are those of AsyncSessionReplicator, and so is what they return and raise.
    """

    def __init__(
        self, settings: Settings | None = None, *, engine: Engine | None = None, **overrides: Any
    ) -> None:
        self._async = AsyncSessionReplicator(settings, engine=engine, **overrides)
        self.settings = self._async.settings
        self._lock = threading.Lock()
        """Of starting and stopping."""
        self._portal: Portal | None = None
        self._pid = 0
        """The process in which the portal was made."""
        engine = self._async.engine
        self._attached = _attached(engine) if self.settings.attach is not None else None
        self._engine = BehindPortal(engine, self._require_portal)
        self._timeout_ms = self.settings.replication_rpc_timeout_ms
        self._verbs = AsyncSessionReplicator(self.settings, engine=self._engine)
        """They run on the caller's thread, and cross over to the engine's where they call that."""
        self._read_local = engine.read_local
        self._has_copy = engine.has_copy
        self._keyring = self._async.keyring
        _replicators.add(self)

    # --- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """See AsyncSessionReplicator.start."""
        self._check_process()
        with self._lock:
            if self._attached is not None:
                self._attached.start_blocking()
            elif self._portal is None:
                portal = Portal()
                try:
                    portal.submit(self._async.start()).result()
                except BaseException:
                    portal.close()
                    raise
                self._portal, self._pid = portal, os.getpid()

    def stop(self) -> None:
        """See AsyncSessionReplicator.stop."""
        self._check_process()
        with self._lock:
            portal, self._portal = self._portal, None
            if self._attached is not None:
                self._attached.stop_reading()
            if portal is not None:
                try:
                    portal.submit(self._async.stop()).result()
                finally:
                    portal.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_inherited:  # it is not the child's to stop
            self.stop()

    def start_cluster(self, replica_nodes: Iterable[str] = ()) -> None:
        run(self._verbs.start_cluster(replica_nodes))

    def flush(self) -> None:
        run(self._verbs.flush())

    # --- writing ----------------------------------------------------------------------------------------

    def store_session(
        self,
        id: str,
        data: Mapping[str, Any],
        ttl_ms: int | timedelta | None = None,
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        ack: Ack | None = None,
    ) -> int:
        if self._async.is_for_all(ack):
            return run(
                self._verbs.store_session(
                    id,
                    data,
                    ttl_ms,
                    if_version=if_version,
                    if_absent=if_absent,
                    if_present=if_present,
                    ack=ack,
                )
            )
        put = self._async.as_put(id, data, ttl_ms, if_version, if_absent, if_present)
        (result,) = self._engine.write_now([put], self._timeout_ms)  # without a coroutine: it is called most
        return version_of(result, put.condition)

    def store_sessions(self, sessions: Iterable[Item], *, ack: Ack | None = None) -> int:
        self._require_portal()  # before anything is taken
        for_all = self._async.is_for_all(ack)
        iterator = iter(sessions)  # runs on the caller's thread: it may block
        under_way: deque[Future[int]] = deque()
        stored = 0
        try:
            while batch := list(islice(iterator, self.settings.batch_size)):
                if len(under_way) >= MAX_SLICES_UNDER_WAY:
                    stored += under_way.popleft().result()
                under_way.append(self._submit(self._async.store_slice(batch)))
            while under_way:
                stored += under_way.popleft().result()
        finally:
            for future in under_way:
                future.exception()
        if for_all and stored:
            run(self._verbs.show_everywhere())
        return stored

    def update_session(
        self,
        id: str,
        changes: Mapping[str, Any],
        *,
        remove: Iterable[str] = (),
        if_version: int | None = None,
        ack: Ack | None = None,
    ) -> int | None:
        return run(self._verbs.update_session(id, changes, remove=remove, if_version=if_version, ack=ack))

    def touch_session(self, id: str, ttl_ms: int | timedelta, *, ack: Ack | None = None) -> bool:
        return run(self._verbs.touch_session(id, ttl_ms, ack=ack))

    def delete_session(self, id: str, *, if_version: int | None = None, ack: Ack | None = None) -> bool:
        return run(self._verbs.delete_session(id, if_version=if_version, ack=ack))

    def rotate_session(self, old_id: str, new_id: str, *, ack: Ack | None = None) -> bool:
        return run(self._verbs.rotate_session(old_id, new_id, ack=ack))

    # --- reading ----------------------------------------------------------------------------------------

    def get_session(self, id: str, *, read: Read = "local") -> dict[str, Any] | None:
        if read == "local" and self._has_copy:
            return read_session(self._read_local, id, self._keyring)
        return run(self._verbs.get_session(id, read=read))

    def get_session_record(self, id: str, *, read: Read = "local") -> Session | None:
        if read == "local" and self._has_copy:
            record = self._read_local(check_id(id))
            return None if record is None else session_of(id, record, self._keyring)
        return run(self._verbs.get_session_record(id, read=read))

    def get_all_sessions(self) -> list[str]:
        return run(self._verbs.get_all_sessions())

    def session_count(self) -> int:
        return run(self._verbs.session_count())

    # --- events -----------------------------------------------------------------------------------------

    def events(self, *, max_waiting: int = MAX_WAITING_EVENTS) -> BlockingEvents:
        return BlockingEvents(self._submit, self._submit(self._watch(max_waiting)).result())

    async def _watch(self, max_waiting: int) -> EventStream:
        return self._async.events(max_waiting=max_waiting)

    # --- operating --------------------------------------------------------------------------------------

    def get_replication_status(self) -> dict[str, Any]:
        return run(self._verbs.get_replication_status())

    def get_metrics(self) -> dict[str, Any]:
        return run(self._verbs.get_metrics())

    def promote_to_primary(self, *, force: bool = False) -> str:
        return run(self._verbs.promote_to_primary(force=force))

    def trigger_failover(self, node: str) -> str:
        return run(self._verbs.trigger_failover(node))

    def add_node(self, node: str) -> str:
        return run(self._verbs.add_node(node))

    def remove_node(self, node: str) -> str:
        return run(self._verbs.remove_node(node))

    # --- inside -----------------------------------------------------------------------------------------

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            return self._require_portal().submit(coroutine)
        except BaseException:
            coroutine.close()
            raise

    def _require_portal(self) -> Portal:
        self._check_process()
        portal = self._portal
        if portal is None:
            if self._attached is None:
                raise NotReady(NOT_RUNNING)
            return self._portal_of(self._attached)
        return portal

    def _portal_of(self, attached: AttachedEngine) -> Portal:
        """That of this process, from now on."""
        with self._lock:
            if not attached.is_started:
                raise NotReady(NOT_RUNNING)
            if self._portal is None:
                self._portal, self._pid = Portal(), os.getpid()
            return self._portal

    @property
    def _is_inherited(self) -> bool:
        """Whether it was started by a process of which this one is a forked child."""
        return self._portal is not None and self._pid != os.getpid()

    def _check_process(self) -> None:
        if self._is_inherited:
            raise ForkedProcess(self._pid, os.getpid())

    def _forked(self) -> None:
        """In the child."""
        if self._attached is not None:
            self._lock = threading.Lock()  # another thread of the parent may have held it
            _left_behind.append(self._portal)
            self._portal = None
        elif self._portal is not None:
            self._read_local = self._refuse_forked

    def _refuse_forked(self, id: bytes, /) -> NoReturn:
        raise ForkedProcess(self._pid, os.getpid())


class BlockingEvents:
    """The events of one consumer, in order: an iterator that waits for the next one. One thread at a time may
    iterate; any may call `close()`."""

    def __init__(
        self, submit: Callable[[Coroutine[Any, Any, Any]], Future[Any]], stream: EventStream
    ) -> None:
        self._submit = submit
        self._stream = stream
        self._taken: deque[Event] = deque()
        self._asked: Future[list[Event]] | None = None
        """The question under way. It outlives an interrupted `next`: its answer must not get lost."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if not self._taken:
            self._taken.extend(self._take())
        if not self._taken:
            raise StopIteration
        return self._taken.popleft()

    def _take(self) -> list[Event]:
        if self._asked is None:
            try:
                self._asked = self._submit(self._stream.take())
            except NotReady:  # its replicator was stopped
                return []
        wait([self._asked])
        asked, self._asked = self._asked, None
        return asked.result()

    def close(self) -> None:
        """It ends after what is here already."""
        with suppress(NotReady):
            self._submit(self._close()).result()

    async def _close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _attached(engine: Engine) -> AttachedEngine | None:
    from hotspare.cluster.attached import AttachedEngine  # which brings the client, and LMDB

    return engine if isinstance(engine, AttachedEngine) else None


_replicators: weakref.WeakSet[SessionReplicator] = weakref.WeakSet()
_left_behind: list[object] = []
"""In a forked child: the parent's event loops. To close one, or collect it, would disturb the parent."""


def _after_fork_in_child() -> None:
    for replicator in list(_replicators):
        replicator._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
