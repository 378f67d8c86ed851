"""`ack="all"`: what was written through one node is read on another at once, or refused, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from random import Random

import pytest

from hotspare import AsyncSessionReplicator, SessionReplicator
from hotspare.errors import StaleRead
from tests.processes.browsers import Browsers, Troubles
from tests.processes.daemons import Daemon, Daemons, eventually
from tests.processes.proxy import Network

READS = 1000
"""After each trouble."""


async def test_what_was_written_for_all_is_read_on_any_node_at_once_while_nodes_die_hang_and_are_cut_off(
    daemons: Daemons, rounds: int
) -> None:
    async with Network() as network:
        await network.add_cluster(daemons, 3)
        daemons.start()
        await daemons.settled()
        async with Browsers(daemons) as browsers:
            troubles = Troubles(daemons, network, browsers, Random(rounds))
            await browsers.progress(READS)
            for _ in range(rounds):
                await troubles.each(READS)
    assert browsers.violations == []


async def test_what_a_worker_wrote_for_all_is_read_in_the_memory_of_any_host_at_once(
    daemons: Daemons,
) -> None:
    daemons.add_cluster(3)
    daemons.start()
    await daemons.settled()

    def work() -> None:
        with ExitStack() as stack:
            workers = [stack.enter_context(SessionReplicator(attach=each.address)) for each in daemons]
            for n in range(60):
                for writer in workers:
                    writer.store_session("s1", {"n": n}, 600_000, ack="all")
                    assert [worker.get_session("s1") for worker in workers] == [{"n": n}] * 3
                    assert writer.rotate_session("s1", "s2", ack="all")
                    assert [worker.get_session("s1") for worker in workers] == [None] * 3
                    assert writer.delete_session("s2", ack="all")
                    assert [worker.get_session("s2") for worker in workers] == [None] * 3

    await asyncio.to_thread(work)


@pytest.mark.parametrize("end", [Daemon.kill, Daemon.pause], ids=["killed", "paused"])
async def test_the_memory_of_a_node_that_is_gone_shows_nothing_old(
    daemons: Daemons, end: Callable[[Daemon], None]
) -> None:
    """Its lease is all that the others know of its readers: so long they wait."""
    daemons.add_cluster(3)
    daemons.start()
    await daemons.settled()
    gone, _ = await daemons.secondaries()
    async with (
        AsyncSessionReplicator(attach=gone.address) as worker,
        (await daemons.primary()).client() as writer,
    ):
        await writer.store_session("s1", {"n": 0}, 600_000, ack="all")
        assert await worker.get_session("s1") == {"n": 0}
        end(gone)
        assert await worker.get_session("s1") == {"n": 0}

        await writer.store_session("s1", {"n": 1}, 600_000, ack="all")

        with pytest.raises(StaleRead):
            await worker.get_session("s1")


async def test_a_paused_node_answers_nothing_old_when_it_goes_on(daemons: Daemons) -> None:
    daemons.add_cluster(3)
    daemons.start()
    await daemons.settled()
    paused, other = await daemons.secondaries()
    async with (
        paused.client() as reader,
        other.client() as elsewhere,
        (await daemons.primary()).client() as writer,
    ):
        for n in range(4):
            paused.pause()
            # It takes as long as the paused node's lease: the others show it long before.
            await writer.store_session("s1", {"n": n}, 600_000, ack="all")
            assert await elsewhere.get_session("s1") == {"n": n}
            paused.resume()

            found = await eventually(partial(reader.get_session, "s1"), "it answers reads again")
            assert found == {"n": n}
