"""Nodes whose state is on a disk: what they survive, and what they say when something is wrong with it."""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.daemons import Daemon, Daemons, copy_store
from tests.processes.load import Load

PAGE_BYTES = 4096
STORE_TROUBLE = 5
"""The exit code."""


@pytest.fixture
def disks() -> Iterator[Daemons]:
    """Daemons that are yet to be added, with directories on a disk."""
    with Daemons() as daemons:
        in_memory, daemons.directory = daemons.directory, Path(tempfile.mkdtemp(prefix="hotspare-test-"))
        shutil.rmtree(in_memory)
        yield daemons


async def founded(disks: Daemons, count: int = 3) -> None:
    disks.add_cluster(count, storage_mode="disk")
    disks.start()
    await disks.settled()


async def test_all_nodes_killed_at_once_come_back_from_their_disks(disks: Daemons, rounds: int) -> None:
    await founded(disks)
    before = {status["node"]: status["incarnation"] for status in await disks.settled()}
    for _ in range(rounds):
        async with Load(disks) as load:
            await load.progress(150)
            for daemon in disks:
                daemon.kill()
            for daemon in disks:  # another boot, as far as anybody can tell
                (daemon.data_dir / "lock.mdb").unlink()
            disks.start()
            await load.progress()
        await load.verify()
        after = {status["node"]: status["incarnation"] for status in await disks.settled()}
        assert after == before


async def test_nothing_acknowledged_is_lost_when_primaries_on_disks_are_killed(
    disks: Daemons, rounds: int
) -> None:
    await founded(disks)
    async with Load(disks) as load:
        for _ in range(rounds):
            await load.progress()
            primary = await disks.primary()
            primary.kill()
            await load.progress()
            primary.start()
            await primary.ready()
    await load.verify()
    await disks.settled()


async def refused(daemon: Daemon, *expected: str) -> None:
    """It ends by itself, with the exit code for trouble with the store, and says what is wrong."""
    assert await daemon.ended() == STORE_TROUBLE
    words = daemon.last_words(5)
    for each in expected:
        assert each in words


async def test_a_damaged_directory_is_refused_and_discarded_at_an_operators_word(disks: Daemons) -> None:
    await founded(disks)
    async with Load(disks, timeouts_ms=(5000,)) as load:
        await load.progress(200)
        damaged = (await disks.secondaries())[0]
        before = (await damaged.status())["incarnation"]
        damaged.kill()
        with (damaged.data_dir / "data.mdb").open("r+b") as data:
            data.seek(2 * PAGE_BYTES)
            data.write(bytes(20 * PAGE_BYTES))
        damaged.start()
        await refused(damaged, "damaged", "--discard")
        damaged.options.append("--discard")
        damaged.start()
        status = await damaged.ready()
        assert status["incarnation"] != before
        await load.progress()
    await load.verify()
    assert load.errors == []
    await disks.settled()


async def test_a_node_that_was_given_an_old_copy_of_its_directory_is_found_out(disks: Daemons) -> None:
    await founded(disks)
    async with Load(disks, timeouts_ms=(5000,)) as load:
        await load.progress(50)
        restored = (await disks.secondaries())[0]
        before = (await restored.status())["incarnation"]
        backup = disks.directory / "backup"
        restored.kill()
        copy_store(restored.data_dir, backup)
        restored.start()
        await restored.ready()
        await load.progress()
        restored.kill()
        shutil.rmtree(restored.data_dir)
        copy_store(backup, restored.data_dir)
        restored.start()
        await refused(restored, "an old copy", "--discard")
        restored.options.append("--discard")
        restored.start()
        assert (await restored.ready())["incarnation"] != before
        await load.progress()
    await load.verify()
    assert load.errors == []
    await disks.settled()


async def test_a_node_whose_disk_is_full_stops_and_goes_on_when_there_is_room(disks: Daemons) -> None:
    await founded(disks)
    async with Load(disks, timeouts_ms=(5000,)) as load:
        await load.progress(100)
        full = (await disks.secondaries())[0]
        size_bytes = (full.data_dir / "data.mdb").stat().st_size
        assert full.process is not None
        resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
        await refused(full, "no room left", "free space")
        await load.progress()
        full.start()
        await full.ready()
    await load.verify()
    assert load.errors == []
    await disks.settled()


async def test_each_node_needs_a_directory_of_its_own(disks: Daemons) -> None:
    await founded(disks)
    used, other = disks[0], disks[1]
    other.kill()
    mine = other.options[other.options.index("--data-dir") + 1]
    other.options[other.options.index("--data-dir") + 1] = str(used.data_dir)
    other.start()
    await refused(other, "has it open", "a directory of its own")
    used.kill()
    other.start()
    await refused(other, f"it is the directory of node {used.name}")
    other.options.append("--discard")
    other.start()
    await refused(other, f"it is the directory of node {used.name}")
    other.options.remove("--discard")
    other.options[other.options.index("--data-dir") + 1] = mine
    other.start()
    used.start()
    await disks.settled()


async def test_a_node_without_a_directory_for_its_disk_does_not_start(disks: Daemons) -> None:
    (daemon,) = disks.add_cluster(1, storage_mode="disk")
    at = daemon.options.index("--data-dir")
    del daemon.options[at : at + 2]
    daemon.start()
    assert await daemon.ended() == 2
    assert "data_dir" in daemon.last_words(3)
