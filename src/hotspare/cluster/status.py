"""How a node describes itself: plain values for programs, tables and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hotspare.cluster import clocks
from hotspare.protocol.failovers import REASONS
from hotspare.raft.messages import Fork, Member, ServerId
from hotspare.replica import Replica

if TYPE_CHECKING:
    from hotspare.cluster.node import ClusterNode


def status(node: ClusterNode) -> dict[str, Any]:
    """See `AsyncSessionReplicator.get_replication_status`."""
    replica = node.replica
    raft = replica.node
    now = clocks.now()
    fresh_as_of_ms = replica.fresh_as_of_ms
    return {
        "node": node.name,
        "address": replica.config.address,
        "incarnation": replica.id,
        "role": role_of(replica),
        "primary": replica.leader,
        "term": raft.term if raft is not None else 0,
        "cluster_id": replica.cluster_id,
        "ancestry": [_fork(fork) for fork in replica.configuration.forks],
        "ready": is_ready(node),
        "trouble": replica.trouble,
        "active_sessions": node.count(),
        "pending_replications": _pending(node),
        "applied_index": replica.table.applied_index,
        "digest": replica.table.digest,
        "staleness_ms": now.boot_ms - fresh_as_of_ms if fresh_as_of_ms >= 0 else None,
        "silence_ms": _silence_ms(replica, now.boot_ms),
        "memory_bytes": replica.table.bytes_used,
        "replica_nodes": [
            _member(node, replica, member)
            for member in replica.configuration.members
            if member.name != node.name
        ]
        + [_observer(node, replica, name) for name in _observers(replica)],
        "failovers": [record.to_dict() for record in replica.failovers.records],
    }


def is_ready(node: ClusterNode) -> bool:
    """Whether it serves reads, and votes, unless it is an observer."""
    raft = node.replica.node
    return node.is_fresh and raft is not None and (raft.is_voter or node.replica.is_observer)


def _fork(fork: Fork) -> dict[str, Any]:
    return {"parent": fork.parent, "index": fork.index, "forked_at_ms": fork.forked_at_ms}


def _silence_ms(replica: Replica, now_ms: int) -> int | None:
    """How long ago this node heard from the primary; the primary itself from a majority. None: never."""
    raft = replica.node
    return now_ms - raft.heard_ms if raft is not None and raft.heard_ms >= 0 else None


def role_of(replica: Replica) -> str:
    if replica.is_observer:
        return "observer"
    if replica.node is None:
        return "unfounded"
    if replica.is_retired:
        return "superseded" if replica.identity.superseded_by else "removed"
    if replica.is_leader:
        return "primary"
    return "secondary" if replica.node.is_voter else "learner"


def _pending(node: ClusterNode) -> int:
    """Writes that came through this node and wait; on the primary also entries that a copy in reach lacks."""
    replica = node.replica
    pending = node.pending_writes + replica.pending_commands
    raft = replica.node
    if raft is not None and raft.is_leader:
        behind = (raft.log.last_index - each.match for each in raft.progress.values() if each.active)
        pending += max(behind, default=0)
    return pending


def _member(node: ClusterNode, replica: Replica, member: Member) -> dict[str, Any]:
    is_primary = member.name == replica.leader
    role = "primary" if is_primary else "secondary" if member.voter else "learner" if member.id else "vacant"
    return _other(node, replica, member.name, member.address, member.id, role)


def _observers(replica: Replica) -> list[str]:
    members = {member.name for member in replica.configuration.members}
    return sorted(name for name in replica.peers.observers(replica.cluster_id) if name not in members)


def _observer(node: ClusterNode, replica: Replica, name: str) -> dict[str, Any]:
    peer = replica.peers[name]
    return _other(node, replica, name, peer.address, peer.id, "observer")


def _other(
    node: ClusterNode, replica: Replica, name: str, address: str, server: ServerId, role: str
) -> dict[str, Any]:
    """Lag is known on the primary only."""
    peer = replica.peers.get(name)
    raft = replica.node
    progress = raft.progress.get(server) if raft is not None and raft.is_leader else None
    lag_entries = raft.log.last_index - progress.match if raft is not None and progress is not None else None
    return {
        "node": name,
        "address": address,
        "role": role,
        "reachable": peer is not None and peer.up,
        "lag_entries": lag_entries,
        "lag_ms": node.statistics.lag_of(server) if progress is not None else None,
        "clock_skew_ms": peer.wall_skew_ms if peer is not None and peer.up else None,
    }


def metrics(node: ClusterNode) -> dict[str, Any]:
    """See `AsyncSessionReplicator.get_metrics`."""
    replica, statistics = node.replica, node.statistics
    lag = statistics.lag()
    members = [member for member in replica.configuration.members if member.name != node.name]
    return {
        "is_primary": replica.is_leader,
        "replica_nodes": len(members),
        "active_sessions": node.count(),
        "total_replicated": statistics.total_replicated,
        "replication_lag_ms": round(lag.p99_ms, 3),
        "replication_lag_p50_ms": round(lag.p50_ms, 3),
        "replication_lag_max_ms": round(lag.max_ms, 3),
        "failed_replications": node.failed_writes,
        "failovers": statistics.failovers,
        **{f"failovers_{why}": replica.failovers.counts[why] for why in REASONS},
        "recovery_time_ms": statistics.recovery_time_ms,
        "pending_replications": _pending(node),
        "memory_bytes": replica.table.bytes_used,
        "applied_index": replica.table.applied_index,
        "term": replica.node.term if replica.node is not None else 0,
    }
