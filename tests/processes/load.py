"""Clients that read and write while something is done to the cluster, and the judgement of what they saw.

* *Contenders* do everything that can be done, on a few sessions, so that they get in each other's way.
  Whatever they are told must be explained by one order (`read="primary"` included).
* *Keepers* store, change and delete sessions that nobody else touches: nothing acknowledged may be missing in
  any copy at the end, nothing deleted may be back.
* *Watchers* stay with one node each, whatever happens to it, and read its own copy: it never goes back in
  time, shows every write that was acknowledged through this node, and is never older than it promises.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_right
from collections.abc import Awaitable, Coroutine
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, Self

from hotspare import AsyncSessionReplicator
from hotspare.errors import (
    HotspareError,
    NotReady,
    OutcomeUnknown,
    StaleRead,
    Unavailable,
    VersionConflict,
)
from hotspare.record import decode_record
from tests.processes.daemons import Daemon, Daemons, client, eventually
from tests.processes.ledger import Condition, Data, History, Ledger, Operation, Verb, Verdict

CONTENDED = (("a1", "a2", "a3"), ("b1", "b2"))
"""Sessions that are rotated into each other are judged together."""
_runs = itertools.count(1)
VERBS = (Verb.PUT, Verb.DELETE, Verb.TOUCH, Verb.PATCH, Verb.ROTATE, Verb.READ)
WEIGHTS = (30, 10, 8, 18, 6, 28)
FIELDS = ("cart", "name", "theme")
TTLS_MS = (1500, 600_000, 600_000, 600_000)
TTL_MS = 600_000
PAUSE_SECONDS = 0.02
"""At most, between two operations of a client: the machine has other things to do as well."""
MAX_STALENESS_SECONDS = 1.0
CLOCK_SECONDS = 0.05
"""What times of this process and of a node may differ by, and their clocks' granularity."""


