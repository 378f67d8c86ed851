"""Nodes among others: reading and writing anywhere, becoming a cluster, and surviving each other's death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster import clocks
from hotspare.cluster import node as node_module
from hotspare.cluster.transport import Transport
from hotspare.errors import (
    ConfigError,
    NotReady,
    OutcomeUnknown,
    Refused,
    StaleRead,
    Unavailable,
    UnknownNode,
    VersionConflict,
)
from hotspare.raft import node as raft_node
from hotspare.raft.messages import TimeoutNow
from hotspare.store.plain import PlainStore
from tests.compiled import needs_source
from tests.unit.clusters import Cluster, eventually, free_addresses, node_of, running

MINUTE_MS = 60_000


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    async with running(3) as cluster:
        yield cluster


@pytest.fixture
async def four() -> AsyncIterator[Cluster]:
    async with running(4) as cluster:
        yield cluster


class Load:
    """Writers that go on until they are told to stop, and remember what was acknowledged."""

    def __init__(self, cluster: Cluster, names: list[str], writers: int = 4) -> None:
        self._cluster = cluster
        self._names = names
        self._goes_on = True
        self.acknowledged: dict[str, int] = {}
        self.writes = 0
        self.errors: list[BaseException] = []
        self._tasks = [asyncio.ensure_future(self._write(n)) for n in range(writers)]

    async def _write(self, writer: int) -> None:
        n = 0
        while self._goes_on:
            sessions = self._cluster.running[self._names[writer % len(self._names)]]
            n += 1
            try:
                await sessions.store_session(f"w{writer}", {"n": n}, MINUTE_MS)
                self.acknowledged[f"w{writer}"] = n
            except (Unavailable, OutcomeUnknown) as exc:
                self.errors.append(exc)
            self.writes += 1

    async def another(self, count: int) -> None:
        """Waits for so many more writes."""
        target = self.writes + count
        await eventually(lambda: self.writes >= target, f"{count} more writes")

    async def stop(self) -> None:
        self._goes_on = False
        await asyncio.gather(*self._tasks)

    async def check(self) -> None:
        """Every node shows each writer's last acknowledged write, and none saw an error."""
        assert self.errors == []
        for sessions in self._cluster:
            for id, n in self.acknowledged.items():
                assert await sessions.get_session(id) == {"n": n}


# Reading and writing anywhere


async def test_what_is_written_anywhere_is_read_there_at_once_and_everywhere_soon(four: Cluster):
    for n, sessions in enumerate(four):
        version = await sessions.store_session(f"s{n}", {"n": n}, MINUTE_MS)
        record = await sessions.get_session_record(f"s{n}")
        assert record is not None
        assert (record.data, record.version) == ({"n": n}, version)

    for n in range(4):
        for sessions in four:
            await eventually(partial(sessions.get_session, f"s{n}"))
    await four.settled()


async def test_after_a_flush_on_the_primary_every_copy_shows_all_of_it(four: Cluster):
    primary = await four.primary()
    for n in range(20):
        await primary.store_sessions((f"s{n}-{m}", {"m": m}, MINUTE_MS) for m in range(50))
        await primary.flush()
        assert [await sessions.session_count() for sessions in four] == [50 * (n + 1)] * 4
        assert len({(await sessions.get_replication_status())["digest"] for sessions in four}) == 1


async def test_a_read_from_the_primary_sees_what_any_node_has_acknowledged(four: Cluster):
    writer, reader = await four.primary(), await four.secondary()
    for n in range(50):
        await writer.store_session("s1", {"n": n}, MINUTE_MS)
        assert await reader.get_session("s1", read="primary") == {"n": n}


async def test_local_reads_never_go_back_in_time(three: Cluster):
    reader = await three.secondary()
    writer = await three.primary()
    await writer.store_session("s1", {"n": 0}, MINUTE_MS)
    await writer.flush()
    seen = [0]

    async def read_on() -> None:
        while seen[-1] < 200:
            data = await reader.get_session("s1")
            assert data is not None
            seen.append(data["n"])
            await asyncio.sleep(0)

    reading = asyncio.ensure_future(read_on())
    for n in range(1, 201):
        await writer.store_session("s1", {"n": n}, MINUTE_MS)
    await reading

    assert seen == sorted(seen)
    assert len(set(seen)) > 2


@needs_source
async def test_a_node_that_catches_up_by_a_snapshot_reads_what_it_got(monkeypatch: pytest.MonkeyPatch):
    configure = node_module._replica_config
    monkeypatch.setattr(
        node_module,
        "_replica_config",
        lambda settings, address: configure(settings, address)._replace(log_keep_bytes=10_000),
    )
    async with running(3) as cluster:
        await cluster.crash(cluster.names[2])
        await cluster[0].store_sessions((f"s{n}", {"n": n}, MINUTE_MS) for n in range(2000))
        primary = await cluster.primary()
        raft = node_of(primary).replica.node
        assert raft is not None
        assert raft.log.first_index > 1

        newcomer = await cluster.start(cluster.names[2])
        await cluster.settled()

        assert await newcomer.session_count() == 2000
        assert await newcomer.get_session("s1999") == {"n": 1999}
        await newcomer.store_session("s1999", {"n": -1}, MINUTE_MS)
        assert await newcomer.get_session("s1999") == {"n": -1}


