"""What a node knows about the others, whether they are members or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hotspare.protocol.membership import Presence
from hotspare.protocol.messages import Envelope, Introduction
from hotspare.raft.messages import NOBODY, ServerId


@dataclass(slots=True)
class Peer:
    """The node that answers under a name."""

    address: str
    id: ServerId = NOBODY
    """The incarnation that answered last."""
    up: bool = False
    introduction: Introduction | None = None
    """What that incarnation said of itself last."""
    wall_skew_ms: int = 0
    """Its clock minus ours, as of its last message (the way here counts as skew)."""
    applied: int = 0
    """Up to which index its copy shows the log, at least."""
    seen_ms: int = 0
    """When it was there last, or we began to look for it."""


class Peers(dict[str, Peer]):
    """All of them, by name."""

    def __init__(self, peers: Mapping[str, Peer] | None = None) -> None:
        super().__init__(peers or {})
        self.changed = False
        """Whether somebody has come, gone or moved since that was acted upon."""
        self.strangers: dict[str, str] = {}
        """Who answers under a name for another cluster -> its id."""

    def meet(self, name: str, address: str, now_ms: int = 0) -> None:
        if name not in self:
            self[name] = Peer(address, seen_ms=now_ms)
            self.changed = True

    def move(self, name: str, address: str) -> None:
        """It is reached there from now on."""
        if self[name].address != address:
            self[name].address = address
            self.changed = True

    def forget_strangers(self, kept: Collection[str], before_ms: int) -> None:
        """Those whom nothing speaks of but themselves, once they have been away since then."""
        for name, peer in list(self.items()):
            if not peer.up and peer.seen_ms < before_ms and name not in kept:
                self.forget(name)

    def forget(self, name: str) -> None:
        del self[name]
        self.strangers.pop(name, None)
        self.changed = True

    def name_of(self, server: ServerId) -> str:
        """The name under which that incarnation answers; empty if none does."""
        for name, peer in self.items():
            if peer.id == server:
                return name
        return ""

    def is_up(self, server: ServerId) -> bool:
        return any(peer.up and peer.id == server for peer in self.values())

    def heard(self, name: str, envelope: Envelope, wall_ms: int) -> bool:
        """Takes what every message tells of its sender. False if its word must not count: it is no longer who
        answers there; or it told us once that it holds more than it holds by this message, which is late,
        or comes from a server that an old copy of its state was put under."""
        peer = self.get(name)
        if peer is None:
            return True
        if peer.id != envelope.sender:
            return not peer.up
        if envelope.applied < peer.applied:
            return False
        peer.wall_skew_ms = envelope.wall_ms - wall_ms
        if envelope.applied > peer.applied:
            peer.applied = envelope.applied
        return True

    def introduced(self) -> dict[str, tuple[ServerId, Introduction]]:
        """Those who are up and have said who they are."""
        return {
            name: (peer.id, peer.introduction)
            for name, peer in self.items()
            if peer.up and peer.introduction is not None
        }

    def present(self, cluster_id: str) -> dict[str, Presence]:
        """Those who are up, and whether they could be members of this cluster."""
        return {
            name: Presence(id, said.address, said.empty or said.cluster_id == cluster_id)
            for name, (id, said) in self.introduced().items()
            if said.role == "member"
        }

    def observers(self, cluster_id: str) -> dict[str, ServerId]:
        """Those who are up and want a copy of this cluster, by name."""
        return {
            name: id
            for name, (id, said) in self.introduced().items()
            if said.role == "observer" and (said.empty or said.cluster_id == cluster_id)
        }
