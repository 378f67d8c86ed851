"""The rows of the table: how each figure is taken, and what it must reach.

On both sides a store counts when its caller has been told that it is safe, and includes the encoding of the
session. What "safe" means differs: see PROMISES.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import hotspare
from benchmarks import redis_peer
from benchmarks.clusters import (
    Answering,
    ClusterFailed,
    DaemonCluster,
    InProcessCluster,
    LoopThread,
    blocking_node,
    listens,
    start_leading_node,
    wait_until,
)
from benchmarks.cores import dealt_out
from benchmarks.redis_peer import Items, RedisPeer
from benchmarks.runner import Better, Row, Run, Sample, Sides, Target
from benchmarks.sessions import TTL_MS, decode, encode
from hotspare.cluster.remote import RemoteEngine
from hotspare.engine import Ack

MICROSECONDS = 1e6
MILLISECONDS = 1e3

READERS = 4
READERS_LEAD_S = 0.5
"""For all of them to have heard the question."""

LAG_LOAD_PER_S = 5_000
LAG_TICK_S = 0.01
OBSERVED_LOAD_PER_S = 2_000
EXPIRY_HEARTBEAT_MS = 20
EXPIRY_LEAD_S = 1.0

REDIS_GET = "redis-py GET"
REDIS_GET_DECODED = "redis-py GET + decode"
BARE_DICT = "dict lookup + decode"
REDIS_PIPELINES = "redis-py pipelines of 100"
REDIS_HAND_PACKED = "hand-packed RESP"
REDIS_WRITERS = "redis.asyncio, SET + WAIT in one request"
REDIS_WRITERS_TWICE = "redis.asyncio, SET, then WAIT"
FOR_A_QUORUM = 'the same with ack="quorum"'
REDIS_ON_DISK = "redis-py pipelines of 100, appendfsync always"
REDIS_SINGLE = "redis-py (asyncio) SET, then WAIT 1"
REDIS_SINGLE_BLOCKING = "redis-py SET, then WAIT 1"
IN_THE_CLEAR = "the same without TLS and key"

PROMISES = {
    "hotspare": (
        "A store that returned is on three of four nodes, and every failover keeps it while a majority "
        "lives. get_session reads the memory of its own node."
    ),
    "Redis": (
        "A store that returned is on the primary and on one of two replicas; a failover may choose the "
        "other, and then it is lost. GET asks the primary over loopback."
    ),
}


# -- one at a time -----------------------------------------------------------------------------------------


def _median_time(call: Callable[[str], Any], ids: list[str]) -> float:
    clock, times = time.perf_counter, []
    for id in ids:
        started = clock()
        call(id)
        times.append(clock() - started)
    return MICROSECONDS * statistics.median(times)


def _get_from_node(run: Run, resources: ExitStack) -> Sample:
    node = blocking_node(InProcessCluster(resources), resources)
    items = run.items(run.scale.reads)
    node.store_sessions((id, data, TTL_MS) for id, data in items)
    ids = [id for id, _ in items]
    return lambda: _median_time(node.get_session, ids)


def _get_from_peers(run: Run, resources: ExitStack) -> Sides:
    items = run.items(run.scale.reads)
    ids = [id for id, _ in items]
    records = {id: encode(data) for id, data in items}
    sides: dict[str, Sample] = {BARE_DICT: lambda: _median_time(lambda id: decode(records[id]), ids)}
    if (peer := run.redis) is not None:
        redis_peer.pipelined_store_seconds(peer, items)
        sides[REDIS_GET] = lambda: _median_time(peer.get, ids)
        sides[REDIS_GET_DECODED] = lambda: _median_time(lambda id: decode(peer.get(id)), ids)
    return sides


def _read_at_once(run: Run, resources: ExitStack, ids: list[str], *where: str) -> Sample:
    """The median of the medians of processes that read at the same time."""
    readers = [Answering("reader_process", *where) for _ in range(READERS)]
    for reader in readers:
        resources.callback(reader.stop)

    def sample() -> float:
        begin = time.monotonic() + READERS_LEAD_S
        for reader in readers:
            reader.begin_to_ask([ids, begin, begin + run.scale.reading_seconds])
        medians: list[float] = [reader.answer() for reader in readers]
        return MICROSECONDS * statistics.median(medians)

    return sample


def _get_attached(run: Run, resources: ExitStack) -> Sample:
    daemons = DaemonCluster(resources)
    address = daemons.addresses[0]
    client = daemons.connect(resources, address)
    items = run.items(run.scale.reads)
    client.store_sessions((id, data, TTL_MS) for id, data in items)
    return _read_at_once(run, resources, [id for id, _ in items], "attached", address)


def _get_from_peer_at_once(run: Run, resources: ExitStack) -> Sides:
    if (peer := run.redis) is None:
        return {}
    items = run.items(run.scale.reads)
    redis_peer.pipelined_store_seconds(peer, items)
    return {REDIS_GET: _read_at_once(run, resources, [id for id, _ in items], "redis", str(peer.port))}


def _single_stores_into(node: Any, run: Run, processes: list[int], ack: Ack = "quorum") -> Sample:
    def sample() -> float:
        items = dict(run.items(run.scale.single_stores))
        with dealt_out(processes):
            return _median_time(lambda id: node.store_session(id, items[id], TTL_MS, ack=ack), list(items))

    return sample


def _single_store_on_blocking_node(run: Run, resources: ExitStack, ack: Ack = "quorum") -> Sample:
    cluster = InProcessCluster(resources)
    return _single_stores_into(blocking_node(cluster, resources), run, cluster.processes, ack)


def _single_store_for_all(run: Run, resources: ExitStack) -> Sample:
    return _single_store_on_blocking_node(run, resources, "all")


def _single_store_for_a_quorum(run: Run, resources: ExitStack) -> Sides:
    return {FOR_A_QUORUM: _single_store_on_blocking_node(run, resources)}


def _single_stores_into_peer(run: Run, side: str, times: Callable[[RedisPeer, Items], list[float]]) -> Sides:
    if (peer := run.redis) is None:
        return {}

    def sample() -> float:
        items = run.items(run.scale.single_stores)
        with dealt_out(peer.processes):
            return MICROSECONDS * statistics.median(times(peer, items))

    return {side: sample}


def _single_store_on_blocking_peer(run: Run, resources: ExitStack) -> Sides:
    return _single_stores_into_peer(run, REDIS_SINGLE_BLOCKING, redis_peer.single_store_times)


def _awaited_node(resources: ExitStack) -> tuple[LoopThread, Any, InProcessCluster]:
    """The bench's own node, leading, with the loop on which its verbs are awaited."""
    cluster = InProcessCluster(resources)
    loop = resources.enter_context(LoopThread())
    node = loop.run(start_leading_node(cluster))
    resources.callback(lambda: loop.run(node.stop()))
    return loop, node, cluster


