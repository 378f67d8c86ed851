"""Events on their way to those who listen: one bounded ring for each, so that nobody slows anybody down.

Whoever is too slow loses the oldest events and is told so in their place. A feed that nobody holds any more
is gone: `Feeds` keeps weak references only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from weakref import WeakSet

from hotspare.events import Event, Missed

MAX_TAKEN = 256
"""Events that are handed over at once."""
MAX_WAITING = 100_000
"""The largest ring there is."""


class Feed:
    """The events of one consumer. Belongs to one event loop."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._ring: deque[Event] = deque()
        self._missed: int | None = 0
        """Since the last event that was taken; None: nobody knows how many."""
        self._has_some = asyncio.Event()
        self.is_closed = False

    async def take(self) -> list[Event]:
        """The next events, at least one; none when it is over. Cancelled, it has taken none."""
        while not self._has_some.is_set():  # another one who waited may have taken everything
            await self._has_some.wait()
        taken: list[Event] = []
        if self._missed != 0:
            taken.append(Missed(self._missed))
            self._missed = 0
        while self._ring and len(taken) < MAX_TAKEN:
            taken.append(self._ring.popleft())
        if not self._ring and not self.is_closed:
            self._has_some.clear()
        return taken

    def close(self) -> None:
        """What waits can still be taken, and nothing is added."""
        self.is_closed = True
        self._has_some.set()

    def add(self, events: Sequence[Event]) -> None:
        self._ring.extend(events)
        while len(self._ring) > self._max_waiting:
            self._lose(self._ring.popleft())
        self._has_some.set()

    def _lose(self, event: Event) -> None:
        lost = event.count if isinstance(event, Missed) else 1
        self._missed = None if self._missed is None or lost is None else self._missed + lost


class Feeds:
    """All feeds of a node."""

    def __init__(self) -> None:
        self._feeds: WeakSet[Feed] = WeakSet()

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return len(self._feeds) > 0

    def open(self, max_waiting: int) -> Feed:
        feed = Feed(max(1, min(max_waiting, MAX_WAITING)))
        self._feeds.add(feed)
        return feed

    def publish(self, events: Sequence[Event]) -> None:
        for feed in list(self._feeds):
            if feed.is_closed:
                self._feeds.discard(feed)
            else:
                feed.add(events)

    def close(self) -> None:
        for feed in self._feeds:
            feed.close()
