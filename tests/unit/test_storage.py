"""Group commits on a thread of their own, and what becomes of a node when its store fails anywhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster import storage
from hotspare.cluster.node import ClusterNode
from hotspare.cluster.storage import MAX_TOGETHER, OnThread
from hotspare.errors import HotspareError, StoreError, StoreFull
from hotspare.protocol.commit import Work, perform
from hotspare.raft.messages import Configuration, HardState, SnapshotMark
from hotspare.raft.node import Ready
from hotspare.store.lmdb import LmdbSpace, LmdbStore, LmdbTransaction
from hotspare.store.plain import PlainStore
from hotspare.table import Table
from tests.unit.clusters import eventually, free_addresses

MINUTE_MS = 60_000


# The thread


class Disk(PlainStore):
    """Transactions begin when they may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_begin = threading.Semaphore(0)
        self.transactions = 0
        self.is_full = False
        transaction = super().begin()
        self.table = Table(transaction)
        transaction.commit()

    def begin(self) -> Any:
        self.may_begin.acquire(timeout=30)
        if self.is_full:
            raise StoreFull("/data", "no room")
        self.transactions += 1
        return super().begin()

    def work(self, number: int, *, installing: bool = False) -> Work:
        ready = Ready()
        ready.number, ready.hard_state = number, HardState(number, "")
        if installing:
            ready.snapshot = SnapshotMark(number, 1, Configuration("", ()))
        return Work(self, self.table, ready, [], [], None)


def numbers(works: Any) -> list[int]:
    return [work.ready.number for work in works]


async def all_done(thread: OnThread, count: int) -> list[int]:
    done: list[int] = []

    def are_done() -> bool:
        done.extend(numbers(thread.done()))
        return len(done) == count

    await eventually(are_done)
    return done


async def test_what_gathers_while_one_transaction_runs_shares_the_next_one():
    disk = Disk()
    thread = OnThread(lambda: None)
    assert thread.submit(disk.work(1)) == ()
    await eventually(lambda: thread._waiting.empty())
    for number in range(2, 12):
        assert thread.submit(disk.work(number)) == ()
    assert thread.done() == []
    disk.may_begin.release(9)

    assert await all_done(thread, 11) == list(range(1, 12))
    assert disk.transactions == 2
    await thread.stop()


async def test_a_transaction_takes_so_much_and_ends_with_an_installed_snapshot():
    disk = Disk()
    thread = OnThread(lambda: None)
    thread.submit(disk.work(1))
    await eventually(lambda: thread._waiting.empty())
    for number in range(2, MAX_TOGETHER + 3):
        thread.submit(disk.work(number, installing=number == 5))
    disk.may_begin.release(99)

    await all_done(thread, MAX_TOGETHER + 2)
    # 1 · 2 to 5 · the others
    assert disk.transactions == 3
    await thread.stop()


async def test_stopping_waits_for_all_that_was_submitted():
    disk = Disk()
    thread = OnThread(lambda: None)
    for number in range(1, 200):
        thread.submit(disk.work(number))
    stopped = asyncio.ensure_future(thread.stop())
    await asyncio.sleep(0)
    assert not stopped.done()
    disk.may_begin.release(200)
    await stopped
    assert numbers(thread.done()) == list(range(1, 200))


async def test_after_a_failure_nothing_more_is_performed():
    disk = Disk()
    woken = threading.Event()
    thread = OnThread(woken.set)
    disk.is_full = True
    thread.submit(disk.work(1))
    disk.may_begin.release(9)
    await eventually(woken.is_set)
    disk.is_full = False
    thread.submit(disk.work(2))
    for _ in range(2):
        with pytest.raises(StoreFull):
            thread.done()
    await thread.stop()
    assert disk.transactions == 0


# A node on it


def node_on_disk(path: Path, name: str) -> AsyncSessionReplicator:
    settings = Settings(
        node=name,
        enabled=False,
        storage_mode="disk",
        data_dir=str(path),
        health_check_interval_ms=10,
        failure_threshold=2,
    )
    store = LmdbStore.open(path, durable=True, map_size_bytes=1 << 24)
    return AsyncSessionReplicator(settings, engine=ClusterNode(settings, store))


async def test_the_loop_goes_on_while_the_disk_writes(tmp_path, monkeypatch):
    (name,) = free_addresses(1)
    sessions = node_on_disk(tmp_path, name)
    await sessions.start()
    may_write = threading.Event()

    def slowly(works: list[Work]) -> None:
        assert may_write.wait(30)
        perform(works)

    monkeypatch.setattr(storage, "perform", slowly)
    stores = [asyncio.ensure_future(sessions.store_session(f"s{n}", {"n": n}, MINUTE_MS)) for n in range(9)]
    for _ in range(20):
        assert (await sessions.get_replication_status())["role"] == "primary"
        assert await sessions.get_session("s1", read="stale") is None
        await asyncio.sleep(0)
    assert not any(store.done() for store in stores)
    may_write.set()
    await asyncio.gather(*stores)
    assert await sessions.get_session("s1") == {"n": 1}
    await sessions.stop()


class Fault:
    """The n-th of all operations of the store fails, before it has done anything or (a commit) after it."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.name = ""

    def strike(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.name = name
            raise StoreError("/data", f"injected in {name}")

    @contextmanager
    def injected(self) -> Iterator[None]:
        with (
            patch.object(LmdbStore, "begin", self._failing("begin", LmdbStore.begin)),
            patch.object(LmdbSpace, "get", self._failing("get", LmdbSpace.get)),
            patch.object(LmdbSpace, "write", self._failing("write", LmdbSpace.write)),
            patch.object(
                LmdbTransaction, "commit", self._failing("commit", LmdbTransaction.commit, after=True)
            ),
        ):
            yield

    def _failing(self, name: str, real: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name == "write" and not arguments[0]:
                return None  # no change of that space
            self.strike(name)
            result = real(*arguments)
            if after:
                self.strike(f"a {name} that was done")
            return result

        return call


async def work_until_it_fails(path: Path, name: str, fault: Fault) -> list[Any]:
    """What the session may be then: as was acknowledged, or as was asked for last."""
    sessions = node_on_disk(path, name)
    known: list[Any] = [None]
    with fault.injected(), suppress(HotspareError):
        await sessions.start()
        for n in range(2):
            known.append({"n": n})
            await sessions.store_session("s", {"n": n}, MINUTE_MS)
            known = known[-1:]
        known.append(None)
        await sessions.delete_session("s")
        known = known[-1:]
    await sessions.stop()
    sessions.engine.store.close()  # type: ignore[attr-defined]
    return known


async def test_whichever_operation_of_the_store_fails_nothing_acknowledged_is_lost(tmp_path):
    (name,) = free_addresses(1)
    number, failed = 0, set()
    while True:
        number += 1
        fault = Fault(number)
        path = tmp_path / str(number)
        known = await work_until_it_fails(path, name, fault)
        again = node_on_disk(path, name)
        await again.start()
        assert await again.get_session("s", read="primary") in known, (number, fault.name)
        await again.store_session("more", {}, MINUTE_MS)
        await again.stop()
        if not fault.name:
            break
        failed.add(fault.name)
    assert failed == {"begin", "get", "write", "commit", "a commit that was done"}
    assert known == [None]