def _single_store_on_node(run: Run, resources: ExitStack) -> Sample:
    loop, node, cluster = _awaited_node(resources)

    async def times(items: Items) -> list[float]:
        clock, times = time.perf_counter, []
        for id, data in items:
            started = clock()
            await node.store_session(id, data, TTL_MS)
            times.append(clock() - started)
        return times

    def sample() -> float:
        items = run.items(run.scale.single_stores)
        with dealt_out(cluster.processes):
            return MICROSECONDS * statistics.median(loop.run(times(items)))

    return sample


def _single_store_on_either_peer(run: Run, resources: ExitStack) -> Sides:
    """Its client that awaits, and the one that blocks, which is the faster one."""
    return {
        **_single_stores_into_peer(run, REDIS_SINGLE, redis_peer.single_store_times_of_coroutines),
        **_single_store_on_blocking_peer(run, resources),
    }


# -- throughput --------------------------------------------------------------------------------------------


def _stores_per_second(run: Run, seconds: Callable[[Items], float]) -> Sample:
    def sample() -> float:
        items = run.items(run.scale.stores)
        return len(items) / seconds(items)

    return sample


def _bulk_store_seconds(node: Any, items: Items) -> float:
    started = time.perf_counter()
    node.store_sessions((id, data, TTL_MS) for id, data in items)
    return time.perf_counter() - started


