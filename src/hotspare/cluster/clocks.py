"""The two clocks of the machine, in whole milliseconds."""

from __future__ import annotations

import time

from hotspare.replica import Now

BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps, where the system has such a clock: a copy must notice that it slept."""


def boot_ms() -> int:
    return time.clock_gettime_ns(BOOT_CLOCK) // 1_000_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def now() -> Now:
    return Now(boot_ms(), wall_ms())
