"""Which core a process runs on.

With more processes than cores, the answer time of a single write depends most of all on where the system's
scheduler happens to put them: two followers that wait for one core while another is idle answer one after the
other. So the rows with one write at a time deal the processes out, theirs and ours alike: the one that
measures gets the first core, the others the next ones in turn, as if each of them had a host of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path


@contextmanager
def dealt_out(processes: list[int]) -> Iterator[None]:
    """This process and those, with all their threads; wherever they like again afterwards. Does nothing where
    the system does not let itself be told (macOS)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    everybody = [os.getpid(), *processes]
    try:
        for process, core in zip(everybody, cycle(sorted(allowed)), strict=False):
            _put(process, {core})
        yield
    finally:
        for process in everybody:
            _put(process, allowed)


def _put(process: int, cores: set[int]) -> None:
    with suppress(FileNotFoundError):
        for thread in Path("/proc", str(process), "task").iterdir():
            with suppress(ProcessLookupError):  # it ended this moment
                os.sched_setaffinity(int(thread.name), cores)
