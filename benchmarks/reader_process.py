"""A reader in a process of its own: attached to a daemon, or a client of Redis; one line of JSON a question.

Its arguments: `attached ADDRESS` or `redis PORT`. A question is [ids, when to begin, when to end], both in
seconds of the monotonic clock, which all processes share; the answer is the median of its reads, in seconds.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import redis

import hotspare

LOOKED_AT = 50
"""Sessions that are looked for beforehand: that they are there, and to warm up."""


def median_time(get: Callable[[str], Any], ids: list[str], begin: float, end: float) -> float:
    clock = time.monotonic
    for id in ids[:LOOKED_AT]:
        if get(id) is None:
            raise SystemExit(f"there is no {id}, which was stored")
    time.sleep(max(0.0, begin - clock()))
    times = []
    for id in cycle(ids):
        started = clock()
        get(id)
        ended = clock()
        times.append(ended - started)
        if ended > end:
            return statistics.median(times)
    raise SystemExit("there was nothing to read")


@contextmanager
def reading(kind: str, where: str) -> Iterator[Callable[[str], Any]]:
    if kind == "attached":
        with hotspare.SessionReplicator(attach=where) as sessions:
            yield sessions.get_session
    else:
        with redis.Redis(port=int(where), single_connection_client=True) as client:
            yield client.get


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with reading(*sys.argv[1:]) as get:
        for line in sys.stdin:
            print(json.dumps(median_time(get, *json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
