"""What a node does when its store fails, and with input that no well-behaved client or peer sends."""

from __future__ import annotations

import asyncio

import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster.node import ClusterNode
from hotspare.errors import HotspareError, StoreError, StoreFull
from hotspare.protocol.origin import Origin
from hotspare.store.plain import PlainStore, PlainTransaction
from tests.unit.clusters import FAST, free_addresses

MINUTE_MS = 60_000


class FailingStore(PlainStore):
    """Once `is_full`, the next transaction fails, and those after it would not."""

    def __init__(self) -> None:
        super().__init__(undo=True)
        self.is_full = False
        self.has_failed = False
        self.later_transactions = 0

    def begin(self) -> PlainTransaction:
        self.later_transactions += self.has_failed
        if self.is_full and not self.has_failed:
            self.has_failed = True
            raise StoreFull("memory", "no room")
        return super().begin()


async def test_after_a_failed_group_commit_a_node_writes_nothing_more():
    store = FailingStore()
    (name,) = free_addresses(1)
    node = ClusterNode(Settings(node=name, **FAST), store)
    sessions = AsyncSessionReplicator(node.settings, engine=node)
    await sessions.start()
    await sessions.start_cluster()
    address = node.settings.listen_address
    _, connection = await asyncio.open_connection(address.host, address.port)  # to be closed when it stops
    store.is_full = True
    # What is on its way in when it fails:
    node.failed.add_done_callback(lambda _: node.enrol(b"nonce", Origin(lambda: b"")))

    with pytest.raises(HotspareError):
        await sessions.store_session("s1", {}, MINUTE_MS)
    connection.close()
    await sessions.stop()

    assert isinstance(node.failed.exception(), StoreError)
    assert store.later_transactions == 0
