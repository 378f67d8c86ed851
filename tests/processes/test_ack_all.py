"""`ack="all"`: what was written through one node is read on another at once, or refused, whatever happens."""

from __future__ import annotations

from functools import partial
from random import Random

from tests.processes.browsers import Browsers, Troubles
from tests.processes.daemons import Daemons, eventually
from tests.processes.proxy import Network

READS = 300
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
