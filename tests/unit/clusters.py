"""Clusters for tests: several in-process nodes on one event loop, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from inspect import isawaitable
from typing import Any

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster.node import ClusterNode
from hotspare.errors import NotReady, StaleRead, Unavailable
from hotspare.store import Store
from hotspare.store.plain import PlainStore

PATIENCE_SECONDS = 30.0
"""For what must come true some time: far beyond what it takes, on any machine."""

FAST: dict[str, Any] = {
    "health_check_interval_ms": 50,
    "failure_threshold": 6,
    "max_staleness_ms": 2000,
}
"""Quick to notice a death, yet not nervous when all nodes share one loop on a busy machine."""


async def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """What the condition answers as soon as it is true. "Not yet" may also be an error that says so."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            answer = condition()
            if isawaitable(answer):
                answer = await answer
            if answer:
                return answer
        except (NotReady, StaleRead, Unavailable) as exc:
            answer = exc
        if time.monotonic() > give_up:
            raise AssertionError(f"never came true: {what or condition} (last: {answer!r})")
        await asyncio.sleep(0.005)


def free_addresses(count: int) -> list[str]:
    """Addresses that nobody listens on, in order: outside the range from which outgoing connections get
    their ports, so that they stay free while they are not in use."""
    sockets: list[socket.socket] = []
    ports: list[int] = []
    while len(ports) < count:
        attempt = socket.socket()
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sockets.append(attempt)
        with suppress(OSError):
            attempt.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 32_000)))
            attempt.listen()  # two may be bound to one port
            ports.append(attempt.getsockname()[1])
    for each in sockets:
        each.close()
    return [f"127.0.0.1:{port:05}" for port in sorted(ports)]


def node_of(sessions: AsyncSessionReplicator) -> ClusterNode:
    assert isinstance(sessions.engine, ClusterNode)
    return sessions.engine


class Cluster:
    """Nodes by name. What is started here is stopped with the cluster."""

    def __init__(self, count: int, **settings: Any) -> None:
        self.names = free_addresses(count)
        self.settings = FAST | settings
        self.running: dict[str, AsyncSessionReplicator] = {}

    def __getitem__(self, position: int) -> AsyncSessionReplicator:
        return self.running[self.names[position]]

    def __iter__(self) -> Iterator[AsyncSessionReplicator]:
        return iter(self.running.values())

    async def start(
        self, name: str, *, store: Store | None = None, replica_nodes: Iterable[str] = (), **settings: Any
    ) -> AsyncSessionReplicator:
        merged = Settings(node=name, replica_nodes=tuple(replica_nodes), **(self.settings | settings))
        engine = ClusterNode(merged, store if store is not None else PlainStore(volatile=True))
        sessions = AsyncSessionReplicator(merged, engine=engine)
        await sessions.start()
        self.running[name] = sessions
        return sessions

    async def start_all(self) -> None:
        for name in self.names:
            await self.start(name)

    async def found(self) -> None:
        await self[0].start_cluster(self.names[1:])
        await self.settled()

    async def stop(self, name: str) -> None:
        """In good order."""
        await self.running.pop(name).stop()

    async def crash(self, name: str) -> AsyncSessionReplicator:
        """Ends it at once. Its copy goes with it, unless somebody kept its store."""
        sessions = self.running.pop(name)
        await node_of(sessions).abort()
        return sessions

    async def restart(self, name: str, **settings: Any) -> AsyncSessionReplicator:
        if name in self.running:
            await self.crash(name)
        return await self.start(name, **settings)

    async def close(self) -> None:
        await asyncio.gather(*(node_of(each).abort() for each in self.running.values()))
        self.running.clear()

    # What is the case

    def leader(self) -> str:
        """The name of the node that all running nodes follow; empty while they do not agree."""
        leaders = {node_of(each).replica.leader for each in self.running.values()}
        leader = leaders.pop() if len(leaders) == 1 else ""
        return leader if leader in self.running and node_of(self.running[leader]).replica.is_leader else ""

    async def primary(self) -> AsyncSessionReplicator:
        return self.running[await eventually(self.leader, "a primary that all nodes follow")]

    async def secondary(self) -> AsyncSessionReplicator:
        primary = await self.primary()
        return next(each for each in self.running.values() if each is not primary)

    async def settled(self) -> None:
        """All running nodes follow one primary, vote, and hold the same copy."""
        await eventually(self._is_settled, "a settled cluster")

    async def _is_settled(self) -> bool:
        statuses = [await each.get_replication_status() for each in self.running.values()]
        agree = len({(each["primary"], each["applied_index"], each["digest"]) for each in statuses}) == 1
        return agree and bool(self.leader()) and all(each["ready"] for each in statuses)


@asynccontextmanager
async def running(count: int, *, founded: bool = True, **settings: Any) -> AsyncIterator[Cluster]:
    """Nodes that are all up, of one cluster if `founded`. Nothing in them may fail unnoticed."""
    failures: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    cluster = Cluster(count, **settings)
    try:
        await cluster.start_all()
        if founded:
            await cluster.found()
        yield cluster
        for sessions in cluster.running.values():
            assert not node_of(sessions).failed.done(), node_of(sessions).failed.exception()
    finally:
        await cluster.close()
    assert not failures, failures
