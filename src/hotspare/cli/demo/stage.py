"""What the audience sees: a moving picture on a terminal, elsewhere a line for each thing that happens."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hotspare.cli.demo.monitor import View
from hotspare.cli.output import thousands

__all__ = ["Pulse", "Stage", "open_stage", "strip"]

REDRAW_SECONDS = 0.12
PICTURE_COLUMNS = 100
FEWEST_COLUMNS = 76
FEWEST_ROWS = 20
ROWS_BESIDE_TIMELINE = 14

REMEMBERED = 50_000
STEP_SECONDS = 0.1
STEPS = 50
BLOCKS = "▁▂▃▄▅▆▇█"

MUCH_BEHIND = 100
WIDE = 96
"""From so many columns on there is room for longer bars and digests."""
ROLES = {
    "primary": Text("● primary", "bold green"),
    "secondary": Text("● secondary", "cyan"),
    "learner": Text("● learner", "yellow"),
    "unfounded": Text("○ alone", "yellow"),
    "starting": Text("○ starting", "yellow"),
    "dead": Text("✗ dead", "bold red"),
}
"""Also told apart without colours."""


class Pulse:
    """When writes were acknowledged: a heartbeat in which an outage can be seen."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=REMEMBERED)

    def beat(self) -> None:
        self._times.append(monotonic())

    def counts(self, begin: float, step_seconds: float, steps: int) -> list[int]:
        """How many there were in each of the steps after `begin`."""
        counts = [0] * steps
        for time in reversed(self._times):
            step = math.floor((time - begin) / step_seconds)
            if step < 0:
                break
            if step < steps:
                counts[step] += 1
        return counts

    def now(self) -> list[int]:
        """The last steps that are over, as shown while it beats."""
        if not self._times:
            return []
        # On whole steps: else every redrawing would count anew, and the whole line would flicker.
        end = math.floor(monotonic() / STEP_SECONDS)
        first = max(end - STEPS, math.ceil(self._times[0] / STEP_SECONDS))
        return self.counts(first * STEP_SECONDS, STEP_SECONDS, max(0, end - first))


@dataclass
class Event:
    seconds: float
    text: Text


class Stage:
    """Without a picture: every event is a line."""

    def __init__(self, console: Console, views: Sequence[View]) -> None:
        self.console = console
        self.views = views
        self.pulse: Pulse | None = None
        """Shown while it is there."""
        self.events: list[Event] = []
        self._began = monotonic()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def pause(self, seconds: float) -> None:
        """Time to look at it, where there is something to look at."""

    def doing(self, text: str) -> None:
        """What goes on now, which may take a moment."""

    def progress(self, done: int, total: int) -> None:
        """How much of it is done."""

    def say(self, text: str | Text, style: str = "") -> None:
        event = Event(monotonic() - self._began, Text(text, style) if isinstance(text, str) else text)
        self.events.append(event)
        self._show(event)

    def _show(self, event: Event) -> None:
        self.console.print(Text.assemble(f"{event.seconds:6.2f} s  ", event.text), soft_wrap=True)


