"""Members that come and go, observers, and the loss of a majority, with real daemons and a load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from hotspare import AsyncSessionReplicator
from hotspare.errors import NotReady, StaleRead, Unavailable
from tests.processes.daemons import Daemon, Daemons, client, eventually, free_addresses
from tests.processes.load import Load

TTL_MS = 600_000


@pytest.fixture
def founders(daemons: Daemons) -> Daemons:
    daemons.add_cluster(3)
    daemons.start()
    return daemons


@pytest.fixture
def others() -> Iterator[Daemons]:
    """Nodes beside the founders."""
    with Daemons() as others:
        yield others


async def has_role(daemon: Daemon, role: str) -> dict[str, Any]:
    async def has_it() -> dict[str, Any] | None:
        status = await daemon.status()
        return status if status["role"] == role else None

    status: dict[str, Any] = await eventually(has_it, f"{daemon.name} is {role}")
    return status


async def test_a_cluster_grows_and_shrinks_without_an_error_to_any_client(
    founders: Daemons, others: Daemons
) -> None:
    await founders.settled()
    for name in free_addresses(2):
        others.add(name).start()
    async with Load(founders, timeouts_ms=(5000,)) as load:
        for newcomer in others:
            await newcomer.listening()
            async with client(founders.addresses, timeout_ms=10_000) as sessions:
                await sessions.add_node(newcomer.name)
            await newcomer.ready()
            await load.progress(30)

        primary = await founders.primary()
        for leaving, asked in ((primary, others[0]), (others[0], others[1])):
            async with asked.client(timeout_ms=10_000) as sessions:
                await sessions.remove_node(leaving.name)
            await has_role(leaving, "removed")
            await load.progress(30)
    await primary.stop()
    await load.verify()
    assert load.errors == []


async def test_a_member_removed_while_it_was_dead_says_so_when_it_is_back(founders: Daemons) -> None:
    await founders.settled()
    gone, *_ = await founders.secondaries()
    primary = await founders.primary()
    gone.kill()
    async with primary.client(timeout_ms=10_000) as sessions:
        await sessions.remove_node(gone.name)
    gone.start()
    status = await has_role(gone, "removed")
    assert "hotspare add" in status["trouble"]
    async with gone.client() as sessions:
        with pytest.raises(NotReady, match="was removed"):
            await sessions.get_session("s1")
        with pytest.raises(Unavailable, match="was removed"):
            await sessions.store_session("s1", {}, TTL_MS)
    async with primary.client(timeout_ms=10_000) as sessions:
        await sessions.add_node(gone.name)
    await founders.settled()


class Counter:
    """One writer that counts up, and one reader of an observer's copy, which must never go back."""

    def __init__(self, members: Daemons, observer: Daemon) -> None:
        self._members, self._observer = members, observer
        self.shown = 0
        self._written = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Counter:
        self._tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read())]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError) and isinstance(result, BaseException):
                raise result

    async def _write(self) -> None:
        async with client(self._members.addresses) as sessions:
            while True:
                await sessions.store_session("counter", {"n": self._written + 1}, TTL_MS)
                self._written += 1
                await asyncio.sleep(0.005)

    async def _read(self) -> None:
        while True:
            try:
                async with self._observer.client(timeout_ms=2000) as sessions:
                    await self._read_from(sessions)
            except Unavailable:
                await asyncio.sleep(0.02)

    async def _read_from(self, sessions: AsyncSessionReplicator) -> None:
        while True:
            try:
                found = await sessions.get_session("counter")
            except (StaleRead, NotReady):
                found = None
            if found is not None:
                assert found["n"] >= self.shown, f"it showed {self.shown}, and then {found['n']}"
                self.shown = found["n"]
            await asyncio.sleep(0.002)

    async def progress(self) -> None:
        """Something written from now on is shown."""
        target = self._written + 2

        async def is_shown() -> bool:
            for task in self._tasks:
                if task.done():
                    await task
            return self.shown >= target

        await eventually(is_shown, f"the observer shows {target}")


