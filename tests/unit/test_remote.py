"""A client of a cluster: any node will do as its home, and losing it costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster import remote
from hotspare.cluster.remote import RemoteEngine
from hotspare.cluster.service import ClientSession
from hotspare.errors import (
    ConfigError,
    NotReady,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    Unavailable,
    UnknownNode,
    VersionConflict,
)
from tests.unit.clusters import Cluster, eventually, free_addresses, node_of, running

MINUTE_MS = 60_000


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    async with running(3) as cluster:
        yield cluster


@asynccontextmanager
async def client_of(*addresses: str, timeout_ms: int = 5000) -> AsyncIterator[AsyncSessionReplicator]:
    settings = Settings(replication_rpc_timeout_ms=timeout_ms)
    engine = RemoteEngine(addresses, timeout_ms=timeout_ms)
    async with AsyncSessionReplicator(settings, engine=engine) as client:
        yield client


def engine_of(client: AsyncSessionReplicator) -> RemoteEngine:
    assert isinstance(client.engine, RemoteEngine)
    return client.engine


def home_of(client: AsyncSessionReplicator) -> str:
    return engine_of(client).home


# Any node will do


async def test_through_any_node_a_client_writes_and_reads_its_own_writes(three: Cluster):
    for name in three.names:
        async with client_of(name) as client:
            assert home_of(client) == name
            for n in range(20):
                version = await client.store_session("s1", {"n": n}, MINUTE_MS)
                record = await client.get_session_record("s1")
                assert record is not None
                assert (record.data, record.version) == ({"n": n}, version)


async def test_a_client_reads_what_others_have_written(three: Cluster):
    secondary = (await three.secondary()).settings.node
    async with client_of(secondary) as reader, client_of(*three.names) as writer:
        for n in range(20):
            await writer.store_session("s1", {"n": n}, MINUTE_MS)
            assert await reader.get_session("s1", read="primary") == {"n": n}


async def test_operations_go_to_the_node_that_was_asked(three: Cluster):
    secondary = (await three.secondary()).settings.node
    async with client_of(secondary) as client:
        await client.promote_to_primary()

        status = await client.get_replication_status()
        assert (status["node"], status["role"]) == (secondary, "primary")
        assert (await client.get_metrics())["is_primary"] is True
        await client.flush()
        assert "is primary" in await client.trigger_failover(secondary)
        with pytest.raises(UnknownNode) as error:
            await client.trigger_failover("127.0.0.1:1")
        assert error.value.known == tuple(three.names)
        with pytest.raises(Refused, match="already belongs"):
            await client.start_cluster(three.names)


async def test_a_cluster_can_be_founded_by_a_client():
    async with running(3, founded=False) as cluster, client_of(cluster.names[0]) as client:
        with pytest.raises(Unavailable, match="start_cluster"):
            await client.store_session("s1", {}, MINUTE_MS)
        with pytest.raises(NotReady):
            await client.get_session("s1")

        await client.start_cluster(cluster.names)

        await client.store_session("s1", {"n": 1}, MINUTE_MS)
        assert await client.get_session("s1") == {"n": 1}
        await cluster.settled()


@pytest.mark.parametrize(
    "nodes", [["nonsense"], ["192.0.2.1:7401"], [5], "abc", 5, [f"h:{n}" for n in range(9)]]
)
async def test_no_call_of_a_client_stops_a_node(nodes: object):
    async with running(1, founded=False) as cluster, client_of(cluster.names[0]) as client:
        with pytest.raises((ConfigError, ProtocolError)):
            await client.engine.call("found", 1000, nodes=nodes)
        with pytest.raises(ProtocolError):
            await client.engine.call("destroy", 1000)
        with pytest.raises(ProtocolError):
            await client.engine.call("get", 1000, id=b"s1", how="eventually")
        with pytest.raises(ProtocolError):
            await client.engine.call("get", 1000, key=b"s1")
        with pytest.raises(ProtocolError):
            await client.engine.call("barrier", 1000, index="7")

        await client.start_cluster()
        await client.store_session("s1", {"n": 1}, MINUTE_MS)


# The next address


async def test_the_next_address_is_taken_when_nobody_listens_at_the_first(three: Cluster):
    absent = free_addresses(1)[0]

    async with client_of(absent, *three.names) as client:
        assert home_of(client) == three.names[0]
        assert await client.get_session("s1") is None


async def test_the_next_address_is_taken_when_the_home_stops_and_nothing_is_lost_or_doubled(three: Cluster):
    async with client_of(*three.names) as client:
        done = 0
        versions: list[int] = []

        async def count_up(counter: str) -> None:
            nonlocal done
            version = await client.store_session(counter, {"n": 0}, MINUTE_MS, if_absent=True)
            for n in range(1, 60):
                version = await client.store_session(counter, {"n": n}, MINUTE_MS, if_version=version)
                versions.append(version)
                done += 1

        def has_done(count: int) -> bool:
            failures = [task.exception() for task in counting if task.done()]
            assert not any(failures), failures
            return done >= count

        counting = [asyncio.ensure_future(count_up(f"counter{n}")) for n in range(8)]
        for target in (100, 300):
            await eventually(partial(has_done, target))
            home = home_of(client)
            await three.crash(home)
            await three.start(home)
            await three.settled()
        # A write that was applied twice would have conflicted with itself.
        await asyncio.gather(*counting)

        assert len(set(versions)) == len(versions) == 8 * 59
        for n in range(8):
            assert await client.get_session(f"counter{n}") == {"n": 59}


async def test_calls_under_way_are_asked_again_at_the_next_home(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
):
    await three[0].store_session("s1", {"n": 1}, MINUTE_MS)
    await three.settled()
    async with client_of(*three.names) as client:
        home = home_of(client)
        _mute(monkeypatch, home)
        reading = asyncio.ensure_future(client.get_session("s1"))
        asking = asyncio.ensure_future(client.get_replication_status())
        await asyncio.sleep(0)
        await three.crash(home)

        assert await reading == {"n": 1}
        with pytest.raises(Unavailable, match="connection was lost"):
            await asking
        assert (await client.get_replication_status())["node"] != home


def _mute(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """That node takes what its clients say and does nothing about it, as if it hung."""
    listen = ClientSession.frames_received

    def hear(self: ClientSession, frames: list[bytes]) -> None:
        if self._node.name != name:
            listen(self, frames)

    monkeypatch.setattr(ClientSession, "frames_received", hear)


async def test_a_home_that_hangs_is_left_for_the_next(three: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "SILENCE_MS", 200)
    async with client_of(*three.names) as client:
        await client.store_session("s1", {"n": 1}, MINUTE_MS)
        _mute(monkeypatch, home_of(client))
        hung = home_of(client)

        await client.store_session("s1", {"n": 2}, MINUTE_MS)

        assert home_of(client) not in ("", hung)
        assert await client.get_session("s1") == {"n": 2}


async def test_a_quiet_client_keeps_its_home(three: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "SILENCE_MS", 100)
    async with client_of(*three.names) as client:
        engine, home = engine_of(client), engine_of(client)._connection
        looked = [0]
        look = engine._leave_silent_home

        def count(now_ms: int) -> None:
            looked[0] += 1
            look(now_ms)

        engine._leave_silent_home = count  # type: ignore[method-assign]
        await eventually(lambda: looked[0] > 6)

        assert engine._connection is home


async def test_a_home_that_takes_no_writes_is_left_for_one_that_does(three: Cluster):
    async with running(2, founded=False) as empty:
        async with client_of(*empty.names, three.names[0]) as client:
            await client.store_session("s1", {"n": 1}, MINUTE_MS)
            assert home_of(client) == three.names[0]
        async with client_of(*empty.names) as client:
            with pytest.raises(Unavailable, match="start_cluster"):
                await client.store_session("s1", {"n": 1}, MINUTE_MS)


async def test_a_call_made_while_there_is_no_home_is_asked_of_the_next(three: Cluster):
    async with client_of(three.names[0]) as client:
        await three.crash(three.names[0])
        await eventually(lambda: home_of(client) == "")
        asking = asyncio.ensure_future(client.get_replication_status())
        writing = asyncio.ensure_future(client.store_session("s1", {"n": 1}, MINUTE_MS))

        await three.start(three.names[0], replica_nodes=three.names)

        assert (await asking)["node"] == three.names[0]
        assert await writing > 0


# What is no home


async def test_addresses_are_checked_at_once():
    for addresses in ([], ["nonsense"], ["127.0.0.1"], ["127.0.0.1:0"]):
        with pytest.raises(ConfigError):
            RemoteEngine(addresses)


async def test_nobody_at_the_address_is_told_in_bounded_time():
    for addresses in (free_addresses(1), free_addresses(3)):
        engine = RemoteEngine(addresses)
        with pytest.raises(Unavailable) as error:
            await engine.start()
        assert all(address in str(error.value) for address in addresses)
        await engine.stop()


async def _serve(answer: bytes) -> asyncio.Server:
    """Something else at the other end, which says that and no more."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        while await reader.read(1000):
            pass
        writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", 0)


