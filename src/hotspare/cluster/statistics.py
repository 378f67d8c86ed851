"""What a node counts as it goes: lag, failovers, what became of writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import NamedTuple

from hotspare.raft.messages import ServerId
from hotspare.raft.node import Node

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
        self.total_replicated = 0
        """Writes that came through this node, from clients too, and were answered."""
        self._unacknowledged: dict[ServerId, deque[tuple[int, float]]] = {}
        """Of a leader: (last index, when) of what was proposed, for each follower that has not got it."""
        self._samples: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)
        """(when, lag in ms)."""
        self._last_index = 0
        self.last_leader = ""
        """The last primary that this node has known."""
        self._leaderless_since_ms = 0

    def note_proposed(self, node: Node) -> None:
        """To be called by a leader as something leaves."""
        last_index = node.log.last_index
        if last_index <= self._last_index:
            return
        self._last_index = last_index
        if self._unacknowledged.keys() != node.progress.keys():
            self._follow(node.progress)
        proposal = (last_index, monotonic())
        for unacknowledged in self._unacknowledged.values():
            unacknowledged.append(proposal)

    def _follow(self, followers: Iterable[ServerId]) -> None:
        self._unacknowledged = {
            id: self._unacknowledged.get(id) or deque(maxlen=MAX_UNACKNOWLEDGED) for id in followers
        }

    def note_acknowledged(self, follower: ServerId, match: int) -> None:
        """To be called by a leader as it hears from a follower that holds the log up to `match`."""
        unacknowledged = self._unacknowledged.get(follower)
        if not unacknowledged or unacknowledged[0][0] > match:
            return
        now = monotonic()
        while unacknowledged and unacknowledged[0][0] <= match:
            _, proposed = unacknowledged.popleft()
            self._samples.append((now, (now - proposed) * 1000))

    def stop_leading(self) -> None:
        self._unacknowledged.clear()
        self._last_index = 0

    def note_leader(self, leader: str, now_ms: int) -> None:
        """The primary's name as this node sees it; empty while there is none."""
        if not leader:
            self._leaderless_since_ms = self._leaderless_since_ms or now_ms
            return
        if self.last_leader and leader != self.last_leader:
            self.failovers += 1
            self.recovery_time_ms = now_ms - self._leaderless_since_ms if self._leaderless_since_ms else 0
        self.last_leader, self._leaderless_since_ms = leader, 0

    def lag_of(self, follower: ServerId) -> float:
        """How long the oldest entry that it has not acknowledged has been on its way; 0 when it has all."""
        unacknowledged = self._unacknowledged.get(follower)
        return round((monotonic() - unacknowledged[0][1]) * 1000, 3) if unacknowledged else 0.0

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
