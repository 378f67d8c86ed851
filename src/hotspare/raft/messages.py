"""What the servers of one cluster say to each other, and what they keep.

A Raft server is an *incarnation* of a node: a process that lost its state comes back as another server, so
that nothing which the old one promised (a vote, an entry) is ever expected of the new one. Every message
therefore names the incarnations of its sender and of its receiver.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, TypeAlias

import msgspec

ServerId: TypeAlias = str
"""An incarnation: 128 random bits in hexadecimal. The empty string stands for nobody."""

NOBODY: ServerId = ""

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""Terms, indexes, counts. What exceeds it is refused as it is decoded, so that no sum leaves 64 bits."""


class EntryKind(IntEnum):
    """Raft itself looks into configurations only; the others are the state machine's business."""

    NOOP = 0
    CONFIGURATION = 1
    REGISTRATION = 2
    BATCH = 3


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    index: Natural
    term: Natural
    kind: Natural
    payload: bytes = b""


class Member(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A name in the configuration, with at most one incarnation (none: `id` is `NOBODY`)."""

    name: str
    address: str
    id: ServerId
    voter: bool


class Fork(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a history began that an operator forced: it has what its parent had up to `index`, as far as the
    one survivor knew it, and nothing after."""

    parent: str
    """A cluster's id."""
    index: Natural
    forked_at_ms: Natural
    """UNIX time, by the survivor's clock."""


class Configuration(msgspec.Struct, array_like=True, frozen=True):
    """Who belongs to the cluster. `members` are ordered by name; a member that does not vote is a learner.
    `forks`, the oldest first, tell what the cluster came from; they never change."""

    cluster_id: str
    members: tuple[Member, ...]
    forks: tuple[Fork, ...] = ()

    @property
    def voters(self) -> frozenset[ServerId]:
        return frozenset(member.id for member in self.members if member.voter)

    @property
    def servers(self) -> tuple[Member, ...]:
        """The members that have an incarnation: those to whom the log is sent."""
        return tuple(member for member in self.members if member.id)

    def by_id(self, server: ServerId) -> Member | None:
        return next((member for member in self.members if server and member.id == server), None)

    def by_name(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def with_member(self, changed: Member) -> Configuration:
        """This configuration with the member of that name replaced (or added)."""
        others = [member for member in self.members if member.name != changed.name]
        members = tuple(sorted([*others, changed], key=lambda member: member.name))
        return msgspec.structs.replace(self, members=members)

    def without(self, name: str) -> Configuration:
        members = tuple(member for member in self.members if member.name != name)
        return msgspec.structs.replace(self, members=members)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(payload: bytes) -> Configuration:
        return _configuration_decoder.decode(payload)


class HardState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a server must remember to stay honest (the paper, figure 2: persistent state)."""

    term: Natural = 0
    vote: ServerId = NOBODY


class SnapshotMark(msgspec.Struct, array_like=True, frozen=True):
    """Where a snapshot ends: the log goes on after `index`, under `configuration`."""

    index: Natural
    term: Natural
    configuration: Configuration


class Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    sender: ServerId
    receiver: ServerId
    term: Natural


class VoteRequest(Message, frozen=True, tag="vote?"):
    """Asks for a vote; with `pre` only whether it would be given (the dissertation, 9.6), and then `term`
    is the one the candidate would take. `transfer` says that the leader itself asked for this election
    (3.10)."""

    last_index: Natural
    last_term: Natural
    pre: bool
    transfer: bool = False


class VoteReply(Message, frozen=True, tag="vote"):
    pre: bool
    granted: bool


class Append(Message, frozen=True, tag="append"):
    """AppendEntries. Without entries it probes, or tells the commit index."""

    previous_index: Natural
    previous_term: Natural
    entries: list[Entry]
    commit: Natural


class AppendReply(Message, frozen=True, tag="appended"):
    """`index` is the last index known to match; when `rejected`, the `previous_index` that did not, and
    `hint_index`/`hint_term` say where the logs may agree, so that a divergence costs one round a term."""

    rejected: bool
    index: Natural
    hint_index: Natural = 0
    hint_term: Natural = 0


class Heartbeat(Message, frozen=True, tag="beat"):
    """Never waits behind entries. `round` numbers the leader's rounds: a majority that answers one proves
    that there was no other leader when it began (ReadIndex: the dissertation, 6.4). Round 0 asks for no
    answer: it only tells, between two rounds, that the commit index has moved."""

    commit: Natural
    round: Natural


class HeartbeatReply(Message, frozen=True, tag="beaten"):
    round: Natural


class TimeoutNow(Message, frozen=True, tag="now"):
    """The leader's word to its successor: campaign at once (the dissertation, 3.10). `reason`, a word for
    people, says why it goes."""

    reason: str = ""


class SnapshotChunk(Message, frozen=True, tag="chunk"):
    """Part `sequence` (from 0) of the snapshot that ends at `mark`; `last` on the final one. `transfer` is a
    random number of this attempt: parts of two attempts never mix."""

    mark: SnapshotMark
    transfer: Natural
    sequence: Natural
    last: bool
    data: bytes


class SnapshotReply(Message, frozen=True, tag="chunked"):
    """Wants part `wanted` of that transfer next; `installed` once it has it all, up to `index` (or holds a
    committed log beyond it)."""

    transfer: Natural
    index: Natural
    wanted: Natural
    installed: bool = False


_configuration_decoder = msgspec.msgpack.Decoder(Configuration)
