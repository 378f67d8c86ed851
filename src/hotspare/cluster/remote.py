"""A client of a cluster: writes as an origin of its own, reads by asking its home node.

Any node will do as home. When it is lost the next address takes its place: calls that were under way are
asked again where that is safe, and groups of writes are sent again under their numbers.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hotspare.cluster import calls, clocks
from hotspare.cluster.connection import Dialled, connect_client
from hotspare.cluster.security import NO_SECURITY, Security
from hotspare.cluster.writer import Writer, size_of
from hotspare.commands import Command, RawGroup
from hotspare.engine import Read
from hotspare.errors import (
    ConfigError,
    NotReady,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    Unavailable,
    from_dict,
)
from hotspare.events import Event, Missed, from_values
from hotspare.protocol.clock import ClusterClock
from hotspare.settings import Address

CONNECT_TIMEOUT_MS = 1000
"""How long one address may take before the next one is tried."""
POLL_MS = 500
"""How long the home may wait for events before it answers that there are none."""
SILENCE_MS = 1500
"""A home that says nothing for so long while something waits for its answer is left for the next one: it may
hang, or have lost the others."""
ONE_NODE_ONLY = ("promote", "fork", "found", "status", "metrics", "flush", "attach")
"""Calls that mean the very node that was asked: not repeated at another one."""
PAUSE_MS = 50
"""Between two rounds over all addresses, and between two looks at what waits."""
STOP_TIMEOUT_MS = 1000
"""How long what is still to be sent may take when the client stops."""


@dataclass(slots=True)
class Asked:
    """A call, and what comes of it."""

    call: calls.Call
    answer: asyncio.Future[Any]
    is_sent: bool = False


class RemoteEngine:
    """An engine whose sessions are elsewhere. Belongs to one event loop."""

    has_copy = False

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout_ms: int = 5000,
        batch_size: int = 100,
        batch_timeout_ms: int = 20,
        max_clock_skew_ms: int = 500,
        security: Security = NO_SECURITY,
    ) -> None:
        """Raises ConfigError for what is no address."""
        if not addresses:
            raise ConfigError("node", "no address was given", "host:port, or several with commas between")
        self._addresses = [Address.parse(text, key="node") for text in addresses]
        self._timeout_ms = timeout_ms
        self._security = security
        self._writer = Writer(batch_size, batch_timeout_ms, max_clock_skew_ms, self._schedule)
        self._clock = ClusterClock()
        self._connection: Dialled | None = None
        self._calls: dict[int, Asked] = {}
        """Those without an answer, by context."""
        self._next_context = 0
        self._parts = bytearray()
        """Of a message that is not complete."""
        self._told_index = 0
        """Up to where homes have shown the log when they answered."""
        self._enrolling = b""
        self._unwritable: set[str] = set()
        """The homes that said one after the other that they take no writes."""
        self._is_flush_scheduled = False
        self._keeper: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lost = asyncio.Event()
        self._is_stopped = False
        self.connections = 0
        """How many there have been, each to a home that may be another one than before."""
        self._looked_ms = 0
        self._heard_ms = 0
        """When the home said something last, or nothing was to be said."""

    @property
    def patience_ms(self) -> int:
        """How long a call may take unless said otherwise."""
        return self._timeout_ms

    @property
    def home(self) -> str:
        """The node that answers; empty while there is none."""
        return self._connection.welcome.name if self._connection is not None else ""

    @property
    def is_stopped(self) -> bool:
        """By its owner, or because its event loop was shut down."""
        return self._is_stopped

    async def start(self) -> None:
        """Raises Unavailable when no address can be reached in time, Refused or ProtocolError at once."""
        if self._is_stopped:
            raise Refused("start", "this client was stopped: make another one")
        if self._keeper is not None:
            return
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                await self._connect()
        except TimeoutError:
            raise Unavailable(f"none of {self._all_addresses()} answers") from None
        self._keeper = self._loop.create_task(self._keep_connected())
        self._on_timer()

    async def stop(self) -> None:
        """Waits for the answers to writes that are under way, then leaves."""
        if self._keeper is None or self._is_stopped:
            return
        self._is_stopped = True
        with suppress(TimeoutError):  # close() tells their callers
            async with asyncio.timeout(self._timeout_ms / 1000):
                while self._writer.is_busy:
                    await self._writer.settle()
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        connection = self._let_go("the client was stopped")
        if connection is not None:
            _, unended = await asyncio.wait([connection.ended], timeout=STOP_TIMEOUT_MS / 1000)
            if unended:
                connection.abort()

    def _let_go(self, reason: str) -> Dialled | None:
        """Tells everybody who waits, and closes the connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close(reason)
        for asked in self._calls.values():
            if not asked.answer.done():
                asked.answer.set_exception(Unavailable(reason))
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        return connection

    # --- the engine's verbs -----------------------------------------------------------------------------

    def read_local(self, id: bytes, /) -> bytes | None:
        raise NotReady("this process has no copy")

    async def fetch(self, id: bytes, how: Read, timeout_ms: int) -> bytes | None:
        record: bytes | None = await self.call("get", timeout_ms, id=id, how=how)
        return record

    def write(self, commands: list[Command], timeout_ms: int) -> Awaitable[list[int]]:
        self._check_running()
        return self._writer.write(commands, size_of(commands), clocks.boot_ms(), timeout_ms)

    async def barrier(self, timeout_ms: int) -> None:
        try:
            await self.call("barrier", timeout_ms, index=self._told_index)
        except (NotReady, Unavailable) as exc:
            raise OutcomeUnknown(exc.reason, is_applied=True) from None

    async def call(self, verb: str, timeout_ms: int, **arguments: Any) -> Any:
        asked = self.begin_call(verb, timeout_ms, arguments)
        try:
            # The node keeps to the timeout; the client's own is for a node that is gone.
            async with asyncio.timeout((timeout_ms + CONNECT_TIMEOUT_MS) / 1000):
                return await asked.answer
        except TimeoutError:
            raise self.no_answer() from None
        finally:
            self.forget_call(asked)

    def watch(self, max_waiting: int) -> RemoteFeed:
        return RemoteFeed(self, max_waiting)

    # --- calls ------------------------------------------------------------------------------------------

    def begin_call(self, verb: str, timeout_ms: int, arguments: dict[str, Any]) -> Asked:
        """Asks before anything that is asked later. Raises NotReady."""
        self._check_running()
        self._next_context += 1
        call = calls.Call(self._next_context, verb, arguments, timeout_ms)
        asked = self._calls[call.context] = Asked(call, self._loop.create_future())
        self._ask(asked)
        return asked

    def forget_call(self, asked: Asked) -> None:
        self._calls.pop(asked.call.context, None)

    def no_answer(self) -> Unavailable:
        return Unavailable(f"none of {self._all_addresses()} answered in time")

    def tell(self, verb: str, arguments: dict[str, Any]) -> None:
        """A call whose answer is of no interest."""
        self._next_context += 1
        self._send(calls.Call(self._next_context, verb, arguments, self._timeout_ms))

    def _check_running(self) -> None:
        if self._keeper is None or self._is_stopped:
            raise NotReady("this client does not run")

    def _ask(self, asked: Asked) -> None:
        asked.is_sent = self._send(asked.call)

    # --- connecting -------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        try:
            while True:
                await self._lost.wait()
                await self._connect()
        finally:
            if not self._is_stopped:  # the event loop is shut down under us
                self._is_stopped = True
                self._let_go("its event loop was shut down")

    async def _connect(self) -> None:
        """Returns once connected, however long it takes, unless all addresses say that it is no use."""
        while True:
            failures: list[Exception] = []
            for address in list(self._addresses):
                try:
                    self._connection = await self._connect_to(address)
                except (Unavailable, OSError) as exc:
                    failures.append(exc)
                except (Refused, ProtocolError) as exc:
                    if len(self._addresses) == 1 and self._keeper is None:
                        raise
                    failures.append(exc)
                else:
                    self.connections += 1
                    self._lost.clear()
                    self._resume()
                    return
            if self._keeper is None and len(failures) == len(self._addresses):
                self._give_up_at_once(failures)
            await asyncio.sleep(PAUSE_MS / 1000)

    def _give_up_at_once(self, failures: list[Exception]) -> None:
        """The first connection: waiting for nodes that refuse connections helps nobody."""
        if len(failures) == 1 or all(isinstance(each, Refused | ProtocolError) for each in failures):
            raise failures[0]
        raise Unavailable(f"none of {self._all_addresses()} can be reached") from failures[0]

    async def _connect_to(self, address: Address) -> Dialled:
        share_ms = self._timeout_ms // len(self._addresses)
        timeout_ms = min(CONNECT_TIMEOUT_MS, share_ms)
        return await connect_client(address, self, timeout_ms=timeout_ms, security=self._security)

    def _resume(self) -> None:
        """Everything without an answer is sent again to the new home."""
        self._enrolling = b""
        self._heard_ms = clocks.boot_ms()
        for asked in self._calls.values():
            if asked.call.verb not in ONE_NODE_ONLY or not asked.is_sent:
                self._ask(asked)
            elif not asked.answer.done():
                asked.answer.set_exception(Unavailable("the connection was lost before the node answered"))
        self._submit(self._writer.origin.unanswered())
        self._schedule()

    def _all_addresses(self) -> str:
        return ", ".join(map(str, self._addresses))

    # --- the connection's handler -----------------------------------------------------------------------

    def frames_received(self, frames: list[bytes]) -> None:
        self._heard_ms = clocks.boot_ms()
        for frame in frames:
            self._received(calls.decode_to_client(frame))
        self._writer.notice()
        self._schedule()

    def closed(self, reason: str) -> None:
        self._connection = None
        self._parts.clear()
        # The next attempt begins with another address.
        self._addresses.append(self._addresses.pop(0))
        self._lost.set()

    def _received(self, message: calls.ToClient) -> None:
        _REACTIONS[type(message)](self, message)

    def _on_part(self, part: calls.Part) -> None:
        self._parts += part.data
        if part.is_last:
            whole, self._parts = bytes(self._parts), bytearray()
            self._received(calls.decode_to_client(whole))

    def _on_enrolled(self, message: calls.Enrolled) -> None:
        self._clock.heard(message.cluster_ms, clocks.boot_ms())
        self._unwritable.clear()
        self._writer.origin.registered(message.nonce, message.origin)

    def _on_answers(self, message: calls.Answers) -> None:
        self._clock.heard(message.cluster_ms, clocks.boot_ms())
        self._told_index = max(self._told_index, message.index)
        self._writer.origin.answered(message.origin, message.first, message.results)

    def _on_unregistered(self, message: calls.Unregistered) -> None:
        self._writer.origin.unknown(message.origin)

    def _on_unwritable(self, message: calls.Unwritable) -> None:
        self._enrolling = b""
        self._unwritable.add(self.home)
        if self._may_leave and len(self._unwritable) < len(self._addresses) and self._connection is not None:
            self._connection.abort("it takes no writes")
        else:
            self._unwritable.clear()
            self._writer.origin.refuse(message.reason)

    def _on_return(self, message: calls.Return) -> None:
        asked = self._calls.pop(message.context, None)
        if asked is not None and not asked.answer.done():
            asked.answer.set_result(message.value)

    def _on_failure(self, message: calls.Failure) -> None:
        asked = self._calls.pop(message.context, None)
        if asked is not None and not asked.answer.done():
            asked.answer.set_exception(from_dict(message.error))

    # --- writing ----------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        if self._connection is None:
            return
        origin = self._writer.origin
        nonce = origin.wants_registration()
        if nonce and nonce != self._enrolling:
            self._enrolling = nonce
            self._send(calls.EnrolClient(nonce))
        now_ms = clocks.boot_ms()
        self._submit(origin.take_groups(now_ms, self._clock.read_ms(now_ms)))
        self._arm_timer(origin.next_flush_ms())

    def _submit(self, groups: list[RawGroup]) -> None:
        """One message each: all together may be longer than a frame."""
        for group in groups:
            submit = calls.Submit([group], self._writer.origin.proof)
            if not self._send(submit) and self._connection is not None:
                self._connection.abort("it does not read")  # the next home gets everything again
                return

    def _send(self, message: calls.FromClient) -> bool:
        return self._connection is not None and self._connection.send([calls.encode(message)])

    def _on_timer(self) -> None:
        self._timer = None
        now_ms = clocks.boot_ms()
        self._writer.origin.expire(now_ms)
        self._writer.notice()
        self._leave_silent_home(now_ms)
        self._flush()
        self._arm_timer(None)

    def _leave_silent_home(self, now_ms: int) -> None:
        was_away = now_ms - self._looked_ms > SILENCE_MS // 2  # then it was this process that was silent
        self._looked_ms = now_ms
        if was_away or not (self._calls or self._writer.is_busy):
            self._heard_ms = now_ms
        is_silent = now_ms - self._heard_ms >= SILENCE_MS
        if is_silent and self._may_leave and self._connection is not None:
            self._connection.abort("it does not answer")

    @property
    def _may_leave(self) -> bool:
        """Whether another home would do as well."""
        means_this_one = any(asked.call.verb in ONE_NODE_ONLY for asked in self._calls.values())
        return len(self._addresses) > 1 and not means_this_one

    def _arm_timer(self, flush_ms: int | None) -> None:
        delay_ms = PAUSE_MS if flush_ms is None else max(1, flush_ms - clocks.boot_ms())
        if self._timer is not None:
            if self._loop.time() + delay_ms / 1000 >= self._timer.when():
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_ms / 1000, self._on_timer)