def _address_of(server: asyncio.Server) -> str:
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_what_is_not_hotspare_is_said_so():
    async with await _serve(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        engine = RemoteEngine([_address_of(server)])
        with pytest.raises(ProtocolError, match="cannot be understood"):
            await engine.start()


async def test_what_is_not_hotspare_is_passed_over_when_there_are_others(three: Cluster):
    async with (
        await _serve(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server,
        client_of(_address_of(server), three.names[1]) as client,
    ):
        assert home_of(client) == three.names[1]


async def test_what_never_answers_is_given_up_in_bounded_time(three: Cluster):
    async with await _serve(b"") as server:
        engine = RemoteEngine([_address_of(server)], timeout_ms=200)
        with pytest.raises(Unavailable):
            await engine.start()
        async with client_of(_address_of(server), three.names[1], timeout_ms=300) as client:
            assert home_of(client) == three.names[1]


# Bounds


async def test_without_a_majority_writes_and_reads_end_in_bounded_time():
    async with running(3, replication_rpc_timeout_ms=400) as cluster:
        survivor = await cluster.primary()
        async with client_of(survivor.settings.node, timeout_ms=400) as client:
            await client.store_session("s1", {"n": 1}, MINUTE_MS)
            for name in [name for name in cluster.names if name != survivor.settings.node]:
                await cluster.crash(name)

            with pytest.raises((Unavailable, OutcomeUnknown)):
                await client.store_session("s1", {"n": 2}, MINUTE_MS)
            with pytest.raises(Unavailable):
                await client.get_session("s1", read="primary")
            assert await client.get_session("s1", read="stale") == {"n": 1}


async def test_without_any_node_writes_and_reads_end_in_bounded_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "CONNECT_TIMEOUT_MS", 100)
    async with running(1) as cluster, client_of(*cluster.names, timeout_ms=300) as client:
        await client.store_session("s1", {"n": 1}, MINUTE_MS)
        await cluster.crash(cluster.names[0])
        await eventually(lambda: home_of(client) == "")

        with pytest.raises((Unavailable, OutcomeUnknown)):
            await client.store_session("s1", {"n": 2}, MINUTE_MS)
        with pytest.raises(Unavailable):
            await client.get_session("s1")
        with pytest.raises(Unavailable):
            await client.get_session("s1", read="stale")
        with pytest.raises(Unavailable):
            await client.get_replication_status()


# Life


async def test_a_client_that_does_not_run_says_so(three: Cluster):
    engine = RemoteEngine(three.names)
    client = AsyncSessionReplicator(Settings(), engine=engine)
    await _refuses_everything(client)
    for act in (client.stop, client.start, client.start, client.stop, client.stop):
        await act()
    await _refuses_everything(client)
    with pytest.raises(Refused, match="make another"):
        await client.start()


async def _refuses_everything(client: AsyncSessionReplicator) -> None:
    for call in (
        client.get_session("s1"),
        client.store_session("s1", {}, MINUTE_MS),
        client.get_replication_status(),
        client.flush(),
    ):
        with pytest.raises(NotReady):
            await call


async def test_a_client_that_stops_waits_for_its_writes(three: Cluster):
    async with client_of(*three.names) as client:
        writes = [asyncio.ensure_future(client.store_session(f"s{n}", {}, MINUTE_MS)) for n in range(300)]
        await asyncio.sleep(0)

    assert all(version > 0 for version in await asyncio.gather(*writes))
    await eventually(partial(three[0].get_session_record, "s299"))
    assert await three[0].session_count() == 300


@pytest.mark.parametrize("wrong", [-1, 1000], ids=["long ago", "in another cluster"])
async def test_a_client_whose_registration_is_gone_says_unknown_and_goes_on(three: Cluster, wrong: int):
    async with client_of(three.names[0]) as client:
        await client.store_session("s1", {"n": 1}, MINUTE_MS)
        origin = engine_of(client)._writer.origin
        origin.id += wrong  # nobody registered that

        with pytest.raises(OutcomeUnknown, match="registration"):
            await client.store_session("s1", {"n": 2}, MINUTE_MS)

        await client.store_session("s1", {"n": 3}, MINUTE_MS)
        assert await client.get_session("s1") == {"n": 3}


async def test_two_clients_do_not_get_into_each_others_way(three: Cluster):
    async with client_of(*three.names) as one, client_of(*reversed(three.names)) as other:
        outcomes = await asyncio.gather(
            *(
                client.store_session(f"s{n}", {"by": name}, MINUTE_MS, if_absent=True)
                for n in range(50)
                for name, client in (("one", one), ("other", other))
            ),
            return_exceptions=True,
        )

        assert sum(isinstance(outcome, int) for outcome in outcomes) == 50
        assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 50


async def test_a_node_lets_go_of_a_client_that_left(three: Cluster):
    node = node_of(three[0])
    async with client_of(three.names[0]) as client:
        await client.store_session("s1", {}, MINUTE_MS)
        assert node._homes

    await eventually(lambda: not node._homes and not node._enrolling)


# ack="all"


async def test_what_a_client_wrote_for_all_copies_is_read_on_any_node_at_once(three: Cluster):
    for home in three.names:
        async with client_of(home) as client:
            for n in range(20):
                await client.store_session("s1", {"n": n}, MINUTE_MS, ack="all")
                assert [await sessions.get_session("s1") for sessions in three] == [{"n": n}] * 3
                await client.delete_session("s1", ack="all")
                assert [await sessions.get_session("s1") for sessions in three] == [None] * 3


async def test_a_client_whose_home_stops_goes_on_waiting_at_the_next_one():
    async with running(5, max_staleness_ms=1500) as cluster:
        primary = await cluster.primary()
        first, second, dead, _ = [name for name in cluster.names if cluster.running[name] is not primary]
        async with client_of(first, second) as client:
            await client.store_session("s1", {"n": 0}, MINUTE_MS, ack="all")
            await cluster.crash(dead)
            writing = asyncio.ensure_future(client.store_session("s1", {"n": 1}, MINUTE_MS, ack="all"))
            await eventually(lambda: node_of(cluster.running[first])._contexts)

            await cluster.stop(first)
            await writing

            assert home_of(client) == second
            assert [await sessions.get_session("s1") for sessions in cluster] == [{"n": 1}] * 3


async def test_a_client_is_told_that_its_write_was_applied_though_not_seen_everywhere():
    async with running(3, max_staleness_ms=3_600_000) as cluster:
        home = await cluster.primary()
        await cluster.crash((await cluster.secondary()).settings.node)
        async with client_of(home.settings.node, timeout_ms=400) as client:
            with pytest.raises(OutcomeUnknown, match="was applied") as caught:
                await client.store_session("s1", {"n": 1}, MINUTE_MS, ack="all")

            assert caught.value.is_applied
            assert await client.get_session("s1") == {"n": 1}
