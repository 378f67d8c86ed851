"""What a node does for a client: keeps its writes going, and answers its calls."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from hotspare.cluster import calls, clocks
from hotspare.cluster.feeds import Feed
from hotspare.commands import RawGroup, check_group
from hotspare.errors import HotspareError, NotReady, ProtocolError, Refused, Unavailable
from hotspare.events import Event
from hotspare.protocol.origin import MAX_GROUPS_IN_FLIGHT
from hotspare.protocol.validation import MAX_NONCE_BYTES

if TYPE_CHECKING:
    from hotspare.cluster.node import ClusterNode

logger = logging.getLogger("hotspare.cluster")

MAX_CALLS = 1000
"""Calls of one client under way at once."""
MAX_GROUPS = 4 * MAX_GROUPS_IN_FLIGHT
"""Groups of one client under way at once: several times what an origin has in flight."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Of these groups, together."""
MAX_CALL_BYTES = 64 * 1024
"""A call holds ids and addresses."""
MAX_TIMEOUT_MS = 3_600_000
CONFIRM_TIMEOUT_MS = 5000
LONG_CALLS = ("ids", "records")
"""Their answers may be large: one at a time for each client."""
MAX_FEEDS = 16
"""Of events, to one client."""
MAX_POLL_MS = 1000
"""How long a question for events may wait for some: who asks must hear that this node is alive."""


class Outgoing(Protocol):
    def send(self, frames: list[bytes]) -> bool: ...

    def close(self) -> None: ...


