"""The port between the public verbs and whatever keeps the sessions.

`AsyncSessionReplicator` checks and encodes what callers bring; an engine stores records and knows nothing of
values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeAlias

from hotspare.commands import Command
from hotspare.events import Event

Ack: TypeAlias = Literal["quorum", "all"]
"""A write returns when a majority has it; when every copy that may answer reads shows it, too."""

Read: TypeAlias = Literal["local", "primary", "stale"]
"""From this copy while it is fresh; linearizably; from this copy however old it is."""


class Source(Protocol):
    """The events of one consumer. Let go of, it is as good as closed."""

    async def take(self) -> list[Event]:
        """The next ones, at least one; none when it is over. Cancelled, it has taken none. Raises
        Unavailable, and may be called again then."""

    def close(self) -> None: ...


class Outcome(asyncio.Future[list[int]]):
    """What came of a write. `await` gets to know it in the next turn of the event loop; `tell`, at once."""

    tell: Callable[[Outcome], object] | None = None
    """Called once, on the event loop, when it is known; unless it was already."""

    def set_result(self, results: list[int], /) -> None:
        super().set_result(results)
        self._announce()

    def set_exception(self, error: type[BaseException] | BaseException, /) -> None:
        super().set_exception(error)
        self._announce()

    def _announce(self) -> None:
        tell, self.tell = self.tell, None  # whom it names may hold on to this outcome
        if tell is not None:
            tell(self)


class Engine(Protocol):
    """Keeps sessions. All coroutines belong to the event loop on which `start` was awaited."""

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Ends what is pending, then lets go of everything. May be called at any time, and again."""

    def read_local(self, id: bytes, /) -> bytes | None:
        """The record of a live session, from memory; any thread. Raises StaleRead or NotReady.

        An engine without a copy in this process has `has_copy` False, and this is never called.
        """

    @property
    def has_copy(self) -> bool: ...

    async def fetch(self, id: bytes, how: Read, timeout_ms: int) -> bytes | None:
        """The record of a live session, read as asked. Raises Unavailable, StaleRead or NotReady."""

    def write(self, commands: list[Command], timeout_ms: int) -> Awaitable[list[int]]:
        """Runs the commands in order; one result each, see `hotspare.commands`. Raises Unavailable (none of
        them was applied) or OutcomeUnknown. An Outcome, where that is possible."""

    async def barrier(self, timeout_ms: int) -> None:
        """Returns when no copy anywhere answers a read without showing everything that this engine has told
        its callers. Raises OutcomeUnknown if that is not certain in time."""

    def watch(self, max_waiting: int) -> Source:
        """What happens from now on. While more than `max_waiting` events wait to be taken, the oldest of them
        become a Missed. Raises NotReady."""

    async def call(self, verb: str, timeout_ms: int, **arguments: Any) -> Any:
        """Everything else, by name: `ids`, `count`, `records`, `status`, `metrics`, `flush`, `promote`,
        `failover`, `found`. Raises HotspareError."""
