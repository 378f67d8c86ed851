"""What nodes say to each other around the consensus, and the envelope in which everything travels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

import msgspec

from hotspare.commands import RawGroup
from hotspare.protocol.failovers import Failover
from hotspare.raft.messages import (
    NOBODY,
    Append,
    AppendReply,
    Configuration,
    Heartbeat,
    HeartbeatReply,
    Natural,
    ServerId,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""UNIX time, for the next quarter of a million years: a TTL more still fits into a record."""


class Introduction(msgspec.Struct, array_like=True, frozen=True, tag="intro"):
    """Who I am: sent whenever a connection is up, again when it changes, and while anything is unsettled.

    `cluster_id` is the cluster that I belong to (its configuration names me), or adopted, or nothing.
    `empty`: I have no state, so I can be founded or join. `replica_nodes`: the names (mine included) with
    which I was told to found a cluster, in order; empty when nobody told me. `remembered`: up to which index
    the receiver has told me that it holds the log; if it does not, its state is not what it was. `members`
    (name and address): who belongs to my cluster, so that whoever knows one of us finds all. `leader`: whom I
    follow now.
    """

    name: str
    address: str
    cluster_id: str
    empty: bool
    replica_nodes: tuple[str, ...] = ()
    remembered: int = 0
    role: str = "member"
    """Or "observer": a copy without a vote."""
    members: tuple[tuple[str, str], ...] = ()
    leader: str = ""
    ancestors: tuple[str, ...] = ()
    """The clusters that ours came from by forced promotions."""


class Removed(msgspec.Struct, array_like=True, frozen=True, tag="removed"):
    """The committed configuration at `index` does not name the receiver, which takes itself for one of us.
    `term`: of the sender, if it leads and has committed something; else 0."""

    index: Natural
    term: Natural


class Founding(msgspec.Struct, array_like=True, frozen=True, tag="found"):
    """The founder hands its first configuration to every node that stands in it."""

    configuration: Configuration


class FoundingReply(msgspec.Struct, array_like=True, frozen=True, tag="founded"):
    cluster_id: str
    adopted: bool
    reason: str = ""


class Forward(msgspec.Struct, array_like=True, frozen=True, tag="write"):
    """Groups of commands, as their origins encoded them, on their way to the leader."""

    groups: list[RawGroup]


class Enrol(msgspec.Struct, array_like=True, frozen=True, tag="enrol"):
    """Asks the leader to register an origin; the registration is recognised in the log by its nonce."""

    nonce: bytes


class ReadRequest(msgspec.Struct, array_like=True, frozen=True, tag="read?"):
    """Asks the leader up to which index a copy must have applied to be read linearizably. `lease_ms`: for so
    long, counted from when it asks, the copy would like to go on being read; 0: no lease is wanted."""

    context: Natural
    lease_ms: Natural = 0


class ReadReply(msgspec.Struct, array_like=True, frozen=True, tag="read"):
    """`lease_ms`: the length of the lease that is granted."""

    context: Natural
    index: Natural
    lease_ms: Natural = 0


class LeaseEnd(msgspec.Struct, array_like=True, frozen=True, tag="unread"):
    """To the leader: this copy answers nothing any more under the leases it has asked for with these
    contexts."""

    first: Natural
    last: Natural


class Barrier(msgspec.Struct, array_like=True, frozen=True, tag="barrier?"):
    """Asks the leader to say when every copy that may answer reads shows the log up to there."""

    index: Natural


class BarrierPassed(msgspec.Struct, array_like=True, frozen=True, tag="barrier"):
    index: Natural


class Watch(msgspec.Struct, array_like=True, frozen=True, tag="shows?"):
    """Asks a copy to say what it shows, and for a while (`leases.WATCH_MS`) whenever that becomes more."""


class Shows(msgspec.Struct, array_like=True, frozen=True, tag="shows"):
    """The answer: it stands on the envelope, as `applied`."""


class OperationRequest(msgspec.Struct, array_like=True, frozen=True, tag="op?"):
    """An operator's word on its way to the leader: `promote`, `failover`, `stop` (the same for a node that is
    about to end), `add` or `remove`, with a node's name."""

    context: Natural
    verb: str
    argument: str


class OperationReply(msgspec.Struct, array_like=True, frozen=True, tag="op"):
    """`outcome` is one of "done", "nothing", "unknown" (`text` lists the nodes there are), "mismatch" (it is
    the other cluster's id), "refused"; otherwise `text` says what happened or why not."""

    context: Natural
    outcome: str
    text: str


Message: TypeAlias = (
    VoteRequest
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | TimeoutNow
    | SnapshotChunk
    | SnapshotReply
    | Introduction
    | Removed
    | Failover
    | Founding
    | FoundingReply
    | Forward
    | Enrol
    | ReadRequest
    | ReadReply
    | LeaseEnd
    | Barrier
    | BarrierPassed
    | Watch
    | Shows
    | OperationRequest
    | OperationReply
)


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """One message with the clocks of its sender.

    It is dropped unless `receiver` is the incarnation that gets it (or nobody in particular) and, for all but
    introductions and foundings, `cluster_id` is its own cluster: servers of two clusters never mix.
    """

    cluster_id: str
    sender: ServerId
    receiver: ServerId
    wall_ms: Milliseconds
    """The sender's own clock."""
    cluster_ms: Milliseconds
    """Cluster time: the leader's is the clock itself, the others' their estimate; 0 when unknown."""
    message: Message
    applied: Natural = 0
    """Up to which index the sender's copy shows the log."""


encode: Callable[[Envelope], bytes] = msgspec.msgpack.Encoder().encode

decode: Callable[[bytes | memoryview], Envelope] = msgspec.msgpack.Decoder(Envelope).decode
"""Raises one of `errors.UNDECODABLE` on anything but an envelope."""


__all__ = [
    "NOBODY",
    "Barrier",
    "BarrierPassed",
    "Enrol",
    "Envelope",
    "Forward",
    "Founding",
    "FoundingReply",
    "Introduction",
    "LeaseEnd",
    "Message",
    "OperationReply",
    "OperationRequest",
    "ReadReply",
    "ReadRequest",
    "Removed",
    "Shows",
    "Watch",
    "decode",
    "encode",
]