def _bulk_in_process(run: Run, resources: ExitStack) -> Sample:
    node = blocking_node(InProcessCluster(resources), resources)
    return _stores_per_second(run, lambda items: _bulk_store_seconds(node, items))


def _bulk_into_daemons(run: Run, resources: ExitStack) -> Sample:
    client, _ = _client_of_daemons(resources)
    return _stores_per_second(run, lambda items: _bulk_store_seconds(client, items))


def _client_of_daemons(resources: ExitStack, *, secured: bool = False) -> tuple[Any, DaemonCluster]:
    """A client of the first one, which leads."""
    daemons = DaemonCluster(resources, secured=secured)
    client = daemons.connect(resources, daemons.addresses[0])
    client.promote_to_primary()
    return client, daemons


def _bulk_under_tls(run: Run, resources: ExitStack) -> Sample:
    client, _ = _client_of_daemons(resources, secured=True)
    return _stores_per_second(run, lambda items: _bulk_store_seconds(client, items))


def _bulk_in_the_clear(run: Run, resources: ExitStack) -> Sides:
    return {IN_THE_CLEAR: _bulk_into_daemons(run, resources)}


def _single_store_under_tls(run: Run, resources: ExitStack) -> Sample:
    client, daemons = _client_of_daemons(resources, secured=True)
    return _single_stores_into(client, run, daemons.processes)


def _single_store_in_the_clear(run: Run, resources: ExitStack) -> Sides:
    client, daemons = _client_of_daemons(resources)
    return {IN_THE_CLEAR: _single_stores_into(client, run, daemons.processes)}


def _bulk_into_peer(run: Run, resources: ExitStack) -> Sides:
    if (peer := run.redis) is None:
        return {}
    return {
        REDIS_PIPELINES: _stores_per_second(
            run, lambda items: redis_peer.pipelined_store_seconds(peer, items)
        ),
        REDIS_HAND_PACKED: _stores_per_second(
            run, lambda items: redis_peer.hand_packed_store_seconds(peer, items)
        ),
    }


def _bulk_onto_disks(run: Run, resources: ExitStack) -> Sample:
    daemons = DaemonCluster(resources, nodes=3, storage="disk")
    client = daemons.connect(resources, daemons.addresses[0])
    client.promote_to_primary()
    return _stores_per_second(run, lambda items: _bulk_store_seconds(client, items))


def _bulk_onto_the_peers_disks(run: Run, resources: ExitStack) -> Sides:
    if run.redis is None:
        return {}
    peer = resources.enter_context(RedisPeer(run.redis.server, replicas=1, on_disk=True))
    return {
        REDIS_ON_DISK: _stores_per_second(run, lambda items: redis_peer.pipelined_store_seconds(peer, items))
    }


def _writers_on_node(run: Run, resources: ExitStack) -> Sample:
    loop, node, _ = _awaited_node(resources)

    async def write(share: Items) -> None:
        for id, data in share:
            await node.store_session(id, data, TTL_MS)

    async def write_all(items: Items) -> float:
        writers = run.scale.writers
        started = time.perf_counter()
        await asyncio.gather(*(write(items[n::writers]) for n in range(writers)))
        return len(items) / (time.perf_counter() - started)

    return lambda: loop.run(write_all(_writers_items(run)))


def _writers_on_peer(run: Run, resources: ExitStack) -> Sides:
    if (peer := run.redis) is None:
        return {}

    def sample(pipelined: bool) -> float:
        items = _writers_items(run)
        seconds = redis_peer.concurrent_store_seconds(peer, items, run.scale.writers, pipelined=pipelined)
        return len(items) / seconds

    return {
        REDIS_PIPELINES: _stores_per_second(
            run, lambda items: redis_peer.pipelined_store_seconds(peer, items)
        ),
        REDIS_WRITERS: lambda: sample(pipelined=True),
        REDIS_WRITERS_TWICE: lambda: sample(pipelined=False),
    }


