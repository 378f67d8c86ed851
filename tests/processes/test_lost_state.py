"""Nodes that come back without their state, while clients read and write."""

from __future__ import annotations

import shutil
from random import Random

from tests.processes.daemons import Daemon, Daemons, client
from tests.processes.load import Load


def lose_everything(daemon: Daemon) -> None:
    daemon.kill()
    shutil.rmtree(daemon.data_dir)


async def test_a_node_that_lost_everything_catches_up_under_load(cluster: Daemons, rounds: int) -> None:
    before = {status["node"]: status["incarnation"] for status in await cluster.settled()}
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        for _ in range(2 * rounds):
            victim = (await cluster.secondaries())[0]
            await load.progress()
            lose_everything(victim)
            victim.start()
            status = await victim.ready()
            assert status["incarnation"] != before[victim.name], "a server that lost its state is a new one"
            before[victim.name] = status["incarnation"]
            await load.progress()
    await load.verify()
    assert load.errors == []


async def test_a_node_may_lose_everything_again_and_again_before_it_has_caught_up(
    cluster: Daemons, rounds: int
) -> None:
    await cluster.settled()
    random = Random(3)
    async with Load(cluster) as load:
        await load.progress(200)
        victim = random.choice(await cluster.secondaries())
        for _ in range(4 * rounds):
            lose_everything(victim)
            victim.start()
            await victim.listening()
            await load.progress(writes=random.randrange(30))
        await victim.ready()
    await load.verify()


async def test_a_copy_too_old_for_the_log_is_sent_whole_although_its_sender_dies_meanwhile(
    cluster: Daemons,
) -> None:
    """More is stored than the log keeps, so a snapshot has to travel."""
    await cluster.settled()
    large = {"text": "x" * 60_000}
    async with client(cluster.addresses, timeout_ms=30_000) as sessions:
        assert await sessions.store_sessions((f"large{n}", large, 600_000) for n in range(1200)) == 1200
    await cluster.settled()
    async with Load(cluster) as load:
        await load.progress()
        victim = (await cluster.secondaries())[0]
        lose_everything(victim)
        victim.start()
        await victim.listening()
        sender = await cluster.primary()
        sender.kill()
        await load.progress()
        sender.start()
        await victim.ready()
        await sender.ready()
        await load.progress()
    await load.verify()
    async with victim.client() as sessions:
        for n in range(0, 1200, 100):
            assert await sessions.get_session(f"large{n}") == large
