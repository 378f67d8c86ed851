"""SIGKILL, while clients read and write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random

from tests.processes.daemons import Daemon, Daemons, eventually
from tests.processes.load import Load


async def failover_ms(killed: Daemon, survivor: Daemon) -> float:
    """From the kill until the next write is acknowledged."""
    async with survivor.client(timeout_ms=10_000) as sessions:
        killed_at = time.monotonic()
        killed.kill()
        await sessions.store_session("probe", {}, 60_000)
        return (time.monotonic() - killed_at) * 1000


async def test_nothing_acknowledged_is_lost_when_primaries_are_killed_one_after_the_other(
    cluster: Daemons, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    await cluster.settled()
    async with Load(cluster) as load:
        for _ in range(4 * rounds):
            primary = await cluster.primary()
            survivor = (await cluster.secondaries())[0]
            await load.progress()
            record_property("failover_ms", await failover_ms(primary, survivor))
            await load.progress()
            primary.start()
            await primary.ready()
    await load.verify()


async def test_writers_hardly_notice_when_secondaries_are_killed(cluster: Daemons, rounds: int) -> None:
    await cluster.settled()
    random = Random(1)
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        for _ in range(3 * rounds):
            secondary = random.choice(await cluster.secondaries())
            secondary.kill()
            await load.progress()
            secondary.start()
            await secondary.ready()
    await load.verify()
    assert load.errors == []


async def test_nodes_may_die_at_any_moment_as_long_as_most_are_left(cluster: Daemons, rounds: int) -> None:
    """Also while they start, catch up or take over: the next one dies as soon as a majority is ready."""
    await cluster.settled()
    random = Random(2)
    async with Load(cluster) as load:
        for _ in range(6 * rounds):
            victim = random.choice([*cluster.running, await cluster.primary()])
            victim.kill()
            await load.progress(writes=10)
            victim.start()
            await majority_ready(cluster)
    await load.verify()


async def majority_ready(cluster: Daemons) -> None:
    async def is_ready(daemon: Daemon) -> bool:
        return bool((await daemon.status())["ready"])

    async def most_are_ready() -> bool:
        answers = await asyncio.gather(*map(is_ready, cluster), return_exceptions=True)
        return 2 * sum(answer is True for answer in answers) > len(answers)

    await eventually(most_are_ready, "a majority of the nodes is ready")
