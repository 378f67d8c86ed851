"""Browsers behind a load balancer: each writes for all copies on some node, and reads on others at once: by
asking the node, and in the memory of its host, where an attached worker also reads what a dead node has left.

Nobody else touches a browser's session, so what it reads must be exactly what it wrote last, or an error:
never what was before, and never "no such session" for a session that is there. That holds whatever is done to
the nodes meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Any, Self

from hotspare import AsyncSessionReplicator
from hotspare.errors import HotspareError, OutcomeUnknown, Unavailable
from tests.processes.daemons import Daemon, Daemons, client, eventually
from tests.processes.proxy import Network

TTL_MS = 600_000
WRITE_TIMEOUT_MS = 8_000
"""A failover, and then a lease."""
READ_TIMEOUT_MS = 200
REST_SECONDS = 0.1
"""For so long a node that did not answer is left alone by the one whom it did not answer."""
READS_A_WRITE = 2


class Browsers:
    """They go on as long as the context lasts."""

    def __init__(self, daemons: Daemons, count: int = 16) -> None:
        self._daemons = list(daemons)
        self._count = count
        self._tasks: list[asyncio.Task[None]] = []
        self._workers = [AsyncSessionReplicator(attach=daemon.address) for daemon in daemons]
        self._stopping = False
        self.reads = 0
        """Those that were answered right after a write."""
        self.refused = 0
        self.unknown = 0
        """Writes that were not confirmed."""
        self.violations: list[str] = []

    async def __aenter__(self) -> Self:
        for worker in self._workers:
            await worker.start()
        self._tasks = [asyncio.ensure_future(self._browse(number)) for number in range(self._count)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            await worker.stop()
        if error is None:
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def progress(self, reads: int) -> None:
        """Returns when so many more reads were answered."""
        target = self.reads + reads

        async def is_there() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return self.reads >= target

        await eventually(is_there, f"{reads} more reads that are answered")

    async def _browse(self, number: int) -> None:
        random, id = Random(number), f"browser{number}"
        addresses = [daemon.address for daemon in self._daemons]
        start = number % len(addresses)
        async with AsyncExitStack() as connections:
            connect = connections.enter_async_context
            writer = await connect(client(addresses[start:] + addresses[:start], WRITE_TIMEOUT_MS))
            readers = [
                _Reader(daemon, await connect(client([daemon.address], READ_TIMEOUT_MS)))
                for daemon in self._daemons
            ]
            n = 0
            while not self._stopping:
                n += 1
                try:
                    expected = await _write(writer, id, n, random)
                except (OutcomeUnknown, Unavailable):
                    self.unknown += 1
                    continue  # the next one will tell
                for daemon, worker in zip(self._daemons, self._workers, strict=True):
                    await self._read(f"the memory of {daemon.name}", worker, id, expected)
                for reader in random.sample(readers, READS_A_WRITE):
                    await self._ask(reader, id, expected)

    async def _ask(self, reader: _Reader, id: str, expected: dict[str, Any] | None) -> None:
        if time.monotonic() < reader.rests_until:
            return
        if not await self._read(reader.daemon.name, reader.sessions, id, expected):
            reader.rests_until = time.monotonic() + REST_SECONDS

    async def _read(
        self, where: str, sessions: AsyncSessionReplicator, id: str, expected: dict[str, Any] | None
    ) -> bool:
        """Whether it was answered."""
        try:
            found = await sessions.get_session(id)
        except HotspareError:
            self.refused += 1
            return False
        self.reads += 1
        if found != expected:
            self.violations.append(f"{where} showed {found} and not {expected} of {id}")
        return True


class _Reader:
    """Of one node, whatever happens to it."""

    def __init__(self, daemon: Daemon, sessions: AsyncSessionReplicator) -> None:
        self.daemon = daemon
        self.sessions = sessions
        self.rests_until = 0.0


async def _write(sessions: AsyncSessionReplicator, id: str, n: int, random: Random) -> dict[str, Any] | None:
    """What is to be read after it."""
    if random.random() < 0.2:
        await sessions.delete_session(id, ack="all")
        return None
    await sessions.store_session(id, {"n": n}, TTL_MS, ack="all")
    return {"n": n}


class Troubles:
    """What happens to nodes while there are browsers, to primaries and to secondaries."""

    def __init__(self, daemons: Daemons, network: Network, browsers: Browsers, random: Random) -> None:
        self._daemons = daemons
        self._network = network
        self._browsers = browsers
        self._random = random

    async def each(self, reads: int) -> None:
        """One after the other; so many reads are to be answered after each of them."""
        for trouble in (self._kill, self._pause, self._silence, self._cut_off, self._stop):
            for is_primary in (True, False):
                await self._strike(trouble, await self._victim(is_primary))
                await self._browsers.progress(reads)

    async def _victim(self, is_primary: bool) -> Daemon:
        if is_primary:
            return await self._daemons.primary()
        return self._random.choice(await self._daemons.secondaries())

    async def _strike(
        self, trouble: Callable[[Daemon], Awaitable[Callable[[], None]]], victim: Daemon
    ) -> None:
        """For less than a lease, or until the others go on without the victim, which is longer."""
        mend = await trouble(victim)
        if self._random.random() < 0.3:
            await asyncio.sleep(self._random.random())
        else:
            await self._browsers.progress(100)
        mend()
        await victim.ready()

    async def _kill(self, victim: Daemon) -> Callable[[], None]:
        victim.kill()
        return victim.start

    async def _stop(self, victim: Daemon) -> Callable[[], None]:
        """In good order."""
        await victim.stop()
        return victim.start

    async def _pause(self, victim: Daemon) -> Callable[[], None]:
        victim.pause()
        return victim.resume

    async def _silence(self, victim: Daemon) -> Callable[[], None]:
        """It is not heard, and may hear or not; nobody's connection breaks."""
        others = [daemon for daemon in self._daemons if daemon is not victim]
        self._network.hold([victim], others)
        if self._random.random() < 0.5:
            self._network.hold(others, [victim])
        return self._network.heal

    async def _cut_off(self, victim: Daemon) -> Callable[[], None]:
        self._network.cut([victim], [daemon for daemon in self._daemons if daemon is not victim])
        return self._network.heal
