"""Writes that are awaited: by an in-process node's callers, and by those of a client."""

from __future__ import annotations

import asyncio

import pytest

from hotspare.cluster.writer import Writer, size_of
from hotspare.commands import Command, Delete, Patch, Put, RawGroup
from hotspare.engine import Outcome
from hotspare.errors import OutcomeUnknown, Unavailable
from hotspare.protocol import origin as origin_module

GRACE_MS = 50
TIMEOUT_MS = 5000


class Driver:
    """A writer whose clock and cluster are in the test's hands."""

    def __init__(self) -> None:
        self.wakes = 0
        self.writer = Writer(10, 20, GRACE_MS, self._wake)
        self.now_ms = 1000
        self.sent: list[RawGroup] = []

    def _wake(self) -> None:
        self.wakes += 1

    def write(self, count: int = 1, timeout_ms: int = TIMEOUT_MS) -> asyncio.Future[list[int]]:
        commands: list[Command] = [Delete(b"s1", 0) for _ in range(count)]
        return asyncio.ensure_future(self.writer.write(commands, size_of(commands), self.now_ms, timeout_ms))

    async def register(self) -> None:
        await asyncio.sleep(0)
        self.writer.origin.registered(self.writer.origin.wants_registration(), 7)

    def send(self) -> list[RawGroup]:
        groups = self.writer.origin.take_groups(self.now_ms, self.now_ms)
        self.sent += groups
        return groups

    def answer(self, group: RawGroup) -> None:
        results = list(range(group.first, group.first + group.count))
        self.writer.origin.answered(group.origin, group.first, results)
        self.writer.notice()

    def pass_time(self, duration_ms: int) -> None:
        self.now_ms += duration_ms
        self.writer.origin.expire(self.now_ms)
        self.writer.notice()


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """With room for two commands only."""
    monkeypatch.setattr(origin_module, "MAX_WAITING_COMMANDS", 2)
    return Driver()


async def test_a_write_wakes_the_owner_and_ends_with_its_own_results(driver: Driver):
    writes = [driver.write(), driver.write(3), driver.write()]
    await driver.register()
    assert driver.wakes == 3

    (group,) = driver.send()
    driver.answer(group)

    assert await asyncio.gather(*writes) == [[1], [2, 3, 4], [5]]


async def test_who_asked_to_be_told_is_told_at_once_and_only_once(driver: Driver):
    written, lost = driver.write(), driver.write(timeout_ms=100)
    assert isinstance(written, Outcome)
    assert isinstance(lost, Outcome)
    told: list[Outcome] = []
    written.tell = lost.tell = told.append
    await driver.register()
    (group,) = driver.send()

    driver.pass_time(100 + GRACE_MS)
    assert told == [lost]
    assert isinstance(lost.exception(), OutcomeUnknown)

    driver.answer(group)
    assert told == [lost, written]
    assert written.tell is None
    assert written.result() == [1]


async def test_a_write_that_nobody_took_in_time_is_unavailable(driver: Driver):
    writing = driver.write(timeout_ms=100)
    await asyncio.sleep(0)

    driver.pass_time(99)
    await asyncio.sleep(0)
    assert not writing.done()
    driver.pass_time(1)

    with pytest.raises(Unavailable):
        await writing


async def test_a_write_that_nobody_answered_in_time_is_unknown_and_not_before_the_clocks_may_differ(
    driver: Driver,
):
    writing = driver.write(timeout_ms=100)
    await driver.register()
    driver.send()

    driver.pass_time(100 + GRACE_MS - 1)
    await asyncio.sleep(0)
    assert not writing.done()
    driver.pass_time(1)

    with pytest.raises(OutcomeUnknown):
        await writing


