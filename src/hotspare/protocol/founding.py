"""How a cluster begins: once, with all its first members, agreed by a majority of exactly those servers.

The founder mints the cluster's id and hands every node the same first configuration, which names the
incarnations that will vote. A node adopts one founding only, so two founders who compete for the same nodes
cannot both get a majority. A node left over from a founding that came to nothing gives it up by becoming
another server, and only while it holds nothing else: the name in that founding then stands for a server
that no longer exists, so nothing it promised can be broken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from hotspare.protocol.messages import FoundingReply, Introduction
from hotspare.raft.messages import (
    NOBODY,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Member,
    ServerId,
    SnapshotMark,
)

FOUNDING_TERM = 1
EMPTY_MARK = SnapshotMark(0, 0, Configuration("", ()))


Introduced: TypeAlias = Mapping[str, tuple[ServerId, Introduction]]
"""Who answers, by name, and what they said of themselves."""


@dataclass(slots=True)
class Attempt:
    """A founding under way on the founder's side."""

    names: tuple[str, ...]
    """All first members, ours included, in order."""
    give_up_ms: int
    contexts: list[int] = field(default_factory=list)
    """The operations that wait for it."""
    configuration: Configuration | None = None
    """Set once it is handed out."""
    adopted: set[str] = field(default_factory=set)
    has_campaigned: bool = False
    """Once is enough: after that, elections are up to the nodes."""

    @property
    def is_adopted_by_most(self) -> bool:
        return 2 * len(self.adopted) > len(self.names)

    def note_reply(self, name: str, reply: FoundingReply) -> None:
        is_ours = self.configuration is not None and self.configuration.cluster_id == reply.cluster_id
        if is_ours and reply.adopted:
            self.adopted.add(name)


def founder_of(own: Introduction, candidates: Introduced) -> str:
    """Who founds by settings alone: the lowest name, once all answer, all are empty and all list the same
    nodes. Empty string while that is not so."""
    names = own.replica_nodes
    if not names or not own.empty:
        return ""
    for name in names:
        if name == own.name:
            continue
        _, said = candidates.get(name, (NOBODY, None))
        if said is None or not said.empty or said.replica_nodes != names:
            return ""
    return names[0]


def obstacle(own: Introduction, names: tuple[str, ...], candidates: Introduced) -> str:
    """Why these nodes cannot be founded as one cluster at all; empty string if nothing speaks against it."""
    if not own.empty:
        return f"{own.name} already belongs to cluster {own.cluster_id}"
    for name in names:
        _, said = candidates.get(name, (NOBODY, None))
        if said is not None and said.role != "member":
            return f"{name} is an {said.role}"
        if said is not None and not said.empty:
            return f"{name} already belongs to cluster {said.cluster_id or 'unknown'}"
    return ""


def hindrance(own_name: str, names: tuple[str, ...], candidates: Introduced) -> str:
    """Why a node that waits for these may wait for ever; empty string if nothing is known to speak against
    it. A cluster in which our name has a place will take us in by itself."""
    for name in names:
        _, said = candidates.get(name, (NOBODY, None))
        if said is not None and said.cluster_id and all(own_name != member for member, _ in said.members):
            return (
                f"{name} belongs to cluster {said.cluster_id}, which does not know {own_name}: take it in "
                f"with `hotspare add {own_name}`, or correct replica_nodes"
            )
    return ""


def silent(own: Introduction, names: tuple[str, ...], candidates: Introduced) -> list[str]:
    """Those that have not answered yet."""
    return [name for name in names if name != own.name and name not in candidates]


def may_yet_lead(founded: Configuration, own_id: ServerId, introduced: Introduced) -> bool:
    """Whether a majority of the servers that were founded may be left, for all that we can see. Those who do
    not answer may hold what was committed without us: whoever gave up on them would lose it."""
    left = 0
    for member in founded.members:
        id, said = introduced.get(member.name, (member.id, None))
        is_left = id == member.id and (said is None or said.cluster_id == founded.cluster_id)
        left += is_left or member.id == own_id
    return 2 * left > len(founded.members)


def first_configuration(
    cluster_id: str,
    own_id: ServerId,
    own: Introduction,
    names: tuple[str, ...],
    candidates: Introduced,
) -> Configuration:
    """All of them as voters."""
    members = []
    for name in sorted(names):
        if name == own.name:
            members.append(Member(name, own.address, own_id, True))
        else:
            id, said = candidates[name]
            members.append(Member(name, said.address, id, True))
    return Configuration(cluster_id, tuple(members))


def founding_entry(configuration: Configuration) -> Entry:
    """The first entry of every log of that cluster."""
    return Entry(1, FOUNDING_TERM, EntryKind.CONFIGURATION, configuration.encode())


FOUNDING_STATE = HardState(FOUNDING_TERM)