async def test_what_a_node_says_of_itself(three: Cluster):
    primary, secondary = await three.primary(), await three.secondary()
    await secondary.store_sessions((f"s{n}", {}, MINUTE_MS) for n in range(10))
    await primary.flush()

    status = await primary.get_replication_status()
    other = await secondary.get_replication_status()

    assert status["role"] == "primary"
    assert status["primary"] == status["node"] == other["primary"]
    assert other["role"] == "secondary"
    assert status["incarnation"] != other["incarnation"]
    assert status["ready"]
    assert other["ready"]
    assert status["active_sessions"] == other["active_sessions"] == 10
    assert status["pending_replications"] == other["pending_replications"] == 0
    for shared in ("term", "cluster_id", "applied_index", "digest"):
        assert status[shared] == other[shared]
    assert 0 <= status["staleness_ms"] <= 2000
    replicas = {each["node"]: each for each in status["replica_nodes"]}
    assert set(replicas) == set(three.names) - {status["node"]}
    for each in replicas.values():
        assert (each["role"], each["reachable"], each["lag_entries"]) == ("secondary", True, 0)
        assert each["lag_ms"] == 0
    assert {each["role"] for each in other["replica_nodes"]} == {"primary", "secondary"}


async def test_what_a_node_counts(three: Cluster):
    primary, secondary = await three.primary(), await three.secondary()
    await secondary.store_sessions((f"s{n}", {}, MINUTE_MS) for n in range(10))
    await primary.flush()

    metrics = await primary.get_metrics()
    other = await secondary.get_metrics()

    assert metrics["is_primary"] is True
    assert other["is_primary"] is False
    assert metrics["replica_nodes"] == other["replica_nodes"] == 2
    assert metrics["active_sessions"] == other["active_sessions"] == 10
    assert metrics["total_replicated"] == 0
    assert other["total_replicated"] == 10
    assert metrics["failed_replications"] == other["failed_replications"] == 0
    assert metrics["pending_replications"] == other["pending_replications"] == 0
    assert 0 < metrics["replication_lag_p50_ms"] <= metrics["replication_lag_ms"]
    assert metrics["replication_lag_ms"] <= metrics["replication_lag_max_ms"]
    assert metrics["failovers"] == metrics["recovery_time_ms"] == 0


# Becoming a cluster


async def test_a_node_of_no_cluster_refuses_everything_and_says_so():
    async with running(1, founded=False) as cluster:
        sessions = cluster[0]
        with pytest.raises(NotReady, match="no cluster"):
            await sessions.get_session("s1")
        with pytest.raises(NotReady, match="no cluster"):
            await sessions.get_session("s1", read="stale")
        with pytest.raises(NotReady, match="no cluster"):
            await sessions.session_count()
        with pytest.raises(NotReady, match="no cluster"):
            await sessions.get_all_sessions()
        with pytest.raises(Unavailable, match="start_cluster"):
            await sessions.store_session("s1", {}, MINUTE_MS)
        status = await sessions.get_replication_status()
        assert (status["role"], status["ready"], status["primary"]) == ("unfounded", False, "")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
async def test_any_number_of_nodes_can_be_founded(count: int):
    async with running(count) as cluster:
        version = await cluster[count - 1].store_session("s1", {"n": 1}, MINUTE_MS)
        assert version > 0
        for sessions in cluster:
            await eventually(partial(sessions.get_session, "s1"))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
async def test_nodes_that_list_each_other_found_a_cluster_in_any_starting_order(order: tuple[int, ...]):
    async with running(0, founded=False) as cluster:
        cluster.names = free_addresses(4)
        for position in order[:-1]:
            await cluster.start(cluster.names[position], replica_nodes=cluster.names)
        early = cluster[order[0]]
        writing = asyncio.ensure_future(early.store_session("s1", {"n": 1}, MINUTE_MS))
        await asyncio.sleep(0)
        assert (await early.get_replication_status())["role"] == "unfounded"

        await cluster.start(cluster.names[order[-1]], replica_nodes=cluster.names)
        await cluster.settled()

        await writing
        assert len({(await each.get_replication_status())["cluster_id"] for each in cluster}) == 1


async def test_nodes_that_list_different_nodes_found_nothing():
    async with running(0, founded=False) as cluster:
        cluster.names = free_addresses(3)
        first, second, third = cluster.names
        await cluster.start(first, replica_nodes=[second])
        await cluster.start(second, replica_nodes=[first, third])
        await eventually(lambda: all(node_of(each).replica.peers for each in cluster))
        await eventually(lambda: all(node_of(each).replica.peers.introduced() for each in cluster))

        with pytest.raises(NotReady):
            await cluster[0].get_session("s1")
        await cluster.start(third, replica_nodes=[first, second])
        await cluster.restart(first, replica_nodes=[second, third])
        await cluster.settled()


