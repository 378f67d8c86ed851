"""What a node knows about the others, whether they are members or not."""

from __future__ import annotations

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


class Peers(dict[str, Peer]):
    """All of them, by name."""

    def meet(self, name: str, address: str) -> bool:
        """Whether this is somebody new."""
        is_new = name not in self
        if is_new:
            self[name] = Peer(address)
        return is_new

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
        """Those who are up, and whether they could be servers of this cluster."""
        return {
            name: Presence(id, self[name].address, said.empty or said.cluster_id == cluster_id)
            for name, (id, said) in self.introduced().items()
        }
