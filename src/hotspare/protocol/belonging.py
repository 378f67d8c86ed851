"""Whether a node still belongs to the cluster that it calls its own.

A leader sends nothing more to a server that was removed, and one that was away meanwhile would never hear of
it: it would campaign, and answer reads from an ever older copy. So whoever hears from a server that the
committed configuration does not name tells it so, with that configuration's place in the log. Members may lag
behind and take a newcomer for somebody removed, so the newcomer believes it of a configuration later than
every one that names it. Or of a leader of a later term than the one that names it: that leader's log has all
that was ever committed, and all that it will ever have of earlier terms, so what names the server is in
nobody's future (it may have been appended by a leader that never committed it).

The same comparison tells when it belongs again: as soon as a configuration names it that is later in both.
"""

from __future__ import annotations

from hotspare.protocol.messages import Introduction, Removed
from hotspare.raft.messages import ServerId
from hotspare.raft.node import Node


def removal_of(server: ServerId, said: Introduction, own: Node, cluster_id: str) -> Removed | None:
    """What a server is to be told that takes itself for a member; None if it is one, for all that we know."""
    is_observer = said.role == "observer"
    if is_observer or said.cluster_id != cluster_id or not own.configuration_is_committed:
        return None
    configuration = own.configuration
    if configuration.by_id(server) is not None or configuration.by_id(own.id) is None:
        return None
    return Removed(own.log.configuration_index(), own.term if own.has_committed_in_term else 0)


def is_removed(server: ServerId, own: Node, index: int, term: int) -> bool:
    """Whether a server that was told so believes it, given what it knows by now."""
    named_at, named_in = own.log.last_naming(server)
    return (index > named_at > 0) or term > named_in
