"""SIGSTOP: a process that does not run, whose connections stay open, and that does not know how late it is.

The clients of a paused node keep asking it all the time: what it answers when it goes on is judged like
everything else.
"""

from __future__ import annotations

from tests.processes.daemons import Daemon, Daemons, eventually
from tests.processes.load import Load


async def other_primary(cluster: Daemons, paused: Daemon) -> Daemon:
    """Whom all the others follow, once they do."""
    others = [daemon for daemon in cluster if daemon is not paused]

    async def has_changed() -> Daemon | None:
        leaders = {(await daemon.status())["primary"] for daemon in others}
        leader = cluster.by_name.get(leaders.pop()) if len(leaders) == 1 else None
        return leader if leader is not paused else None

    leader: Daemon = await eventually(has_changed, "another primary")
    return leader


async def test_a_paused_primary_is_replaced_and_does_no_harm_when_it_goes_on(
    cluster: Daemons, rounds: int
) -> None:
    await cluster.settled()
    async with Load(cluster) as load:
        for _ in range(2 * rounds):
            await load.progress()
            paused = await cluster.primary()
            paused.pause()
            await other_primary(cluster, paused)
            await load.progress()
            paused.resume()
            await paused.ready()
            await load.progress()
    await load.verify()


async def test_a_paused_secondary_holds_nobody_up(cluster: Daemons, rounds: int) -> None:
    await cluster.settled()
    async with Load(cluster) as load:
        for _ in range(2 * rounds):
            paused = (await cluster.secondaries())[-1]
            paused.pause()
            await load.progress(200)
            paused.resume()
            await paused.ready()
    await load.verify()


async def test_when_most_nodes_are_paused_nothing_is_acknowledged_and_all_goes_on_afterwards(
    cluster: Daemons,
) -> None:
    await cluster.settled()
    async with Load(cluster) as load:
        await load.progress()
        primary = await cluster.primary()
        one, two, _ = await cluster.secondaries()
        for daemon in (one, two):
            daemon.pause()

        async def has_stepped_down() -> bool:
            status = await primary.status()
            return status["primary"] == "" and not status["ready"]

        await eventually(has_stepped_down, "the primary notices that it has no majority")
        for daemon in (one, two):
            daemon.resume()
        await load.progress()
    await load.verify()
