"""How a command reaches the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hotspare.cluster.remote import RemoteEngine
from hotspare.cluster.security import Security
from hotspare.replicator import AsyncSessionReplicator
from hotspare.settings import Settings

__all__ = ["connect", "connect_with"]


def connect(addresses: Sequence[str], timeout_ms: int, **security: Any) -> AsyncSessionReplicator:
    """A replicator over those nodes; as an async context manager it connects, and closes again.

    When one of them is down it goes on to the next, in the middle of a write too. The other settings (limits,
    compression, and those of `security` that are None) are those of hotspare.toml and the environment. Raises
    ConfigError.
    """
    # HOTSPARE_NODE may list several addresses here, which is more than the setting `node` takes.
    settings = Settings.load(node=addresses[0], replication_rpc_timeout_ms=timeout_ms, **security)
    return connect_with(settings, addresses)


def connect_with(settings: Settings, addresses: Sequence[str]) -> AsyncSessionReplicator:
    """The same under these settings, whatever the surroundings say."""
    engine = RemoteEngine(
        addresses,
        timeout_ms=settings.replication_rpc_timeout_ms,
        batch_size=settings.batch_size,
        batch_timeout_ms=settings.batch_timeout_ms,
        max_clock_skew_ms=settings.max_clock_skew_ms,
        security=Security.load(settings),
    )
    return AsyncSessionReplicator(settings, engine=engine)
