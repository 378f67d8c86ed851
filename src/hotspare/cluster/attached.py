"""Attached processes: workers that read the copy of a daemon on their host, and write through it.

Reading is a look into shared memory: the lease page says until when the copy counts as fresh, the
environment holds the records, and the clock is looked at last, as in `hotspare.cluster.reading`. It takes no
event loop, no lock and no message, and goes on while the daemon is down, until the lease ends. Everything
else goes to the daemon over a socket: each event loop that writes has a connection of its own, made when it
writes first.

**What a process has seen it does not see undone.** An answer to a write comes after the daemon has applied
it, so the copy shows it: that copy and no other. Hence, when the connection is a new one, the daemon is asked
where its copy lies before the write returns: a daemon that came back without its state has another one, and
the lease of the former may still last. And when another copy takes the place of one that was read here, of
the same cluster, it counts only once it has applied as much of the log as the one before had.

**Forks.** A child shares nothing with its parent but the page, which it only reads. It opens the environment
anew at its first read (see `hotspare.store.reader`), and a connection of its own at its first write.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hotspare.cluster import clocks
from hotspare.cluster.clocks import BOOT_CLOCK
from hotspare.cluster.lease import LeaseView
from hotspare.cluster.reading import TIME_UNKNOWN
from hotspare.cluster.remote import RemoteEngine, RemoteFeed
from hotspare.cluster.security import Security
from hotspare.commands import Command
from hotspare.engine import Read
from hotspare.errors import (
    ConfigError,
    HotspareError,
    NotReady,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    StaleRead,
    StoreError,
    Unavailable,
)
from hotspare.events import Event
from hotspare.record import unpack_expiry, verify_record
from hotspare.settings import Settings
from hotspare.store import journal
from hotspare.store.lmdb import current_boot_id, is_durable
from hotspare.store.reader import LmdbReader, open_reader
from hotspare.table import COUNTERS_KEY, applied_index_in

T = TypeVar("T")

LOOK_PAUSE_MS = 20
"""Between two looks whether another copy lies where this one did."""
ASK_PAUSE_MS = 500
"""Between two questions to the daemon where its copy lies."""
CONNECT_PAUSE_MS = 20
"""Between two attempts to connect to a daemon that is not there."""
STOP_TIMEOUT_MS = 2000
"""How long the connections of other event loops may take to end."""

NOT_ATTACHED = "it does not run: call start(), or use it in a with statement"
NOT_LEARNED = "it has not learned yet what is committed"

_clock_gettime = time.clock_gettime


class Place(NamedTuple):
    """Where a daemon says that its copy lies."""

    directory: Path
    environment: str
    """Its id: nowhere but on the daemon's host is there one with this id."""
    max_staleness_ms: int


class Shown(NamedTuple):
    """What may have been read here: the log of this cluster, up to this entry."""

    cluster_id: str = ""
    applied_index: int = 0


class _View(NamedTuple):
    """One copy: the page, and the environment that goes with it."""

    page: LeaseView
    reader: LmdbReader
    is_durable: bool
    """What a disk has kept may be damaged, and is verified."""

    def shown(self) -> Shown:
        identity, counters = self.reader.get_rows(node=journal.IDENTITY_KEY, table=COUNTERS_KEY)
        cluster_id = journal.identity_in(identity).cluster_id if identity is not None else ""
        return Shown(cluster_id, applied_index_in(counters))


