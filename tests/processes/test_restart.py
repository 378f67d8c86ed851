"""Nodes that end and come back: one after the other, all at once, after a reboot."""

from __future__ import annotations

import asyncio
import json

import pytest

from hotspare.errors import HotspareError, NotReady, StaleRead, Unavailable
from tests.processes.daemons import Daemon, Daemons, client, eventually
from tests.processes.load import Load


async def test_a_rolling_restart_costs_no_write_an_error(cluster: Daemons, rounds: int) -> None:
    await cluster.settled()
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        for _ in range(rounds):
            for daemon in cluster:
                await load.progress(20)
                assert await daemon.stop() == 0
                daemon.start()
                await daemon.ready()
    await load.verify()
    assert load.errors == []


async def test_a_primary_that_is_stopped_hands_over_first(cluster: Daemons) -> None:
    """Whoever asks while it stops learns of the new primary before the old one is gone."""
    await cluster.settled()
    primary = await cluster.primary()
    terms = {status["term"] for status in await cluster.settled()}
    assert await primary.stop() == 0
    successor = await cluster.primary()
    status = await successor.status()
    assert status["term"] == terms.pop() + 1, "one election, and no failed one"
    assert "without a successor" not in primary.last_words()


async def test_all_nodes_killed_at_once_come_back_with_everything(cluster: Daemons, rounds: int) -> None:
    before = {status["node"]: status["incarnation"] for status in await cluster.settled()}
    for _ in range(2 * rounds):
        async with Load(cluster) as load:
            await load.progress(150)
            for daemon in cluster:
                daemon.kill()
            cluster.start()
            await load.progress()
        await load.verify()
        after = {status["node"]: status["incarnation"] for status in await cluster.settled()}
        assert after == before, "whoever has its state is the same server"


def reboot(daemon: Daemon) -> None:
    """What is stored of a dead node looks as if the host had been started anew since."""
    marker = daemon.data_dir / "hotspare.json"
    stored = json.loads(marker.read_text())
    marker.write_text(json.dumps(stored | {"boot_id": "of an earlier boot"}))


async def test_after_a_reboot_a_node_is_a_new_server_and_catches_up(cluster: Daemons) -> None:
    before = {status["node"]: status["incarnation"] for status in await cluster.settled()}
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        await load.progress()
        rebooted = (await cluster.secondaries())[0]
        rebooted.kill()
        reboot(rebooted)
        rebooted.start()
        status = await rebooted.ready()
        assert status["incarnation"] != before[rebooted.name]
        await load.progress()
    await load.verify()
    assert load.errors == []


async def test_when_half_of_the_nodes_lose_their_state_the_others_stop_rather_than_lose_writes(
    cluster: Daemons,
) -> None:
    await cluster.settled()
    async with client(cluster.addresses) as sessions:
        await sessions.store_session("kept", {"n": 1}, 600_000)
    await cluster.settled()
    for daemon in cluster:
        daemon.kill()
    for daemon in list(cluster)[:2]:
        reboot(daemon)
    cluster.start()
    statuses = {daemon: await daemon.listening() for daemon in cluster}
    survivors = [daemon for daemon, status in statuses.items() if status["cluster_id"]]
    assert survivors == list(cluster)[2:]
    async with client(cluster.addresses, timeout_ms=2000) as sessions:
        with pytest.raises(Unavailable):
            await sessions.store_session("more", {}, 600_000)
    for daemon in survivors:
        async with daemon.client() as sessions:
            assert await sessions.get_session("kept", read="stale") == {"n": 1}
            with pytest.raises((NotReady, StaleRead)):
                await sessions.get_session("kept")
    for daemon in list(cluster)[:2]:
        assert (await daemon.status())["role"] == "unfounded", "it joined or founded something"


async def test_clients_wait_for_a_cluster_that_is_away_for_a_moment(cluster: Daemons) -> None:
    """Killed and started again within the time that a write may take: no writer sees more than a delay."""
    await cluster.settled()
    async with client(cluster.addresses, timeout_ms=30_000) as sessions:
        await sessions.store_session("before", {"n": 1}, 600_000)
        for daemon in cluster:
            daemon.kill()
        write = asyncio.ensure_future(sessions.store_session("during", {"n": 2}, 600_000))
        cluster.start()
        await write
        assert await sessions.get_session("during", read="primary") == {"n": 2}
        assert await sessions.get_session("before", read="primary") == {"n": 1}


async def test_a_cluster_without_a_majority_says_so_to_writers_and_readers(cluster: Daemons) -> None:
    await cluster.settled()
    primary = await cluster.primary()
    one, two, _ = await cluster.secondaries()
    async with client([primary.address], timeout_ms=1000) as sessions:
        await sessions.store_session("there", {"n": 1}, 600_000)
        one.kill()
        two.kill()

        async def write_fails() -> bool:
            try:
                await sessions.store_session("more", {}, 600_000)
            except HotspareError:
                return True
            return False

        await eventually(write_fails, "writes fail")
        with pytest.raises(Unavailable):
            await sessions.get_session("there", read="primary")

        async def is_stale() -> bool:
            try:
                await sessions.get_session("there")
            except StaleRead:
                return True
            return False

        await eventually(is_stale, "local reads are refused")
        assert await sessions.get_session("there", read="stale") == {"n": 1}
