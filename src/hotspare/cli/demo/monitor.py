"""What every node says of itself, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from hotspare.cli.demo.daemons import Daemon
from hotspare.errors import HotspareError
from hotspare.replicator import AsyncSessionReplicator

__all__ = ["Monitor", "View"]

WATCH_SECONDS = 0.1
STARE_SECONDS = 0.005
"""While a failover is being timed."""


@dataclass
class View:
    """One node as it was last heard of."""

    daemon: Daemon
    status: dict[str, Any] | None = None
    """None while it does not answer."""

    @property
    def node(self) -> str:
        return self.daemon.node

    @property
    def role(self) -> str:
        if not self.daemon.is_running:
            return "dead"
        return self.status["role"] if self.status is not None else "starting"

    @property
    def is_ready(self) -> bool:
        return self.daemon.is_running and self.status is not None and bool(self.status["ready"])

    @property
    def sessions(self) -> int:
        return self.status["active_sessions"] if self.status is not None else 0

    @property
    def applied_index(self) -> int:
        return self.status["applied_index"] if self.status is not None else 0

    @property
    def digest(self) -> str:
        return self.status["digest"] if self.status is not None else ""


class Monitor:
    """Keeps `views` up to date while its context lasts."""

    def __init__(
        self, daemons: Sequence[Daemon], connect: Callable[[Sequence[str]], AsyncSessionReplicator]
    ) -> None:
        self.views = [View(daemon) for daemon in daemons]
        self.pause_seconds = WATCH_SECONDS
        self._connect = connect
        self._tasks: list[asyncio.Task[None]] = []
        self._ends = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._watch(view)) for view in self.views]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends = True  # a cancellation can get lost in Python 3.11's wait_for
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def primary(self) -> View | None:
        """The one of the latest term, should two believe it."""
        leading = [view for view in self.views if view.role == "primary" and view.status is not None]
        return max(leading, key=lambda view: view.status["term"], default=None)  # type: ignore[index]

    @property
    def are_equal(self) -> bool:
        """Whether every node answers, and all copies are the same."""
        return all(view.is_ready for view in self.views) and (
            len({(view.applied_index, view.digest) for view in self.views}) == 1
        )

    def stare(self) -> None:
        self.pause_seconds = STARE_SECONDS

    def relax(self) -> None:
        self.pause_seconds = WATCH_SECONDS

    async def _watch(self, view: View) -> None:
        while not self._ends:
            try:
                async with self._connect([view.node]) as replicator:
                    while view.daemon.is_running and not self._ends:
                        view.status = await replicator.get_replication_status()
                        await asyncio.sleep(self.pause_seconds)
            except HotspareError:
                pass
            view.status = None
            await asyncio.sleep(self.pause_seconds)
