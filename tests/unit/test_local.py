"""A node that stays by itself: `enabled = false`."""

from __future__ import annotations

import socket

import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster.node import ClusterNode
from hotspare.settings import Address
from hotspare.store.plain import PlainStore
from tests.unit.clusters import FAST, free_addresses, node_of, running


async def test_it_is_ready_as_soon_as_it_has_started():
    async with AsyncSessionReplicator(enabled=False) as sessions:
        await sessions.store_session("s1", {"n": 1}, 60_000)

        assert await sessions.get_session("s1") == {"n": 1}
        status = await sessions.get_replication_status()
        assert (status["role"], status["ready"], status["replica_nodes"]) == ("primary", True, [])


async def test_it_listens_nowhere_and_dials_nobody():
    name, other = free_addresses(2)
    with socket.create_server(tuple(Address.parse(other))) as listener:
        listener.setblocking(False)
        async with running(1, founded=False, enabled=False) as cluster:
            sessions = await cluster.start(name, replica_nodes=[other])
            await sessions.store_session("s1", {}, 60_000)

            address = Address.parse(name)
            with socket.socket() as caller:
                assert caller.connect_ex((address.host, address.port)) != 0
            with pytest.raises(BlockingIOError):  # nobody called
                listener.accept()


async def test_its_address_may_be_any_for_nobody_is_to_reach_it():
    settings = Settings(enabled=False, node="192.0.2.1:7401")

    async with AsyncSessionReplicator(settings) as sessions:
        await sessions.store_session("s1", {}, 60_000)
        await sessions.flush()
        await sessions.promote_to_primary()


async def test_started_again_with_its_store_it_is_who_it_was():
    store = PlainStore()
    settings = Settings(enabled=False, **FAST)
    incarnations = []
    for n in range(2):
        sessions = AsyncSessionReplicator(settings, engine=ClusterNode(settings, store))
        await sessions.start()
        assert await sessions.session_count() == n
        await sessions.store_session(f"s{n}", {}, 60_000)
        incarnations.append(node_of(sessions).replica.id)
        await sessions.stop()

    assert len(set(incarnations)) == 1