def _writers_items(run: Run) -> Items:
    return run.items(run.scale.writers * run.scale.stores_per_writer)


# -- the cluster by itself ---------------------------------------------------------------------------------


def _paced_load(run: Run, node: Any, stores_per_s: int) -> None:
    """It keeps to its schedule: what one tick is late, the next ones make up for."""
    per_tick = int(stores_per_s * LAG_TICK_S)
    started = time.monotonic()
    for tick in range(int(run.scale.lag_seconds / LAG_TICK_S)):
        time.sleep(max(0.0, started + tick * LAG_TICK_S - time.monotonic()))
        _bulk_store_seconds(node, run.items(per_tick))


def _lag_under_load(run: Run, resources: ExitStack) -> Sample:
    node = blocking_node(InProcessCluster(resources), resources)

    def sample() -> float:
        _paced_load(run, node, LAG_LOAD_PER_S)
        return float(node.get_metrics()["replication_lag_ms"])

    return sample


def _observed(run: Run, resources: ExitStack) -> tuple[DaemonCluster, Any]:
    """Three daemons, a client of their primary, and observers that follow it."""
    daemons = DaemonCluster(resources, nodes=3)
    client = daemons.connect(resources, daemons.addresses[0])
    client.promote_to_primary()
    daemons.observe(run.scale.observers)

    def all_follow() -> bool:
        others = client.get_replication_status()["replica_nodes"]
        present = [each for each in others if each["role"] == "observer" and each["reachable"]]
        return len(present) == run.scale.observers

    wait_until("all observers follow the primary", all_follow)
    return daemons, client


def _lag_with_observers(run: Run, resources: ExitStack) -> Sample:
    _, client = _observed(run, resources)

    def sample() -> float:
        _paced_load(run, client, OBSERVED_LOAD_PER_S)
        return float(client.get_metrics()["replication_lag_ms"])

    return sample


def _cpu_with_observers(run: Run, resources: ExitStack) -> Sample:
    """Of one core, of the primary."""
    daemons, client = _observed(run, resources)
    primary = daemons.addresses[0]

    def sample() -> float:
        used_s, started = daemons.cpu_seconds(primary), time.monotonic()
        _paced_load(run, client, OBSERVED_LOAD_PER_S)
        return 100 * (daemons.cpu_seconds(primary) - used_s) / (time.monotonic() - started)

    return sample


def _failover(run: Run, resources: ExitStack) -> Sample:
    """Milliseconds from SIGKILL to the answer to a write that was issued, on a survivor, right after it."""
    daemons = DaemonCluster(resources)

    def sample() -> float:
        with ExitStack() as clients:
            nodes = {address: daemons.connect(clients, address) for address in daemons.addresses}
            primary = str(next(iter(nodes.values())).get_replication_status()["primary"])
            survivor = next(node for address, node in nodes.items() if address != primary)
            [(id, data)] = run.items(1)
            started = time.perf_counter()
            daemons.kill(primary)
            survivor.store_session(id, data, TTL_MS)
            elapsed = time.perf_counter() - started
        daemons.start(primary)
        return MILLISECONDS * elapsed

    return sample


def _memory_per_session(run: Run, resources: ExitStack) -> Sample:
    """Growth of a secondary between N sessions and 3 N: what is there once per process cancels out."""
    cluster = InProcessCluster(resources)
    node = blocking_node(cluster, resources)
    secondary = next(iter(cluster.others.values()))

    def fill(count: int) -> int:
        items = run.items(count)
        _bulk_store_seconds(node, items)
        total = node.session_count()
        wait_until("the secondary has all sessions", lambda: secondary.ask("session_count") == total)
        return sum(len(id) + len(encode(data)) for id, data in items)

    def sample() -> float:
        count = run.scale.resident_sessions
        fill(count)
        before = secondary.ask("private_bytes")
        payload = fill(2 * count)
        grown = secondary.ask("private_bytes") - before
        return float(grown - payload) / (2 * count)

    return sample