async def test_a_cluster_is_founded_once(three: Cluster):
    for sessions in three:
        with pytest.raises(Refused, match="already belongs to cluster"):
            await sessions.start_cluster(three.names)


async def test_a_node_of_another_cluster_cannot_be_founded(three: Cluster):
    async with running(2, founded=False) as others:
        with pytest.raises(Refused, match=f"{three.names[1]} already belongs to cluster"):
            await others[0].start_cluster([others.names[1], three.names[1]])

        await others[0].start_cluster([others.names[1]])
        await others.settled()
        assert (await others[0].get_replication_status())["replica_nodes"][0]["node"] == others.names[1]
    await three.settled()


async def test_a_founding_without_an_answer_names_who_is_missing():
    absent = free_addresses(1)[0]
    async with running(2, founded=False, replication_rpc_timeout_ms=500) as cluster:
        with pytest.raises(Refused, match=f"no answer from {absent}"):
            await cluster[0].start_cluster([cluster.names[1], absent])

        await cluster[0].start_cluster([cluster.names[1]])
        await cluster.settled()


async def test_two_founders_of_the_same_nodes_make_one_cluster_at_most():
    async with running(4, founded=False, health_check_interval_ms=25, failure_threshold=4) as cluster:
        foundings = [cluster[n].start_cluster(cluster.names) for n in range(2)]
        outcomes = await asyncio.gather(*foundings, return_exceptions=True)

        assert outcomes.count(None) <= 1
        assert {type(outcome) for outcome in outcomes if outcome} == {Refused}
        if (
            None not in outcomes
        ):  # neither had most of the nodes: all of them give it up, and it can be repeated
            await eventually(lambda: all(node_of(each).replica.node is None for each in cluster))
            await cluster[0].start_cluster(cluster.names)
        await cluster.settled()
        assert len({(await each.get_replication_status())["cluster_id"] for each in cluster}) == 1


async def test_a_node_founds_one_cluster_at_a_time():
    async with running(3, founded=False) as cluster:
        late = cluster.names[2]
        await cluster.crash(late)
        foundings = [asyncio.ensure_future(cluster[0].start_cluster(cluster.names)) for _ in range(2)]
        await eventually(lambda: node_of(cluster[0]).replica.is_founding)

        with pytest.raises(Refused, match=f"a founding of .*{late} is under way"):
            await cluster[0].start_cluster([cluster.names[1]])

        await cluster.start(late)
        await asyncio.gather(*foundings)
        await cluster.settled()


async def test_a_node_stopped_while_it_founds_says_so():
    absent = free_addresses(1)[0]
    async with running(1, founded=False) as cluster:
        founding = asyncio.ensure_future(cluster[0].start_cluster([absent]))
        await eventually(lambda: node_of(cluster[0]).replica.is_founding)
        await cluster.stop(cluster.names[0])

        with pytest.raises(Unavailable, match="stopped"):
            await founding


async def test_two_clusters_never_mix(three: Cluster):
    async with running(0, founded=False) as other:
        other.names, store = free_addresses(1), PlainStore()
        await other.start(other.names[0], store=store)
        await other.found()
        await other[0].store_session("s1", {"of": "other"}, MINUTE_MS)
        await other.crash(other.names[0])

        # An operator's mistake: it comes back with the addresses of another cluster.
        stray = await other.start(other.names[0], store=store, replica_nodes=three.names)
        transport = node_of(stray)._transport
        assert isinstance(transport, Transport)
        await eventually(lambda: all("belongs to cluster" in transport.trouble(name) for name in three.names))
        await three[0].store_session("s1", {"of": "three"}, MINUTE_MS)
        await three.settled()

        assert await eventually(partial(stray.get_session, "s1")) == {"of": "other"}
        assert [await each.get_session("s1") for each in three] == [{"of": "three"}] * 3
        assert (await stray.get_replication_status())["replica_nodes"] == []


# Deaths


async def test_when_the_primary_dies_writes_are_held_and_none_is_lost_or_doubled(four: Cluster):
    primary = await four.primary()
    name = primary.settings.node
    load = Load(four, [each for each in four.names if each != name], writers=6)
    await load.another(50)

    await four.crash(name)
    await load.another(50)
    await load.stop()
    await four.settled()

    await load.check()
    assert (await (await four.primary()).get_metrics())["failovers"] == 1


async def test_a_version_is_given_to_one_write_only_whatever_dies(four: Cluster):
    primary = await four.primary()
    writer = await four.secondary()
    counting = [asyncio.ensure_future(_count_up(writer, "s1", 30)) for _ in range(3)]
    await eventually(lambda: node_of(writer).replica.table.totals.sessions)
    await four.crash(primary.settings.node)
    increments = sum(await asyncio.gather(*counting))

    assert await writer.get_session("s1", read="primary") == {"n": increments}


