"""How clusters begin: once, with all their nodes, whatever the order."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import Any

import pytest

from hotspare.errors import HotspareError, Refused, Unavailable
from tests.processes.daemons import Daemon, Daemons, client, eventually, free_addresses

QUICK: dict[str, Any] = {"health_check_interval_ms": 100}
"""A founding that comes to nothing is given up after a while, which hangs on this."""


async def is_one_cluster(daemons: Daemons) -> str:
    """Its id, once all running nodes belong to it."""
    (cluster_id,) = {status["cluster_id"] for status in await daemons.settled()}
    return str(cluster_id)


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (1, 3, 0, 2)], ids=["last first", "mixed"])
async def test_nodes_may_be_started_in_any_order(daemons: Daemons, order: tuple[int, ...]) -> None:
    daemons.add_cluster()
    for position in order:
        daemons[position].start()
        await daemons[position].listening()
    await is_one_cluster(daemons)


async def test_nothing_is_founded_while_a_node_is_missing(daemons: Daemons) -> None:
    first, *others = daemons.add_cluster()
    for daemon in others:
        daemon.start()
    for daemon in others:
        await daemon.listening()
    async with others[0].client(timeout_ms=500) as sessions:
        with pytest.raises(Unavailable):
            await sessions.store_session("early", {}, 60_000)
        with pytest.raises(HotspareError):
            await sessions.get_session("early")
    assert [(await daemon.status())["role"] for daemon in others] == ["unfounded"] * 3
    first.start()
    await is_one_cluster(daemons)


async def test_nodes_may_die_while_they_found_a_cluster(daemons: Daemons, rounds: int) -> None:
    for _ in range(2 * rounds):
        nodes = daemons.add_cluster(3, **QUICK)
        for daemon in nodes:
            daemon.start()
        for daemon in nodes:
            await daemon.listening()
            victim = random.choice(nodes)
            victim.kill()
            victim.start()
        await is_one_cluster(daemons)
        for daemon in nodes:
            daemon.kill()
            shutil.rmtree(daemon.data_dir)
        daemons.by_name.clear()


async def test_a_client_founds_a_cluster_of_empty_nodes(daemons: Daemons) -> None:
    founder, *others = [daemons.add(name) for name in free_addresses(4)]
    daemons.start()
    for daemon in daemons:
        await daemon.listening()
    async with founder.client() as sessions:
        await sessions.start_cluster([daemon.name for daemon in others])
        await sessions.store_session("first", {"n": 1}, 60_000)
    await is_one_cluster(daemons)
    async with others[0].client() as sessions:
        assert await sessions.get_session("first", read="primary") == {"n": 1}
        with pytest.raises(Refused, match="already belongs"):
            await sessions.start_cluster([founder.name])


async def test_two_who_found_at_the_same_time_end_up_in_one_cluster(daemons: Daemons) -> None:
    names = free_addresses(4)
    for name in names:
        daemons.add(name, **QUICK)
    daemons.start()
    for daemon in daemons:
        await daemon.listening()

    async def try_to_found(founder: Daemon) -> None:
        async with founder.client() as sessions:
            await sessions.start_cluster([name for name in names if name != founder.name])

    async def is_founded() -> bool:
        attempts = [try_to_found(founder) for founder in list(daemons)[:2]]
        results = await asyncio.gather(*attempts, return_exceptions=True)
        for result in results:
            assert result is None or isinstance(result, HotspareError), result
        statuses = [await daemon.status() for daemon in daemons]
        return all(status["cluster_id"] for status in statuses)

    await eventually(is_founded, "one of the two has founded it")
    await is_one_cluster(daemons)


async def test_two_clusters_never_mix(daemons: Daemons) -> None:
    """Not even when somebody lists a node of the other one as a replica, or founds across both."""
    names = free_addresses(4)
    ours, theirs = names[:2], names[2:]
    for group in (ours, theirs):
        for name in group:
            daemons.add(name, "--replicas", ",".join(group))
    daemons.start()
    before = {daemon: (await daemon.ready())["cluster_id"] for daemon in daemons}
    assert len(set(before.values())) == 2

    mistaken = daemons[0]
    mistaken.kill()
    mistaken.options[mistaken.options.index("--replicas") + 1] = ",".join([*ours, theirs[0]])
    mistaken.start()
    await mistaken.ready()
    stranger = daemons.add(free_addresses(1)[0])
    stranger.start()
    await stranger.listening()
    async with stranger.client() as sessions:
        with pytest.raises(Refused, match="already belongs"):
            await sessions.start_cluster([theirs[1]])

    async def is_noticed() -> bool:
        return "belongs to cluster" in mistaken.last_words()

    await eventually(is_noticed, "the log says that the other node belongs to another cluster")
    for daemon, cluster_id in before.items():
        assert (await daemon.ready())["cluster_id"] == cluster_id
    async with client(ours) as sessions, client(theirs) as others:
        await sessions.store_session("ours", {}, 60_000)
        assert await others.get_session("ours", read="primary") is None
