"""Attached processes beside real daemons: in threads, event loops and children, whatever the daemon does."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from hotspare import AsyncSessionReplicator, SessionReplicator
from hotspare.errors import HotspareError, NotReady, OutcomeUnknown, StaleRead, Unavailable
from tests.processes.daemons import PATIENCE_SECONDS, Daemon, Daemons

MINUTE_MS = 60_000


@pytest.fixture
async def three(daemons: Daemons) -> Daemons:
    daemons.add_cluster(3)
    daemons.start()
    await daemons.settled()
    return daemons


@contextmanager
def attached(daemon: Daemon, **settings: Any) -> Iterator[SessionReplicator]:
    with SessionReplicator(attach=daemon.address, **settings) as sessions:
        yield sessions


def soon(condition: Callable[[], Any]) -> Any:
    """What it answers as soon as that is true; "not yet" may also be an error that says so."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        with suppress(NotReady, StaleRead, Unavailable):
            if answer := condition():
                return answer
        time.sleep(0.005)
    raise AssertionError("never came true")


def is_stale(sessions: SessionReplicator, id: str) -> bool:
    try:
        assert sessions.get_session(id) is not None
    except StaleRead:
        return True
    return False


def in_a_child(work: Callable[[], Any]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads is what is tested
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Reading and writing


async def test_what_an_attached_process_was_told_it_reads_at_once(three: Daemons) -> None:
    def work() -> None:
        with attached(three[0]) as here, attached(three[1]) as there:
            for n in range(300):
                version = here.store_session("s1", {"n": n}, MINUTE_MS)
                record = here.get_session_record("s1")
                assert record is not None
                assert (record.data, record.version) == ({"n": n}, version)
            assert there.get_session("s1", read="primary") == {"n": 299}
            assert there.get_session("s1") == {"n": 299}, "what was read there is not undone"
            assert there.delete_session("s1") is True
            assert there.get_session("s1") is None
            soon(lambda: here.get_session("s1") is None)

    await asyncio.to_thread(work)


async def test_what_another_process_of_the_host_was_told_is_read_too(three: Daemons) -> None:
    with attached(three[1]) as sessions:
        async with three[1].client() as client:
            for n in range(100):
                await client.store_session("s1", {"n": n}, MINUTE_MS)
                assert sessions.get_session("s1") == {"n": n}


async def test_every_verb_works(three: Daemons) -> None:
    def work() -> None:
        with attached(three[2]) as sessions:
            assert sessions.store_sessions((f"s{n}", {"n": n}, MINUTE_MS) for n in range(250)) == 250
            assert sessions.session_count() == 250
            assert len(sessions.get_all_sessions()) == 250
            assert sessions.update_session("s1", {"m": 2}, remove=["n"]) is not None
            assert sessions.touch_session("s1", MINUTE_MS) is True
            assert sessions.rotate_session("s1", "t1") is True
            assert (sessions.get_session("s1"), sessions.get_session("t1")) == (None, {"m": 2})
            assert sessions.get_session("t1", read="stale") == {"m": 2}
            sessions.flush()
            sessions.promote_to_primary()
            assert sessions.get_replication_status()["role"] == "primary"
            assert sessions.get_metrics()["active_sessions"] == 250
            assert sessions.trigger_failover(three[2].name)

    await asyncio.to_thread(work)


async def test_an_expired_session_is_not_read(three: Daemons) -> None:
    def work() -> None:
        with attached(three[0]) as sessions:
            sessions.store_session("s1", {}, 300)
            assert sessions.get_session("s1") == {}
            soon(lambda: sessions.get_session("s1") is None)
            assert sessions.get_session("s1", read="stale") is None

    await asyncio.to_thread(work)


async def test_reading_takes_no_thread_and_writing_one(three: Daemons) -> None:
    def work() -> None:
        before = threading.active_count()
        with attached(three[0]) as sessions:
            assert sessions.get_session("s1") is None
            assert threading.active_count() == before
            sessions.store_session("s1", {}, MINUTE_MS)
            assert threading.active_count() == before + 1
        assert threading.active_count() == before

    await asyncio.to_thread(work)


# Threads and event loops


async def test_all_threads_may_read_and_write_at_once(three: Daemons) -> None:
    def work() -> None:
        with attached(three[0]) as sessions, attached(three[0]) as another, ThreadPoolExecutor(8) as pool:
            list(pool.map(partial(of_a_thread, sessions, another), range(8)))

    def of_a_thread(sessions: SessionReplicator, another: SessionReplicator, thread: int) -> None:
        for n in range(30):
            sessions.store_session(f"s{thread}", {"n": n}, MINUTE_MS)
            assert sessions.get_session(f"s{thread}") == another.get_session(f"s{thread}") == {"n": n}

    await asyncio.to_thread(work)


async def test_one_replicator_serves_several_event_loops(three: Daemons) -> None:
    async with AsyncSessionReplicator(attach=three[0].address) as sessions:

        async def write_and_read(name: str) -> None:
            for n in range(30):
                await sessions.store_session(name, {"n": n}, MINUTE_MS)
                assert await sessions.get_session(name) == {"n": n}

        def on_a_loop_of_its_own(name: str) -> None:
            asyncio.run(write_and_read(name))

        # Loops at the same time, and one after the other: what belonged to one is gone with it.
        for round in range(2):
            threads = [asyncio.to_thread(on_a_loop_of_its_own, f"t{round}{n}") for n in range(3)]
            await asyncio.gather(write_and_read("main"), *threads)
        assert await sessions.session_count() == 7


async def test_a_local_read_does_not_suspend(three: Daemons) -> None:
    async with AsyncSessionReplicator(attach=three[0].address) as sessions:
        await sessions.store_session("s1", {"n": 1}, MINUTE_MS)
        reading = sessions.get_session("s1")
        with pytest.raises(StopIteration) as ended:
            reading.send(None)
        assert ended.value.value == {"n": 1}


# Forks


async def test_forked_children_read_and_write_by_themselves(three: Daemons) -> None:
    def work() -> None:
        with attached(three[0]) as sessions:
            sessions.store_session("s1", {"n": 1}, MINUTE_MS)

            def of_a_child() -> None:
                assert threading.active_count() == 1
                assert sessions.get_session("s1") == {"n": 1}
                sessions.store_session("child", {"pid": os.getpid()}, MINUTE_MS)
                assert sessions.get_session("child") == {"pid": os.getpid()}
                with attached(three[1]) as another:
                    soon(lambda: another.get_session("child"))
                sessions.stop()

            for _ in range(3):
                assert in_a_child(of_a_child) == 0
                assert sessions.get_session("child") is not None
                sessions.store_session("s1", {"n": 1}, MINUTE_MS)

    await asyncio.to_thread(work)


async def test_children_of_a_coroutine_program_do_so_too(three: Daemons) -> None:
    async with AsyncSessionReplicator(attach=three[0].address) as sessions:
        await sessions.store_session("s1", {"n": 1}, MINUTE_MS)

        async def of_a_child() -> None:
            assert await sessions.get_session("s1") == {"n": 1}
            await sessions.store_session("child", {"n": 2}, MINUTE_MS)
            assert await sessions.get_session("child") == {"n": 2}

        def on_a_loop_of_its_own() -> None:
            asyncio.run(of_a_child())

        assert await asyncio.to_thread(in_a_child, on_a_loop_of_its_own) == 0
        assert await sessions.get_session("child") == {"n": 2}
        await sessions.store_session("s1", {"n": 3}, MINUTE_MS)
        assert await sessions.get_session("s1") == {"n": 3}


async def test_a_child_reads_although_the_daemon_is_down(daemons: Daemons) -> None:
    daemons.add_cluster(3, max_staleness_ms=30_000)
    daemons.start()
    await daemons.settled()

    def work() -> None:
        with attached(daemons[0]) as sessions:
            sessions.store_session("s1", {"n": 1}, MINUTE_MS)
            daemons[0].kill()
            assert sessions.get_session("s1") == {"n": 1}
            assert in_a_child(lambda: sessions.get_session("s1")) == 0

    await asyncio.to_thread(work)


# When the daemon goes away


async def test_reads_go_on_while_the_lease_lasts_and_again_when_the_daemon_is_back(three: Daemons) -> None:
    def work() -> None:
        daemon = three[1]
        with attached(daemon) as sessions:
            sessions.store_session("s1", {"n": 1}, MINUTE_MS)
            daemon.kill()
            assert sessions.get_session("s1") == {"n": 1}
            soon(lambda: is_stale(sessions, "s1"))
            assert sessions.get_session("s1", read="stale") == {"n": 1}
            with attached(three[0]) as elsewhere:
                elsewhere.store_session("s1", {"n": 2}, MINUTE_MS)
            daemon.start()
            assert soon(lambda: sessions.get_session("s1")) == {"n": 2}
            sessions.store_session("s1", {"n": 3}, MINUTE_MS)
            assert sessions.get_session("s1") == {"n": 3}

    await asyncio.to_thread(work)


async def test_a_paused_daemon_has_readers_for_as_long_as_its_lease_only(three: Daemons) -> None:
    def work() -> None:
        daemon = three[1]
        with attached(daemon) as sessions:
            sessions.store_session("s1", {"n": 1}, MINUTE_MS)
            daemon.pause()
            soon(lambda: is_stale(sessions, "s1"))
            daemon.resume()
            assert soon(lambda: sessions.get_session("s1")) == {"n": 1}

    await asyncio.to_thread(work)


async def test_writes_wait_for_a_daemon_that_is_on_its_way_back(three: Daemons) -> None:
    def work() -> None:
        daemon = three[1]
        with attached(daemon, replication_rpc_timeout_ms=30_000) as sessions:
            daemon.kill()
            with ThreadPoolExecutor(2) as pool:
                first = pool.submit(sessions.store_session, "s1", {"n": 1}, MINUTE_MS)
                daemon.start()
                assert first.result() > 0
                daemon.kill()
                second = pool.submit(sessions.store_session, "s1", {"n": 2}, MINUTE_MS)
                daemon.start()
                assert second.result() > 0
            assert soon(lambda: sessions.get_session("s1")) == {"n": 2}

    await asyncio.to_thread(work)


async def test_without_a_daemon_writes_fail_in_time_and_say_so(three: Daemons) -> None:
    def work() -> None:
        with attached(three[1], replication_rpc_timeout_ms=300) as sessions:
            three[1].kill()
            with pytest.raises(Unavailable):
                sessions.store_session("s1", {}, MINUTE_MS)

    await asyncio.to_thread(work)


def lose_state(daemon: Daemon) -> None:
    shutil.rmtree(daemon.data_dir)


def move_elsewhere(daemon: Daemon) -> None:
    """It comes back with a directory of another name, and the one before stays where it is."""
    position = daemon.options.index("--data-dir") + 1
    daemon.data_dir = daemon.data_dir.with_name(f"{daemon.data_dir.name}-elsewhere")
    daemon.options[position] = str(daemon.data_dir)


@pytest.mark.parametrize("change", [lose_state, move_elsewhere])
@pytest.mark.parametrize("is_writing", [False, True], ids=["reading", "writing"])
async def test_a_daemon_that_comes_back_without_its_state_shows_nothing_older(
    daemons: Daemons, change: Callable[[Daemon], None], is_writing: bool
) -> None:
    """What was read or acknowledged is there in each read after it, and nothing ever looks as if there were
    no such session: although the lease of the former copy still lasts when there is another one."""
    daemons.add_cluster(3, max_staleness_ms=3000)
    daemons.start()
    await daemons.settled()
    daemon = daemons[1]
    ends = threading.Event()
    all_attached = threading.Barrier(4)

    def count() -> int:
        """One writer; whoever reads sees its numbers grow. It ends with a write whose outcome is known."""
        with SessionReplicator(attach=(daemon if is_writing else daemons[0]).address) as sessions:
            all_attached.wait(PATIENCE_SECONDS)
            n, is_known = 0, False
            while not (ends.is_set() and is_known):
                is_known = False
                with suppress(Unavailable, OutcomeUnknown):
                    sessions.store_session("s1", {"n": n + 1}, MINUTE_MS)
                    is_known = True
                    n += 1
                if is_writing and is_known:
                    with suppress(StaleRead, NotReady):
                        assert sessions.get_session("s1") == {"n": n}
            return n

    def watch() -> int:
        with attached(daemon) as sessions:
            all_attached.wait(PATIENCE_SECONDS)
            soon(lambda: sessions.get_session("s1"))
            seen = reads = 0
            while not ends.is_set():
                with suppress(StaleRead, NotReady):
                    record = sessions.get_session("s1")
                    assert record is not None
                    assert record["n"] >= seen
                    seen, reads = record["n"], reads + 1
                with suppress(NotReady):
                    stale = sessions.get_session("s1", read="stale")
                    assert stale is not None
                    assert stale["n"] >= seen
            assert reads
            return seen

    threads = [asyncio.create_task(asyncio.to_thread(each)) for each in (count, watch, watch)]
    try:
        await asyncio.to_thread(all_attached.wait, PATIENCE_SECONDS)
        for _ in range(2):
            await asyncio.sleep(0.1)  # some writes later
            daemon.kill()
            change(daemon)
            daemon.start()
            await daemon.ready()
    finally:
        ends.set()
        written, *seen = await asyncio.gather(*threads)
    assert written
    assert all(0 < each <= written for each in seen)

    def is_current() -> bool:
        with attached(daemon) as sessions:
            return sessions.get_session("s1") == {"n": written}

    await asyncio.to_thread(soon, is_current)


async def test_a_worker_follows_its_daemon_to_another_directory(three: Daemons) -> None:
    def work() -> None:
        daemon = three[1]
        with attached(daemon) as reader, attached(daemon) as writer:
            writer.store_session("s1", {"n": 1}, MINUTE_MS)
            assert reader.get_session("s1") == {"n": 1}
            daemon.kill()
            move_elsewhere(daemon)
            daemon.start()
            soon(lambda: writer.store_session("s1", {"n": 2}, MINUTE_MS))
            with suppress(NotReady, StaleRead):
                assert writer.get_session("s1") == {"n": 2}
            assert soon(lambda: writer.get_session("s1")) == {"n": 2}
            soon(lambda: is_stale(reader, "s1") or reader.get_session("s1") == {"n": 2})
            assert soon(lambda: reader.get_session("s1")) == {"n": 2}

    await asyncio.to_thread(work)


async def test_while_the_cluster_has_no_majority_attached_readers_are_told(three: Daemons) -> None:
    def work() -> None:
        with attached(three[0], replication_rpc_timeout_ms=500) as sessions:
            sessions.store_session("s1", {"n": 1}, MINUTE_MS)
            three[1].kill()
            three[2].kill()
            soon(lambda: is_stale(sessions, "s1"))
            with pytest.raises(HotspareError):
                sessions.store_session("s1", {"n": 2}, MINUTE_MS)
            assert sessions.get_session("s1", read="stale") == {"n": 1}

    await asyncio.to_thread(work)


async def test_a_rolling_restart_costs_attached_processes_no_write_and_no_session(cluster: Daemons) -> None:
    """Each node is started again while workers of all of them write and read. No write ends with an error,
    and whoever reads is told "not now" at worst."""
    await cluster.settled()
    ends = threading.Event()

    def count(daemon: Daemon) -> tuple[str, int]:
        name = f"s{daemon.address}"
        with attached(daemon, replication_rpc_timeout_ms=60_000) as sessions:
            n = 0
            while not ends.is_set():
                n += 1
                sessions.store_session(name, {"n": n}, MINUTE_MS)
                with suppress(StaleRead, NotReady):
                    assert sessions.get_session(name) == {"n": n}
        return name, n

    workers = [asyncio.create_task(asyncio.to_thread(count, daemon)) for daemon in cluster]
    try:
        for daemon in cluster:
            assert await daemon.stop() == 0
            daemon.start()
            await daemon.ready()
    finally:
        ends.set()
        counted = dict(await asyncio.gather(*workers))
    async with cluster[0].client() as sessions:
        for name, n in counted.items():
            assert await sessions.get_session(name, read="primary") == {"n": n}
