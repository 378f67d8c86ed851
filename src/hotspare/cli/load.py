"""`hotspare load`: stores sessions as fast as asked for, and says how long each call took."""

from __future__ import annotations

import asyncio
import math
import secrets
from argparse import Namespace
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

from hotspare.cli.exits import Exit
from hotspare.cli.output import console, print_json, say, thousands
from hotspare.replicator import AsyncSessionReplicator

__all__ = ["Plan", "Report", "percentile", "run", "session_data", "show"]

LINE_SECONDS = 2.0
"""Between two lines of progress where nobody can see a bar."""

FRAME_BYTES = 16
"""What a session's data takes beside its filling."""


class Plan(NamedTuple):
    sessions: int
    concurrency: int
    """Calls at a time."""
    batch: int
    """Sessions in one call."""
    size_bytes: int
    """Of one session's data, about."""
    rate: int | None
    """Sessions a second; None for as many as it takes."""
    ttl_ms: int
    prefix: str


class Report(NamedTuple):
    plan: Plan
    seconds: float
    latencies_ms: Sequence[float]
    """Of each call, in order of size."""

    @property
    def per_second(self) -> float:
        return self.plan.sessions / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            "sessions": self.plan.sessions,
            "calls": len(self.latencies_ms),
            "seconds": round(self.seconds, 3),
            "sessions_per_second": round(self.per_second, 1),
            "latency_p50_ms": round(percentile(self.latencies_ms, 50), 3),
            "latency_p99_ms": round(percentile(self.latencies_ms, 99), 3),
            "latency_max_ms": round(self.latencies_ms[-1], 3),
            "id_prefix": self.plan.prefix,
        }


async def show(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    plan = Plan(
        sessions=options.count,
        concurrency=options.concurrency,
        batch=options.batch,
        size_bytes=options.size_bytes,
        rate=options.rate,
        ttl_ms=options.ttl_ms,
        prefix=f"load-{secrets.token_hex(4)}-",
    )
    stored = 0
    with _progress(plan.sessions) as advance:

        def note(count: int) -> None:
            nonlocal stored
            stored += count
            advance(count)

        try:
            report = await run(replicator, plan, note)
        except BaseException:
            say(f"hotspare: stopped after {thousands(stored)} acknowledged sessions, {plan.prefix}…")
            raise
    if options.json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    return Exit.DONE


async def run(replicator: AsyncSessionReplicator, plan: Plan, advance: Callable[[int], None]) -> Report:
    """Stores everything. Raises the first error of a call; the others are given up then."""
    latencies_ms = array("d")
    ranges = _ranges(plan)
    started = perf_counter()

    async def worker() -> None:
        for first, count in ranges:
            due = started + first / plan.rate if plan.rate else perf_counter()
            await asyncio.sleep(max(0.0, due - perf_counter()))
            await _store(replicator, plan, first, count)
            # From when it was due: a call that had to wait for a slow one before it was slow as well.
            latencies_ms.append((perf_counter() - due) * 1000)
            advance(count)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(plan.concurrency, -(-plan.sessions // plan.batch))):
                workers.create_task(worker())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return Report(plan, perf_counter() - started, sorted(latencies_ms))


def _ranges(plan: Plan) -> Iterator[tuple[int, int]]:
    """The first session of each call, and how many it stores."""
    for first in range(0, plan.sessions, plan.batch):
        yield first, min(plan.batch, plan.sessions - first)


async def _store(replicator: AsyncSessionReplicator, plan: Plan, first: int, count: int) -> None:
    sessions = [
        (f"{plan.prefix}{number}", session_data(number, plan.size_bytes), plan.ttl_ms)
        for number in range(first, first + count)
    ]
    if count == 1:
        await replicator.store_session(*sessions[0])
    else:
        await replicator.store_sessions(sessions)


def session_data(number: int, size_bytes: int) -> dict[str, Any]:
    """What a web application might keep, of about that size when encoded."""
    return {"user": number, "note": "x" * max(0, size_bytes - FRAME_BYTES)}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def _print_report(report: Report) -> None:
    from rich.table import Table

    found = report.to_dict()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("stored", thousands(found["sessions"]), f"sessions, {found['id_prefix']}…")
    table.add_row("took", f"{report.seconds:.2f}", "s")
    table.add_row("throughput", thousands(report.per_second), "acknowledged sessions/s")
    calls = "per call" if report.plan.batch == 1 else f"per call of {report.plan.batch} sessions"
    for name, key in (("p50", "latency_p50_ms"), ("p99", "latency_p99_ms"), ("max", "latency_max_ms")):
        table.add_row(f"latency {name}", f"{found[key]:.2f}", f"ms {calls}")
    console().print(table)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how far it is: a bar on a terminal, a line now and then elsewhere."""
    out = console(stderr=True)
    if out.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("storing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=out, transient=True) as progress:
            task = progress.add_task("", total=total)
            yield lambda count: progress.advance(task, count)
    else:
        yield _Lines(total).advance


class _Lines:
    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._said = perf_counter()

    def advance(self, count: int) -> None:
        self._done += count
        if perf_counter() - self._said >= LINE_SECONDS:
            self._said = perf_counter()
            say(f"{thousands(self._done)} of {thousands(self._total)} sessions stored")
