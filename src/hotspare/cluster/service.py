"""What a node does for a client: keeps its writes going, and answers its calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from hotspare.cluster import calls, clocks
from hotspare.cluster.feeds import Feed
from hotspare.errors import HotspareError, NotReady, ProtocolError, Refused, Unavailable
from hotspare.events import Event
from hotspare.table import check_group

if TYPE_CHECKING:
    from hotspare.cluster.node import ClusterNode

logger = logging.getLogger("hotspare.cluster")

MAX_CALLS = 1000
"""Calls of one client under way at once."""
MAX_GROUPS = 64
"""Groups of one client under way at once: several times what an origin has in flight."""
MAX_GROUP_BYTES = 4 * 1024 * 1024
"""Larger than any group of one command, and small enough for every frame that may carry it on."""
MAX_NONCE_BYTES = 64
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
        self._groups: set[tuple[int, int]] = set()
        """Under way: (origin, first number)."""
        self._feeds: dict[int, Feed] = {}
        """Of events, by the client's number for each."""
        self._new_feeds: set[int] = set()
        """Those that no question was answered from yet."""
        self._nonce = b""
        """Of the enrolment under way; empty when there is none."""

    # --- from the client --------------------------------------------------------------------------------

    def frames_received(self, frames: list[bytes]) -> None:
        """Raises ProtocolError or msgspec.MsgspecError, which end the connection."""
        for frame in frames:
            message = calls.decode_from_client(frame)
            if isinstance(message, calls.Submit):
                self._submit(message)
            elif isinstance(message, calls.EnrolClient):
                self._enrol(message)
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
            self._groups.add((group.origin, group.first))
            if len(self._groups) > MAX_GROUPS or len(group.commands) > MAX_GROUP_BYTES:
                expected = f"up to {MAX_GROUPS} of up to {MAX_GROUP_BYTES} bytes"
                raise ProtocolError("it has too many groups under way, or too large ones", expected)
            check_group(group)  # garbage never enters the log
            self._node.submit(group, self)

    def _call(self, call: calls.Call) -> None:
        if len(self._calls) >= MAX_CALLS:
            raise ProtocolError(f"it has {MAX_CALLS} calls under way", "fewer at once")
        if call.verb == "take_events":
            self._listen(**call.arguments)
        task = asyncio.get_running_loop().create_task(self._answer(call))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _answer(self, call: calls.Call) -> None:
        try:
            answer = _OWN_VERBS.get(call.verb)
            if answer is not None:
                value = await answer(self, call.timeout_ms, **call.arguments)
            else:
                value = await self._node.call(call.verb, call.timeout_ms, **call.arguments)
            self._send(calls.Return(call.context, value))
        except HotspareError as exc:
            self._send(calls.Failure(call.context, exc.to_dict()))
        except (AttributeError, LookupError, TypeError, ValueError) as exc:  # a client of another version
            error = ProtocolError(f"a call of {call.verb!r:.40} that does not fit: {exc}", "its arguments")
            self._send(calls.Failure(call.context, error.to_dict()))
        except Exception as exc:  # an answer in any case: the client waits for one
            logger.exception("a call of %.40r failed", call.verb)
            problem = f"a call of {call.verb!r:.40} that fails ({type(exc).__name__})"
            error = ProtocolError(problem, "its arguments")
            self._send(calls.Failure(call.context, error.to_dict()))

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
        self._send(calls.Enrolled(nonce, origin, self._cluster_ms()))

    def answered(self, origin: int, first: int, results: list[int]) -> None:
        self._groups.discard((origin, first))
        index = self._node.replica.table.applied_index
        self._send(calls.Answers(origin, first, results, self._cluster_ms(), index))

    def unknown(self, origin: int) -> None:
        self._groups = {group for group in self._groups if group[0] != origin}
        self._send(calls.Unregistered(origin))

    def _cluster_ms(self) -> int:
        return self._node.replica.cluster_ms(clocks.now())

    def _send(self, message: calls.ToClient) -> None:
        self._connection.send(calls.frames_to_client(message))


_OWN_VERBS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "take_events": ClientSession._take_events,
    "end_events": ClientSession._end_events,
}
"""Calls that are about the connection, not about the node."""
