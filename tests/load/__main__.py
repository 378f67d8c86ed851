"""Loads four daemons and checks what they hold: `make load`, or `python -m tests.load --sessions 100000`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hotspare import AsyncSessionReplicator
from hotspare.record import decode_record, record_expires_at_ms
from tests.processes.browsers import Browsers, Troubles
from tests.processes.daemons import Daemon, Daemons, client, eventually
from tests.processes.proxy import Network

TTL_MS = 3_600_000
WRITERS = 64
PAGE = 5_000
GOOD = "as it should be"


@dataclass
class Finding:
    """What one case of the load test showed."""

    case: str
    operations: int
    seconds: float
    verdict: str

    @property
    def is_good(self) -> bool:
        return self.verdict == GOOD


class Stage:
    """A running cluster, and what should be in it."""

    def __init__(self, daemons: Daemons, sessions: AsyncSessionReplicator, count: int) -> None:
        self.daemons = daemons
        self.sessions = sessions
        self.count = count
        self.expected: dict[str, int] = {}
        """id -> the number that its data must hold."""
        self.operations = 0

    async def contradictions(self) -> list[str]:
        """How the copies differ from what should be in them; empty when all is well."""
        found = []
        for daemon in self.daemons.running:
            await self._complete(daemon)
            found += [f"{daemon.name}: {what}" async for what in self._differences(daemon)]
        return found

    async def _complete(self, daemon: Daemon) -> None:
        async def is_complete() -> bool:
            async with daemon.client() as copy:
                return await copy.session_count() == len(self.expected)

        await eventually(is_complete, f"{daemon.name} has {len(self.expected)} sessions")

    async def _differences(self, daemon: Daemon) -> AsyncIterator[str]:
        left = dict(self.expected)
        async with daemon.client() as copy:
            after = b""
            while rows := await copy.engine.call("records", 10_000, after=after, limit=PAGE):
                for id, record in rows:
                    if record_expires_at_ms(record) <= time.time_ns() // 1_000_000:
                        continue  # not pruned yet, and not to be seen any more
                    if left.pop(id.decode(), None) != decode_record(record)["n"]:
                        yield "a session differs"
                after = rows[-1][0]
        if left:
            yield f"{len(left)} sessions are missing"


async def bulk(stage: Stage) -> None:
    """All sessions with store_sessions."""
    stored = await stage.sessions.store_sessions(
        (f"bulk-{n}", {"n": n, "user": "alice"}, TTL_MS) for n in range(stage.count)
    )
    stage.operations = stored
    stage.expected = {f"bulk-{n}": n for n in range(stage.count)}


async def one_by_one(stage: Stage) -> None:
    """A tenth of them again, by writers who wait for each."""
    numbers = iter(range(stage.count // 10))

    async def write() -> None:
        for n in numbers:
            await stage.sessions.store_session(f"bulk-{n}", {"n": -n, "user": "bob"}, TTL_MS)
            stage.expected[f"bulk-{n}"] = -n
            stage.operations += 1

    await asyncio.gather(*(write() for _ in range(WRITERS)))


async def mixed(stage: Stage) -> None:
    """Updates, touches, rotations and deletes side by side."""
    numbers = iter(range(stage.count // 10))

    async def work() -> None:
        for n in numbers:
            await _mix(stage, n)
            stage.operations += 1

    await asyncio.gather(*(work() for _ in range(WRITERS)))


async def _mix(stage: Stage, n: int) -> None:
    id, sessions = f"bulk-{n}", stage.sessions
    match n % 4:
        case 0:
            await sessions.update_session(id, {"n": 7 * n})
            stage.expected[id] = 7 * n
        case 1:
            assert await sessions.touch_session(id, TTL_MS)
        case 2:
            assert await sessions.rotate_session(id, f"rotated-{n}")
            stage.expected[f"rotated-{n}"] = stage.expected.pop(id)
        case _:
            assert await sessions.delete_session(id)
            del stage.expected[id]


async def failover(stage: Stage) -> None:
    """Writers go on while the primary is killed and comes back."""
    primary = (await stage.sessions.get_replication_status())["primary"]
    victim = next(daemon for daemon in stage.daemons if daemon.name == primary)
    numbers = iter(range(stage.count // 10))

    async def write() -> None:
        for n in numbers:
            await stage.sessions.store_session(f"failover-{n}", {"n": n}, TTL_MS)
            stage.expected[f"failover-{n}"] = n
            stage.operations += 1
            if stage.operations == stage.count // 20:
                victim.kill()

    await asyncio.gather(*(write() for _ in range(WRITERS)))
    victim.start()


async def expiry(stage: Stage) -> None:
    """All of them expire together."""
    soon = ((id, {"n": n}, 3_000) for id, n in stage.expected.items())
    stage.operations = await stage.sessions.store_sessions(soon)
    stage.expected = {}


Case = Callable[[Stage], Awaitable[None]]
CASES: list[Case] = [bulk, one_by_one, mixed, failover, expiry]


@asynccontextmanager
async def running_cluster(count: int) -> AsyncIterator[Stage]:
    with Daemons() as daemons:
        daemons.add_cluster(4)
        daemons.start()
        for daemon in daemons:
            await daemon.ready()
        async with client(daemons.addresses, timeout_ms=20_000) as sessions:
            yield Stage(daemons, sessions, count)


async def run(count: int, console: Console) -> list[Finding]:
    """All cases, one after the other, on one cluster."""
    findings = []
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with running_cluster(count) as stage:
        with Progress(*bar, console=console) as progress:
            task = progress.add_task("", total=len(CASES))
            for case in CASES:
                progress.update(task, description=_title(case))
                findings.append(await _run_case(case, stage))
                progress.advance(task)
    return findings


async def browse(reads: int) -> Finding:
    """Reads on all nodes right after writes for all copies, while nodes die, hang and are cut off."""
    began = time.perf_counter()
    with Daemons() as daemons:
        async with Network() as network:
            await network.add_cluster(daemons, 3)
            daemons.start()
            await daemons.settled()
            async with Browsers(daemons) as browsers:
                troubles = Troubles(daemons, network, browsers, Random(reads))
                while browsers.reads < reads and not browsers.violations:
                    await troubles.each(reads // 1000)
    verdict = "; ".join(browsers.violations[:3]) or GOOD
    title = "Reads in any place after writes for all copies, while nodes die and hang"
    return Finding(title, browsers.reads, time.perf_counter() - began, verdict)


def _title(case: Case) -> str:
    return (case.__doc__ or "").rstrip(".")


async def _run_case(case: Case, stage: Stage) -> Finding:
    stage.operations = 0
    began = time.perf_counter()
    await case(stage)
    seconds = time.perf_counter() - began
    contradictions = await stage.contradictions()
    verdict = "; ".join(sorted(set(contradictions))[:3]) or GOOD
    return Finding(_title(case), stage.operations, seconds, verdict)


def show(findings: list[Finding], console: Console) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for name in ("case", "operations", "seconds", "a second", "what they hold is"):
        table.add_column(name, justify="left" if name.startswith(("case", "what")) else "right")
    for each in findings:
        rate = f"{each.operations / each.seconds:,.0f}"
        row = (each.case, f"{each.operations:,}", f"{each.seconds:.2f}", rate, each.verdict)
        table.add_row(*row, style="" if each.is_good else "red")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument(
        "--reads", type=int, default=100_000, help="after writes for all copies (default: 100000)"
    )
    options = parser.parse_args()
    console = Console()
    findings = asyncio.run(run(options.sessions, console))
    findings.append(asyncio.run(browse(options.reads)))
    show(findings, console)
    return 0 if all(each.is_good for each in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
