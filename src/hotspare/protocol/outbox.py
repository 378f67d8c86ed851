"""What is to be sent: messages put into envelopes, with our name and clocks on them."""

from __future__ import annotations

from typing import Any

from hotspare.protocol.clock import ClusterClock
from hotspare.protocol.messages import Envelope
from hotspare.protocol.peers import Peers
from hotspare.raft.messages import NOBODY, ServerId
from hotspare.raft.messages import Message as RaftMessage


class Now:
    """Nobody changes it."""

    __slots__ = ("boot_ms", "wall_ms")

    boot_ms: int
    """Monotonic; goes on while the machine or the process sleeps."""
    wall_ms: int
    """UNIX time."""

    def __init__(self, boot_ms: int, wall_ms: int) -> None:
        self.boot_ms = boot_ms
        self.wall_ms = wall_ms


class Outbox:
    """In order. Whoever owns it keeps `now`, `sender`, `cluster_id` and `applied` as they are."""

    def __init__(self, peers: Peers, clock: ClusterClock, now: Now) -> None:
        self._peers = peers
        self._clock = clock
        self._waiting: list[tuple[str, Envelope]] = []
        self.now = now
        self.sender: ServerId = NOBODY
        self.cluster_id = ""
        self.applied = 0

    def post(self, message: RaftMessage) -> None:
        """To the server that the message names; dropped if no node is known to be that server."""
        name = self._peers.name_of(message.receiver)
        if name:
            self._put(name, message.receiver, message)

    def send(self, name: str, message: Any) -> None:
        """To whoever answers under that name."""
        peer = self._peers.get(name)
        self._put(name, peer.id if peer is not None else NOBODY, message)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> list[tuple[str, Envelope]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _put(self, name: str, receiver: ServerId, message: Any) -> None:
        now = self.now
        cluster_ms = self._clock.read_ms(now.boot_ms)
        envelope = Envelope(
            self.cluster_id, self.sender, receiver, now.wall_ms, cluster_ms, message, self.applied
        )
        self._waiting.append((name, envelope))