class RemoteFeed:
    """The events of the home node. What happens while there is none, or before the next one listens, is
    missed, and nobody knows how much it was. The next one's copy may also be behind, and tell some again."""

    def __init__(self, engine: RemoteEngine, max_waiting: int) -> None:
        """Listens from now on. Raises NotReady."""
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._number = next(_feed_numbers)
        self._max_waiting = max_waiting
        self._has_begun = False
        self._is_closed = False
        self._asked: Asked | None = self._ask()
        """The question under way. It outlives a cancelled `take`: its answer must not get lost."""

    def _ask(self) -> Asked:
        arguments = {"feed": self._number, "max_waiting": self._max_waiting}
        asked = self._engine.begin_call("take_events", POLL_MS, arguments)
        asked.answer.add_done_callback(_retrieve)
        return asked

    async def take(self) -> list[Event]:
        while not self._is_over:
            asked = self._asked = self._asked or self._ask()
            await asyncio.wait([asked.answer], timeout=self._engine.patience_ms / 1000)
            if self._is_over:
                break
            if not asked.answer.done():
                raise self._engine.no_answer()
            self._asked = None
            begins, events = asked.answer.result()
            if events:
                return from_values(events)
            if begins and self._has_begun:
                return [Missed(None)]
            self._has_begun = True
        return []

    @property
    def _is_over(self) -> bool:
        return self._is_closed or self._engine.is_stopped

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._asked is not None:
                self._asked.answer.cancel()
                self._engine.forget_call(self._asked)
            self._engine.tell("end_events", {"feed": self._number})

    def __del__(self) -> None:
        # On any thread. The node keeps what nobody takes until it is told, or the connection ends.
        if hasattr(self, "_asked") and not self._is_over:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._engine.tell, "end_events", {"feed": self._number})


_feed_numbers = itertools.count(1)


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Nobody may be waiting for it."""
    if not answer.cancelled():
        answer.exception()


_REACTIONS: dict[type, Any] = {
    calls.Enrolled: RemoteEngine._on_enrolled,
    calls.Answers: RemoteEngine._on_answers,
    calls.Unregistered: RemoteEngine._on_unregistered,
    calls.Unwritable: RemoteEngine._on_unwritable,
    calls.Return: RemoteEngine._on_return,
    calls.Failure: RemoteEngine._on_failure,
    calls.Part: RemoteEngine._on_part,
}
