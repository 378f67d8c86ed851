"""A node in a process of its own: answers questions, one line of JSON each, until its input ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import hotspare


class Answers:
    """The questions, as methods."""

    def __init__(self, node: Any, started: float) -> None:
        self._node = node
        self._started = started

    def status(self, _: None) -> Any:
        return self._node.get_replication_status()

    def session_count(self, _: None) -> int:
        return int(self._node.session_count())

    def caught_up_after_seconds(self, sessions: int) -> float:
        """Seconds from the start of the node to being ready with that many sessions."""
        while not self.status(None)["ready"] or self.session_count(None) < sessions:
            time.sleep(0.002)
        return time.perf_counter() - self._started

    def private_bytes(self, _: None) -> int:
        """Resident memory that belongs to this process alone."""
        gc.collect()
        resident_pages, shared_pages = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        return (resident_pages - shared_pages) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    # The bench decides when we end; SIGTERM is the way out of a question that gets no answer.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    started = time.perf_counter()
    with hotspare.SessionReplicator(**json.loads(sys.argv[1])) as node:
        answers = Answers(node, started)
        for line in sys.stdin:
            question, argument = json.loads(line)
            print(json.dumps(getattr(answers, question)(argument)), flush=True)


if __name__ == "__main__":
    main()
