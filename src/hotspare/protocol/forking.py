"""How an operator goes on where a majority is lost: one survivor founds a new history from what it has.

Nothing proves that the others are gone for good. If they are not, there are two histories from then on, so
the new one has an id of its own, says for ever where it came from, and never mixes with the old one. The
survivor keeps its whole log, also what it does not know to be committed: a lost majority may have
acknowledged it. What it has never heard of is lost.

Indexes go on far above everything that the old history can have reached, because versions of sessions and the
ids of origins are made of them: a version or an origin that only the lost members knew must never be given
out a second time. For the same reason all origins are forgotten: writes that were under way are *unknown*,
and nobody takes an old result for the answer to a new command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from hotspare.protocol.membership import vacated
from hotspare.protocol.messages import Introduction
from hotspare.raft.messages import NOBODY, Configuration, Fork, HardState, ServerId, SnapshotMark
from hotspare.raft.node import Node

GAP_ENTRIES = 1 << 36
"""More than a cluster writes in months, and few enough for some thousand forks."""
WATCH_ELECTIONS = 2
"""So many election timeouts without a sign of a primary or a majority, before a history is forked."""


@dataclass(slots=True)
class Forking:
    """A forced promotion that waits whether anybody answers after all."""

    context: int
    act_at_ms: int


def refusal(node: Node, is_up: Callable[[ServerId], bool], others: Iterable[Introduction]) -> str:
    """Why the history must not be forked; empty string if nothing speaks against it. `others`: what those of
    this cluster who answer have said last."""
    own = node.configuration.by_id(node.id)
    if own is None:
        return "it is no member, and its copy may lack anything"
    primary = node.configuration.by_id(node.leader)
    if primary is not None:
        return f"{primary.name} is the primary: promote without force"
    for said in others:
        if said.leader not in ("", own.name):
            return f"{said.name} answers, and follows {said.leader} as the primary: promote without force"
    voters = node.configuration.voters
    there = [voter for voter in voters if voter == node.id or is_up(voter)]
    if 2 * len(there) > len(voters):
        return "a majority of the members answers, and will elect a primary by itself"
    return ""


def forked(
    node: Node, cluster_id: str, new_id: ServerId, seen_index: int, forked_at_ms: int
) -> tuple[HardState, SnapshotMark]:
    """How the new history begins: this node alone votes, under a new incarnation. The other names stay
    vacant, for those who come back without their state."""
    old, own = node.configuration, node.configuration.by_id(node.id)
    assert own is not None
    members = [
        msgspec.structs.replace(member, id=new_id, voter=True) if member is own else vacated(member)
        for member in old.members
    ]
    fork = Fork(old.cluster_id, node.log.last_index, forked_at_ms)
    configuration = Configuration(cluster_id, tuple(members), (*old.forks, fork))
    index = max(seen_index, node.log.last_index) + GAP_ENTRIES
    return HardState(node.term + 1, NOBODY), SnapshotMark(index, node.term + 1, configuration)
