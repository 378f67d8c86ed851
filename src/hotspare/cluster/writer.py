"""An origin with callers that await: the same for an in-process node and for a client of a remote one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from secrets import token_bytes
from typing import Any

from hotspare.commands import Command, Patch, Put, Rotate
from hotspare.engine import Outcome
from hotspare.errors import OutcomeUnknown, Unavailable
from hotspare.protocol.origin import Lost, Origin, Parcel

NONCE_BYTES = 16
COMMAND_OVERHEAD_BYTES = 48
FIELD_OVERHEAD_BYTES = 16


class Writer:
    """Turns the parcels of an `Origin` into futures.

    `wake` is called when the owner should look: it passes on what `origin` wants sent, and calls `origin`'s
    methods with what comes back. Belongs to one event loop.
    """

    def __init__(
        self, batch_size: int, batch_timeout_ms: int, grace_ms: int, wake: Callable[[], None]
    ) -> None:
        self.origin = Origin(lambda: token_bytes(NONCE_BYTES), batch_size, batch_timeout_ms, grace_ms)
        self._wake = wake
        self._waiters: deque[asyncio.Future[None]] = deque()
        """Those who wait for room, in the order in which they came."""
        self._under_way: set[Outcome] = set()
        self.lost_commands = 0
        """Those that ended as Unavailable or OutcomeUnknown."""
        self._closed = ""
        """Why nothing is taken any more; empty while it is."""

    def write(
        self, commands: list[Command], size_bytes: int, now_ms: int, timeout_ms: int
    ) -> Awaitable[list[int]]:
        """One result a command. Raises Unavailable (certainly not applied) or OutcomeUnknown."""
        if self.origin.has_room:
            return self.begin(commands, size_bytes, now_ms, now_ms + timeout_ms)
        return self._write_when_there_is_room(commands, size_bytes, now_ms, timeout_ms)

    async def _write_when_there_is_room(
        self, commands: list[Command], size_bytes: int, now_ms: int, timeout_ms: int
    ) -> list[int]:
        if self._closed:
            raise Unavailable(self._closed)
        try:
            await self._wait_for_room(timeout_ms)
        except Unavailable:
            self.lost_commands += len(commands)
            raise
        return await self.begin(commands, size_bytes, now_ms, now_ms + timeout_ms)

    def begin(self, commands: list[Command], size_bytes: int, now_ms: int, give_up_ms: int) -> Outcome:
        """Like `write`, for callers that look after `origin.has_room` themselves."""
        if self._closed:
            raise Unavailable(self._closed)
        outcome = Outcome(loop=asyncio.get_running_loop())
        self._under_way.add(outcome)

        def done(results: list[int] | Lost) -> None:
            self._under_way.discard(outcome)
            if outcome.done():  # its caller was cancelled
                return
            if isinstance(results, Lost):
                self.lost_commands += len(commands)
                reason = results.reason
                outcome.set_exception(Unavailable(reason) if results.certain else OutcomeUnknown(reason))
            else:
                outcome.set_result(results)

        self.origin.submit(Parcel(commands, size_bytes, give_up_ms, done), now_ms)
        self._wake()
        return outcome

    @property
    def is_busy(self) -> bool:
        """Whether a caller waits for room or for an answer."""
        return bool(self._under_way) or not all(waiter.done() for waiter in self._waiters)

    async def settle(self) -> None:
        """Returns when every write that was begun before has been answered or given up. (Others may have been
        begun meanwhile: under a steady load there is no moment without any.)"""
        begun: list[asyncio.Future[Any]] = [*self._waiters, *self._under_way]
        if begun:
            await asyncio.wait(begun)

    def notice(self) -> None:
        """Called by the owner after something was answered or given up."""
        while self._waiters and self.origin.has_room:
            _wake_up(self._waiters.popleft())

    def close(self, reason: str) -> None:
        """Whoever waits is told, and nothing is taken any more."""
        self._closed = reason
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Unavailable(reason))
        self._waiters.clear()
        self.origin.close(reason)

    async def _wait_for_room(self, timeout_ms: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await future
        except TimeoutError:
            raise Unavailable("too many writes wait already, and none of them got through in time") from None


def _wake_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def size_of(commands: Sequence[Command]) -> int:
    """About how many bytes the commands take in the log."""
    size_bytes = 0
    for command in commands:
        size_bytes += len(command.id) + COMMAND_OVERHEAD_BYTES
        if type(command) is Put or type(command) is Rotate:
            size_bytes += len(command.data)
        elif type(command) is Patch:
            size_bytes += sum([FIELD_OVERHEAD_BYTES + len(name) + len(value) for name, value in command.set])
            size_bytes += sum([FIELD_OVERHEAD_BYTES + len(name) for name in command.remove])
    return size_bytes
