"""Virtual time: everything that happens in a simulated run happens here, one event after the other.

A run is a function of its seed. Randomness comes from named streams that are derived from the seed, so that
drawing one number more in the network does not change which faults happen, and nothing may depend on the
order of sets or on hashes of strings, which differ between processes.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

Action = Callable[[], None]


class Timer:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("action", "at_ms")

    def __init__(self, at_ms: int, action: Action) -> None:
        self.at_ms = at_ms
        self.action: Action | None = action

    def cancel(self) -> None:
        self.action = None


class Scheduler:
    """Events in order of their time; those of the same millisecond in the order in which they were made."""

    def __init__(self, seed: int | str) -> None:
        self.seed = seed
        self.now_ms = 0
        self.events = 0
        self._made = 0
        self._agenda: list[tuple[int, int, Timer]] = []

    def stream(self, name: str) -> Random:
        """The randomness of one part of the simulation."""
        return Random(f"{self.seed}/{name}")

    def at(self, at_ms: int, action: Action) -> Timer:
        timer = Timer(max(at_ms, self.now_ms), action)
        self._made += 1
        heappush(self._agenda, (timer.at_ms, self._made, timer))
        return timer

    def after(self, delay_ms: int, action: Action) -> Timer:
        return self.at(self.now_ms + delay_ms, action)

    def run_until(self, end_ms: int) -> None:
        agenda = self._agenda
        while agenda and agenda[0][0] <= end_ms:
            at_ms, _, timer = heappop(agenda)
            if timer.action is None:
                continue
            self.now_ms = at_ms
            self.events += 1
            timer.action()
        self.now_ms = max(self.now_ms, end_ms)


class Trace:
    """What happened, line by line, for people. Off unless asked for: most runs are never looked at."""

    def __init__(self, scheduler: Scheduler, write: Callable[[str], None] | None = None) -> None:
        self._scheduler = scheduler
        self._write = write

    @property
    def on(self) -> bool:
        return self._write is not None

    def __call__(self, who: str, what: str) -> None:
        if self._write is not None:
            self._write(f"{self._scheduler.now_ms:>7} ms  {who:<8} {what}")
