"""Clusters that grow and shrink, and nodes that only look on: in-process nodes over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster import clocks
from hotspare.cluster.node import ClusterNode
from hotspare.cluster.wire import Rejected, RejectionCode
from hotspare.errors import ClusterMismatch, ConfigError, NotReady, Refused, Unavailable, UnknownNode
from hotspare.store.plain import PlainStore
from tests.compiled import needs_source
from tests.unit.clusters import Cluster, eventually, free_addresses, node_of, running

MINUTE_MS = 60_000


async def status_of(sessions: AsyncSessionReplicator) -> dict[str, Any]:
    return await sessions.get_replication_status()


async def role_of(sessions: AsyncSessionReplicator) -> str:
    return str((await status_of(sessions))["role"])


async def retired(sessions: AsyncSessionReplicator) -> None:
    await eventually(lambda: node_of(sessions).replica.is_retired, "it knows that it was removed")


async def fresh(sessions: AsyncSessionReplicator) -> None:
    await eventually(lambda: node_of(sessions).is_fresh, "a copy that answers")


def voters(sessions: AsyncSessionReplicator) -> set[str]:
    members = node_of(sessions).replica.configuration.members
    return {member.name for member in members if member.voter}


async def start_observer(cluster: Cluster, name: str, **settings: Any) -> AsyncSessionReplicator:
    return await cluster.start(name, replica_nodes=cluster.names[:2], role="observer", **settings)


async def restartable(cluster: Cluster) -> tuple[AsyncSessionReplicator, PlainStore]:
    """One more member; what it wrote can be given to its next life."""
    (name,) = free_addresses(1)
    store = PlainStore()
    sessions = await cluster.start(name, store=store)
    await cluster[0].add_node(name)
    await cluster.settled()
    return sessions, store


# Growing and shrinking


async def test_a_cluster_grows_from_one_to_three_and_shrinks_back():
    async with running(1) as cluster:
        for name in free_addresses(2):
            await cluster.start(name)
            assert "votes" in await cluster[0].add_node(name)
            await cluster[0].store_session(name, {}, MINUTE_MS)
        assert voters(cluster[0]) == set(cluster.running)
        await cluster.settled()
        for sessions in cluster:
            assert await sessions.session_count() == 2

        first, *others = cluster.running.values()
        for sessions in others:
            name = node_of(sessions).name
            assert name in await first.remove_node(name)
            await retired(sessions)
            assert await role_of(sessions) == "removed"
            await first.store_session(f"without {name}", {}, MINUTE_MS)
        assert voters(first) == {cluster.names[0]}


async def test_a_removed_node_answers_nothing_and_says_why():
    async with running(3) as cluster:
        primary, removed = await cluster.primary(), await cluster.secondary()
        name = node_of(removed).name
        await primary.store_session("s1", {}, MINUTE_MS)
        await primary.remove_node(name)
        await retired(removed)

        with pytest.raises(NotReady, match=f"{name} was removed from cluster"):
            await removed.get_session("s1")
        with pytest.raises(Unavailable, match="was removed"):
            await removed.store_session("s2", {}, MINUTE_MS)
        with pytest.raises(Refused, match="was removed"):
            await removed.promote_to_primary()
        status = await status_of(removed)
        assert (status["role"], status["primary"], status["ready"]) == ("removed", "", False)
        assert "hotspare add" in status["trouble"]


async def test_a_removed_node_can_be_taken_in_again_with_its_state():
    async with running(3) as cluster:
        primary, removed = await cluster.primary(), await cluster.secondary()
        name, server = node_of(removed).name, node_of(removed).replica.id
        await primary.remove_node(name)
        await retired(removed)
        await primary.store_session("s1", {}, MINUTE_MS)

        await primary.add_node(name)
        await cluster.settled()

        assert await removed.get_session("s1") == {}
        assert node_of(removed).replica.id == server


async def test_a_member_that_was_away_learns_of_its_removal_from_any_other():
    async with running(3) as cluster:
        away, store = await restartable(cluster)
        primary, name = await cluster.primary(), node_of(away).name
        await cluster.crash(name)
        await primary.remove_node(name)
        term = (await status_of(primary))["term"]

        back = await cluster.start(name, store=store)

        await retired(back)
        await primary.store_session("s1", {}, MINUTE_MS)
        assert (await status_of(primary))["term"] == term, "it disturbed nobody"


async def test_a_removed_node_knows_it_after_a_restart_too():
    async with running(3) as cluster:
        removed, store = await restartable(cluster)
        primary, name = await cluster.primary(), node_of(removed).name
        await primary.remove_node(name)
        await retired(removed)
        await cluster.crash(name)
        for other in list(cluster.running):
            await cluster.stop(other)

        alone = await cluster.start(name, store=store)
        assert await role_of(alone) == "removed"


async def test_the_primary_is_removed_by_its_successor():
    async with running(3) as cluster:
        primary = await cluster.primary()
        name = node_of(primary).name

        await primary.remove_node(name)

        await retired(primary)
        del cluster.running[name]
        try:
            successor = await cluster.primary()
            assert voters(successor) == set(cluster.running)
            await successor.store_session("s1", {}, MINUTE_MS)
        finally:
            cluster.running[name] = primary


async def test_a_dead_member_is_removed_only_where_the_rest_can_go_on():
    async with running(4) as cluster:
        primary = await cluster.primary()
        one, other = [name for name in cluster.running if name != node_of(primary).name][:2]
        for name in (one, other):
            await cluster.crash(name)
        await eventually(lambda: sum(peer.up for peer in node_of(primary).replica.peers.values()) == 1)
        with pytest.raises((Refused, Unavailable)):
            await primary.remove_node(one)


async def test_nobody_removes_the_last_voter_or_somebody_unknown():
    async with running(1) as cluster:
        with pytest.raises(Refused, match="only member that votes"):
            await cluster[0].remove_node(cluster.names[0])
        with pytest.raises(UnknownNode) as caught:
            await cluster[0].remove_node("127.0.0.1:1")
        assert caught.value.known == (cluster.names[0],)


async def test_a_member_is_not_added_twice():
    async with running(3) as cluster:
        assert "member already" in await cluster[0].add_node(cluster.names[1])


async def test_a_node_that_does_not_answer_is_not_added():
    (nobody,) = free_addresses(1)
    async with running(1, replication_rpc_timeout_ms=4000) as cluster:
        with pytest.raises(Refused, match="does not answer"):
            await cluster[0].add_node(nobody)
        with pytest.raises(ConfigError):
            await cluster[0].add_node("no address")


async def test_a_node_of_another_cluster_is_refused_by_name():
    async with running(1) as one, running(1) as other:
        with pytest.raises(ClusterMismatch) as caught:
            await one[0].add_node(other.names[0])
        error = caught.value
        assert error.node == other.names[0]
        assert error.ours == node_of(one[0]).replica.cluster_id
        assert error.theirs == node_of(other[0]).replica.cluster_id


async def test_a_node_without_a_cluster_says_how_it_gets_into_one():
    async with running(1, founded=False) as cluster:
        with pytest.raises(Unavailable, match="hotspare add"):
            await cluster[0].store_session("s1", {}, MINUTE_MS)
        with pytest.raises(Refused, match="ask a member"):
            await cluster[0].add_node("127.0.0.1:1")


async def test_a_node_that_waits_for_one_of_another_cluster_says_so():
    async with running(1) as cluster:
        (name,) = free_addresses(1)
        waiting = await cluster.start(name, replica_nodes=cluster.names)

        async def says_so() -> bool:
            return "hotspare add" in (await status_of(waiting))["trouble"]

        await eventually(says_so)
        await cluster[0].add_node(name)
        await cluster.settled()
        assert (await status_of(waiting))["trouble"] == ""


async def test_a_member_at_another_address_is_found_again():
    async with running(3) as cluster:
        moving, store = await restartable(cluster)
        primary, name = await cluster.primary(), node_of(moving).name
        (address,) = free_addresses(1)
        await cluster.crash(name)
        await cluster.start(name, store=store, listen=address, advertise=address)

        def is_known() -> bool:
            member = node_of(primary).replica.configuration.by_name(name)
            return member is not None and member.address == address

        await eventually(is_known, "the configuration has the new address")
        await cluster.settled()
        assert voters(primary) == set(cluster.running)


# Observers


async def test_an_observer_has_a_copy_and_no_place_in_the_configuration():
    async with running(3) as cluster:
        await cluster[0].store_session("s1", {"n": 1}, MINUTE_MS)
        (name,) = free_addresses(1)
        observer = await start_observer(cluster, name)
        await fresh(observer)

        assert await observer.get_session("s1") == {"n": 1}
        await observer.store_session("s2", {"by": "observer"}, MINUTE_MS)
        assert await observer.get_session("s2") == {"by": "observer"}
        assert await cluster[0].get_session("s2", read="primary") == {"by": "observer"}

        primary = await status_of(await cluster.primary())
        assert [each["role"] for each in primary["replica_nodes"] if each["node"] == name] == ["observer"]
        status = await status_of(observer)
        assert (status["role"], status["ready"]) == ("observer", True)
        assert len(node_of(observer).replica.configuration.members) == 3


async def test_an_observer_outlives_its_leader_and_the_members_that_it_was_told_of():
    async with running(4) as cluster:
        (name,) = free_addresses(1)
        observer = await start_observer(cluster, name)
        await fresh(observer)
        primary = await cluster.primary()
        await primary.trigger_failover(node_of(primary).name)
        for gone in cluster.names[:1]:
            await cluster.crash(gone)
        home = cluster[1]
        await eventually(lambda: node_of(home).replica.leader not in ("", cluster.names[0]))
        version = await home.store_session("s1", {}, MINUTE_MS)

        async def shows_it() -> bool:
            record = await observer.get_session_record("s1")
            return record is not None and record.version == version

        await eventually(shows_it)


async def test_observers_do_not_count():
    async with running(3, replication_rpc_timeout_ms=1500) as cluster:
        observers = [await start_observer(cluster, name) for name in free_addresses(3)]
        for observer in observers:
            await fresh(observer)
        primary = await cluster.primary()
        for name in list(cluster.names):
            if name != node_of(primary).name:
                await cluster.crash(name)

        with pytest.raises(Exception, match=r"unknown|unavailable"):
            await observers[0].store_session("s1", {}, MINUTE_MS)
        assert not any(node_of(observer).replica.is_leader for observer in observers)


async def test_an_observer_founds_no_cluster_and_is_no_part_of_one():
    async with running(2, founded=False) as cluster:
        (name,) = free_addresses(1)
        observer = await start_observer(cluster, name)
        with pytest.raises(Refused, match="observer"):
            await observer.start_cluster(cluster.names)
        with pytest.raises(Refused, match="is an observer"):
            await cluster[0].start_cluster([cluster.names[1], name])
        await cluster.stop(name)
        await cluster.found()
        again = await start_observer(cluster, name)
        await fresh(again)
        with pytest.raises(Refused, match="is an observer"):
            await cluster[0].add_node(name)


async def test_a_member_does_not_come_back_as_an_observer():
    async with running(3) as cluster:
        member, store = await restartable(cluster)
        name = node_of(member).name
        await cluster.crash(name)
        settings = Settings(node=name, replica_nodes=tuple(cluster.names), role="observer")
        with pytest.raises(ConfigError, match="hotspare remove"):
            await ClusterNode(settings, store).start()


async def test_an_observer_that_is_gone_is_forgotten():
    async with running(1, health_check_interval_ms=20, failure_threshold=2) as cluster:
        (name,) = free_addresses(1)
        observer = await cluster.start(name, replica_nodes=cluster.names, role="observer")
        await fresh(observer)
        await cluster.stop(name)
        await eventually(lambda: name not in node_of(cluster[0]).replica.dial_targets())


# Failovers


async def test_a_failover_is_recorded_on_every_node_with_its_reason():
    async with running(3) as cluster:
        old = node_of(await cluster.primary()).name
        await cluster.running[old].trigger_failover(old)
        await eventually(lambda: cluster.leader() not in ("", old))
        ordered = cluster.leader()

        async def all_know(why: str, new: str) -> bool:
            statuses = [await status_of(each) for each in cluster]
            last = [each["failovers"][-1:] for each in statuses]
            return all(found and (found[0]["why"], found[0]["to"]) == (why, new) for found in last)

        await eventually(lambda: all_know("ordered", ordered))
        await cluster.stop(ordered)
        await eventually(lambda: cluster.leader() not in ("", ordered))
        await eventually(lambda: all_know("stopped", cluster.leader()))
        record = (await status_of(await cluster.primary()))["failovers"][-1]
        assert record["from"] == ordered
        assert record["without_primary_ms"] >= 0
        metrics = await (await cluster.primary()).get_metrics()
        assert (metrics["failovers_ordered"], metrics["failovers_stopped"]) == (1, 1)


async def test_a_primary_that_dies_was_killed():
    async with running(3) as cluster:
        primary = node_of(await cluster.primary()).name
        await cluster.crash(primary)
        await eventually(lambda: cluster.leader() not in ("", primary))
        record = (await status_of(await cluster.primary()))["failovers"][-1]
        assert (record["why"], record["from"]) == ("killed", primary)


# Losing a majority


async def majority_is_lost(cluster: Cluster) -> AsyncSessionReplicator:
    """The one node that is left."""
    survivor = await cluster.secondary()
    for name in list(cluster.running):
        if name != node_of(survivor).name:
            await cluster.crash(name)
    await eventually(lambda: node_of(survivor).replica.leader == "")
    return survivor


async def test_a_survivor_goes_on_alone_with_what_it_has():
    async with running(3) as cluster:
        version = await cluster[0].store_session("s1", {"n": 1}, MINUTE_MS)
        await cluster.settled()
        survivor = await majority_is_lost(cluster)
        before = await status_of(survivor)

        text = await survivor.promote_to_primary(force=True)

        assert "what only others had is lost" in text
        after = await status_of(survivor)
        assert await survivor.get_session("s1") == {"n": 1}
        assert await survivor.store_session("s1", {"n": 2}, MINUTE_MS) > version
        assert after["role"] == "primary"
        assert after["cluster_id"] != before["cluster_id"]
        assert after["incarnation"] != before["incarnation"]
        assert after["applied_index"] > before["applied_index"] + 2**36 - 1
        assert [fork["parent"] for fork in after["ancestry"]] == [before["cluster_id"]]
        assert after["ancestry"][0]["index"] >= before["applied_index"]


async def test_those_who_come_back_empty_take_part_in_the_new_history():
    async with running(3) as cluster:
        await cluster[0].store_session("s1", {"n": 1}, MINUTE_MS)
        await cluster.settled()
        survivor = await majority_is_lost(cluster)
        await survivor.promote_to_primary(force=True)
        for name in cluster.names:
            if name not in cluster.running:
                await cluster.start(name, replica_nodes=[node_of(survivor).name])
        await cluster.settled()
        for sessions in cluster:
            assert await sessions.get_session("s1") == {"n": 1}
            assert len((await status_of(sessions))["ancestry"]) == 1
        assert voters(survivor) == set(cluster.names)


async def test_an_old_member_with_state_says_that_it_is_superseded():
    async with running(3) as cluster:
        member, store = await restartable(cluster)
        name = node_of(member).name
        await cluster.crash(name)
        survivor = await majority_is_lost(cluster)
        ours = node_of(survivor).replica.cluster_id
        await survivor.promote_to_primary(force=True)

        old = await cluster.start(name, store=store)

        await retired(old)
        status = await status_of(old)
        assert (status["role"], status["cluster_id"]) == ("superseded", ours)
        assert "--discard" in status["trouble"]
        with pytest.raises(NotReady, match="--discard"):
            await old.get_session("s1")
        assert voters(survivor) == {node_of(survivor).name}

        async def says_so() -> bool:
            return f"{name} belongs to cluster {ours}" in (await status_of(survivor))["trouble"]

        await eventually(says_so)


async def test_nothing_is_forced_while_a_primary_or_a_majority_answers():
    async with running(3) as cluster:
        with pytest.raises(Refused, match="promote without force"):
            await (await cluster.secondary()).promote_to_primary(force=True)
        primary = await cluster.primary()
        with pytest.raises(Refused, match="promote without force"):
            await primary.promote_to_primary(force=True)
    async with running(1, founded=False) as cluster:
        with pytest.raises(Refused, match="nothing to go on from"):
            await cluster[0].promote_to_primary(force=True)


async def test_an_observer_is_not_forced_to_lead():
    async with running(1) as cluster:
        (name,) = free_addresses(1)
        observer = await start_observer(cluster, name)
        await fresh(observer)
        with pytest.raises(Refused, match="observer has no vote"):
            await observer.promote_to_primary(force=True)


@needs_source
async def test_two_histories_that_meet_refuse_each_other_and_go_on():
    """A partition, an operator who takes the others for lost, and the others, who were not."""
    async with running(5) as cluster:
        await cluster.settled()
        lonely = await cluster.secondary()
        with cut_off(node_of(lonely)):
            await eventually(lambda: node_of(lonely).replica.leader == "")
            await lonely.promote_to_primary(force=True)

        async def all_say_so() -> bool:
            texts = [(await status_of(each))["trouble"] for each in cluster]
            return all("never mix" in text for text in texts)

        await eventually(all_say_so)
        await lonely.store_session("here", {}, MINUTE_MS)
        other = next(each for each in cluster if each is not lonely)
        await other.store_session("there", {}, MINUTE_MS)
        assert await lonely.get_session("there", read="primary") is None
        assert await other.get_session("here", read="primary") is None


@contextmanager
def cut_off(node: ClusterNode) -> Iterator[None]:
    """It dials nobody, and lets nobody in."""
    replica, transport = node.replica, node._transport
    assert transport is not None
    refusal = Rejected(RejectionCode.BUSY, "it is cut off")
    with (
        patch.object(replica, "dial_targets", dict),
        patch.object(transport, "_admit", lambda hello: refusal),
    ):
        for name in list(transport.dialled):
            transport.cut(name)
            transport.undial(name)
            replica.peer_down(name, clocks.now())
        yield
    node._dial()
