"""A load that never pauses, and remembers what was promised to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count
from time import monotonic

from hotspare.cli.demo.ledger import Ledger
from hotspare.cli.load import session_data
from hotspare.errors import OutcomeUnknown, Unavailable
from hotspare.replicator import AsyncSessionReplicator

__all__ = ["TTL_MS", "Writers", "store_many"]

TTL_MS = 3_600_000
SIZE_BYTES = 200

WRITERS = 8
PAUSE_SECONDS = 0.004
"""Between two writes of one writer: the load is to be steady, not to fill the machine."""

CHUNK = 250
"""Sessions of the first load in one call: so often the progress bar moves."""


class Writers:
    """Each writes on as soon as its last write was acknowledged; now and then a change or a delete."""

    def __init__(
        self,
        connect: Callable[[Sequence[str]], AsyncSessionReplicator],
        addresses: Sequence[str],
        ledger: Ledger,
        note: Callable[[], None],
    ) -> None:
        self.refused = 0
        self.unknown = 0
        self._connect = connect
        self._addresses = addresses
        self._ledger = ledger
        self._note = note
        self._stack = AsyncExitStack()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._first: tuple[float, asyncio.Future[float]] | None = None

    async def start(self) -> None:
        for number in range(WRITERS):
            # Each begins with another node, and has the others to go on to.
            turn = number % len(self._addresses)
            homes = [*self._addresses[turn:], *self._addresses[:turn]]
            replicator = await self._stack.enter_async_context(self._connect(homes))
            self._tasks.append(asyncio.create_task(self._write(replicator, number)))

    async def stop(self) -> None:
        """Lets the writes under way end. Raises what ended a writer."""
        self._stopping.set()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await self._stack.aclose()

    def next_acknowledged(self) -> asyncio.Future[float]:
        """When the first write that begins from now on was acknowledged (by `time.monotonic`)."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._first = (monotonic(), future)
        return future

    async def _write(self, replicator: AsyncSessionReplicator, writer: int) -> None:
        for number in count():
            if self._stopping.is_set():
                return
            # Of ten writes, seven are new sessions, two change the one before, and one deletes it.
            kind = number % 10
            target = number - 1 if kind in (3, 6, 9) else number
            await self._write_one(replicator, f"writer-{writer}-{target}", number, is_delete=kind == 9)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _write_one(
        self, replicator: AsyncSessionReplicator, id: str, number: int, *, is_delete: bool
    ) -> None:
        began = monotonic()
        data = None if is_delete else session_data(number, SIZE_BYTES)
        self._ledger.begin(id, data)
        try:
            if data is None:
                await replicator.delete_session(id)
            else:
                await replicator.store_session(id, data, TTL_MS)
        except Unavailable:
            self._ledger.withdraw(id)
            self.refused += 1
        except OutcomeUnknown:
            self.unknown += 1
        else:
            self._ledger.acknowledge(id)
            self._note()
            self._note_first(began)

    def _note_first(self, began: float) -> None:
        if self._first is not None and began >= self._first[0] and not self._first[1].done():
            self._first[1].set_result(monotonic())


async def store_many(
    replicator: AsyncSessionReplicator, ledger: Ledger, total: int, advance: Callable[[int], None]
) -> None:
    """The first load: `total` sessions, pipelined."""
    for first in range(0, total, CHUNK):
        sessions = [
            (f"session-{number}", session_data(number, SIZE_BYTES), TTL_MS)
            for number in range(first, min(first + CHUNK, total))
        ]
        for id, data, _ in sessions:
            ledger.begin(id, data)
        await replicator.store_sessions(sessions)
        for id, _, _ in sessions:
            ledger.acknowledge(id)
        advance(len(sessions))
