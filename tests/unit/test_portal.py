"""How a plain call gets to an event loop and back."""

from __future__ import annotations

import asyncio
import gc
import signal
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from hotspare.engine import Engine, Outcome
from hotspare.errors import NotReady, OutcomeUnknown, Unavailable
from hotspare.portal import BehindPortal, Portal, run


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal()
    yield portal
    portal.close()


class Stopped:
    """An engine that is stopped between a write and what is to follow it."""

    has_copy = True

    def read_local(self, id: bytes, /) -> bytes | None:
        return None

    async def barrier(self, timeout_ms: int) -> None:
        raise NotReady("it was stopped")


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def test_a_coroutine_and_a_future_are_awaited(portal: Portal):
    def already(value: str) -> asyncio.Future[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result(value)
        return future

    assert portal.call(double, 4) == 8
    assert portal.call(already, "done") == "done"


@pytest.mark.parametrize("known", ["before it is asked for", "later"])
def test_an_outcome_is_told(portal: Portal, known: str):
    def write(outcome: list[int] | Exception) -> Outcome:
        loop = asyncio.get_running_loop()
        written = Outcome(loop=loop)

        def end() -> None:
            if isinstance(outcome, Exception):
                written.set_exception(outcome)
            else:
                written.set_result(outcome)

        if known == "later":
            loop.call_soon(end)
        else:
            end()
        return written

    assert portal.call(write, [7]) == [7]
    with pytest.raises(Unavailable):
        portal.call(write, Unavailable("there is no primary"))


def test_nothing_holds_on_to_what_was_written(portal: Portal):
    class Payload:
        pass

    def write(payload: Payload) -> Outcome:
        written = Outcome(loop=asyncio.get_running_loop())

        asyncio.get_running_loop().call_soon(written.set_result, [1])
        return written

    payload = Payload()
    left = weakref.ref(payload)
    gc.disable()
    try:
        portal.call(write, payload)
        portal.call(double, 1)  # by now the event loop is done with the call before
        del payload
        assert left() is None
    finally:
        gc.enable()


def test_what_is_raised_there_is_raised_here(portal: Portal):
    def at_once() -> Any:
        raise Unavailable("there is no primary")

    async def later() -> None:
        await asyncio.sleep(0)
        raise Unavailable("there is no primary")

    for begin in (at_once, later):
        with pytest.raises(Unavailable):
            portal.call(begin)


def test_a_call_that_is_cancelled_there_does_not_cancel_the_caller(portal: Portal):
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(OutcomeUnknown):
        portal.call(cancelled)


def test_on_the_loops_own_thread_a_call_is_refused_instead_of_waiting_for_itself(portal: Portal):
    async def call() -> None:
        portal.call(double, 1)

    with pytest.raises(RuntimeError, match="own thread"):
        portal.call(call)


def test_many_threads_may_call_at_once(portal: Portal):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: portal.call(double, n), range(500))) == [2 * n for n in range(500)]


def test_after_its_end_nothing_is_taken():
    portal = Portal()
    portal.close()
    with pytest.raises(NotReady):
        portal.call(double, 1)


def test_a_stop_between_a_write_and_its_barrier_says_that_the_write_was_applied(portal: Portal):
    engine = BehindPortal(cast(Engine, Stopped()), lambda: portal)

    with pytest.raises(OutcomeUnknown) as raised:
        run(engine.barrier(1000))

    assert raised.value.is_applied


def test_a_verb_that_would_wait_for_a_loop_is_a_defect_that_is_told():
    with pytest.raises(RuntimeError, match="where there is none"):
        run(asyncio.sleep(0))


def test_an_interrupted_call_leaves_nothing_that_the_next_one_takes_for_its_answer(portal: Portal):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    async def slowly(number: int) -> int:
        await asyncio.sleep(0.2)
        return number

    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            portal.call(slowly, 1)
        assert [portal.call(slowly, number) for number in (2, 3)] == [2, 3]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
