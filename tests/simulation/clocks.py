"""The two clocks of a node, and how they go wrong.

The monotonic one counts from boot, goes on while a process is paused, and runs within 1 % of everybody else's
(that much is assumed by the design). The wall clock may do anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

EPOCH_MS = 1_800_000_000_000
"""Wall-clock time at the beginning of every run."""

BOOT_RATES = (0.995, 1.0, 1.0, 1.0, 1.005)


@dataclass(slots=True)
class NodeClock:
    boot_offset_ms: int = 0
    boot_rate: float = 1.0
    wall_offset_ms: int = 0
    wall_rate: float = 1.0

    @staticmethod
    def draw(random: Random) -> NodeClock:
        """A clock of a healthy node: started at any time, and a few milliseconds off."""
        return NodeClock(
            boot_offset_ms=random.randrange(10_000_000),
            boot_rate=random.choice(BOOT_RATES),
            wall_offset_ms=random.randrange(-20, 21),
        )

    def boot_ms(self, now_ms: int) -> int:
        return self.boot_offset_ms + int(now_ms * self.boot_rate)

    def wall_ms(self, now_ms: int) -> int:
        return EPOCH_MS + self.wall_offset_ms + int(now_ms * self.wall_rate)

    def when(self, boot_ms: int) -> int:
        """The first virtual millisecond at which `boot_ms()` shows this time."""
        estimate = int((boot_ms - self.boot_offset_ms) / self.boot_rate)
        while self.boot_ms(estimate) < boot_ms:
            estimate += 1
        return estimate

    def jump(self, by_ms: int) -> None:
        self.wall_offset_ms += by_ms

    def run_at(self, rate: float, now_ms: int) -> None:
        """From now on the wall clock runs at `rate`, without a jump."""
        self.wall_offset_ms += int(now_ms * self.wall_rate) - int(now_ms * rate)
        self.wall_rate = rate

    def repair(self) -> None:
        """What a time service does in the end."""
        self.wall_offset_ms, self.wall_rate = 0, 1.0
