"""Attaching where it cannot be done. What works is in tests/processes/test_attached.py."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any

import pytest

from hotspare import AsyncSessionReplicator, SessionReplicator, Settings
from hotspare.cluster import attached, clocks
from hotspare.cluster.attached import AttachedCopy, AttachedEngine, Place
from hotspare.cluster.lease import NOTHING_KNOWN, LeasePage, LeaseView, Limits
from hotspare.cluster.node import ClusterNode
from hotspare.errors import ConfigError, NotReady, Refused, StaleRead, Unavailable
from hotspare.record import data_checksum, pack_record
from hotspare.store import journal
from hotspare.store.lmdb import LmdbStore, current_boot_id
from hotspare.store.reader import LmdbReader, open_reader
from hotspare.table import COUNTERS_KEY
from tests.unit.clusters import free_addresses

MINUTE_MS = 60_000
ANOTHER = "0123456789abcdef" * 2


@pytest.fixture
def node() -> Iterator[SessionReplicator]:
    with SessionReplicator(node=free_addresses(1)[0]) as node:
        yield node


def test_an_in_process_node_cannot_be_attached_to(node: SessionReplicator):
    sessions = SessionReplicator(attach=node.settings.node)
    with pytest.raises(Refused, match="only a daemon"):
        sessions.start()
    with pytest.raises(NotReady):
        sessions.get_session("s1")


async def test_an_in_process_node_cannot_be_attached_to_by_coroutines(node: SessionReplicator):
    with pytest.raises(Refused, match="only a daemon"):
        await AsyncSessionReplicator(attach=node.settings.node).start()


def nowhere() -> SessionReplicator:
    return SessionReplicator(attach=free_addresses(1)[0], replication_rpc_timeout_ms=100)


def test_where_nobody_listens_it_says_so_in_time():
    sessions = nowhere()
    with pytest.raises(Unavailable, match="nothing listens"):
        sessions.start()


def test_the_environment_attaches_who_names_no_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOTSPARE_ATTACH", "LOCALHOST:7401")
    sessions = SessionReplicator()
    assert isinstance(sessions._async.engine, AttachedEngine)
    assert sessions.settings.attach == "localhost:7401"
    assert isinstance(SessionReplicator(Settings())._async.engine, ClusterNode)
    assert isinstance(SessionReplicator(enabled=False)._async.engine, ClusterNode)


def test_what_is_no_address_is_refused():
    with pytest.raises(ConfigError, match="attach"):
        SessionReplicator(attach="somewhere")


def test_a_copy_of_another_host_is_refused(tmp_path: Path):
    """There may well be a directory of that name here, and a page in it, but not the one that is meant."""
    copy = AttachedCopy(500)
    place = Place(tmp_path, "0123", 1000)
    with pytest.raises(Refused, match="this very host"):
        copy.attach(place)
    LeasePage.open(tmp_path, ANOTHER, current_boot_id())
    with pytest.raises(Refused, match="this very host"):
        copy.attach(place)
    with pytest.raises(NotReady):
        copy.read(b"s1")


def test_a_copy_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hotspare.cluster.attached.LeaseView", refuse)
    with pytest.raises(Refused, match="attach_group"):
        AttachedCopy(500).attach(Place(tmp_path, "0123", 1000))


def test_the_copy_of_a_daemon_in_this_very_process_is_refused(tmp_path: Path):
    store = LmdbStore.open(tmp_path, durable=False, map_size_bytes=1 << 24)
    page = LeasePage.open(tmp_path, store.id, current_boot_id())
    with pytest.raises(Refused, match="this very process"):
        AttachedCopy(500).attach(Place(tmp_path, page.id, 1000))
    store.close()


async def test_a_daemon_that_is_started_again_does_not_cut_its_lease_short(tmp_path: Path):
    """Neither when it stops nor before it knows anew what is committed."""

    async def run() -> None:
        store = LmdbStore.open(tmp_path, durable=False, map_size_bytes=1 << 24)
        page = LeasePage.open(tmp_path, store.id, current_boot_id())
        node = ClusterNode(Settings(node=address, max_staleness_ms=60_000), store, page)
        await node.start()
        if node.replica.node is None:
            await node.call("found", 5000, nodes=[])
            fresh_until_ms.append(page.limits.fresh_until_ms)
        else:
            assert page.limits.fresh_until_ms >= fresh_until_ms[0]
        await node.stop()
        assert page.limits.fresh_until_ms >= fresh_until_ms[0] > clocks.boot_ms()

    (address,) = free_addresses(1)
    fresh_until_ms: list[int] = []
    await run()
    await run()


def test_a_start_that_fails_leaves_no_thread_behind():
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(Unavailable):
            nowhere().start()
    assert threading.active_count() == before


def test_it_waits_for_a_daemon_that_is_starting_too():
    (address,) = free_addresses(1)
    node = SessionReplicator(node=address)
    starting = threading.Timer(0.2, node.start)
    starting.start()
    try:
        with pytest.raises(Refused):  # so it answers
            SessionReplicator(attach=address, replication_rpc_timeout_ms=30_000).start()
    finally:
        starting.join()
        node.stop()


async def test_it_can_be_started_on_the_thread_of_a_running_loop():
    """As an application may do that mixes both."""
    with pytest.raises(Unavailable):
        nowhere().start()
    await asyncio.sleep(0)


# From one copy to the next


def lay_copy(
    directory: Path,
    *,
    applied: int,
    cluster: str = "c",
    expires_at_ms: int = 1 << 50,
    durable: bool = False,
    damaged: bool = False,
    **lease: int,
) -> Place:
    """What a node leaves behind: the session s1, whose data is the applied index, and a lease. Anything that
    lay there before is gone."""
    shutil.rmtree(directory, ignore_errors=True)
    store = LmdbStore.open(directory, durable=durable, map_size_bytes=1 << 24)
    txn = store.begin()
    journal.save_identity(txn, journal.Identity(f"server {applied}", "a node", cluster))
    txn.table[COUNTERS_KEY] = Struct(">6Q").pack(applied, 1, 0, 1, 1, 1)
    data = bytes([applied])
    checksum = data_checksum(b"s1", data, 0) + damaged
    txn.sessions[b"s1"] = pack_record(1 << 16, expires_at_ms, 0, checksum, data)
    txn.commit()
    store.close()
    page = LeasePage.open(directory, store.id, current_boot_id())
    limits = {"fresh_until_ms": clocks.boot_ms() + MINUTE_MS, "offset_ms": 0, "floor_ms": 0} | lease
    page.write(f"server {applied}", Limits(**limits), clocks.boot_ms())
    return Place(page.directory, page.id, 1000)


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch) -> Iterator[AttachedCopy]:
    monkeypatch.setattr(attached, "LOOK_PAUSE_MS", 0)
    copy = AttachedCopy(500)
    yield copy
    copy.detach()


def read(copy: AttachedCopy) -> int | None:
    record = copy.read(b"s1")
    return None if record is None else record[-1]


def test_a_copy_that_took_the_place_of_another_is_read_when_the_lease_of_that_has_ended(tmp_path, copy):
    directory = tmp_path / "copy"
    copy.attach(lay_copy(directory, applied=10))
    lay_copy(directory, applied=12)
    assert read(copy) == 10, "its lease lasts"
    expired = tmp_path / "expired"
    copy.attach(lay_copy(expired, applied=12, fresh_until_ms=1))
    with pytest.raises(StaleRead):
        read(copy)
    lay_copy(expired, applied=13)
    assert read(copy) == 13


def test_a_copy_that_lacks_what_was_read_is_not_read_until_it_has_it(tmp_path, copy):
    directory = tmp_path / "copy"
    copy.attach(lay_copy(directory, applied=10))
    assert read(copy) == 10
    for lacking in (9, 0):
        with pytest.raises(NotReady, match="lacks"):
            copy.attach(lay_copy(directory, applied=lacking))
        for how in (copy.read, copy.read_any_age):
            with pytest.raises(NotReady):
                how(b"s1")
    with pytest.raises(NotReady, match="lacks"):
        copy.attach(lay_copy(directory, applied=0, cluster=""))  # it waits to be taken into the cluster
    lay_copy(directory, applied=10)
    assert read(copy) == 10


def test_a_copy_of_another_cluster_is_another_history(tmp_path, copy):
    copy.attach(lay_copy(tmp_path / "copy", applied=10))
    copy.attach(lay_copy(tmp_path / "copy", applied=3, cluster="another"))
    assert read(copy) == 3


def test_what_had_expired_does_not_come_back_with_another_copy(tmp_path, copy):
    directory = tmp_path / "copy"
    copy.attach(lay_copy(directory, applied=10, expires_at_ms=5_000, floor_ms=5_000, offset_ms=-(1 << 60)))
    assert read(copy) is None
    copy.attach(lay_copy(directory, applied=11, expires_at_ms=5_000, floor_ms=4_000, offset_ms=-(1 << 60)))
    assert read(copy) is None
    assert copy.read_any_age(b"s1") is None


def test_a_read_that_was_held_up_until_the_lease_had_ended_is_not_answered(tmp_path, copy, monkeypatch):
    copy.attach(lay_copy(tmp_path / "copy", applied=10))
    assert read(copy) == 10
    clock = time.clock_gettime
    get = LmdbReader.get
    late_seconds = 0.0

    def held_up(self: LmdbReader, id: bytes) -> bytes | None:
        nonlocal late_seconds
        late_seconds = 2 * MINUTE_MS / 1000
        return get(self, id)

    monkeypatch.setattr(attached, "_clock_gettime", lambda which: clock(which) + late_seconds)
    monkeypatch.setattr(LmdbReader, "get", held_up)
    with pytest.raises(StaleRead) as raised:
        read(copy)
    assert raised.value.limit_ms == 1000
    assert raised.value.staleness_ms > MINUTE_MS


def test_what_a_disk_has_damaged_is_not_read(tmp_path, copy):
    copy.attach(lay_copy(tmp_path / "whole", applied=10, durable=True))
    assert read(copy) == 10
    copy.attach(lay_copy(tmp_path / "damaged", applied=10, durable=True, damaged=True))
    for how in (copy.read, copy.read_any_age):
        with pytest.raises(NotReady, match="checksum"):
            how(b"s1")


def test_a_copy_of_nothing_knows_of_no_session_that_it_is_absent(tmp_path, copy):
    copy.attach(lay_copy(tmp_path / "copy", applied=0, fresh_until_ms=-1))
    with pytest.raises(NotReady):
        copy.read(b"another")
    with pytest.raises(NotReady):
        copy.read_any_age(b"another")


def test_a_page_and_an_environment_that_do_not_belong_together_are_not_read(tmp_path, copy, monkeypatch):
    """The directory is replaced between the opening of the one and of the other."""
    directory = tmp_path / "copy"
    place = lay_copy(directory, applied=10)
    opening = open_reader

    def replaced_meanwhile(path: Path) -> Any:
        lay_copy(directory, applied=12)
        return opening(path)

    monkeypatch.setattr(attached, "open_reader", replaced_meanwhile)
    with pytest.raises(Refused, match="being replaced"):
        copy.attach(place)
    with pytest.raises(NotReady):
        read(copy)


def test_an_environment_that_was_thrown_away_without_its_page_is_not_read_under_the_lease_of_another(
    tmp_path, copy
):
    """The page that is left speaks of an environment that is gone, and no node goes on with it."""
    directory = tmp_path / "copy"
    copy.attach(lay_copy(directory, applied=10))
    for name in ("data.mdb", "lock.mdb"):
        (directory / name).unlink()
    store = LmdbStore.open(directory, durable=False, map_size_bytes=1 << 24)
    store.close()
    left = LeaseView(directory, current_boot_id())
    with pytest.raises(Refused, match="being replaced"):
        AttachedCopy(500).attach(Place(directory, left.id, 1000))
    assert read(copy) == 10, "what is open is what it was"
    page = LeasePage.open(directory, store.id, current_boot_id())
    assert (page.id, page.limits) == (store.id, NOTHING_KNOWN)
