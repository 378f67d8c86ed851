"""`python -m benchmarks`: measure the rows, print the table.

Exits 0 when everything asked for was measured, 1 when a row failed. Falling short of a floor is a result.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.redis_peer import HOW_TO_INSTALL, PeerFailed, RedisPeer, find_server
from benchmarks.report import as_json, table
from benchmarks.rows import PROMISES, ROWS
from benchmarks.runner import FULL, QUICK, Measurement, Row, Run, measure

ROWS_BY_NAME = {row.name: row for row in ROWS}
NAME_WIDTH = 2 + max(map(len, ROWS_BY_NAME))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure hotspare beside what it replaces, on this machine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {row.name:{NAME_WIDTH}}{row.title}" for row in ROWS),
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs, not how fast")
    parser.add_argument(
        "--only", metavar="NAME,...", type=_rows, default=ROWS, help="these rows and no others"
    )
    parser.add_argument(
        "--peers-only", action="store_true", help="what the floors mean here: the peers by themselves"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples to FILE")
    return parser.parse_args(arguments)


def _rows(names: str) -> tuple[Row, ...]:
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in ROWS_BY_NAME]:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {', '.join(ROWS_BY_NAME)}")
    return tuple(ROWS_BY_NAME[name] for name in wanted)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    console = Console()
    try:
        with ExitStack() as resources:
            redis = _start_redis(resources, console)
            run = Run(QUICK if options.quick else FULL, redis)
            measurements = _measure_all(options, run, console)
            version = None if redis is None else redis.version
    except PeerFailed as failure:
        console.print(f"[red]{failure}[/red]")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; nothing left running")
        return 130
    _print(measurements, console)
    if options.quick:
        console.print(
            "[yellow]Toy sizes: these numbers say that the benchmarks run, and nothing else.[/yellow]"
        )
    if options.json is not None:
        written = as_json(measurements, quick=options.quick, redis=version)
        options.json.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if any(measurement.failure for measurement in measurements) else 0


def _start_redis(resources: ExitStack, console: Console) -> RedisPeer | None:
    server = find_server()
    if server is None:
        console.print(f"[yellow]{HOW_TO_INSTALL}[/yellow]")
        return None
    return resources.enter_context(RedisPeer(server))


def _measure_all(options: argparse.Namespace, run: Run, console: Console) -> list[Measurement]:
    with _progress(console) as progress:
        return [_measure_one(row, run, progress, peers_only=options.peers_only) for row in options.only]


def _measure_one(row: Row, run: Run, progress: Progress, *, peers_only: bool) -> Measurement:
    task = progress.add_task(f"{row.name}: setting up", total=None)

    def advance(done: int, total: int, side: str) -> None:
        progress.update(task, description=f"{row.name}: {side}", completed=done, total=total)

    measurement = measure(row, run, peers_only=peers_only, progress=advance)
    outcome = "[red]failed[/red]" if measurement.failure else "done"
    progress.update(task, description=f"{row.name}: {outcome}", completed=1, total=1)
    return measurement


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _print(measurements: list[Measurement], console: Console) -> None:
    console.print(table(measurements))
    for measurement in measurements:
        console.print(f"[bold]{measurement.row.name}[/bold]: {measurement.row.title}", highlight=False)
        if measurement.failure:
            console.print(f"    failed: {measurement.failure}", style="red", markup=False, highlight=False)
    for side, promise in PROMISES.items():
        console.print(f"[bold]{side}[/bold]: {promise}", highlight=False)


def _stop(*_: object) -> None:
    """As Python does, but not with its own handler: asyncio would take that one's place and cancel what runs,
    and a client of Redis may swallow that."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _stop)
    # A bench that is told to end takes its servers with it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