def _catching_up(run: Run, resources: ExitStack) -> Sample:
    cluster = InProcessCluster(resources)
    node = blocking_node(cluster, resources)
    _bulk_store_seconds(node, run.items(run.scale.resident_sessions))
    address = next(iter(cluster.others))

    def sample() -> float:
        newcomer = cluster.replace(resources, address)
        return float(newcomer.ask("caught_up_after_seconds", node.session_count()))

    return sample


def _starting(run: Run, resources: ExitStack) -> Sample:
    """Seconds from the start of a daemon with so many sessions on its disk until it is ready."""
    daemons = DaemonCluster(resources, nodes=1, storage="disk")
    (address,) = daemons.addresses
    with ExitStack() as clients:
        wait_until(f"{address} listens", lambda: listens(address))
        client = clients.enter_context(hotspare.SessionReplicator(engine=RemoteEngine([address])))
        client.start_cluster()
        _bulk_store_seconds(client, run.items(run.scale.stored_sessions))

    def sample() -> float:
        daemons.kill(address)
        started = time.perf_counter()
        daemons.start(address)
        with ExitStack() as clients:
            daemons.connect(clients, address)
            return time.perf_counter() - started

    return sample


def _expiring_together(run: Run, resources: ExitStack) -> Sample:
    """The longest silence of the primary, as a secondary hears it, the heartbeat's own interval included."""
    cluster = InProcessCluster(
        resources, health_check_interval_ms=EXPIRY_HEARTBEAT_MS, cleanup_interval_ms=500
    )
    node = blocking_node(cluster, resources, leading=False)

    def sample() -> float:
        items = run.items(run.scale.resident_sessions)
        expires = time.monotonic() + EXPIRY_LEAD_S + len(items) / 10_000
        for start in range(0, len(items), 1_000):
            remaining_ms = int(MILLISECONDS * (expires - time.monotonic()))
            node.store_sessions((id, data, remaining_ms) for id, data in items[start : start + 1_000])
        if time.monotonic() > expires:
            raise ClusterFailed("the first sessions expired before the last ones were stored")
        longest_ms = 0.0
        while (status := node.get_replication_status())["memory_bytes"] > 0:
            longest_ms = max(longest_ms, float(status["silence_ms"]))
            time.sleep(0.001)
        return longest_ms

    return sample


# -- the table ---------------------------------------------------------------------------------------------

