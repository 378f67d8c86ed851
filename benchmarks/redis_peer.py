"""The peer: a real Redis primary with two replicas on loopback, nothing written to disk; beside disk mode a
primary with one replica, both of which sync every write to the disk (`appendfsync always`).

`WAIT 1` answers when one replica has the write, so two of three copies hold it: the nearest that Redis comes
to hotspare's majority. It stays weaker: a failover can still choose the replica that has not got it.

Redis is given what helps it: replicas synchronised beforehand, no persistence, sessions encoded by msgspec's
msgpack, one connection per concurrent writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import redis
import redis.asyncio

from benchmarks.sessions import TTL_MS, SessionData, encode
from hotspare.portal import new_event_loop

REPLICAS = 2
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
WAIT_TIMEOUT_MS = 5_000
PIPELINE_COMMANDS = 100
CONNECTIONS = 2
BATCHES_IN_FLIGHT = 4

HOW_TO_INSTALL = (
    "no redis-server on the PATH: the rows that need it are skipped. "
    "Install it with `apt-get install redis-server`, `dnf install redis` or `brew install redis`."
)

Items = Sequence[tuple[str, SessionData]]


class PeerFailed(Exception):
    """Redis did not start, or did not do what it was asked: the numbers would mean nothing."""


def find_server() -> str | None:
    """The path of redis-server (or of Valkey's, which takes the same options)."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisPeer:
    """A primary and its replicas, alive within a `with`."""

    def __init__(self, server: str, *, replicas: int = REPLICAS, on_disk: bool = False) -> None:
        self.server = server
        self._replicas = replicas
        self._persistence = (
            ["--appendonly", "yes", "--appendfsync", "always"] if on_disk else ["--appendonly", "no"]
        )
        self._cleanup = contextlib.ExitStack()
        self.port = 0
        self.processes: list[int] = []
        """The primary's, then those of the replicas."""

    def __enter__(self) -> RedisPeer:
        with contextlib.ExitStack() as undo:
            self.port = self._launch(undo)
            replicas = [
                self._launch(undo, "--replicaof", f"127.0.0.1 {self.port}") for _ in range(self._replicas)
            ]
            self._await_replicas(undo, replicas)
            self.client = redis.Redis(port=self.port)
            undo.callback(self.client.close)
            self._cleanup = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def _launch(self, undo: contextlib.ExitStack, *options: str) -> int:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="redis-peer-")))
        port = _free_port()
        process = subprocess.Popen(
            [
                self.server,
                *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)),
                *("--save", "", "--repl-diskless-sync-delay", "0"),
                *self._persistence,
                *options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in the terminal is ours to handle: we stop the servers in order.
            start_new_session=True,
        )
        undo.callback(_stop, process)
        self.processes.append(process.pid)
        return port

    def _await_replicas(self, undo: contextlib.ExitStack, ports: list[int]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        for port in ports:
            client = undo.enter_context(contextlib.closing(redis.Redis(port=port)))
            while not _is_in_sync(client):
                if time.monotonic() > deadline:
                    raise PeerFailed(
                        f"the Redis replica on port {port} was not in sync after {START_TIMEOUT_S} s"
                    )
                time.sleep(0.02)

    @property
    def version(self) -> str:
        return str(self.client.info("server")["redis_version"])

    def get(self, id: str) -> bytes:
        record = self.client.get(id)
        if not isinstance(record, bytes):
            raise PeerFailed(f"Redis has no {id}, which was stored")
        return record


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_in_sync(client: redis.Redis) -> bool:
    try:
        return client.info("replication").get("master_link_status") == "up"
    except redis.ConnectionError:
        return False


# -- one client, one request at a time ---------------------------------------------------------------------


def single_store_times(peer: RedisPeer, items: Items) -> list[float]:
    """Seconds of each SET followed by WAIT 1: two requests, as redis-py offers them."""
    clock, times = time.perf_counter, []
    with redis.Redis(port=peer.port, single_connection_client=True) as client:
        for id, data in items:
            started = clock()
            client.set(id, encode(data), px=TTL_MS)
            acknowledged = client.wait(1, WAIT_TIMEOUT_MS)
            times.append(clock() - started)
            _check_wait(acknowledged)
    return times


def single_store_times_of_coroutines(peer: RedisPeer, items: Items) -> list[float]:
    """The same on an event loop, of the same kind as ours."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_single_store_times(peer.port, items))


async def _single_store_times(port: int, items: Items) -> list[float]:
    clock, times = time.perf_counter, []
    async with redis.asyncio.Redis(port=port, single_connection_client=True) as client:
        for id, data in items:
            started = clock()
            acknowledged = await _store_in_two_requests(client, id, encode(data))
            times.append(clock() - started)
            _check_wait(acknowledged)
    return times


# -- throughput --------------------------------------------------------------------------------------------


def pipelined_store_seconds(peer: RedisPeer, items: Items) -> float:
    """redis-py pipelines of 100 SETs, each closed by a WAIT 1."""
    started = time.perf_counter()
    for batch in _batches(items):
        pipeline = peer.client.pipeline(transaction=False)
        for id, data in batch:
            pipeline.set(id, encode(data), px=TTL_MS)
        pipeline.wait(1, WAIT_TIMEOUT_MS)
        _check_wait(pipeline.execute()[-1])
    return time.perf_counter() - started


def concurrent_store_seconds(peer: RedisPeer, items: Items, writers: int, *, pipelined: bool) -> float:
    """Writers that each await SET and WAIT 1 before the next store; one connection per writer."""
    return asyncio.run(_concurrent_store_seconds(peer.port, items, writers, pipelined=pipelined))


async def _concurrent_store_seconds(port: int, items: Items, writers: int, *, pipelined: bool) -> float:
    clients = [redis.asyncio.Redis(port=port, single_connection_client=True) for _ in range(writers)]
    store = _store_in_one_request if pipelined else _store_in_two_requests

    async def write(client: redis.asyncio.Redis, share: Items) -> None:
        for id, data in share:
            _check_wait(await store(client, id, encode(data)))

    try:
        await asyncio.gather(*(client.ping() for client in clients))
        started = time.perf_counter()
        await asyncio.gather(*(write(client, items[n::writers]) for n, client in enumerate(clients)))
        return time.perf_counter() - started
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))


async def _store_in_two_requests(client: redis.asyncio.Redis, id: str, record: bytes) -> int:
    await client.set(id, record, px=TTL_MS)
    return int(await client.execute_command("WAIT", 1, WAIT_TIMEOUT_MS))


async def _store_in_one_request(client: redis.asyncio.Redis, id: str, record: bytes) -> int:
    pipeline = client.pipeline(transaction=False)
    pipeline.set(id, record, px=TTL_MS)
    pipeline.execute_command("WAIT", 1, WAIT_TIMEOUT_MS)
    return int((await pipeline.execute())[-1])


def hand_packed_store_seconds(peer: RedisPeer, items: Items) -> float:
    """RESP packed by hand, without redis-py, several batches in flight: as fast as Python gets Redis to go.

    Redis reads nothing from a connection whose WAIT is not yet answered: a second connection keeps it busy.
    More of them, or batches packed before the clock starts, gave no steady gain.
    """
    with contextlib.ExitStack() as closing:
        sockets = [closing.enter_context(_connect(peer.port)) for _ in range(CONNECTIONS)]
        started = time.perf_counter()
        batches = ((_pack(batch), len(batch)) for batch in _batches(items))
        _drive(sockets, batches)
        return time.perf_counter() - started


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _drive(sockets: list[socket.socket], batches: Iterator[tuple[bytes, int]]) -> None:
    """Keep some batches in flight on every connection; answers are taken in the order of sending."""
    in_flight: deque[tuple[socket.socket, int]] = deque()
    for turn in range(BATCHES_IN_FLIGHT * len(sockets)):
        _send_next(sockets[turn % len(sockets)], batches, in_flight)
    while in_flight:
        sender, stores = in_flight.popleft()
        _receive_acknowledgement(sender, stores)
        _send_next(sender, batches, in_flight)


def _send_next(
    to: socket.socket, batches: Iterator[tuple[bytes, int]], in_flight: deque[tuple[socket.socket, int]]
) -> None:
    batch = next(batches, None)
    if batch is not None:
        packed, stores = batch
        to.sendall(packed)
        in_flight.append((to, stores))


def _receive_acknowledgement(sender: socket.socket, stores: int) -> None:
    """One `+OK` per store and then `:n`, the answer to WAIT, one digit long with so few replicas."""
    expected = len(b"+OK\r\n") * stores + len(b":1\r\n")
    answer = bytearray()
    while len(answer) < expected:
        part = sender.recv(expected - len(answer))
        if not part:
            raise PeerFailed("Redis closed the connection")
        answer += part
    if not answer.startswith(b"+OK\r\n" * stores + b":"):
        raise PeerFailed(f"Redis answered {bytes(answer[:80])!r} to a batch of SETs")
    _check_wait(int(answer[-3:-2]))


def _pack(batch: Items) -> bytes:
    ttl = b"$2\r\nPX\r\n" + _bulk(str(TTL_MS).encode())
    commands = [
        b"*5\r\n$3\r\nSET\r\n%b%b%b" % (_bulk(id.encode()), _bulk(encode(data)), ttl) for id, data in batch
    ]
    return b"".join(commands) + b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n" + _bulk(str(WAIT_TIMEOUT_MS).encode())


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _batches(items: Items) -> Iterator[Items]:
    return (items[start : start + PIPELINE_COMMANDS] for start in range(0, len(items), PIPELINE_COMMANDS))


def _check_wait(acknowledged: object) -> None:
    if not isinstance(acknowledged, int) or acknowledged < 1:
        raise PeerFailed(
            f"no replica acknowledged within {WAIT_TIMEOUT_MS} ms (WAIT answered {acknowledged!r})"
        )