async def _count_up(sessions: AsyncSessionReplicator, id: str, times: int) -> int:
    """Increments by reading and writing under a condition; a doubled or lost write would show in the sum."""
    done = 0
    while done < times:
        record = await sessions.get_session_record(id, read="primary")
        try:
            if record is None:
                await sessions.store_session(id, {"n": 1}, MINUTE_MS, if_absent=True)
            else:
                changed = {"n": record.data["n"] + 1}
                await sessions.store_session(id, changed, MINUTE_MS, if_version=record.version)
        except VersionConflict:
            continue
        done += 1
    return done


async def test_connections_that_are_cut_cost_nothing(three: Cluster):
    load = Load(three, three.names)
    await load.another(20)
    for sessions in three:
        transport = node_of(sessions)._transport
        assert transport is not None
        for name in list(transport.dialled):
            transport.cut(name)
        await load.another(20)
    await load.stop()
    await three.settled()

    await load.check()


async def test_a_restarted_node_is_a_new_server_that_comes_to_vote(three: Cluster):
    await three[0].store_session("s1", {"n": 1}, MINUTE_MS)
    secondary = await three.secondary()
    before = await secondary.get_replication_status()

    newcomer = await three.restart(before["node"])
    assert newcomer.settings.replica_nodes == ()
    with pytest.raises(NotReady):
        await newcomer.get_session("s1")
    await three.settled()

    after = await newcomer.get_replication_status()
    assert after["incarnation"] != before["incarnation"]
    assert after["role"] == "secondary"
    assert await newcomer.get_session("s1") == {"n": 1}
    configuration = node_of(await three.primary()).replica.configuration
    member = configuration.by_name(before["node"])
    assert member is not None
    assert (member.id, member.voter) == (after["incarnation"], True)


async def test_all_nodes_can_be_restarted_one_after_the_other_without_a_loss(three: Cluster):
    load = Load(three, three.names[:1], writers=2)
    await load.another(20)
    for name in three.names[1:]:
        await three.restart(name)
        await three.settled()
        await load.another(20)
    await load.stop()
    await three.restart(three.names[0])
    await three.settled()

    await load.check()


async def test_a_node_started_again_with_its_store_keeps_incarnation_and_copy():
    async with running(3) as cluster:
        store = PlainStore()
        name = (await cluster.secondary()).settings.node
        await cluster.restart(name, store=store)
        await cluster.settled()
        await cluster[0].store_session("s1", {"n": 1}, MINUTE_MS)
        await cluster.settled()
        before = await cluster.running[name].get_replication_status()
        await cluster.crash(name)
        await cluster[1 if name == cluster.names[0] else 0].store_session("s2", {"n": 2}, MINUTE_MS)

        again = await cluster.start(name, store=store)
        assert await again.get_session("s1", read="stale") == {"n": 1}
        await cluster.settled()

        after = await again.get_replication_status()
        assert after["incarnation"] == before["incarnation"]
        assert after["term"] >= before["term"]
        assert await again.get_session("s2") == {"n": 2}


async def test_a_whole_cluster_comes_back_from_its_stores():
    async with running(3, founded=False) as cluster:
        stores = {name: PlainStore() for name in cluster.names}
        for name, store in stores.items():
            await cluster.restart(name, store=store)
        await cluster.found()
        await cluster[0].store_sessions((f"s{n}", {"n": n}, MINUTE_MS) for n in range(100))
        await cluster.settled()
        for name in cluster.names:
            await cluster.crash(name)

        for name, store in stores.items():
            await cluster.start(name, store=store)
        await cluster.settled()

        assert [await each.session_count() for each in cluster] == [100, 100, 100]