ROWS = (
    Row(
        name="get",
        title="get_session of a small session, p50, in-process node",
        unit="µs",
        better=Better.LOWER,
        targets=(
            Target(REDIS_GET, floor=40),
            Target(REDIS_GET_DECODED),
            Target(BARE_DICT, aim=0.5),
        ),
        hotspare=_get_from_node,
        peers=_get_from_peers,
    ),
    Row(
        name="attached",
        title="attached get_session of a small session, p50, four processes at once",
        unit="µs",
        better=Better.LOWER,
        targets=(Target(REDIS_GET, floor=20, aim=40),),
        hotspare=_get_attached,
        peers=_get_from_peer_at_once,
    ),
    Row(
        name="bulk",
        title="store_sessions, four in-process nodes",
        unit="stores/s",
        better=Better.HIGHER,
        targets=(Target(REDIS_PIPELINES, floor=2.5, aim=5), Target(REDIS_HAND_PACKED, aim=0.7)),
        hotspare=_bulk_in_process,
        peers=_bulk_into_peer,
    ),
    Row(
        name="bulk-daemons",
        title="store_sessions, four daemons",
        unit="stores/s",
        better=Better.HIGHER,
        targets=(Target(REDIS_PIPELINES, floor=1.2, aim=2.5), Target(REDIS_HAND_PACKED)),
        hotspare=_bulk_into_daemons,
        peers=_bulk_into_peer,
    ),
    Row(
        name="disk",
        title="store_sessions, three daemons in disk mode",
        unit="stores/s",
        better=Better.HIGHER,
        targets=(Target(REDIS_ON_DISK, floor=1, aim=2),),
        hotspare=_bulk_onto_disks,
        peers=_bulk_onto_the_peers_disks,
    ),
    Row(
        name="writers",
        title="64 concurrent writers awaiting each store",
        unit="stores/s",
        better=Better.HIGHER,
        targets=(
            Target(REDIS_PIPELINES, floor=1, aim=2),
            Target(REDIS_WRITERS),
            Target(REDIS_WRITERS_TWICE),
        ),
        hotspare=_writers_on_node,
        peers=_writers_on_peer,
    ),
    Row(
        name="single",
        title="a single store, awaited on an event loop, p50",
        unit="µs",
        better=Better.LOWER,
        targets=(Target(REDIS_SINGLE, floor=1, aim=2), Target(REDIS_SINGLE_BLOCKING, floor=1, aim=2)),
        hotspare=_single_store_on_node,
        peers=_single_store_on_either_peer,
    ),
    Row(
        name="single-blocking",
        title="a single store by a thread that blocks, p50",
        unit="µs",
        better=Better.LOWER,
        targets=(Target(REDIS_SINGLE_BLOCKING, floor=1, aim=2),),
        hotspare=_single_store_on_blocking_node,
        peers=_single_store_on_blocking_peer,
    ),
    Row(
        name="bulk-tls",
        title="store_sessions, four daemons, TLS and a cluster key everywhere",
        unit="stores/s",
        better=Better.HIGHER,
        targets=(Target(IN_THE_CLEAR),),
        hotspare=_bulk_under_tls,
        peers=_bulk_in_the_clear,
    ),
    Row(
        name="single-tls",
        title="a single store through a client, p50, TLS and a cluster key everywhere",
        unit="µs",
        better=Better.LOWER,
        targets=(Target(IN_THE_CLEAR),),
        hotspare=_single_store_under_tls,
        peers=_single_store_in_the_clear,
    ),
    Row(
        name="ack-all",
        title='a single store with ack="all", p50',
        unit="µs",
        better=Better.LOWER,
        targets=(Target(FOR_A_QUORUM, floor=1 / 3, aim=2 / 3),),
        hotspare=_single_store_for_all,
        peers=_single_store_for_a_quorum,
    ),
    Row(
        name="lag",
        title="replication lag p99 at 5 k stores/s",
        unit="ms",
        better=Better.LOWER,
        targets=(Target(floor=20, aim=5),),
        hotspare=_lag_under_load,
    ),
    Row(
        name="observers-lag",
        title="20 observers: replication lag p99 at 2 k stores/s",
        unit="ms",
        better=Better.LOWER,
        targets=(Target(),),
        hotspare=_lag_with_observers,
        repetitions=lambda scale: min(3, scale.repetitions),
    ),
    Row(
        name="observers-cpu",
        title="20 observers: the primary's processor at 2 k stores/s, of one core",
        unit="%",
        better=Better.LOWER,
        targets=(Target(),),
        hotspare=_cpu_with_observers,
        repetitions=lambda scale: min(3, scale.repetitions),
    ),
    Row(
        name="failover",
        title="SIGKILL of the primary → next acknowledged write, p50",
        unit="ms",
        better=Better.LOWER,
        targets=(Target(floor=1_000, aim=250),),
        hotspare=_failover,
        repetitions=lambda scale: scale.failovers,
    ),
    Row(
        name="memory",
        title="memory per 200-byte session beyond id and data",
        unit="bytes",
        better=Better.LOWER,
        targets=(Target(floor=400, aim=220),),
        hotspare=_memory_per_session,
        repetitions=lambda scale: 1,
    ),
    Row(
        name="catch-up",
        title="a fresh node catches up 100 k sessions",
        unit="s",
        better=Better.LOWER,
        targets=(Target(floor=5, aim=1),),
        hotspare=_catching_up,
    ),
    Row(
        name="start",
        title="start with 1 M sessions on disk, all verified",
        unit="s",
        better=Better.LOWER,
        targets=(Target(floor=5, aim=1),),
        hotspare=_starting,
        repetitions=lambda scale: min(3, scale.repetitions),
    ),
    Row(
        name="expiry",
        title="100 k sessions expire together: longest stall of a heartbeat",
        unit="ms",
        better=Better.LOWER,
        targets=(Target(floor=200, aim=50),),
        hotspare=_expiring_together,
    ),
)