async def test_who_finds_no_room_waits_for_it(narrow: Driver):
    writes = [narrow.write(2), narrow.write(), narrow.write()]
    await narrow.register()
    assert narrow.writer.origin.pending == 2

    (group,) = narrow.send()
    narrow.writer.notice()
    await asyncio.sleep(0)
    assert narrow.writer.origin.pending == 4
    narrow.answer(group)
    (group,) = narrow.send()
    narrow.answer(group)

    assert await asyncio.gather(*writes) == [[1, 2], [3], [4]]


async def test_who_finds_no_room_in_time_is_told(narrow: Driver):
    writes = [narrow.write(2), narrow.write(timeout_ms=5)]
    await narrow.register()

    with pytest.raises(Unavailable, match="too many writes"):
        await writes[1]

    assert narrow.writer.is_busy
    (group,) = narrow.send()
    narrow.answer(group)
    assert await writes[0] == [1, 2]
    assert not narrow.writer.is_busy


async def test_a_caller_who_was_cancelled_is_in_nobodys_way(narrow: Driver):
    sent, waiting, last = narrow.write(2), narrow.write(), narrow.write()
    await narrow.register()
    (group,) = narrow.send()
    sent.cancel()
    waiting.cancel()
    await asyncio.sleep(0)

    narrow.answer(group)
    await asyncio.sleep(0)
    (group,) = narrow.send()
    narrow.answer(group)

    assert await last == [3]
    assert not narrow.writer.is_busy


async def test_to_settle_is_to_wait_for_what_was_begun_before_and_for_nothing_else(driver: Driver):
    first = driver.write()
    await driver.register()
    settling = asyncio.ensure_future(driver.writer.settle())
    await asyncio.sleep(0)
    (group,) = driver.send()
    later = driver.write()
    await asyncio.sleep(0)
    assert not settling.done()

    driver.answer(group)
    await settling

    assert await first == [1]
    assert not later.done()
    assert driver.writer.is_busy
    driver.writer.close("the test is over")
    with pytest.raises(Unavailable):
        await later


async def test_who_waits_for_room_has_begun(narrow: Driver):
    sent, without_room = narrow.write(2), narrow.write(timeout_ms=5)
    await narrow.register()
    settling = asyncio.ensure_future(narrow.writer.settle())
    (group,) = narrow.send()
    narrow.writer.origin.answered(group.origin, group.first, [1, 2])
    assert await sent == [1, 2]
    assert not settling.done()

    with pytest.raises(Unavailable):
        await without_room
    await settling


async def test_where_nothing_was_begun_it_is_settled_at_once(driver: Driver):
    await driver.writer.settle()
    assert not driver.writer.is_busy


async def test_a_writer_that_closes_tells_everybody_what_it_knows(narrow: Driver):
    sent = narrow.write(2)
    await narrow.register()
    narrow.send()
    waiting, without_room = narrow.write(2), narrow.write()
    await asyncio.sleep(0)

    narrow.writer.close("it was stopped")

    with pytest.raises(OutcomeUnknown, match="it was stopped"):
        await sent
    for certain in (waiting, without_room):
        with pytest.raises(Unavailable, match="it was stopped"):
            await certain
    with pytest.raises(Unavailable, match="it was stopped"):
        await narrow.write()


async def test_who_had_just_found_room_when_it_closed_is_told_too(narrow: Driver):
    first, woken = narrow.write(2), narrow.write()
    await narrow.register()
    narrow.send()
    narrow.writer.notice()  # there is room, but its caller has not come to it yet

    narrow.writer.close("it was stopped")

    with pytest.raises(Unavailable):
        await woken
    with pytest.raises(OutcomeUnknown):
        await first


def test_sizes_are_about_those_in_the_log():
    put = Put(b"s1", b"x" * 1000, 0, 0, 1000, 0, 0)

    assert 1002 <= size_of([put]) <= 1100
    assert size_of([put, put]) == 2 * size_of([put])
    patch = Patch(b"s1", [("field", b"x" * 1000)], ["y" * 1000], 0, 0, 0)
    assert 2007 <= size_of([patch]) <= 2150
    assert size_of([]) == 0
