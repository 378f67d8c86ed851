"""What no node that keeps to the protocol would say: such a message is dropped before it changes anything.

Decoding has checked types and ranges; here is what follows from the fields together, and from what this
server knows for certain. It protects from defects, damage and other versions. It does not make a liar honest:
nodes of a cluster trust each other (a leader's entries are believed, whatever they do to sessions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Final

from hotspare.commands import decode_registration
from hotspare.errors import UNDECODABLE, ProtocolError, fault_of
from hotspare.protocol.failovers import Failover
from hotspare.protocol.messages import (
    Enrol,
    Founding,
    FoundingReply,
    Introduction,
    OperationReply,
    OperationRequest,
)
from hotspare.raft.messages import (
    NOBODY,
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    SnapshotChunk,
    SnapshotMark,
    SnapshotReply,
)
from hotspare.raft.node import Node

MAX_TEXT_LENGTH = 4096
"""Of names, addresses and sentences, which may list all members."""
MAX_NONCE_BYTES = 64
MAX_MEMBERS = 64
MAX_FORKS = 4096
"""Far more than the indexes have room for."""
_LAST_KIND: Final = max(EntryKind)


def check_raft(node: Node, message: Any) -> None:
    """Raises ProtocolError for a message of Raft that contradicts itself or what this server knows."""
    check = _CHECKS.get(type(message))
    if check is not None:
        check(node, message)


def check_founding(message: Introduction | Founding | FoundingReply) -> None:
    """Raises ProtocolError."""
    if isinstance(message, Founding):
        check_configuration(message.configuration)
    elif isinstance(message, FoundingReply):
        check_texts([message.cluster_id, message.reason])
    else:
        check_texts([message.name, message.address, message.cluster_id, *message.replica_nodes])
        check_texts([message.role, message.leader, *message.ancestors, *chain(*message.members)])
        if max(len(message.replica_nodes), len(message.members), len(message.ancestors)) > MAX_MEMBERS:
            raise _wrong("an introduction that lists too many nodes", f"at most {MAX_MEMBERS}")


def check_enrolment(message: Enrol) -> None:
    """Raises ProtocolError."""
    if not 0 < len(message.nonce) <= MAX_NONCE_BYTES:
        raise _wrong(f"a nonce of {len(message.nonce)} bytes", f"1 to {MAX_NONCE_BYTES}")


def check_operation(message: OperationRequest | OperationReply) -> None:
    """Raises ProtocolError."""
    if isinstance(message, OperationRequest):
        check_texts([message.verb, message.argument])
    else:
        check_texts([message.outcome, message.text])


def check_failover(message: Failover) -> None:
    """Raises ProtocolError."""
    check_texts([message.old, message.new, message.why])


def check_configuration(configuration: Configuration) -> None:
    """Raises ProtocolError for one under which nothing could ever be decided, or shown."""
    members = configuration.members
    names, ids = {member.name for member in members}, [member.id for member in members if member.id]
    if not configuration.cluster_id or not 0 < len(members) <= MAX_MEMBERS:
        raise _wrong("a configuration of no cluster, or without members", "a cluster of some members")
    if len(names) < len(members) or len(set(ids)) < len(ids):
        raise _wrong("a configuration in which two members are the same", "each member once")
    if not configuration.voters or NOBODY in configuration.voters:
        raise _wrong("a configuration without voters", "members that can vote")
    check_texts(text for member in members for text in (member.name, member.address))
    check_texts([configuration.cluster_id, *ids])
    if len(configuration.forks) > MAX_FORKS:
        raise _wrong(f"a history that was forked {len(configuration.forks)} times", f"at most {MAX_FORKS}")
    check_texts(fork.parent for fork in configuration.forks)


def check_texts(texts: Iterable[str]) -> None:
    """They end up in logs and on terminals: nothing in them may begin a line or move a cursor."""
    for text in texts:
        if len(text) > MAX_TEXT_LENGTH or not text.isprintable():
            raise _wrong("a text that cannot be shown", f"at most {MAX_TEXT_LENGTH} printable characters")


def _wrong(problem: str, expected: str) -> ProtocolError:
    return ProtocolError(f"it sent {problem}", expected)


def _check_leader(node: Node, message: Append | Heartbeat | SnapshotChunk) -> None:
    if node.is_leader and message.term == node.term:
        raise _wrong(f"a leader's message of term {node.term}, in which this node leads", "one leader a term")


def _check_append(node: Node, message: Append) -> None:
    _check_leader(node, message)
    index, term = message.previous_index, message.previous_term
    for entry in message.entries:
        index += 1
        if entry.index != index or not term <= entry.term <= message.term or entry.kind > _LAST_KIND:
            raise _wrong(f"entry {entry.index} of term {entry.term} where {index} was due", "a log in order")
        term = entry.term
        if entry.kind != EntryKind.BATCH:
            _check_payload(entry)


def _check_payload(entry: Entry) -> None:
    if entry.kind == EntryKind.REGISTRATION:
        decode_registration(entry.payload)
    elif entry.kind == EntryKind.CONFIGURATION:
        try:
            configuration = Configuration.decode(entry.payload)
        except UNDECODABLE as exc:
            raise _wrong(
                f"a configuration that does not decode ({fault_of(exc)})", "a configuration"
            ) from None
        check_configuration(configuration)


def _check_append_reply(node: Node, message: AppendReply) -> None:
    if message.sender == node.id:
        raise _wrong("this node's own word", "its own")
    if node.is_leader and message.term == node.term:
        last_index = node.log.last_index
        if message.index > last_index or message.hint_index > last_index:
            raise _wrong(f"an answer about entry {message.index}", f"at most {last_index}, the leader's last")


def _check_heartbeat_reply(node: Node, message: HeartbeatReply) -> None:
    if node.is_leader and message.term == node.term and message.round > node.round:
        raise _wrong(f"an answer to heartbeat {message.round}", f"at most {node.round}, the last one sent")


def _check_chunk(node: Node, message: SnapshotChunk) -> None:
    _check_leader(node, message)
    check_mark(message.mark, message.term)


def check_mark(mark: SnapshotMark, term: int) -> None:
    if not (mark.index and 0 < mark.term <= term):
        raise _wrong(f"a snapshot that ends at entry {mark.index} of term {mark.term}", "a committed entry")
    check_configuration(mark.configuration)


def _check_snapshot_reply(node: Node, message: SnapshotReply) -> None:
    if node.is_leader and message.term == node.term and message.installed:
        last_index = node.log.last_index
        if message.index > last_index:
            raise _wrong(f"that it installed a snapshot up to {message.index}", f"at most {last_index}")


_CHECKS: Final[dict[type, Callable[[Node, Any], None]]] = {
    Append: _check_append,
    AppendReply: _check_append_reply,
    Heartbeat: _check_leader,
    HeartbeatReply: _check_heartbeat_reply,
    SnapshotChunk: _check_chunk,
    SnapshotReply: _check_snapshot_reply,
}
