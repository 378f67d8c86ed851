"""Connections that break, get stuck or are slow, in one direction or both, while clients read and write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest

from hotspare.errors import OutcomeUnknown, StaleRead, Unavailable
from tests.processes.daemons import Daemon, Daemons, client, eventually
from tests.processes.load import Load
from tests.processes.proxy import Network


@pytest.fixture
async def network(daemons: Daemons) -> AsyncIterator[Network]:
    """Four nodes that reach each other through this network, and have founded a cluster."""
    async with Network() as network:
        await network.add_cluster(daemons)
        daemons.start()
        await daemons.settled()
        yield network


async def others_of(daemons: Daemons, daemon: Daemon) -> list[Daemon]:
    return [other for other in daemons if other is not daemon]


async def followed_by(daemons: list[Daemon]) -> str:
    """The primary that all of these see, once they see the same; empty for none."""
    answers: list[str] = []

    async def agree() -> bool:
        leaders = {(await daemon.status())["primary"] for daemon in daemons}
        answers[:] = leaders
        return len(leaders) == 1

    await eventually(agree, "the same primary for all of them")
    return answers[0]


async def follow_another(daemons: list[Daemon], old: Daemon) -> None:
    async def has_changed() -> bool:
        return await followed_by(daemons) not in ("", old.name)

    await eventually(has_changed, f"another primary than {old.name}")


async def knows_of_no_primary(daemon: Daemon) -> None:
    async def is_alone() -> bool:
        status = await daemon.status()
        return status["primary"] == "" and not status["ready"]

    await eventually(is_alone, f"{daemon.name} notices that it is alone")


async def test_a_primary_that_is_cut_off_is_replaced_and_refuses_everything(
    network: Network, daemons: Daemons, rounds: int
) -> None:
    async with client(daemons.addresses) as sessions:
        await sessions.store_session("old", {"n": 1}, 600_000)
    async with Load(daemons) as load:
        for _ in range(rounds):
            await load.progress()
            primary = await daemons.primary()
            others = await others_of(daemons, primary)
            network.cut([primary], others)
            await follow_another(others, primary)
            await knows_of_no_primary(primary)
            async with primary.client(timeout_ms=500) as sessions:
                with pytest.raises((Unavailable, OutcomeUnknown)):
                    await sessions.store_session("too late", {}, 60_000)
                with pytest.raises(Unavailable):
                    await sessions.get_session("old", read="primary")
                with pytest.raises(StaleRead):
                    await sessions.get_session("old")
                assert await sessions.get_session("old", read="stale") == {"n": 1}
            await load.progress()
            network.heal()
            await primary.ready()
            await load.progress()
    await load.verify()
    async with client(daemons.addresses) as sessions:
        found = await sessions.get_session("too late", read="primary")
        assert found is None, "it took effect after its deadline"


async def test_a_primary_whose_words_get_stuck_is_replaced(
    network: Network, daemons: Daemons, rounds: int
) -> None:
    """It hears the others, and they do not hear it. What it said arrives when others have long gone on."""
    async with Load(daemons) as load:
        for _ in range(rounds):
            await load.progress()
            primary = await daemons.primary()
            others = await others_of(daemons, primary)
            network.hold([primary], others)
            await follow_another(others, primary)
            await load.progress()
            network.heal()
            await primary.ready()
    await load.verify()


async def test_a_primary_that_cannot_hear_the_others_is_replaced(
    network: Network, daemons: Daemons, rounds: int
) -> None:
    """They hear its heartbeats, and would follow it for ever if it did not step down by itself."""
    async with Load(daemons) as load:
        for _ in range(rounds):
            await load.progress()
            primary = await daemons.primary()
            others = await others_of(daemons, primary)
            network.hold(others, [primary])
            await follow_another(others, primary)
            await load.progress()
            network.heal()
            await primary.ready()
    await load.verify()


async def test_of_two_halves_none_serves_anybody(network: Network, daemons: Daemons) -> None:
    async with Load(daemons) as load:
        await load.progress()
        network.cut(list(daemons)[:2], list(daemons)[2:])
        for daemon in daemons:
            await knows_of_no_primary(daemon)
        acknowledged = load.ledger.acknowledged
        async with client(daemons.addresses, timeout_ms=500) as sessions:
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await sessions.store_session("nobody-takes-it", {}, 60_000)
        assert load.ledger.acknowledged == acknowledged
        network.heal()
        await load.progress()
    await load.verify()


async def test_connections_that_break_again_and_again_cost_time_and_nothing_else(
    network: Network, daemons: Daemons, rounds: int
) -> None:
    async with Load(daemons, timeouts_ms=(5000,)) as load:
        for _ in range(10 * rounds):
            network.reset()
            await load.progress(writes=10)
    await load.verify()
    assert load.errors == []


async def test_ways_that_are_cut_stuck_and_slow_at_random_lose_nothing(
    network: Network, daemons: Daemons, rounds: int
) -> None:
    """One node at a time has trouble with some of the others, so most of them can always go on."""
    random = Random(4)
    async with Load(daemons) as load:
        for _ in range(5 * rounds):
            network.delay_seconds = random.choice([0, 0.002, 0.02])
            one = random.choice(list(daemons))
            others = random.sample(await others_of(daemons, one), random.randint(1, 3))
            random.choice(
                [
                    lambda: network.cut([one], others),  # noqa: B023
                    lambda: network.hold([one], others),  # noqa: B023
                    lambda: network.hold(others, [one]),  # noqa: B023
                ]
            )()
            await load.progress(writes=20)
            network.heal()
            await load.progress(writes=20)
        network.delay_seconds = 0
    await load.verify()
