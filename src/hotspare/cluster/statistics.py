"""What a node counts as it goes: lag, failovers, what became of writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from hotspare.replica import Replica

WINDOW_SECONDS = 10.0
"""Lag is told of so many last seconds."""
MAX_SAMPLES = 20_000
MAX_UNACKNOWLEDGED = 10_000
"""Groups of entries whose copies are still timed; past it (a follower is far behind) the oldest are not."""


class Lag(NamedTuple):
    """In milliseconds, from the moment an entry was proposed until a follower said that it holds it."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class Statistics:
    """Of one node, since it started."""

    def __init__(self) -> None:
        self.failovers = 0
        """How often the primary changed while this node watched."""
        self.recovery_time_ms = 0
        """How long the last of them left the cluster without a primary."""
        self.failed_replications = 0
        """Writes of this process that ended as Unavailable or OutcomeUnknown."""
        self.total_replicated = 0
        """Writes that came through this node, from clients too, and were answered."""
        self._proposed: deque[tuple[int, float]] = deque(maxlen=MAX_UNACKNOWLEDGED)
        """(last index, when) of what this leader has proposed."""
        self._acknowledged: dict[str, int] = {}
        """Follower -> up to which index its copies were timed."""
        self._samples: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)
        """(when, lag in ms)."""
        self._last_index = 0
        self._last_leader = ""
        self._leaderless_since_ms = 0

    def note_proposed(self, replica: Replica) -> None:
        """To be called as new entries leave."""
        node = replica.node
        if node is not None and node.is_leader and node.log.last_index > self._last_index:
            self._last_index = node.log.last_index
            self._proposed.append((self._last_index, monotonic()))

    def note_acknowledged(self, replica: Replica) -> None:
        """To be called after messages came in."""
        node = replica.node
        if node is None or not node.is_leader:
            if self._proposed:
                self._proposed.clear()
                self._acknowledged.clear()
            return
        if not self._proposed:
            return
        now = monotonic()
        slowest = self._last_index
        for follower, progress in node.progress.items():
            self._time(follower, progress.match, now)
            if progress.active:
                slowest = min(slowest, progress.match)
        while self._proposed and self._proposed[0][0] <= slowest:
            self._proposed.popleft()

    def _time(self, follower: str, match: int, now: float) -> None:
        timed = self._acknowledged.get(follower, 0)
        if match <= timed:
            return
        self._acknowledged[follower] = match
        for index, proposed in self._proposed:
            if index > match:
                break
            if index > timed:
                self._samples.append((now, (now - proposed) * 1000))

    def note_leader(self, leader: str, now_ms: int) -> None:
        """The primary's name as this node sees it; empty while there is none."""
        if not leader:
            self._leaderless_since_ms = self._leaderless_since_ms or now_ms
            return
        if self._last_leader and leader != self._last_leader:
            self.failovers += 1
            self.recovery_time_ms = now_ms - self._leaderless_since_ms if self._leaderless_since_ms else 0
        self._last_leader, self._leaderless_since_ms = leader, 0

    def lag_of(self, follower: str) -> float:
        """How long the oldest entry that it has not acknowledged has been on its way; 0 when it has all."""
        timed = self._acknowledged.get(follower, 0)
        oldest = next((proposed for index, proposed in self._proposed if index > timed), None)
        return round((monotonic() - oldest) * 1000, 3) if oldest is not None else 0.0

    def lag(self) -> Lag:
        horizon = monotonic() - WINDOW_SECONDS
        while self._samples and self._samples[0][0] < horizon:
            self._samples.popleft()
        samples = sorted(lag for _, lag in self._samples)
        if not samples:
            return Lag(0.0, 0.0, 0.0)
        return Lag(_quantile(samples, 0.5), _quantile(samples, 0.99), samples[-1])


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]