class ClientSession:
    """One client's connection: the home of its origin, and its calls."""

    def __init__(self, node: ClusterNode, connection: Outgoing) -> None:
        self._node = node
        self._connection = connection
        self._calls: set[asyncio.Task[None]] = set()
        """Those under way, and groups that wait until their origin is known."""
        self._long_call = asyncio.Lock()
        self._groups: dict[tuple[int, int], int] = {}
        """Under way: (origin, first number) -> size in bytes."""
        self._origins: set[int] = set()
        """Those that this client has registered, or has proved to have registered."""
        self._feeds: dict[int, Feed] = {}
        """Of events, by the client's number for each."""
        self._new_feeds: set[int] = set()
        """Those that no question was answered from yet."""
        self._nonce = b""
        """Of the enrolment under way; empty when there is none."""

    # --- from the client --------------------------------------------------------------------------------

    def frames_received(self, frames: list[bytes]) -> None:
        """Raises ProtocolError or one of `UNDECODABLE`, which end the connection."""
        for frame in frames:
            message = calls.decode_from_client(frame)
            if isinstance(message, calls.Submit):
                self._submit(message)
            elif isinstance(message, calls.EnrolClient):
                self._enrol(message)
            elif len(frame) > MAX_CALL_BYTES:
                raise ProtocolError(f"it sent a call of {len(frame)} bytes", f"up to {MAX_CALL_BYTES}")
            else:
                self._call(message)

    def closed(self, reason: str) -> None:
        self._node.leave(self)
        for feed in self._feeds.values():
            feed.close()
        for task in self._calls:
            task.cancel()

    def _enrol(self, message: calls.EnrolClient) -> None:
        nonce = message.nonce
        if not 0 < len(nonce) <= MAX_NONCE_BYTES or self._nonce not in (b"", nonce):
            expected = f"one nonce at a time, up to {MAX_NONCE_BYTES} bytes"
            raise ProtocolError("it enrols as no origin does", expected)
        try:
            self._node.check_writable()
        except Unavailable as exc:
            self._send(calls.Unwritable(exc.reason))
        else:
            self._nonce = nonce
            self._node.enrol(nonce, self)

    def _submit(self, message: calls.Submit) -> None:
        for group in message.groups:
            self._groups[group.origin, group.first] = len(group.commands)
            if len(self._groups) > MAX_GROUPS or sum(self._groups.values()) > MAX_PENDING_BYTES:
                expected = f"up to {MAX_GROUPS} of up to {MAX_PENDING_BYTES} bytes together"
                raise ProtocolError("it has too many groups under way, or too large ones", expected)
            check_group(group)  # garbage never enters the log
            self._accept(group, message.proof)

    def _accept(self, group: RawGroup, proof: bytes, *, is_confirmed: bool = False) -> None:
        """Nobody writes under the number of somebody else, who would take the answers for their own."""
        origin, replica = group.origin, self._node.replica
        if origin not in self._origins and replica.has_origin(origin):
            if not replica.is_registered(origin, proof):
                raise ProtocolError("it writes under a registration that is not its own", "its own")
            self._origins.add(origin)
        if origin in self._origins:
            self._node.submit(group, self)
        elif is_confirmed or origin <= replica.table.applied_index:  # it is none any more
            self.unknown(origin)
        else:
            self._start(self._accept_later(group, proof))

    async def _accept_later(self, group: RawGroup, proof: bytes) -> None:
        """The registration may have gone through another node just now, and this copy not show it yet."""
        is_confirmed = False
        while not is_confirmed:
            with suppress(Unavailable):
                await self._node.confirm(CONFIRM_TIMEOUT_MS)
                is_confirmed = True
        try:
            self._accept(group, proof, is_confirmed=True)
        except ProtocolError as exc:
            logger.warning("closed a connection: %s", exc)
            self._connection.close()

    def _call(self, call: calls.Call) -> None:
        if len(self._calls) >= MAX_CALLS:
            raise ProtocolError(f"it has {MAX_CALLS} calls under way", "fewer at once")
        if call.verb == "take_events":
            self._listen(**call.arguments)
        self._start(self._answer(call))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _answer(self, call: calls.Call) -> None:
        try:
            if call.verb in LONG_CALLS:
                async with self._long_call:
                    await self._answer_with(call)
            else:
                await self._answer_with(call)
        except HotspareError as exc:
            self._send(calls.Failure(call.context, exc.to_dict()))
        except (AttributeError, LookupError, TypeError, ValueError) as exc:  # a client of another version
            self._reproach(call, f"that does not fit ({type(exc).__name__})")
        except Exception as exc:  # an answer in any case: the client waits for one
            logger.error("a call of %.40r failed: %s", call.verb, traceback_of(exc))
            self._reproach(call, f"that fails ({type(exc).__name__})")

    def _reproach(self, call: calls.Call, problem: str) -> None:
        error = ProtocolError(f"a call of {call.verb!r:.40} {problem}", "its arguments")
        self._send(calls.Failure(call.context, error.to_dict()))

    async def _answer_with(self, call: calls.Call) -> None:
        timeout_ms = max(1, min(call.timeout_ms, MAX_TIMEOUT_MS))
        answer = _OWN_VERBS.get(call.verb)
        if answer is not None:
            value = await answer(self, timeout_ms, **call.arguments)
        else:
            value = await self._node.call(call.verb, timeout_ms, **call.arguments)
        self._send(calls.Return(call.context, value))

    # --- events -----------------------------------------------------------------------------------------

    def _listen(self, feed: object = None, max_waiting: object = None, **others: object) -> None:
        """At once: nothing that the client writes after its first question may be missed."""
        if type(feed) is not int or type(max_waiting) is not int or others:
            raise ProtocolError("it asks for events as no client does", "a feed and how much may wait")
        if feed not in self._feeds and len(self._feeds) < MAX_FEEDS:
            with suppress(NotReady):  # answering will say so
                self._feeds[feed] = self._node.watch(max_waiting)
                self._new_feeds.add(feed)

    async def _take_events(self, timeout_ms: int, feed: int, max_waiting: int) -> tuple[bool, list[Any]]:
        """Whether that feed has only begun, and its next events. The client asks for some when it has dealt
        with the last ones: so it sets the pace, and what waits meanwhile is bounded here."""
        if feed in self._new_feeds:
            self._new_feeds.remove(feed)
            return True, []
        known = self._feeds.get(feed)
        if known is None:
            if len(self._feeds) >= MAX_FEEDS:
                raise Refused("events", f"this client has {MAX_FEEDS} of them already: close some")
            raise NotReady("it is being stopped")
        events: list[Event] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(min(timeout_ms, MAX_POLL_MS) / 1000):
                events = await known.take()
                if not events:  # the node is being stopped, and the client will soon go on to another one
                    await asyncio.Event().wait()
        return False, msgspec.to_builtins(events)

    async def _end_events(self, timeout_ms: int, feed: int) -> None:
        self._new_feeds.discard(feed)
        known = self._feeds.pop(feed, None)
        if known is not None:
            known.close()

    # --- to the client ----------------------------------------------------------------------------------

    def registered(self, nonce: bytes, origin: int) -> None:
        self._nonce = b""
        self._origins.add(origin)
        self._send(calls.Enrolled(nonce, origin, self._cluster_ms()))

    def answered(self, origin: int, first: int, results: list[int]) -> None:
        self._groups.pop((origin, first), None)
        index = self._node.replica.table.applied_index
        self._send(calls.Answers(origin, first, results, self._cluster_ms(), index))

    def unknown(self, origin: int) -> None:
        self._origins.discard(origin)
        self._groups = {group: size for group, size in self._groups.items() if group[0] != origin}
        self._send(calls.Unregistered(origin))

    def _cluster_ms(self) -> int:
        return self._node.replica.cluster_ms(clocks.now())

    def _send(self, message: calls.ToClient) -> None:
        self._connection.send(calls.frames_to_client(message))


def traceback_of(failure: BaseException) -> str:
    """Where it happened, without its own words: they may quote an id or data."""
    frames = traceback.format_tb(failure.__traceback__)
    return "".join([type(failure).__name__, "\n", *frames]).rstrip()


_OWN_VERBS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "take_events": ClientSession._take_events,
    "end_events": ClientSession._end_events,
}
"""Calls that are about the connection, not about the node."""