async def test_an_observer_never_goes_back_while_primaries_die_and_it_does(
    founders: Daemons, others: Daemons
) -> None:
    await founders.settled()
    (name,) = free_addresses(1)
    two = ",".join(founders.addresses[:2])
    observer = others.add(name, "--role", "observer", "--replicas", two)
    observer.start()
    async with Counter(founders, observer) as counter:
        await counter.progress()
        for _ in range(2):
            primary = await founders.primary()
            primary.kill()
            await counter.progress()
            primary.start()
            observer.kill()
            observer.start()
            await counter.progress()
            await primary.ready()
    status = await observer.ready()
    assert status["role"] == "observer"
    primary_status = await (await founders.primary()).status()
    roles = {each["node"]: each["role"] for each in primary_status["replica_nodes"]}
    assert roles[name] == "observer"


async def test_members_move_to_other_addresses_one_after_the_other_and_no_writer_notices(
    founders: Daemons, others: Daemons
) -> None:
    """As pods do: the name stays, and stands for another address."""
    await founders.settled()
    (name,) = free_addresses(1)
    agent = others.add(name, "--role", "observer", "--replicas", ",".join(founders.addresses))
    agent.start()
    await agent.ready()
    written = 0
    is_over = asyncio.Event()

    async def write() -> None:
        nonlocal written
        async with agent.client() as sessions:
            while not is_over.is_set():
                await sessions.store_session(f"s{written % 20}", {"n": written}, TTL_MS)
                written += 1

    async def goes_on() -> None:
        target = written + 20

        async def has_gone_on() -> bool:
            assert not writing.done(), "a write failed"
            return written >= target

        await eventually(has_gone_on, "writes go on")

    writing = asyncio.ensure_future(write())
    for member, address in zip(founders, free_addresses(3), strict=True):
        await goes_on()
        await member.stop()
        member.options += ["--listen", address, "--advertise", address]
        member.address = address
        member.start()
        await member.ready()
        await goes_on()
    is_over.set()
    await writing
    await founders.settled()
    for member in founders:
        others_of = (await member.status())["replica_nodes"]
        assert all(each["reachable"] for each in others_of)


async def test_a_survivor_goes_on_alone_and_the_others_come_back_without_their_state(
    founders: Daemons,
) -> None:
    await founders.settled()
    async with client(founders.addresses) as sessions:
        for number in range(100):
            await sessions.store_session(f"s{number}", {"n": number}, TTL_MS)
    await founders.settled()
    survivor, *_ = await founders.secondaries()
    lost = [daemon for daemon in founders if daemon is not survivor]
    for daemon in lost:
        daemon.kill()

    async def sees_no_primary() -> dict[str, Any] | None:
        status = await survivor.status()
        sees_others = any(each["reachable"] for each in status["replica_nodes"])
        return status if not status["primary"] and not sees_others else None

    old = await eventually(sees_no_primary, "the survivor knows that it is alone")
    async with survivor.client(timeout_ms=10_000) as sessions:
        await sessions.promote_to_primary(force=True)
    new = await survivor.status()
    assert new["cluster_id"] != old["cluster_id"]
    assert [fork["parent"] for fork in new["ancestry"]] == [old["cluster_id"]]

    for daemon in lost:
        daemon.start()
        status = await has_role(daemon, "superseded")
        assert status["cluster_id"] == old["cluster_id"]
        assert "--discard" in status["trouble"]
        await daemon.stop()
        daemon.options.append("--discard")
        daemon.start()
        daemon.options.remove("--discard")
        await daemon.ready()
    statuses = await founders.settled()
    assert {status["cluster_id"] for status in statuses} == {new["cluster_id"]}
    for daemon in founders:
        async with daemon.client() as sessions:
            assert await sessions.session_count() == 100