class Load:
    """Runs as long as its context; `verify` afterwards says whether everything was as promised."""

    def __init__(self, daemons: Daemons, timeouts_ms: tuple[int, ...] = (5000, 300, 5000, 1000)) -> None:
        """`timeouts_ms`: how long writes may take; each client takes the next one."""
        self.daemons = daemons
        self._prefix = f"run{next(_runs)}-"
        """Of the ids: several loads, one after the other, do not mix."""
        self._contended = [tuple(f"{self._prefix}{id}" for id in group) for group in CONTENDED]
        self.history = History()
        self.ledger = Ledger()
        self.errors: list[str] = []
        """What writers and linearizable readers were told instead of a result, watchers apart."""
        self.violations: list[str] = []
        self._timeouts_ms = itertools.cycle(timeouts_ms)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._acknowledged_at: list[float] = []
        """When writes that were acknowledged had begun."""
        self._watched = Watched(len(list(daemons)), self.violations)

    # --- life -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        addresses = self.daemons.addresses
        for position, _ in enumerate(addresses):
            homes = addresses[position:] + addresses[:position]
            self._spawn(self._contend(f"contender{position}", homes, Random(position)))
        for number, work in enumerate((self._keep, self._keep, self._keep_many)):
            homes = addresses[number:] + addresses[:number]
            self._spawn(work(f"{self._prefix}keeper{number}", homes, Random(number)))
        for position, daemon in enumerate(self.daemons):
            self._spawn(self._watch(position, daemon))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if error is None:
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    # --- for the test -----------------------------------------------------------------------------------

    async def progress(self, writes: int = 60) -> None:
        """Returns when so many writes that begin from now on have been acknowledged."""
        now = time.monotonic()

        async def has_moved() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return sum(1 for begun in reversed(self._acknowledged_at) if begun >= now) >= writes

        await eventually(has_moved, f"{writes} more acknowledged writes (errors: {self.errors[-3:]})")

    async def verify(self) -> None:
        """All faults are over: the nodes come to agree, and everything is as clients were told."""
        problems = await self.problems()
        assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:20])

    async def problems(self) -> list[str]:
        """What contradicts the promises, in words. Raises AssertionError if the nodes never agree."""
        await self._read_the_contended()
        await self.daemons.settled()
        problems = list(self.violations)
        for daemon in self.daemons.running:
            found = await eventually(partial(everything, daemon), f"all that {daemon.name} holds")
            contradictions = self.ledger.contradictions(found, f"{self._prefix}keeper")
            problems += [f"on {daemon.name}: {problem}" for problem in contradictions]
        if not self.ledger.acknowledged:
            problems.append("nothing was ever acknowledged")
        # In a thread, because the network between the nodes may be in this process.
        return problems + await asyncio.to_thread(self.history.problems)

    async def _read_the_contended(self) -> None:
        async with client(self.daemons.addresses) as sessions:
            for id in itertools.chain(*self._contended):
                operation = self.history.begin("verifier", Verb.READ, id, 0)
                await eventually(partial(self._read, sessions, operation), "a last read")

    # --- contenders -------------------------------------------------------------------------------------

    async def _contend(self, name: str, homes: list[str], random: Random) -> None:
        timeout_ms = next(self._timeouts_ms)
        versions: list[int] = []
        async with client(homes, timeout_ms) as sessions:
            while not self._stopping:
                group = random.choice(self._contended)
                (verb,) = random.choices(VERBS, WEIGHTS)
                operation = self.history.begin(name, verb, random.choice(group), timeout_ms)
                if verb is Verb.READ:
                    await self._try_to_read(sessions, operation)
                else:
                    _draw_arguments(operation, random, group, versions)
                    await self._contended_write(sessions, operation)
                if operation.version:
                    versions.append(operation.version)
                await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))

    async def _contended_write(self, sessions: AsyncSessionReplicator, operation: Operation) -> None:
        begun = time.monotonic()
        try:
            result = await _perform(sessions, operation)
        except VersionConflict as exc:
            verdict = Verdict.TAKEN if operation.verb is Verb.ROTATE else Verdict.CONFLICT
            self.history.end(operation, verdict, exc.current or 0)
        except Unavailable as exc:
            self.history.end(operation, Verdict.REFUSED)
            self._failed(operation, exc)
        except OutcomeUnknown as exc:
            self.history.end_unknown(operation)
            self._failed(operation, exc)
        else:
            verdict = Verdict.DONE if result else Verdict.ABSENT
            self.history.end(operation, verdict, 0 if isinstance(result, bool) else result or 0)
            self._acknowledged_at.append(begun)

    async def _try_to_read(self, sessions: AsyncSessionReplicator, operation: Operation) -> None:
        try:
            await self._read(sessions, operation)
        except (Unavailable, NotReady) as exc:
            self._failed(operation, exc)

    async def _read(self, sessions: AsyncSessionReplicator, operation: Operation) -> bool:
        session = await sessions.get_session_record(operation.id, read="primary")
        if session is None:
            self.history.end(operation, Verdict.ABSENT)
        else:
            operation.data = frozenset(session.data.items())
            operation.expires_at_ms = session.expires_at_ms
            self.history.end(operation, Verdict.DONE, session.version)
        return True

    def _failed(self, operation: object, error: HotspareError) -> None:
        self.errors.append(f"{operation}: {error}")

    # --- keepers ----------------------------------------------------------------------------------------

    async def _keep(self, name: str, homes: list[str], random: Random) -> None:
        """One session after the other; each is stored, some are changed, some deleted."""
        async with client(homes, next(self._timeouts_ms)) as sessions:
            for number in itertools.count():
                if self._stopping:
                    return
                id, data = f"{name}-{number}", {"n": number}
                if not await self._kept(id, data, sessions.store_session(id, data, TTL_MS)):
                    continue
                if number % 3 == 1:
                    changes = {"changed": True}
                    await self._kept(id, data | changes, sessions.update_session(id, changes))
                elif number % 3 == 2:
                    await self._kept(id, None, sessions.delete_session(id))
                await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))

    async def _kept(self, id: str, data: Data | None, write: Awaitable[Any]) -> bool:
        """Whether the write was acknowledged. If not, the session is left alone from now on."""
        begun = time.monotonic()
        try:
            result = await write
        except Unavailable as exc:
            self.ledger.refused(id)
            self._failed(id, exc)
        except OutcomeUnknown as exc:
            self.ledger.unknown(id, data)
            self._failed(id, exc)
        else:
            if not result:
                self.violations.append(f"{id} had been stored, and was not there to be changed or deleted")
            self.ledger.done(id, data)
            self._acknowledged_at.append(begun)
            return True
        return False

    async def _keep_many(self, name: str, homes: list[str], random: Random) -> None:
        """Several slices at once, over the bulk verb."""
        async with client(homes, next(self._timeouts_ms)) as sessions:
            for number in itertools.count():
                if self._stopping:
                    return
                crowd = {f"{name}-{number}-{each}": {"n": number, "each": each} for each in range(120)}
                begun = time.monotonic()
                try:
                    await sessions.store_sessions((id, data, TTL_MS) for id, data in crowd.items())
                except (Unavailable, OutcomeUnknown) as exc:  # of one slice; others may have succeeded
                    for id, data in crowd.items():
                        self.ledger.unknown(id, data)
                    self._failed(f"{name}-{number}", exc)
                else:
                    for id, data in crowd.items():
                        self.ledger.done(id, data)
                    self._acknowledged_at.append(begun)
                await asyncio.sleep(random.uniform(0, 10 * PAUSE_SECONDS))

    # --- watchers ---------------------------------------------------------------------------------------

    async def _watch(self, position: int, daemon: Daemon) -> None:
        async with daemon.client(timeout_ms=1500) as sessions, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._count_up(position, sessions))
            tasks.create_task(self._read_here(position, sessions))

    async def _count_up(self, position: int, sessions: AsyncSessionReplicator) -> None:
        for number in itertools.count(1):
            if self._stopping:
                return
            try:
                await sessions.store_session(f"{self._prefix}watched{position}", {"n": number}, TTL_MS)
            except (Unavailable, OutcomeUnknown):
                continue
            self._watched.acknowledged(position, number)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _read_here(self, position: int, sessions: AsyncSessionReplicator) -> None:
        for of in itertools.cycle(range(self._watched.count)):
            if self._stopping:
                return
            least = self._watched.least(position, of)
            try:
                data = await sessions.get_session(f"{self._prefix}watched{of}")
            except (StaleRead, NotReady, Unavailable):
                pass
            else:
                self._watched.saw(position, of, data["n"] if data else 0, least)
            await asyncio.sleep(PAUSE_SECONDS / 4)


