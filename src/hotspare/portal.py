"""An event loop on a thread of its own, and how plain calls get there and back.

A write takes four changes of threads and processes, and each costs more than all the code in between. So no
task is made for it, and the verbs run on the caller's thread, over an engine whose calls block
(`BehindPortal`); all but `store_sessions`, which has many writes under way.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

from hotspare.commands import Command
from hotspare.engine import Engine, Outcome, Read, Source
from hotspare.errors import NotReady, OutcomeUnknown

T = TypeVar("T")

NOT_RUNNING = "it does not run: call start(), or use it in a with statement"
LAST_TASKS_SECONDS = 5.0


def run(verb: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never waits, only blocks."""
    try:
        verb.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    verb.close()
    raise RuntimeError("a verb waits for an event loop, where there is none")


class Portal:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = new_event_loop()
        self._own_thread = threading.Thread(target=self._serve, name="hotspare", daemon=True)
        self._lock = threading.Lock()
        self._is_open = True
        self._own_thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Raises NotReady when it is closed."""
        with self._lock:
            if not self._is_open:
                raise NotReady(NOT_RUNNING)
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, begin: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """What comes of `begin(*arguments)` there, awaited. Raises NotReady when it is closed."""
        if threading.current_thread() is self._own_thread:
            raise RuntimeError("a blocking call on the event loop's own thread would wait for itself")
        waiting: _Waiting[T] = _Waiting(begin, arguments)
        with self._lock:
            if not self._is_open:
                raise NotReady(NOT_RUNNING)
            self._loop.call_soon_threadsafe(waiting.begin)
        return waiting.result()

    def close(self) -> None:
        """What was submitted comes to its end before."""
        with self._lock:
            self._is_open = False
        asyncio.run_coroutine_threadsafe(_end_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._own_thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()


async def _end_others() -> None:
    """The engine is stopped, so everything ends soon; what does not is cancelled."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, late = await asyncio.wait(others, timeout=LAST_TASKS_SECONDS)
        for task in late:
            task.cancel()


class _Waiting(Generic[T]):
    """One call, and the thread that waits for it. A lock is the lightest thing to wait for."""

    __slots__ = ("_arguments", "_begin", "_future", "_is_done")

    _future: asyncio.Future[T]

    def __init__(self, begin: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> None:
        self._begin = begin
        self._arguments = arguments
        self._is_done = threading.Lock()
        self._is_done.acquire()

    def begin(self) -> None:
        """On the event loop."""
        try:
            begun = self._begin(*self._arguments)
            self._future = asyncio.ensure_future(begun)
        except Exception as exc:
            self._future = asyncio.get_running_loop().create_future()
            self._future.set_exception(exc)
            self._end(self._future)
            return
        if isinstance(begun, Outcome) and not begun.done():
            begun.tell = self._end
        else:
            self._future.add_done_callback(self._end)

    def _end(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # the caller may have been interrupted: nobody need complain
        self._is_done.release()

    def result(self) -> T:
        """On the caller's thread."""
        self._is_done.acquire()
        try:
            return self._future.result()
        except asyncio.CancelledError:  # of another thread: here it would look like our own end
            raise OutcomeUnknown("the replicator was stopped meanwhile") from None


class BehindPortal:
    """An engine as verbs without an event loop see it: its coroutines block, and never wait."""

    def __init__(self, engine: Engine, portal: Callable[[], Portal]) -> None:
        self._engine = engine
        self._portal = portal
        self.has_copy = engine.has_copy
        self.read_local = engine.read_local

    async def write(self, commands: list[Command], timeout_ms: int) -> list[int]:
        return self.write_now(commands, timeout_ms)

    def write_now(self, commands: list[Command], timeout_ms: int) -> list[int]:
        """The same, without a coroutine around it."""
        return self._portal().call(self._engine.write, commands, timeout_ms)

    async def fetch(self, id: bytes, how: Read, timeout_ms: int) -> bytes | None:
        return self._portal().call(self._engine.fetch, id, how, timeout_ms)

    async def barrier(self, timeout_ms: int) -> None:
        try:
            self._portal().call(self._engine.barrier, timeout_ms)
        except NotReady as exc:  # it was stopped since the write
            raise OutcomeUnknown(str(exc), is_applied=True) from None

    async def call(self, verb: str, timeout_ms: int, **arguments: Any) -> Any:
        return self._portal().call(partial(self._engine.call, **arguments), verb, timeout_ms)

    async def start(self) -> NoReturn:
        raise NotImplementedError("an engine is started on its own event loop")

    async def stop(self) -> NoReturn:
        raise NotImplementedError("an engine is stopped on its own event loop")

    def watch(self, max_waiting: int) -> Source:
        raise NotImplementedError("events are taken on the engine's event loop")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's when it is installed: it halves what a message costs."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
