"""Cluster time: one clock for all copies, which no broken machine clock can take far astray.

Whether a session has expired is decided by stamps that the leader writes into the log, so the leader's
idea of the time rules. It must never go back (a session that was expired would be alive again), and a new
leader whose own clock is a day ahead must not log everybody out. So a new leader starts from the greatest
of the last stamp in its log, the lower median of the voters' clocks and the highest estimate among its
votes, and from there on follows its monotonic clock alone. Everybody else takes the last value heard from
the leader and adds the time that has passed since on its own monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from hotspare.raft.quorum import lower_median

UNKNOWN_OFFSET_MS = -(1 << 62)
"""The offset of a clock that nobody has told the time: far in the past."""


class ClusterClock:
    """Cluster time as one node knows it. Readings never decrease."""

    __slots__ = ("_floor_ms", "_offset_ms")

    def __init__(self, floor_ms: int = 0) -> None:
        self._floor_ms = floor_ms
        """No reading was later than this when the offset changed last; no reading is earlier."""
        self._offset_ms: int | None = None
        """Cluster time minus the local monotonic clock; None until somebody told us the time."""

    @property
    def offset_ms(self) -> int:
        """Cluster time minus the local monotonic clock; UNKNOWN_OFFSET_MS while nobody has told the time."""
        return self._offset_ms if self._offset_ms is not None else UNKNOWN_OFFSET_MS

    @property
    def known(self) -> bool:
        return self._offset_ms is not None

    def read_ms(self, boot_ms: int) -> int:
        """Cluster time now; stands still at the last known stamp while nobody has told us the time.
        Any thread."""
        if self._offset_ms is None:
            return self._floor_ms
        cluster_ms = boot_ms + self._offset_ms
        return cluster_ms if cluster_ms > self._floor_ms else self._floor_ms

    def heard(self, cluster_ms: int, boot_ms: int) -> None:
        """The leader of our term said that it is `cluster_ms`."""
        self._floor_ms = self.read_ms(boot_ms)
        self._offset_ms = cluster_ms - boot_ms

    def at_least(self, stamp_ms: int) -> None:
        """A stamp was applied: it is that late already."""
        if stamp_ms > self._floor_ms:
            self._floor_ms = stamp_ms

    def lead(
        self, boot_ms: int, last_stamp_ms: int, voters_wall_ms: Sequence[int], estimates_ms: Sequence[int]
    ) -> None:
        """Starts the clock of a new leader. The sequences hold what came with the votes, our own included."""
        start_ms = max(
            self.read_ms(boot_ms), last_stamp_ms, lower_median(voters_wall_ms), max(estimates_ms, default=0)
        )
        self._floor_ms = start_ms
        self._offset_ms = start_ms - boot_ms
