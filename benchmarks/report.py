"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.rows import PROMISES
from benchmarks.runner import HOTSPARE, Comparison, Measurement, Row, Verdict

STYLES = {
    Verdict.AIM: "bold green",
    Verdict.FLOOR: "green",
    Verdict.BELOW: "bold red",
    Verdict.SHORT: "yellow",
    Verdict.FIGURE: "dim",
    Verdict.MISSING: "dim",
}
NOTHING = "–"
HEADINGS = ("row", "hotspare", "peer", "ratio", "floor", "aim", "verdict")


def table(measurements: Sequence[Measurement]) -> Table:
    """One line per comparison: the median of each side, and below it its smallest and largest sample."""
    drawn = Table(title="medians, and below them the smallest and the largest sample", title_justify="left")
    for heading in HEADINGS:
        left = heading in ("row", "peer", "verdict")
        drawn.add_column(heading, justify="left" if left else "right", no_wrap=heading == "row")
    for measurement in measurements:
        for line in _lines(measurement):
            drawn.add_row(*line)
        drawn.add_section()
    return drawn


def _lines(measurement: Measurement) -> list[tuple[str, ...]]:
    """A row's name and our own figure stand on the first line only."""
    first, *others = [_against(measurement, comparison) for comparison in measurement.comparisons()]
    row = measurement.row
    named = (f"[bold]{row.name}[/]\n[dim]{row.unit}[/]", _figures(measurement, HOTSPARE), *first)
    return [named, *(("", "", *other) for other in others)]


def _against(measurement: Measurement, comparison: Comparison) -> tuple[str, ...]:
    target, verdict = comparison.target, comparison.verdict
    peer = "" if target.peer is None else f"{target.peer}: {_figures(measurement, target.peer)}"
    failed = measurement.failure and verdict is Verdict.MISSING
    return (
        peer,
        _times(comparison.ratio),
        _goal(target.floor, target.peer),
        _goal(target.aim, target.peer),
        "[bold red]failed[/]" if failed else f"[{STYLES[verdict]}]{verdict}[/]",
    )


def _figures(measurement: Measurement, side: str) -> str:
    samples = measurement.samples.get(side)
    if not samples:
        return NOTHING
    spread = f"[dim]{number(min(samples))} – {number(max(samples))}[/]"
    return f"{number(statistics.median(samples))}\n{spread}"


def _goal(value: float | None, peer: str | None) -> str:
    if value is None:
        return NOTHING
    return number(value) if peer is None else _times(value)


def _times(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{number(ratio)} ×"


def number(value: float) -> str:
    """Three significant digits are more than a noisy machine gives."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(measurements: Sequence[Measurement], *, quick: bool, redis: str | None) -> dict[str, Any]:
    return {
        "quick": quick,
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "redis": redis,
        },
        "promises": PROMISES,
        "rows": [_row_as_json(measurement) for measurement in measurements],
    }


def _row_as_json(measurement: Measurement) -> dict[str, Any]:
    row: Row = measurement.row
    return {
        "name": row.name,
        "title": row.title,
        "unit": row.unit,
        "better": row.better.value,
        "failure": measurement.failure or None,
        "sides": {side: _side_as_json(samples) for side, samples in measurement.samples.items()},
        "comparisons": [
            {
                "peer": comparison.target.peer,
                "ratio": comparison.ratio,
                "floor": comparison.target.floor,
                "aim": comparison.target.aim,
                "verdict": comparison.verdict.value,
            }
            for comparison in measurement.comparisons()
        ],
    }


def _side_as_json(samples: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": samples,
    }
