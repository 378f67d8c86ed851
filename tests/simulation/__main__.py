"""Runs seeds: `python -m tests.simulation --seeds 100000`, or one to look at: `--seed 4711 --trace`."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.world import Outcome, World, run_seed

console = Console(stderr=True, highlight=False)


def run_seeds(seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_seed, seeds, chunksize=8)


def run_many(first: int, count: int, jobs: int) -> int:
    """The number of seeds that failed."""
    failed: list[int] = []
    began = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("simulating", total=count, failed=0)
        for outcome in run_seeds(range(first, first + count), jobs):
            if outcome.failure:
                failed.append(outcome.seed)
                headline = outcome.failure.splitlines()[0]
                progress.console.print(f"seed {outcome.seed}: {headline}", markup=False)
            progress.update(task, advance=1, failed=len(failed))
    seconds = time.monotonic() - began
    print(f"{count} seeds from {first} on in {seconds:.0f} s, {len(failed)} failed")
    if failed:
        print(f"failing seeds: {', '.join(map(str, sorted(failed)))}")
        print(f"one of them again, with a trace: python -m tests.simulation --seed {min(failed)} --trace")
    return len(failed)


def run_one(seed: int, trace: bool, without: frozenset[int]) -> int:
    """1 if it failed."""
    world = World(seed, print if trace else None)
    for number, fault in enumerate(world.scenario.faults):
        print(f"fault {number}: {'(left out) ' if number in without else ''}{fault.at_ms} ms: {fault.what}")
    world.scenario.faults = [
        fault for number, fault in enumerate(world.scenario.faults) if number not in without
    ]
    try:
        world.run()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return 1
    print(
        f"seed {seed}: nothing wrong in {world.scheduler.events} events, {len(world.operations)} operations"
    )
    return 0


def fails(seed: int, without: frozenset[int]) -> bool:
    world = World(seed)
    world.scenario.faults = [
        fault for number, fault in enumerate(world.scenario.faults) if number not in without
    ]
    try:
        world.run()
    except Exception:
        return True
    return False


def minimise(seed: int) -> int:
    """Leaves out one fault after the other as long as the run still fails, and shows what is left."""
    if not fails(seed, frozenset()):
        print(f"seed {seed} does not fail")
        return 0
    without: frozenset[int] = frozenset()
    for number in range(len(World(seed).scenario.faults)):
        if fails(seed, without | {number}):
            without |= {number}
    numbers = ",".join(map(str, sorted(without)))
    print(
        f"the same, later: --seed {seed} --trace --without {numbers}" if numbers else "all faults are needed"
    )
    return run_one(seed, True, without)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--trace", action="store_true", help="with --seed: tell everything that happens")
    parser.add_argument("--minimise", action="store_true", help="with --seed: find the faults that it needs")
    parser.add_argument("--without", default="", help="with --seed: leave out these faults, by number")
    options = parser.parse_args(arguments)
    if options.seed is None:
        return int(run_many(options.start, options.seeds, options.jobs) > 0)
    if options.minimise:
        return minimise(options.seed)
    without = frozenset(int(number) for number in options.without.split(",") if number)
    return run_one(options.seed, options.trace, without)


if __name__ == "__main__":
    sys.exit(main())