class Watched:
    """The counters that watchers write and read: one for each node, by position."""

    def __init__(self, count: int, violations: list[str]) -> None:
        self.count = count
        self._violations = violations
        self._acknowledged: list[list[int]] = [[0] for _ in range(count)]
        self._acknowledged_at: list[list[float]] = [[0.0] for _ in range(count)]
        self._seen: dict[tuple[int, int], int] = {}

    def acknowledged(self, position: int, number: int) -> None:
        self._acknowledged[position].append(number)
        self._acknowledged_at[position].append(time.monotonic())

    def least(self, position: int, of: int) -> int:
        """What a local read that begins now on the node at `position` must show of the counter `of`."""
        known_by = time.monotonic() - 1.02 * MAX_STALENESS_SECONDS - CLOCK_SECONDS
        known = self._acknowledged[of][bisect_right(self._acknowledged_at[of], known_by) - 1]
        told = self._acknowledged[of][-1] if position == of else 0
        return max(known, told, self._seen.get((position, of), 0))

    def saw(self, position: int, of: int, number: int, least: int) -> None:
        if number < least:
            self._violations.append(
                f"node {position} showed {number} of counter {of}, and had to show {least} at least"
            )
        self._seen[position, of] = max(number, self._seen.get((position, of), 0))


def _draw_arguments(
    operation: Operation, random: Random, group: tuple[str, ...], versions: list[int]
) -> None:
    verb, number = operation.verb, operation.number
    if verb in (Verb.PUT, Verb.TOUCH):
        operation.ttl_ms = random.choice(TTLS_MS)
    if verb is Verb.PUT:
        operation.data = frozenset({("by", f"put{number}"), (random.choice(FIELDS), f"p{number}")})
    elif verb is Verb.PATCH:
        operation.data = frozenset({(random.choice(FIELDS), f"u{number}")})
        if random.random() < 0.3:
            operation.remove = frozenset({random.choice(FIELDS)}) - {name for name, _ in operation.data}
    elif verb is Verb.ROTATE:
        operation.new_id = random.choice([id for id in group if id != operation.id])
    if verb is Verb.PUT and random.random() < 0.3:
        operation.condition = random.choice([Condition.ABSENT, Condition.PRESENT])
    elif verb in (Verb.PUT, Verb.PATCH, Verb.DELETE) and versions and random.random() < 0.3:
        operation.condition, operation.if_version = Condition.VERSION, random.choice(versions[-4:])


async def _perform(sessions: AsyncSessionReplicator, operation: Operation) -> int | bool | None:
    id, data = operation.id, dict(operation.data)
    if_version = operation.if_version or None
    match operation.verb:
        case Verb.PUT:
            if_absent = operation.condition is Condition.ABSENT
            if_present = operation.condition is Condition.PRESENT
            return await sessions.store_session(
                id, data, operation.ttl_ms, if_version=if_version, if_absent=if_absent, if_present=if_present
            )
        case Verb.DELETE:
            return await sessions.delete_session(id, if_version=if_version)
        case Verb.TOUCH:
            return await sessions.touch_session(id, operation.ttl_ms)
        case Verb.PATCH:
            return await sessions.update_session(id, data, remove=operation.remove, if_version=if_version)
        case Verb.ROTATE:
            return await sessions.rotate_session(id, operation.new_id)
    raise AssertionError(f"{operation.verb} is no write")


async def everything(daemon: Daemon) -> dict[str, Data]:
    """All sessions of the node's own copy."""
    found: dict[str, Data] = {}
    async with daemon.client() as sessions:
        after = b""
        while page := await sessions.engine.call("records", 5000, after=after, limit=2000):
            found |= {id.decode(): decode_record(record) for id, record in page}
            after = page[-1][0]
    return found