async def test_without_a_majority_nothing_is_made_up():
    async with running(3, max_staleness_ms=300, replication_rpc_timeout_ms=800) as cluster:
        survivor = await cluster.primary()
        await survivor.store_session("s1", {"n": 1}, MINUTE_MS)
        for name in [name for name in cluster.names if name != survivor.settings.node]:
            await cluster.crash(name)

        outcomes = await asyncio.gather(
            *(survivor.store_session(f"s{n}", {}, MINUTE_MS) for n in range(20)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} <= {Unavailable, OutcomeUnknown}
        with pytest.raises(Unavailable):
            await survivor.get_session("s1", read="primary")

        async def is_stale() -> bool:
            try:
                await survivor.get_session("s1")
            except StaleRead as exc:
                return exc.staleness_ms > exc.limit_ms == 300
            return False

        await eventually(is_stale)
        for call in (
            survivor.get_session("absent"),
            survivor.session_count(),
            survivor.get_all_sessions(),
            survivor.get_session_record("s1"),
        ):
            with pytest.raises(StaleRead):
                await call
        assert await survivor.get_session("s1", read="stale") == {"n": 1}
        assert await survivor.get_session("absent", read="stale") is None
        status = await survivor.get_replication_status()
        assert not status["ready"]
        assert status["primary"] == ""
        assert not any(each["reachable"] for each in status["replica_nodes"])
        assert (await survivor.get_metrics())["failed_replications"] == 20


async def test_a_majority_that_comes_back_goes_on_where_it_was():
    async with running(3, max_staleness_ms=300, replication_rpc_timeout_ms=20_000) as cluster:
        stores = {name: PlainStore() for name in cluster.names[1:]}
        for name, store in stores.items():
            await cluster.restart(name, store=store)
            await cluster.settled()
        survivor = cluster[0]
        await survivor.store_session("s1", {"n": 1}, MINUTE_MS)
        for name in stores:
            await cluster.crash(name)
        writing = asyncio.ensure_future(survivor.store_session("s2", {"n": 2}, MINUTE_MS))

        for name, store in stores.items():
            await cluster.start(name, store=store)
        await writing
        await cluster.settled()

        for sessions in cluster:
            assert await sessions.get_all_sessions() == ["s1", "s2"]


async def test_a_write_whose_caller_gave_up_never_takes_effect_later():
    async with running(3, founded=False, replication_rpc_timeout_ms=300, max_clock_skew_ms=50) as cluster:
        stores = {name: PlainStore() for name in cluster.names}
        for name, store in stores.items():
            await cluster.restart(name, store=store)
        await cluster.found()
        writer = await cluster.secondary()
        await writer.store_session("kept", {"n": 1}, MINUTE_MS)
        others = [name for name in cluster.names if cluster.running[name] is not writer]
        writes = [
            asyncio.ensure_future(writer.delete_session("kept")),
            asyncio.ensure_future(writer.store_session("new", {}, MINUTE_MS)),
            asyncio.ensure_future(writer.touch_session("kept", 60 * MINUTE_MS)),
        ]
        await asyncio.sleep(0)  # they are about to leave
        await asyncio.gather(*(cluster.crash(name) for name in others))

        for write in writes:
            with pytest.raises(OutcomeUnknown):
                await write
        for name in others:
            await cluster.start(name, store=stores[name])
        await cluster.settled()

        # The node has kept its word, and sent them until they were answered: too late.
        await eventually(lambda: node_of(writer).pending_writes == 0)
        record = await writer.get_session_record("kept", read="primary")
        assert record is not None
        assert record.data == {"n": 1}
        assert record.expires_at_ms < clocks.wall_ms() + 2 * MINUTE_MS
        assert await writer.get_session("new", read="primary") is None


async def test_what_is_written_where_no_primary_is_known_never_leaves_and_is_certainly_not_applied():
    async with running(3, replication_rpc_timeout_ms=300) as cluster:
        writer = await cluster.secondary()
        await writer.store_session("kept", {"n": 1}, MINUTE_MS)
        for name in [name for name in cluster.names if cluster.running[name] is not writer]:
            await cluster.crash(name)
        await eventually(lambda: not node_of(writer).replica.leader)

        for write in (
            writer.delete_session("kept"),
            writer.store_session("new", {}, MINUTE_MS),
            writer.touch_session("kept", 60 * MINUTE_MS),
        ):
            with pytest.raises(Unavailable):
                await write
        assert node_of(writer).pending_writes == 0


async def test_a_write_of_a_caller_who_was_cancelled_harms_nobody(three: Cluster):
    sessions = await three.secondary()
    writing = asyncio.ensure_future(sessions.store_session("s1", {"n": 1}, MINUTE_MS))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing

    await sessions.store_session("s2", {"n": 2}, MINUTE_MS)
    await three.settled()
    assert await sessions.get_session("s2") == {"n": 2}


# Operating


async def test_promotion_moves_the_leadership_and_no_writer_notices(four: Cluster):
    load = Load(four, four.names, writers=8)
    await load.another(20)
    for sessions in list(four):
        await sessions.promote_to_primary()
        assert (await sessions.get_replication_status())["role"] == "primary"
        assert (await sessions.get_metrics())["is_primary"]
        await load.another(20)
    await load.stop()
    await four.settled()

    await load.check()


async def test_to_promote_the_primary_changes_nothing(three: Cluster):
    primary = await three.primary()
    before = await primary.get_replication_status()

    await primary.promote_to_primary()

    after = await primary.get_replication_status()
    assert (after["role"], after["term"]) == ("primary", before["term"])


async def test_a_node_without_a_majority_cannot_be_promoted():
    async with running(3, replication_rpc_timeout_ms=500) as cluster:
        for name in cluster.names[1:]:
            await cluster.crash(name)

        with pytest.raises((Unavailable, Refused)):
            await cluster[0].promote_to_primary()


@pytest.mark.parametrize("asked", ["primary", "secondary"])
async def test_a_leadership_that_nobody_takes_over_stays_and_that_is_told_soon(
    three: Cluster, monkeypatch: pytest.MonkeyPatch, asked: str
):
    handlers: dict[Any, Any] = raft_node._HANDLERS  # type: ignore[assignment]
    monkeypatch.setitem(handlers, TimeoutNow, lambda node, message: None)
    primary, secondary = await three.primary(), await three.secondary()
    whom = primary if asked == "primary" else secondary

    with pytest.raises(Refused, match="could not take over in time"):
        await whom.trigger_failover(primary.settings.node)
    with pytest.raises(Refused, match="could not take over in time"):
        await secondary.promote_to_primary()

    assert await three.primary() is primary
    await secondary.store_session("s1", {}, MINUTE_MS)


@pytest.mark.parametrize("asked", ["primary", "secondary"])
async def test_a_failover_of_the_primary_makes_a_secondary_lead(three: Cluster, asked: str):
    primary = await three.primary()
    whom = primary if asked == "primary" else await three.secondary()
    load = Load(three, three.names)
    await load.another(10)

    text = await whom.trigger_failover(primary.settings.node)

    successor = await three.primary()
    assert successor is not primary
    assert text == f"{successor.settings.node} is primary"
    await load.another(10)
    await load.stop()
    await three.settled()
    await load.check()


async def test_a_failover_of_a_healthy_secondary_has_nothing_to_do(three: Cluster):
    primary, secondary = await three.primary(), await three.secondary()

    for whom in (primary, secondary):
        assert "nothing to do" in await whom.trigger_failover(secondary.settings.node)

    assert await three.primary() is primary


async def test_a_failover_of_a_dead_secondary_takes_its_vote_until_it_is_back(four: Cluster):
    primary, secondary = await four.primary(), await four.secondary()
    dead = secondary.settings.node
    await four.crash(dead)
    await _is_missed(primary, dead)

    text = await primary.trigger_failover(dead)

    assert text == f"{dead} does not vote until it is back"
    member = node_of(primary).replica.configuration.by_name(dead)
    assert member is not None
    assert not member.voter
    # Three of four vote now, so that another one may die.
    another = (await four.secondary()).settings.node
    await four.crash(another)
    await (await four.primary()).store_session("s1", {"n": 1}, MINUTE_MS)
    await four.restart(dead)
    await four.restart(another)
    await four.settled()
    assert len(node_of(await four.primary()).replica.configuration.voters) == 4
    assert [await each.get_session("s1") for each in four] == [{"n": 1}] * 4


async def _is_missed(sessions: AsyncSessionReplicator, name: str) -> None:
    async def is_missed() -> bool:
        status = await sessions.get_replication_status()
        return any(each["node"] == name and not each["reachable"] for each in status["replica_nodes"])

    await eventually(is_missed)


async def test_a_vote_is_not_taken_where_the_others_would_be_no_majority():
    async with running(2, replication_rpc_timeout_ms=500) as cluster:
        primary, secondary = await cluster.primary(), await cluster.secondary()
        await cluster.crash(secondary.settings.node)
        await _is_missed(primary, secondary.settings.node)

        with pytest.raises((Refused, Unavailable)):
            await primary.trigger_failover(secondary.settings.node)


@pytest.mark.parametrize("asked", ["primary", "secondary"])
async def test_a_failover_of_an_unknown_node_names_the_known_ones(three: Cluster, asked: str):
    whom = await three.primary() if asked == "primary" else await three.secondary()

    with pytest.raises(UnknownNode) as error:
        await whom.trigger_failover("127.0.0.1:1")

    assert error.value.node == "127.0.0.1:1"
    assert sorted(error.value.known) == three.names


# Room


async def test_a_full_cluster_refuses_what_needs_room_and_nothing_else():
    async with running(3, max_memory_bytes=2**20) as cluster:
        sessions = await cluster.secondary()
        pad = {"pad": "x" * 60_000}
        stored = await _fill(sessions)
        assert 15 <= stored <= 20

        with pytest.raises(Unavailable, match="max_memory_bytes"):
            await sessions.store_session("s0", {}, MINUTE_MS)
        with pytest.raises(Unavailable, match="max_memory_bytes"):
            await sessions.update_session("s0", {"n": 1})
        with pytest.raises(Unavailable, match="max_memory_bytes"):
            await sessions.store_sessions([("new", {}, MINUTE_MS)])
        assert await sessions.get_session("s0") == pad
        assert await sessions.touch_session("s0", 2 * MINUTE_MS)
        assert await sessions.rotate_session("s1", "moved")
        assert await sessions.delete_session("s2")
        assert await sessions.delete_session("s3")

        await sessions.store_session("new", {"n": 1}, MINUTE_MS)
        await cluster.settled()
        assert await sessions.get_session("new") == {"n": 1}


async def _fill(sessions: AsyncSessionReplicator) -> int:
    """How many sessions of about 60 kB found room."""
    for n in range(1000):
        try:
            await sessions.store_session(f"s{n}", {"pad": "x" * 60_000}, MINUTE_MS)
        except Unavailable as exc:
            assert "max_memory_bytes" in str(exc)  # noqa: PT017
            return n
    raise AssertionError("it is never full")


async def test_a_full_cluster_refuses_merged_updates_too():
    async with running(1, founded=False, enabled=False, max_memory_bytes=2**20) as cluster:
        plain = cluster[0]
        compressing = AsyncSessionReplicator(
            plain.settings.changed(enable_compression=True), engine=plain.engine
        )
        await compressing.store_session("compressed", {"pad": "x" * 5000}, MINUTE_MS)
        await _fill(plain)

        with pytest.raises(Unavailable, match="max_memory_bytes"):
            await compressing.update_session("compressed", {"n": 1})


async def test_expired_sessions_vanish_from_all_copies_and_leave_room():
    async with running(3, cleanup_interval_ms=20) as cluster:
        await cluster[0].store_sessions([(f"s{n}", {}, 50) for n in range(3000)] + [("kept", {}, MINUTE_MS)])
        empty_bytes = 10_000

        async def are_pruned() -> bool:
            statuses = [await each.get_replication_status() for each in cluster]
            return all(each["memory_bytes"] < empty_bytes for each in statuses)

        await eventually(are_pruned)
        await cluster.settled()
        for sessions in cluster:
            assert await sessions.get_all_sessions() == ["kept"]
            assert await sessions.session_count() == 1
            assert len(node_of(sessions).store.ids()) == 1


# Life


async def test_a_node_refuses_to_work_before_its_start_and_after_its_stop():
    settings = Settings(node=free_addresses(1)[0], enabled=False)
    sessions = AsyncSessionReplicator(settings)

    await _refuses_everything(sessions)
    await sessions.stop()
    await sessions.start()
    await sessions.store_session("s1", {}, MINUTE_MS)
    await sessions.stop()
    await sessions.stop()
    await _refuses_everything(sessions)
    with pytest.raises(Refused, match="make another"):
        await sessions.start()


async def test_to_start_a_node_that_runs_changes_nothing(three: Cluster):
    await three[0].start()

    await three[0].store_session("s1", {"n": 1}, MINUTE_MS)
    await three.settled()


async def test_a_peer_whose_address_is_nonsense_is_its_own_problem(three: Cluster):
    node = node_of(three[0])
    node.replica.peers.meet("stranger", "no address")
    node._dial()

    await three[0].store_session("s1", {"n": 1}, MINUTE_MS)
    assert "stranger" not in node._transport.dialled  # type: ignore[union-attr]


async def _refuses_everything(sessions: AsyncSessionReplicator) -> None:
    for call in (
        sessions.get_session("s1"),
        sessions.get_session("s1", read="primary"),
        sessions.get_session("s1", read="stale"),
        sessions.get_session_record("s1"),
        sessions.get_all_sessions(),
        sessions.session_count(),
        sessions.store_session("s1", {}, MINUTE_MS),
        sessions.store_sessions([("s1", {}, MINUTE_MS)]),
        sessions.update_session("s1", {}),
        sessions.touch_session("s1", MINUTE_MS),
        sessions.delete_session("s1"),
        sessions.rotate_session("s1", "s2"),
        sessions.start_cluster(),
        sessions.flush(),
        sessions.promote_to_primary(),
        sessions.trigger_failover("127.0.0.1:7401"),
        sessions.get_replication_status(),
        sessions.get_metrics(),
    ):
        with pytest.raises((NotReady, Unavailable)):
            await call


async def test_a_port_that_is_taken_is_a_clear_error(three: Cluster):
    settings = Settings(node=three.names[0])
    sessions = AsyncSessionReplicator(settings)

    with pytest.raises(ConfigError, match="in use"):
        await sessions.start()

    await sessions.stop()
    await three.settled()


async def test_a_stopped_primary_hands_over_and_its_writers_end_well(three: Cluster):
    primary = await three.primary()
    name = primary.settings.node
    writes = [asyncio.ensure_future(primary.store_session(f"s{n}", {}, MINUTE_MS)) for n in range(200)]
    await asyncio.sleep(0)

    await three.stop(name)

    assert all(isinstance(version, int) for version in await asyncio.gather(*writes))
    successor = await three.primary()
    assert await successor.session_count() == 200
    with pytest.raises((NotReady, Unavailable)):
        await primary.store_session("late", {}, MINUTE_MS)


async def test_every_node_can_be_stopped_in_good_order_under_a_load(four: Cluster):
    """A rolling restart: writers on the nodes that stay see no error."""
    load = Load(four, four.names[-1:], writers=4)
    await load.another(20)
    for name in four.names[:-1]:
        await four.stop(name)
        await load.another(20)
        await four.start(name)
        await four.settled()
    await load.stop()
    await four.settled()

    await load.check()


# ack="all"


async def shows_everywhere(cluster: Cluster, id: str, expected: dict[str, Any] | None) -> None:
    """Immediately: without a wait in between."""
    for sessions in cluster:
        assert await sessions.get_session(id) == expected


async def test_a_write_that_all_copies_acknowledged_is_read_on_any_node_at_once(four: Cluster):
    for n in range(40):
        for writer in four:
            await writer.store_session("s1", {"n": n}, MINUTE_MS, ack="all")
            await shows_everywhere(four, "s1", {"n": n})


async def test_every_verb_waits_for_all_copies_if_told_to(three: Cluster):
    for writer in (await three.primary(), await three.secondary()):
        for n in range(10):
            await writer.store_session("s1", {"n": n}, MINUTE_MS, ack="all")
            await shows_everywhere(three, "s1", {"n": n})
            await writer.update_session("s1", {"m": n}, ack="all")
            await shows_everywhere(three, "s1", {"n": n, "m": n})
            assert await writer.touch_session("s1", 5 * MINUTE_MS, ack="all")
            for sessions in three:
                record = await sessions.get_session_record("s1")
                assert record is not None
                assert record.expires_at_ms > clocks.wall_ms() + 3 * MINUTE_MS
            assert await writer.rotate_session("s1", "s2", ack="all")
            await shows_everywhere(three, "s1", None)
            await shows_everywhere(three, "s2", {"n": n, "m": n})
            assert await writer.delete_session("s2", ack="all")
            await shows_everywhere(three, "s2", None)
            await writer.store_sessions(((f"bulk{k}", {"n": n}, MINUTE_MS) for k in range(300)), ack="all")
            for k in (0, 150, 299):
                await shows_everywhere(three, f"bulk{k}", {"n": n})


async def test_the_setting_says_when_writes_return_that_do_not_say_so_themselves():
    async with running(3, ack="all") as cluster:
        for n in range(20):
            for writer in cluster:
                await writer.store_session("s1", {"n": n}, MINUTE_MS)
                await shows_everywhere(cluster, "s1", {"n": n})


async def test_a_delete_that_found_nothing_is_as_good_as_one_that_did(three: Cluster):
    """Somebody else's delete may have reached this node and not yet another one."""
    one, other = await three.primary(), await three.secondary()
    for _ in range(20):
        await one.store_session("s1", {}, MINUTE_MS, ack="all")
        await asyncio.gather(one.delete_session("s1"), other.delete_session("s1", ack="all"))
        await shows_everywhere(three, "s1", None)


async def test_many_writers_wait_for_all_copies_side_by_side(three: Cluster):
    async def write(writer: AsyncSessionReplicator, id: str) -> None:
        for n in range(20):
            await writer.store_session(id, {"n": n}, MINUTE_MS, ack="all")
            await shows_everywhere(three, id, {"n": n})

    await asyncio.gather(*(write(writer, f"s{w}-{k}") for w, writer in enumerate(three) for k in range(20)))


async def test_a_dead_copy_delays_a_write_for_all_by_its_lease_and_the_next_one_not_at_all():
    async with running(3, max_staleness_ms=700) as cluster:
        writer = await cluster.primary()
        await writer.store_session("s1", {"n": 0}, MINUTE_MS, ack="all")
        dead = await cluster.secondary()
        replica = node_of(dead).replica
        await cluster.crash(dead.settings.node)

        await writer.store_session("s1", {"n": 1}, MINUTE_MS, ack="all")

        # Whoever reads the dead node's memory does so under its last lease.
        assert clocks.boot_ms() > replica.lease_end_ms
        await shows_everywhere(cluster, "s1", {"n": 1})
        leases = node_of(writer).replica._leases
        assert replica.id not in leases._copies


async def test_a_node_that_stops_in_good_order_delays_nobody():
    async with running(3, max_staleness_ms=3_600_000) as cluster:
        writer = await cluster.primary()
        await writer.store_session("s1", {"n": 0}, MINUTE_MS, ack="all")
        for name in [name for name in cluster.names if cluster.running[name] is not writer][:1]:
            await cluster.stop(name)

        # With a lease of an hour, it would be a long wait.
        await writer.store_session("s1", {"n": 1}, MINUTE_MS, ack="all")

        await shows_everywhere(cluster, "s1", {"n": 1})


async def test_writes_for_all_copies_survive_the_death_of_the_primary():
    async with running(3, max_staleness_ms=600) as cluster:
        primary = await cluster.primary()
        writers = [each for each in cluster if each is not primary]
        await writers[0].store_session("s1", {"n": 0}, MINUTE_MS, ack="all")
        writes = [
            asyncio.ensure_future(writer.store_session(f"s{n}", {"n": n}, MINUTE_MS, ack="all"))
            for n, writer in enumerate(writers * 10)
        ]
        await asyncio.sleep(0)
        await cluster.crash(primary.settings.node)

        for n, write in enumerate(writes):
            await write
            await shows_everywhere(cluster, f"s{n}", {"n": n})


async def test_a_write_that_was_not_seen_everywhere_in_time_says_that_it_was_applied():
    async with running(3, max_staleness_ms=3_600_000, replication_rpc_timeout_ms=400) as cluster:
        writer = await cluster.primary()
        await cluster.crash((await cluster.secondary()).settings.node)

        with pytest.raises(OutcomeUnknown, match="was applied") as caught:
            await writer.store_session("s1", {"n": 1}, MINUTE_MS, ack="all")

        assert caught.value.is_applied
        assert await writer.get_session("s1") == {"n": 1}
        with pytest.raises(VersionConflict):  # nothing was written, so there is nothing to wait for
            await writer.store_session("s1", {"n": 2}, MINUTE_MS, if_absent=True, ack="all")


async def test_a_node_that_stops_lets_its_writers_wait_for_all_copies_first():
    async with running(3, max_staleness_ms=700) as cluster:
        writer, dead = await cluster.primary(), await cluster.secondary()
        await cluster.crash(dead.settings.node)
        writing = asyncio.ensure_future(writer.store_session("s1", {"n": 1}, MINUTE_MS, ack="all"))
        await eventually(lambda: node_of(writer)._barriers)

        await cluster.stop(writer.settings.node)

        await writing
