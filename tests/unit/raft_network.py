"""A few Raft servers in one thread, joined by a network and with disks that the test holds in its hands.

Nothing happens by itself: `settle` delivers and writes until all is quiet, `advance` lets time pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from hotspare.raft.log import Log
from hotspare.raft.messages import (
    NOBODY,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Member,
    Message,
    ServerId,
    SnapshotChunk,
    SnapshotMark,
)
from hotspare.raft.node import Node, ReadReady, Ready, Role, Timing
from hotspare.raft.progress import Progress, State

EMPTY = SnapshotMark(0, 0, Configuration("", ()))
TICK_MS = 10


def configuration(voters: str, learners: str = "") -> Configuration:
    """One-letter servers whose names are their letters."""
    members = [Member(id, f"host-{id}", id, id in voters) for id in sorted(voters + learners)]
    return Configuration("cluster", tuple(members))


def founding(first: Configuration) -> list[Entry]:
    return [Entry(1, 1, EntryKind.CONFIGURATION, first.encode())]


class Disk:
    """What survives a crash."""

    def __init__(self, entries: Iterable[Entry] = (), term: int = 0) -> None:
        self.hard_state = HardState(term)
        self.mark = EMPTY
        self.entries = list(entries)
        self.applied: list[Entry] = []

    def write(self, ready: Ready) -> None:
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.snapshot is not None:
            self.mark = ready.snapshot
            self.entries = []
        if ready.append:
            kept = ready.append[0].index - self.mark.index - 1
            assert 0 <= kept <= len(self.entries), "a log without gaps"
            self.entries = [*self.entries[:kept], *ready.append]


class Server:
    """One node with its disk. `writes` are under way until `persist`; with `slow_disk` that is the test's
    part."""

    def __init__(self, id: ServerId, disk: Disk, now_ms: int, seed: int = 0) -> None:
        self.id = id
        self.disk = disk
        self.slow_disk = False
        self.running = True
        self._random = random.Random(f"{seed}/{id}")
        self.start(now_ms)

    def start(self, now_ms: int) -> None:
        self.running = True
        self.writes: list[Ready] = []
        self.reads: list[ReadReady] = []
        self.snapshots_wanted: list[ServerId] = []
        self.chunks: list[SnapshotChunk] = []
        applied = self.disk.applied[-1].index if self.disk.applied else 0
        log = Log(self.disk.mark, self.disk.entries)
        randrange = self._random.randrange
        self.node = Node(
            self.id,
            self.id,
            log,
            self.disk.hard_state,
            max(applied, self.disk.mark.index),
            Timing(),
            randrange,
            now_ms,
        )

    def persist(self, count: int | None = None) -> None:
        """The oldest `count` group commits under way (all of them) become durable."""
        for _ in range(len(self.writes) if count is None else count):
            ready = self.writes.pop(0)
            self.disk.write(ready)
            if ready.number:
                self.node.persisted(ready.number)
            for entry in ready.committed:
                self.disk.applied.append(entry)
                self.node.applied_to(entry.index)

    def take(self) -> list[Message]:
        """Begins what one Ready asks for, and returns what is to be sent meanwhile."""
        ready = self.node.ready()
        if ready.number or ready.committed:
            self.writes.append(ready)
        if not self.slow_disk:
            self.persist()
        self.reads += ready.reads
        self.snapshots_wanted += ready.snapshots_wanted
        self.chunks += ready.chunks
        return ready.messages


class Network:
    def __init__(self, voters: str, learners: str = "", seed: int = 0) -> None:
        first = configuration(voters, learners)
        self.now_ms = 1000
        self.seed = seed
        self.servers: dict[ServerId, Server] = {}
        self.queue: list[Message] = []
        self.sent: list[Message] = []
        self.filter: Callable[[Message], bool] = lambda message: True
        """Which messages arrive; the others are lost."""
        for member in first.servers:
            self.add(member.id, Disk(founding(first), term=1))

    def add(self, id: ServerId, disk: Disk | None = None) -> Server:
        self.servers[id] = Server(id, disk or Disk(), self.now_ms, self.seed)
        return self.servers[id]

    def node(self, id: ServerId) -> Node:
        return self.servers[id].node

    def progress(self, leader: ServerId, follower: ServerId) -> Progress:
        return self.node(leader).progress[follower]

    # -- what the network does -----------------------------------------------------------------------------

    def cut_off(self, *ids: ServerId) -> None:
        """Nothing gets to or from these servers."""
        self.filter = lambda message: message.sender not in ids and message.receiver not in ids

    def split(self, *groups: str) -> None:
        """Only servers of one group reach each other."""
        self.filter = lambda message: any(
            message.sender in group and message.receiver in group for group in groups
        )

    def lose(self, *kinds: type[Message]) -> None:
        self.filter = lambda message: not isinstance(message, kinds)

    def heal(self) -> None:
        self.filter = lambda message: True

    def collect(self) -> bool:
        """Takes what the nodes want sent and written. Whether there was anything."""
        busy = False
        for server in self.servers.values():
            while server.running and server.node.has_ready():
                busy = True
                messages = server.take()
                self.sent += messages
                self.queue += [message for message in messages if self.filter(message)]
        return busy

    def deliver(self, message: Message) -> None:
        server = self.servers.get(message.receiver)
        if server is not None and server.running:
            server.node.step(message, self.now_ms)

    def settle(self) -> None:
        while self.collect() or self.queue:
            queue, self.queue = self.queue, []
            for message in queue:
                self.deliver(message)

    def advance(self, duration_ms: int) -> None:
        for _ in range(0, duration_ms, TICK_MS):
            self.now_ms += TICK_MS
            for server in self.servers.values():
                if server.running and self.now_ms >= server.node.next_deadline_ms:
                    server.node.tick(self.now_ms)
            self.settle()

    def take_sent(self) -> list[Message]:
        sent, self.sent = self.sent, []
        return sent

    # -- what servers do -----------------------------------------------------------------------------------

    def elect(self, id: ServerId) -> Node:
        """Makes that server the leader, through an ordinary election."""
        for server in self.servers.values():
            if server.node.role is not Role.LEADER:
                server.node.server_lost(server.node.leader, self.now_ms)
        self.node(id).campaign(self.now_ms)
        self.settle()
        assert self.node(id).is_leader
        return self.node(id)

    def crash(self, id: ServerId) -> None:
        self.servers[id].running = False
        self.queue = [message for message in self.queue if message.receiver != id]

    def restart(self, id: ServerId) -> None:
        self.servers[id].start(self.now_ms)

    def propose(self, id: ServerId, payload: bytes = b"x") -> int:
        return self.node(id).propose(EntryKind.BATCH, payload)

    def change(self, id: ServerId, new: Configuration) -> int:
        return self.node(id).change_configuration(new, self.now_ms)

    def install_snapshot(self, leader: ServerId, follower: ServerId) -> None:
        """The whole of a transfer, as the layer above would do it."""
        source, target = self.servers[leader], self.servers[follower]
        mark = source.node.log.mark_at(source.node.applied)
        if target.node.restore(mark, self.now_ms):
            target.disk.applied = list(source.disk.applied)
            self.settle()
        self.node(leader).snapshot_installed(follower, mark.index, self.now_ms)
        self.settle()

    # -- what can be seen ----------------------------------------------------------------------------------

    @property
    def leaders(self) -> list[ServerId]:
        return [id for id, server in self.servers.items() if server.running and server.node.is_leader]

    def payloads(self, id: ServerId) -> list[bytes]:
        """What that server has applied."""
        return [entry.payload for entry in self.servers[id].disk.applied if entry.kind == EntryKind.BATCH]


__all__ = [
    "EMPTY",
    "NOBODY",
    "Disk",
    "Network",
    "Server",
    "State",
    "configuration",
    "founding",
]