class Picture(Stage):
    """A row for each node, what goes on, the pulse of the load, and what has happened so far."""

    def __init__(self, console: Console, views: Sequence[View]) -> None:
        super().__init__(console, views)
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
        self._spinner = Spinner("dots")
        self._done = self._total = 0
        self._has_ended = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._live.start()
        self._task = asyncio.create_task(self._redraw())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
        self._has_ended = True
        self._live.update(self.picture(), refresh=True)
        self._live.stop()

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def doing(self, text: str) -> None:
        self._spinner.update(text=Text(text))
        self._total = 0

    def progress(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def _show(self, event: Event) -> None:
        pass  # the picture has it

    async def _redraw(self) -> None:
        while True:
            self._live.update(self.picture(), refresh=True)
            await asyncio.sleep(REDRAW_SECONDS)

    def picture(self) -> RenderableType:
        activity = [] if self._has_ended else [self._activity(), Text()]
        parts = [self._nodes(), Text(), *activity, self._timeline()]
        title = Text.assemble((" hotspare ", "bold"), ("· four nodes, one kill -9 ", "dim"))
        columns = min(self.console.width, PICTURE_COLUMNS)
        return Panel(Group(*parts), title=title, title_align="left", border_style="blue", width=columns)

    def _nodes(self) -> Table:
        table = Table(box=None, expand=True, header_style="dim", pad_edge=False)
        bar_columns, digits = (16, 12) if self.console.width >= WIDE else (6, 8)
        table.add_column("node", no_wrap=True, min_width=max(len(view.node) for view in self.views))
        table.add_column("role", no_wrap=True, min_width=11)
        table.add_column("sessions", no_wrap=True, justify="right", min_width=8)
        table.add_column("", width=bar_columns)
        table.add_column("applied", no_wrap=True, justify="right", min_width=8)
        table.add_column("behind", no_wrap=True, justify="right", min_width=6)
        table.add_column("digest", no_wrap=True, min_width=digits)
        most = max([view.sessions for view in self.views] + [1])
        furthest = max(view.applied_index for view in self.views)
        digests = [view.digest for view in self.views]
        for view in self.views:
            table.add_row(*_row(view, most, furthest, digits, is_shared=digests.count(view.digest) > 1))
        return table

    def _activity(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(self._spinner if self._spinner.text else Text())
        if self._total:
            bar = Table.grid(padding=(0, 2))
            share = ProgressBar(total=self._total, completed=self._done, width=STEPS)
            bar.add_row(Text("stored"), share, Text(f"{thousands(self._done)} of {thousands(self._total)}"))
            grid.add_row(bar)
        elif self.pulse is not None:
            counts = self.pulse.now()
            line = Text.assemble(
                ("writes per 0.1 s  ", "dim"), strip(counts), f"  {counts[-1] if counts else 0}"
            )
            grid.add_row(line)
        else:
            grid.add_row(Text())
        return grid

    def _timeline(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(justify="right", style="dim", no_wrap=True, min_width=8)
        grid.add_column()
        # At the end nothing has to be drawn over any more, and the picture may leave the top of the terminal.
        rows = len(self.events) if self._has_ended else max(3, self.console.height - ROWS_BESIDE_TIMELINE)
        for event in self.events[-rows:]:
            grid.add_row(f"{event.seconds:.2f} s", event.text)
        return grid


def _row(view: View, most: int, furthest: int, digits: int, *, is_shared: bool) -> list[RenderableType]:
    role = ROLES[view.role]
    if view.role == "dead":
        return [Text(view.node, "red"), role, "", "", "", "", ""]
    if view.status is None:
        return [Text(view.node), role, "", "", "", "", ""]
    behind = furthest - view.applied_index
    return [
        Text(view.node, "bold" if view.role == "primary" else ""),
        role,
        thousands(view.sessions),
        ProgressBar(total=most, completed=view.sessions, complete_style="blue"),
        thousands(view.applied_index),
        Text(thousands(behind), "yellow" if behind > MUCH_BEHIND else "dim"),
        Text(view.digest[:digits], "green" if is_shared else "dim"),
    ]


def strip(counts: Sequence[int], highest: int = 0) -> Text:
    """A block for each count, as high as it is beside the highest; nothing at all is a red line."""
    highest = max([*counts, highest, 1])
    line = Text()
    for count in counts:
        height = round((len(BLOCKS) - 1) * count / highest)
        line.append(BLOCKS[height] if count else "_", "green" if count else "bold red")
    return line


def open_stage(console: Console, views: Sequence[View], *, plain: bool) -> Stage:
    """The picture where there is room for one."""
    has_room = console.width >= FEWEST_COLUMNS and console.height >= FEWEST_ROWS
    if plain or not console.is_terminal or not has_room or console.is_dumb_terminal:
        return Stage(console, views)
    return Picture(console, views)
