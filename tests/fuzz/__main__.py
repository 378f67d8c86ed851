"""Many frames at every target: `python -m tests.fuzz --frames 1000000`, or at one: `--target peers`.

A failure names its seed. From the same seed the same frames come again.
"""

from __future__ import annotations

import argparse
import resource
import time
import traceback
from random import Random

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz.targets import TARGETS

FRAMES_PER_SEED = 1000
"""So that a failure can be seen again soon."""
MAX_GROWTH_MB = 400
"""Of the whole process, over all frames: what a frame makes a node keep must not add up."""

console = Console(stderr=True, highlight=False)


def run_seed(name: str, seed: int, frames: int) -> str:
    """The traceback of the first failure; empty when there is none."""
    rng, target = Random(f"{name} {seed}"), TARGETS[name]()
    try:
        for _ in range(frames):
            target.feed(rng)
    except Exception:
        return traceback.format_exc()
    finally:
        target.close()
    return ""


def run(names: list[str], first: int, frames: int) -> int:
    """How many seeds failed."""
    failed, began, before_mb = 0, time.monotonic(), memory_mb()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("fuzzing", total=frames)
        sent = 0
        while sent < frames:
            seed, name = first + sent // FRAMES_PER_SEED, names[sent // FRAMES_PER_SEED % len(names)]
            count = min(FRAMES_PER_SEED, frames - sent)
            if failure := run_seed(name, seed, count):
                failed += 1
                again = f"python -m tests.fuzz --target {name} --seed {seed} --frames {FRAMES_PER_SEED}"
                progress.console.print(f"{failure}\nagain: {again}", markup=False)
            sent += count
            progress.update(task, completed=sent)
    growth_mb = memory_mb() - before_mb
    seconds = time.monotonic() - began
    print(f"{frames} frames in {seconds:.0f} s, {failed} failed, memory grew by {growth_mb:.0f} MB")
    return failed + (growth_mb > MAX_GROWTH_MB)


def memory_mb() -> float:
    """The most that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000, help="in all (default: 100000)")
    parser.add_argument("--target", choices=TARGETS, help="one of them (default: all in turn)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    options = parser.parse_args()
    names = [options.target] if options.target else list(TARGETS)
    return 1 if run(names, options.seed, options.frames) else 0


if __name__ == "__main__":
    raise SystemExit(main())