class AttachedCopy:
    """A daemon's copy as this process reads it. Any thread, and on after a fork."""

    def __init__(self, max_clock_skew_ms: int) -> None:
        self._max_skew_ms = max_clock_skew_ms
        self._view: _View | None = None
        self._absent = NOT_ATTACHED
        """Why there is no view."""
        self._directory: Path | None = None
        """Where to look for a view; None until the daemon is asked."""
        self._shown = Shown()
        self._cluster_ms = 0
        """Cluster time, at least, as it was seen there."""
        self._max_staleness_ms = 0
        self._looked_ms = 0
        self._lock = threading.Lock()
        """Of exchanging the view."""

    def attach(self, place: Place) -> None:
        """Raises Refused if there is no such copy here, NotReady if it lacks what was read here before."""
        with self._lock:
            if not self.shows(place):
                self._max_staleness_ms = place.max_staleness_ms
                self._exchange(place.directory, place.environment)

    def detach(self, why: str = NOT_ATTACHED) -> None:
        """From now on there is nothing to read, and `why`, until it is attached anew."""
        with self._lock:
            self._directory = None
            self._leave(why)

    def shows(self, place: Place) -> bool:
        """Whether what is read here is what lies there."""
        view = self._view
        return view is not None and view.page.id == place.environment

    # --- reading ----------------------------------------------------------------------------------------

    def read(self, id: bytes, /) -> bytes | None:
        """The record of a live session. Raises NotReady or StaleRead."""
        view = self._view
        if view is None:
            return self._elsewhere(None, NotReady(self._absent)).read(id)
        page, reader, is_durable = view
        fresh_until_ms, offset_ms, floor_ms = page.limits()
        try:
            record = reader.get(id)
        except StoreError as exc:
            return self._elsewhere(view, _unreadable(exc)).read(id)
        now_ms = _clock_gettime(BOOT_CLOCK) * 1000.0
        if now_ms > fresh_until_ms:
            return self._elsewhere(view, self._not_fresh(fresh_until_ms, now_ms)).read(id)
        if record is None:
            return None
        if is_durable:
            _verify(id, record)
        (expires_at_ms,) = unpack_expiry(record)
        if expires_at_ms <= floor_ms or expires_at_ms <= now_ms + offset_ms:
            return None
        return record

    def read_any_age(self, id: bytes) -> bytes | None:
        """The same, however old the copy is. Raises NotReady where there is none."""
        view = self._view
        if view is None:
            return self._elsewhere(None, NotReady(self._absent)).read_any_age(id)
        limits = view.page.limits()
        try:
            record = view.reader.get(id)
            is_empty = record is None and view.shown().applied_index == 0
        except StoreError as exc:
            return self._elsewhere(view, _unreadable(exc)).read_any_age(id)
        if is_empty:  # a copy of nothing knows of no session that it is absent
            raise NotReady(NOT_LEARNED)
        if record is not None and view.is_durable:
            _verify(id, record)
        if record is None:
            return None
        is_alive = limits.is_alive(unpack_expiry(record)[0], clocks.now(), self._max_skew_ms)
        if is_alive is None:
            raise NotReady(TIME_UNKNOWN)
        return record if is_alive else None

    def _not_fresh(self, fresh_until_ms: int, now_ms: float) -> HotspareError:
        if fresh_until_ms < 0:
            return NotReady(NOT_LEARNED)
        staleness_ms = self._max_staleness_ms + ceil(now_ms - fresh_until_ms)
        return StaleRead(staleness_ms, self._max_staleness_ms)

    # --- from one copy to the next ----------------------------------------------------------------------

    def _elsewhere(self, view: _View | None, problem: HotspareError) -> AttachedCopy:
        """Itself, once another view has taken the place of that one. Otherwise raises the problem with it."""
        if self._is_exchanged(view):
            return self
        raise problem

    def _is_exchanged(self, view: _View | None) -> bool:
        """Looks whether the daemon has come back with a new environment. Raises NotReady."""
        with self._lock:
            now_ms = clocks.boot_ms()
            directory = self._directory
            if self._view is view and directory is not None and now_ms - self._looked_ms >= LOOK_PAUSE_MS:
                self._looked_ms = now_ms
                if view is None or not view.page.is_in_place:
                    with suppress(Refused):  # there is none, or it is not complete yet
                        self._exchange(directory, None)
            return self._view is not view

    def _exchange(self, directory: Path, environment_id: str | None) -> None:
        """Raises Refused where there is no other one, or NotReady; then there is none at all."""
        view = _open_view(directory, environment_id)
        self._directory = directory
        self._leave("its node's copy was replaced")
        try:
            shown = view.shown()
            is_other_cluster = shown.cluster_id not in ("", self._shown.cluster_id)
            if not is_other_cluster and shown.applied_index < self._shown.applied_index:
                raise NotReady("its node's new copy still lacks what this process may have read before")
        except BaseException as exc:
            view.reader.close()
            if isinstance(exc, StoreError):
                raise _unreadable(exc) from exc
            raise
        if not is_other_cluster:
            view.page.begin_at(self._cluster_ms)
        self._shown = shown
        self._view = view

    def _leave(self, why: str) -> None:
        self._absent = why
        view, self._view = self._view, None
        if view is not None:
            with suppress(StoreError):  # what was read there since it was opened, nobody can say any more
                self._shown = view.shown()
            self._cluster_ms = view.page.limits().cluster_ms(clocks.boot_ms())
            view.reader.close()

    def forked(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()


def _open_view(directory: Path, environment_id: str | None) -> _View:
    """Raises Refused."""
    try:
        page = LeaseView(directory, current_boot_id())
        if environment_id not in (None, page.id):
            raise ValueError("it is that of another daemon")
        durable = is_durable(directory)
        reader = open_reader(directory)
    except PermissionError as exc:
        reason = f"this user may not read {directory}: run as the daemon's user, or see its attach_group"
        raise Refused("attach", reason) from exc
    except (OSError, ValueError) as exc:
        reason = (
            f"{directory} holds no copy of that daemon here ({exc}): attach to the daemon of this very host, "
            "and let containers share the directory"
        )
        raise Refused("attach", reason) from exc
    except StoreError as exc:
        raise Refused("attach", f"the copy in {directory} cannot be opened: {exc.reason}") from exc
    if page.id == reader.id:
        return _View(page, reader, durable)
    reader.close()  # the one was opened before a replacement, and the other after it
    raise Refused("attach", f"the copy in {directory} is being replaced")


def _verify(id: bytes, record: bytes) -> None:
    try:
        verify_record(id, record)
    except StoreError as exc:
        raise _unreadable(exc) from exc


def _unreadable(exc: StoreError) -> NotReady:
    return NotReady(f"its node's copy cannot be read ({exc.reason})")


@dataclass(slots=True, eq=False)
class _Line:
    """The connection of one event loop to the daemon."""

    remote: RemoteEngine
    lock: asyncio.Lock
    """Of starting."""
    checked: int = 0
    """The connection (a number) after which the copy was last known to be that of the daemon."""


class AttachedFeed:
    """The events of the daemon. It listens as soon as this event loop is connected to it."""

    def __init__(self, opening: Coroutine[Any, Any, RemoteFeed]) -> None:
        self._opening = asyncio.get_running_loop().create_task(opening)
        self._is_closed = False

    async def take(self) -> list[Event]:
        if self._is_closed:
            return []
        feed = await asyncio.shield(self._opening)
        return await feed.take()

    def close(self) -> None:
        self._is_closed = True
        self._opening.add_done_callback(_close_feed)


def _close_feed(opening: asyncio.Task[RemoteFeed]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class AttachedEngine:
    """An engine that reads the copy of a daemon on this host. Any thread, any number of event loops."""

    has_copy = True

    def __init__(self, settings: Settings) -> None:
        if settings.attach is None:
            raise ConfigError("attach", "it is not set", "the address of a daemon on this host")
        self._settings = settings
        self._address = settings.attach
        self._copy = AttachedCopy(settings.max_clock_skew_ms)
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}
        self._is_started = False
        self._is_asking = False
        """Whether a thread asks the daemon where its copy lies."""
        self._asked_ms = 0
        _engines.add(self)

    # --- life -------------------------------------------------------------------------------------------

    @property
    def is_started(self) -> bool:
        return self._is_started

    async def start(self) -> None:
        """Raises Unavailable if the daemon does not answer in time (it may be starting, too), Refused if its
        copy is not to be read here."""
        self._started(await self._locate(self._settings.replication_rpc_timeout_ms))

    def start_blocking(self) -> None:
        """The same without an event loop; also on the thread of a running one."""
        self._started(_in_a_thread(self._locate(self._settings.replication_rpc_timeout_ms)))

    def _started(self, place: Place) -> None:
        self._copy.attach(place)
        self._is_started = True

    async def stop(self) -> None:
        """Waits for the answers to writes that are under way, on all event loops that still run."""
        self.stop_reading()
        lines, self._lines = self._lines, {}
        own = lines.pop(asyncio.get_running_loop(), None)
        others = [
            asyncio.wrap_future(asyncio.run_coroutine_threadsafe(line.remote.stop(), loop))
            for loop, line in lines.items()
            if loop.is_running()
        ]
        if own is not None:
            await own.remote.stop()
        if others:
            await asyncio.wait(others, timeout=STOP_TIMEOUT_MS / 1000)

    def stop_reading(self) -> None:
        self._is_started = False
        self._copy.detach()

    def forked(self) -> None:
        """In the child: what belongs to event loops of the parent is left alone, and never let go of."""
        self._copy.forked()
        _left_behind.append(self._lines)
        self._lines = {}
        self._is_asking = False

    # --- reading ----------------------------------------------------------------------------------------

    def read_local(self, id: bytes, /) -> bytes | None:
        try:
            return self._copy.read(id)
        except (NotReady, StaleRead):
            self._ask_again()
            raise

    async def fetch(self, id: bytes, how: Read, timeout_ms: int) -> bytes | None:
        if how == "local":
            return self.read_local(id)
        if how == "stale":
            return self._copy.read_any_age(id)
        line = await self._line(timeout_ms)
        return await self._checked(line, line.remote.fetch(id, how, timeout_ms))

    # --- everything else: over the socket ---------------------------------------------------------------

    async def write(self, commands: list[Command], timeout_ms: int) -> list[int]:
        line = await self._line(timeout_ms)
        return await self._checked(line, line.remote.write(commands, timeout_ms))

    async def barrier(self, timeout_ms: int) -> None:
        try:
            line = await self._line(timeout_ms)
        except (NotReady, Unavailable) as exc:
            raise OutcomeUnknown(exc.reason, is_applied=True) from None
        await self._checked(line, line.remote.barrier(timeout_ms))

    async def call(self, verb: str, timeout_ms: int, **arguments: Any) -> Any:
        line = await self._line(timeout_ms)
        return await self._checked(line, line.remote.call(verb, timeout_ms, **arguments))

    def watch(self, max_waiting: int) -> AttachedFeed:
        if not self._is_started:
            raise NotReady(NOT_ATTACHED)
        return AttachedFeed(self._feed(max_waiting))

    async def _feed(self, max_waiting: int) -> RemoteFeed:
        line = await self._line(self._settings.replication_rpc_timeout_ms)
        return line.remote.watch(max_waiting)

    async def _line(self, timeout_ms: int) -> _Line:
        """That of the running event loop, connected. Raises NotReady or Unavailable."""
        if not self._is_started:
            raise NotReady(NOT_ATTACHED)
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None or line.remote.is_stopped:
            for other in [each for each in list(self._lines) if each.is_closed()]:
                self._lines.pop(other, None)
            line = self._lines[loop] = _Line(self._remote(), asyncio.Lock())
        if not line.remote.connections:
            async with line.lock:
                await self._connect(line.remote, timeout_ms)
        return line

    async def _connect(self, remote: RemoteEngine, timeout_ms: int) -> None:
        """The daemon may be on its way back."""
        give_up_ms = clocks.boot_ms() + timeout_ms
        while not remote.connections:
            try:
                await remote.start()
            except Unavailable:
                if clocks.boot_ms() + CONNECT_PAUSE_MS >= give_up_ms:
                    raise
                await asyncio.sleep(CONNECT_PAUSE_MS / 1000)

    async def _checked(self, line: _Line, answer: Awaitable[T]) -> T:
        """The answer, once this process reads the copy of the daemon that gave it."""
        result = await answer
        connection = line.remote.connections
        if line.checked != connection:
            await self._check_copy(line.remote)
            line.checked = connection
        return result

    async def _check_copy(self, remote: RemoteEngine) -> None:
        try:
            self._copy.attach(await _place(remote, self._settings.replication_rpc_timeout_ms))
        except NotReady:
            pass  # so will the readers be told
        except HotspareError as exc:
            self._copy.detach(f"its node, with which it has spoken, does not say where its copy lies ({exc})")

    # --- where the copy lies ----------------------------------------------------------------------------

    def _remote(self) -> RemoteEngine:
        settings = self._settings
        return RemoteEngine(
            [self._address],
            timeout_ms=settings.replication_rpc_timeout_ms,
            batch_size=settings.batch_size,
            batch_timeout_ms=settings.batch_timeout_ms,
            max_clock_skew_ms=settings.max_clock_skew_ms,
            security=Security.load(settings),
        )

    async def _locate(self, timeout_ms: int) -> Place:
        remote = self._remote()
        try:
            await self._connect(remote, timeout_ms)
            return await _place(remote, timeout_ms)
        finally:
            await remote.stop()

    def _ask_again(self) -> None:
        """The daemon may have come back with its copy in another place. Then it has to be asked where, but
        not by a reader, who would have to wait."""
        now_ms = clocks.boot_ms()
        if self._is_asking or not self._is_started or now_ms - self._asked_ms < ASK_PAUSE_MS:
            return
        self._is_asking, self._asked_ms = True, now_ms
        threading.Thread(target=self._ask, name="hotspare-attach", daemon=True).start()

    def _ask(self) -> None:
        try:
            place = asyncio.run(self._locate(ASK_PAUSE_MS))
            if self._is_started:
                self._copy.attach(place)
        except HotspareError:
            pass  # the next reader who needs it asks again
        finally:
            self._is_asking = False


async def _place(remote: RemoteEngine, timeout_ms: int) -> Place:
    answer = await remote.call("attach", timeout_ms)
    try:
        return Place(Path(answer["directory"]), str(answer["environment"]), int(answer["max_staleness_ms"]))
    except (LookupError, TypeError, ValueError) as exc:
        raise ProtocolError(f"its answer to attach does not fit ({exc})", "where its copy lies") from exc


def _in_a_thread(main: Coroutine[Any, Any, T]) -> T:
    """On an event loop of its own: this thread may have one that runs, or that somebody still needs."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(asyncio.run(main))
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=run, name="hotspare-attach", daemon=True).start()
    return outcome.result()


_engines: weakref.WeakSet[AttachedEngine] = weakref.WeakSet()
_left_behind: list[object] = []
"""In a forked child: what belongs to the parent's event loops, and must not be closed here."""


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
