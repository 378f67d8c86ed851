"""Measuring a row: hotspare and its peers take turns, and the ratio of neighbours in time is what counts.

A noisy machine slows both sides of a pair alike, so a ratio is taken per repetition, and the median of these
ratios is the result. Absolute numbers are given with their extremes, which say how far to trust them.
"""

from __future__ import annotations

import enum
import gc
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.redis_peer import Items, RedisPeer
from benchmarks.sessions import FreshIds, SessionData, small_sessions

HOTSPARE = "hotspare"
DISTINCT_SESSIONS = 2_000

Sample = Callable[[], float]
"""Measures once; the result is in the unit of its row."""
Sides = Mapping[str, Sample]
Progress = Callable[[int, int, str], None]
"""Told before every sample: how many are done, how many there will be, whose turn it is."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much each row does: full sizes for numbers worth quoting, toy sizes so that nothing rots unseen."""

    repetitions: int
    reads: int
    reading_seconds: float
    stores: int
    single_stores: int
    writers: int
    stores_per_writer: int
    lag_seconds: float
    failovers: int
    resident_sessions: int
    stored_sessions: int
    observers: int


FULL = Scale(
    repetitions=11,
    reads=5_000,
    reading_seconds=1.0,
    stores=50_000,
    single_stores=2_000,
    writers=64,
    stores_per_writer=200,
    lag_seconds=10.0,
    failovers=30,
    resident_sessions=100_000,
    stored_sessions=1_000_000,
    observers=20,
)
QUICK = Scale(
    repetitions=2,
    reads=50,
    reading_seconds=0.05,
    stores=400,
    single_stores=20,
    writers=8,
    stores_per_writer=5,
    lag_seconds=0.5,
    failovers=1,
    resident_sessions=2_000,
    stored_sessions=2_000,
    observers=2,
)


class Run:
    """What the rows of one run share: sizes, input, the peer (None where there is no Redis server)."""

    def __init__(self, scale: Scale, redis: RedisPeer | None) -> None:
        self.scale = scale
        self.redis = redis
        self._ids = FreshIds()
        self._sessions = small_sessions(DISTINCT_SESSIONS)

    def items(self, count: int) -> Items:
        """Sessions under ids that nobody has used yet. The garbage collector leaves them alone: it would go
        through them again and again, on whichever side is measured."""
        gc.unfreeze()
        items = [(id, self._session(number)) for number, id in enumerate(self._ids.take(count))]
        gc.freeze()
        return items

    def _session(self, number: int) -> SessionData:
        return self._sessions[number % len(self._sessions)]


class Better(enum.Enum):
    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True)
class Target:
    """A floor and an aim: how many times better than a peer we must be; without a peer, in the row's unit."""

    peer: str | None = None
    floor: float | None = None
    aim: float | None = None


def _no_peers(run: Run, resources: ExitStack) -> Sides:
    return {}


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    title: str
    unit: str
    better: Better
    targets: tuple[Target, ...]
    hotspare: Callable[[Run, ExitStack], Sample]
    peers: Callable[[Run, ExitStack], Sides] = _no_peers
    repetitions: Callable[[Scale], int] = field(default=lambda scale: scale.repetitions)


class Verdict(enum.StrEnum):
    AIM = "aim reached"
    FLOOR = "floor reached"
    BELOW = "below the floor"
    SHORT = "short of the aim"
    FIGURE = "for comparison"
    MISSING = "not measured"


@dataclass(frozen=True, slots=True)
class Comparison:
    target: Target
    ratio: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Measurement:
    row: Row
    samples: Mapping[str, list[float]]
    failure: str = ""

    def median(self, side: str) -> float | None:
        return statistics.median(self.samples[side]) if self.samples.get(side) else None

    def comparisons(self) -> list[Comparison]:
        return [self._compare(target) for target in self.row.targets]

    def _compare(self, target: Target) -> Comparison:
        if target.peer is None:
            return Comparison(target, None, judge(self.median(HOTSPARE), target, self.row.better))
        ratio = self._ratio_to(target.peer)
        return Comparison(target, ratio, judge(ratio, target, Better.HIGHER))

    def _ratio_to(self, peer: str) -> float | None:
        """How many times better hotspare is, whichever way the unit points."""
        pairs = zip(self.samples.get(HOTSPARE, ()), self.samples.get(peer, ()), strict=False)
        lower = self.row.better is Better.LOWER
        ratios = [theirs / ours if lower else ours / theirs for ours, theirs in pairs]
        return statistics.median(ratios) if ratios else None


def judge(value: float | None, target: Target, better: Better) -> Verdict:
    if value is None:
        return Verdict.MISSING
    if _reaches(value, target.aim, better):
        return Verdict.AIM
    if _reaches(value, target.floor, better):
        return Verdict.FLOOR
    if target.floor is not None:
        return Verdict.BELOW
    return Verdict.FIGURE if target.aim is None else Verdict.SHORT


def _reaches(value: float, goal: float | None, better: Better) -> bool:
    if goal is None:
        return False
    return value <= goal if better is Better.LOWER else value >= goal


def measure(row: Row, run: Run, *, peers_only: bool, progress: Progress = lambda *_: None) -> Measurement:
    """Let the sides of a row take turns. A failure ends the row and stays in its measurement."""
    samples: dict[str, list[float]] = {}
    try:
        with ExitStack() as resources:
            sides = _sides(row, run, resources, peers_only=peers_only)
            turns = _turns(sides, row.repetitions(run.scale))
            for done, side in enumerate(turns):
                progress(done, len(turns), side)
                sample = sides[side]()
                samples.setdefault(side, []).append(sample)
    except Exception as failure:
        return Measurement(row, samples, f"{type(failure).__name__}: {failure}")
    return Measurement(row, samples)


def _sides(row: Row, run: Run, resources: ExitStack, *, peers_only: bool) -> Sides:
    ours = {} if peers_only else {HOTSPARE: row.hotspare(run, resources)}
    return {**ours, **row.peers(run, resources)}


def _turns(sides: Iterable[str], repetitions: int) -> list[str]:
    """Every side once a repetition, starting with another one each time, so that being first helps nobody."""
    order = deque(sides)
    turns: list[str] = []
    for _ in range(repetitions):
        turns.extend(order)
        order.rotate(-1)
    return turns
