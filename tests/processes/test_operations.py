"""An operator's words, while clients read and write."""

from __future__ import annotations

import pytest

from hotspare.errors import HotspareError, Refused, Unavailable, UnknownNode
from tests.processes.daemons import Daemon, Daemons, client, eventually
from tests.processes.load import Load


async def trigger_failover(asked: Daemon, node: str) -> str:
    async with asked.client(timeout_ms=10_000) as sessions:
        return await sessions.trigger_failover(node)


async def role_of(daemon: Daemon, asked: Daemon) -> str:
    """As the asked node sees it."""
    members = (await asked.status())["replica_nodes"]
    (role,) = [member["role"] for member in members if member["node"] == daemon.name]
    return str(role)


async def is_seen_dead(daemon: Daemon, primary: Daemon) -> None:
    async def is_unreachable() -> bool:
        members = (await primary.status())["replica_nodes"]
        return not any(member["reachable"] for member in members if member["node"] == daemon.name)

    await eventually(is_unreachable, f"{primary.name} knows that {daemon.name} is dead")


async def test_every_node_can_be_made_the_primary_without_an_error_to_any_writer(
    cluster: Daemons, rounds: int
) -> None:
    await cluster.settled()
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        for _ in range(rounds):
            for daemon in [*cluster, cluster[0]]:
                await load.progress(20)
                async with daemon.client() as sessions:
                    await sessions.promote_to_primary()
                    assert (await sessions.get_replication_status())["role"] == "primary"
    await load.verify()
    assert load.errors == []


async def test_failover_of_the_primary_moves_the_leadership_without_an_error_to_any_writer(
    cluster: Daemons, rounds: int
) -> None:
    await cluster.settled()
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        for number in range(4 * rounds):
            await load.progress(20)
            primary = await cluster.primary()
            await trigger_failover(cluster[number % 4], primary.name)
            assert await cluster.primary() is not primary
    await load.verify()
    assert load.errors == []


async def test_four_nodes_survive_the_loss_of_two_one_after_the_other(cluster: Daemons) -> None:
    """Without the vote of the first one, which an operator took away, two of three are a majority."""
    await cluster.settled()
    async with Load(cluster) as load:
        await load.progress()
        primary = await cluster.primary()
        first, *_ = await cluster.secondaries()
        first.kill()
        await is_seen_dead(first, primary)
        assert first.name in await trigger_failover(primary, first.name)
        assert await role_of(first, primary) == "learner"
        await load.progress()
        primary.kill()
        await load.progress()
        for daemon in (first, primary):
            daemon.start()
            await daemon.ready()
        await load.progress()
    await load.verify()
    primary = await cluster.primary()
    for daemon in await cluster.secondaries():
        assert await role_of(daemon, primary) == "secondary", "it votes again"


async def test_no_vote_is_taken_away_when_too_few_would_remain(cluster: Daemons) -> None:
    await cluster.settled()
    primary = await cluster.primary()
    others = await cluster.secondaries()
    for daemon in others:
        daemon.kill()
    for daemon in others:
        await is_seen_dead(daemon, primary)
    async with primary.client(timeout_ms=2000) as sessions:
        with pytest.raises((Refused, Unavailable)):
            await sessions.trigger_failover(others[0].name)
        with pytest.raises(HotspareError):
            await sessions.store_session("alone", {}, 60_000)


async def test_there_is_nothing_to_do_about_a_healthy_secondary(cluster: Daemons) -> None:
    await cluster.settled()
    primary = await cluster.primary()
    secondary, *_ = await cluster.secondaries()
    assert "nothing to do" in await trigger_failover(secondary, secondary.name)
    assert await cluster.primary() is primary
    assert await role_of(secondary, primary) == "secondary"


async def test_an_unknown_node_is_answered_with_those_that_are_known(cluster: Daemons) -> None:
    await cluster.settled()
    async with client(cluster.addresses) as sessions:
        with pytest.raises(UnknownNode) as caught:
            await sessions.trigger_failover("127.0.0.1:1")
    assert set(caught.value.known) == set(cluster.by_name)
