"""The benchmarks at toy size: they run, and they compute what they say."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

import hotspare
from benchmarks.__main__ import main
from benchmarks.cores import dealt_out
from benchmarks.redis_peer import RedisPeer, find_server
from benchmarks.rows import ROWS
from benchmarks.runner import HOTSPARE, QUICK, Better, Measurement, Row, Run, Target, Verdict, judge, measure
from benchmarks.sessions import ENCODED_BYTES, FreshIds, encode, small_sessions

REPOSITORY = Path(__file__).parents[2]
SERVER = find_server()
needs_redis = pytest.mark.skipif(SERVER is None, reason="no redis-server on the PATH")
needs_replicator = pytest.mark.skipif(
    not hasattr(hotspare, "AsyncSessionReplicator"), reason="the library has no replicator yet"
)
ROWS_WITH_PEERS = [row for row in ROWS if any(target.peer for target in row.targets)]


@pytest.fixture(scope="module")
def peer() -> Iterator[RedisPeer]:
    assert SERVER is not None
    with RedisPeer(SERVER) as peer:
        yield peer


def a_row(better: Better, *targets: Target) -> Row:
    return Row("row", "a row", "units", better, targets, hotspare=lambda run, resources: lambda: 1.0)


@needs_redis
@pytest.mark.parametrize("row", ROWS_WITH_PEERS, ids=lambda row: row.name)
def test_every_peer_a_row_names_is_measured(row: Row, peer: RedisPeer):
    measurement = measure(row, Run(QUICK, peer), peers_only=True)

    assert measurement.failure == ""
    assert set(measurement.samples) == {target.peer for target in row.targets}
    for samples in measurement.samples.values():
        assert len(samples) == row.repetitions(QUICK)
        assert min(samples) > 0


@needs_replicator
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_measures_hotspare(row: Row):
    measurement = measure(row, Run(QUICK, redis=None), peers_only=False)

    assert measurement.failure == ""
    assert len(measurement.samples[HOTSPARE]) == row.repetitions(QUICK)
    assert min(measurement.samples[HOTSPARE]) > 0


def test_without_redis_the_other_peers_are_still_measured():
    row = next(row for row in ROWS if row.name == "get")

    measurement = measure(row, Run(QUICK, redis=None), peers_only=True)

    assert measurement.failure == ""
    assert list(measurement.samples) == ["dict lookup + decode"]


@needs_redis
def test_no_redis_server_outlives_its_context():
    assert SERVER is not None
    with RedisPeer(SERVER) as peer:
        assert peer.client.ping()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", peer.port))


@needs_redis
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_bench_leaves_no_server_behind(number: signal.Signals):
    command = [sys.executable, "-m", "benchmarks", "--peers-only", "--only", "single"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as bench:
        wait_until(lambda: len(children_of(bench.pid)) == 3)
        servers = children_of(bench.pid)
        wait_until(lambda: any(holds_sessions(server) for server in servers))
        bench.send_signal(number)

        assert bench.wait(timeout=30) == 128 + number

    assert not [server for server in servers if Path(f"/proc/{server}").exists()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the bench has not got going"
        time.sleep(0.01)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def holds_sessions(server: str) -> bool:
    """Whether the bench is past its start. A running Redis titles itself `redis-server 127.0.0.1:PORT`."""
    title = re.search(rb":(\d+)\0", Path(f"/proc/{server}/cmdline").read_bytes())
    if title is None:
        return False
    with contextlib.closing(redis.Redis(port=int(title[1]))) as client:
        try:
            return client.dbsize() > 0
        except redis.RedisError:
            return False


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not let itself be told")
def test_processes_are_dealt_out_over_the_cores_in_turn_and_set_free_again():
    allowed = os.sched_getaffinity(0)
    first, *rest = sorted(allowed)
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as gone:
        gone.kill()
        gone.wait()
        with dealt_out([one.pid, gone.pid]):
            assert os.sched_getaffinity(0) == {first}
            assert os.sched_getaffinity(one.pid) == {rest[0] if rest else first}
        assert os.sched_getaffinity(0) == os.sched_getaffinity(one.pid) == allowed
        one.kill()


def test_a_ratio_says_how_many_times_better_hotspare_is_whichever_way_the_unit_points():
    samples = {HOTSPARE: [2.0, 4.0, 8.0], "peer": [8.0, 8.0, 8.0]}

    [lower] = Measurement(a_row(Better.LOWER, Target("peer")), samples).comparisons()
    [higher] = Measurement(a_row(Better.HIGHER, Target("peer")), samples).comparisons()

    assert lower.ratio == 2.0
    assert higher.ratio == 0.5


def test_a_ratio_is_the_median_of_pairs_taken_at_the_same_time():
    samples = {HOTSPARE: [10.0, 100.0, 1000.0], "peer": [5.0, 50.0, 100.0]}

    [comparison] = Measurement(a_row(Better.HIGHER, Target("peer")), samples).comparisons()

    assert comparison.ratio == 2.0


@pytest.mark.parametrize(
    ("value", "target", "better", "verdict"),
    [
        (5.0, Target(floor=2.5, aim=5), Better.HIGHER, Verdict.AIM),
        (4.9, Target(floor=2.5, aim=5), Better.HIGHER, Verdict.FLOOR),
        (2.4, Target(floor=2.5, aim=5), Better.HIGHER, Verdict.BELOW),
        (5.0, Target(floor=20, aim=5), Better.LOWER, Verdict.AIM),
        (20.0, Target(floor=20, aim=5), Better.LOWER, Verdict.FLOOR),
        (20.1, Target(floor=20, aim=5), Better.LOWER, Verdict.BELOW),
        (0.4, Target(aim=0.5), Better.HIGHER, Verdict.SHORT),
        (0.4, Target(), Better.HIGHER, Verdict.FIGURE),
        (None, Target(floor=1), Better.HIGHER, Verdict.MISSING),
    ],
)
def test_the_verdict_follows_floor_and_aim(value, target, better, verdict):
    assert judge(value, target, better) is verdict


def test_a_row_without_a_peer_is_judged_by_its_own_figure():
    row = a_row(Better.LOWER, Target(floor=20, aim=5))

    [comparison] = Measurement(row, {HOTSPARE: [30.0, 10.0, 9.0]}).comparisons()

    assert comparison.ratio is None
    assert comparison.verdict is Verdict.FLOOR


def test_the_sides_take_turns_at_being_first():
    turns: list[str] = []

    def side(name: str):
        def sample() -> float:
            turns.append(name)
            return 1.0

        return sample

    row = Row(
        "row",
        "a row",
        "units",
        Better.LOWER,
        (Target("peer"),),
        hotspare=lambda run, resources: side("hotspare"),
        peers=lambda run, resources: {"peer": side("peer")},
    )

    measure(row, Run(QUICK, redis=None), peers_only=False)

    assert turns == ["hotspare", "peer", "peer", "hotspare"]


def test_a_failing_side_is_reported_and_releases_what_the_row_had_opened():
    released: list[bool] = []

    def hotspare_side(run, resources):
        resources.callback(released.append, True)

        def sample() -> float:
            raise RuntimeError("the node is gone")

        return sample

    row = Row("row", "a row", "units", Better.LOWER, (Target(floor=1),), hotspare=hotspare_side)

    measurement = measure(row, Run(QUICK, redis=None), peers_only=False)

    assert measurement.failure == "RuntimeError: the node is gone"
    assert released == [True]
    assert measurement.comparisons()[0].verdict is Verdict.MISSING


def test_the_small_sessions_differ_and_all_have_the_stated_size():
    sessions = small_sessions(50)

    assert {len(encode(session)) for session in sessions} == {ENCODED_BYTES}
    assert len({session["csrf"] for session in sessions}) == 50
    assert sessions == small_sessions(50)


def test_no_id_is_handed_out_twice():
    ids = FreshIds()

    assert len({*ids.take(100), *ids.take(100)}) == 200


def test_the_command_prints_a_table_and_writes_every_sample(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    file = tmp_path / "samples.json"

    exit_code = main(["--quick", "--peers-only", "--only", "get,single", "--json", str(file)])

    assert exit_code == 0
    printed = capsys.readouterr().out
    assert "no redis-server on the PATH" in printed
    assert "not measured" in printed
    get, single = json.loads(file.read_text())["rows"]
    assert get["sides"]["dict lookup + decode"]["median"] > 0
    assert single["sides"] == {}


def test_an_unknown_row_is_refused_with_the_names_there_are(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--only", "gte"])

    assert exit.value.code == 2
    assert "no row gte; there are get, attached, bulk," in capsys.readouterr().err
