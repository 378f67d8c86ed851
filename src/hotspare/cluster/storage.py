"""Who performs a node's group commits: the event loop itself, or a thread that waits for the disk.

A store in memory is faster than a thread is woken: there the loop performs the work at once. On a disk each
transaction ends with a wait of a millisecond or of many, so a thread runs whole transactions, one after the
other, and the loop goes on: it sends what the node has to say, answers heartbeats, and hands more work over.
All that gathers while one transaction runs is one transaction next: so the slower the disk, the more writes
share a wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final, Protocol

from hotspare.protocol.commit import Work, perform

MAX_TOGETHER: Final = 64
"""Pieces of work in one transaction: each appends and applies a few MB at the most, and mostly little."""


class Storage(Protocol):
    def submit(self, work: Work) -> Sequence[Work]:
        """Takes the next piece of work; returns what is done now, in order. Raises what `perform` does."""

    def done(self) -> Sequence[Work]:
        """What has been done since it was last asked, in order. Raises what `perform` did; nothing is
        performed after that."""

    async def stop(self) -> None:
        """Returns when nothing is under way any more: all that was submitted is done, or has failed."""


class AtOnce:
    def submit(self, work: Work) -> Sequence[Work]:
        work.perform()
        return (work,)

    def done(self) -> Sequence[Work]:
        return ()

    async def stop(self) -> None: ...


class OnThread:
    """Calls `wake` on its thread when there is something to be asked for with `done`."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: SimpleQueue[Work | None] = SimpleQueue()
        self._done: deque[Work] = deque()
        self._error: BaseException | None = None
        self._worker = Thread(target=self._run, name="hotspare-storage", daemon=True)
        self._worker.start()

    def submit(self, work: Work) -> Sequence[Work]:
        self._waiting.put(work)
        return ()

    def done(self) -> Sequence[Work]:
        if self._error is not None:
            raise self._error
        return [self._done.popleft() for _ in range(len(self._done))]

    async def stop(self) -> None:
        self._waiting.put(None)
        await asyncio.to_thread(self._worker.join)

    def _run(self) -> None:
        try:
            while works := self._next():
                perform(works)
                self._done += works
                self._wake()
        except BaseException as exc:
            self._error = exc
            self._wake()

    def _next(self) -> list[Work]:
        """What waits, as far as it may be one transaction; waits for it. Nothing: it is over."""
        works: list[Work] = []
        work = self._waiting.get()
        with suppress(Empty):
            while work is not None:
                works.append(work)
                if work.ends_transaction or len(works) == MAX_TOGETHER:
                    return works
                work = self._waiting.get_nowait()
            if works:
                self._waiting.put(None)  # the end comes after them
        return works
