"""The load: it stores what it says, and reports what it saw."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hotspare.cli.load import Plan, Report, percentile, run, session_data
from hotspare.data import encode_data
from hotspare.errors import Unavailable


class Recorder:
    """A cluster that remembers; it fails from the call `fails_at` on."""

    def __init__(self, fails_at=None):
        self.stored = []
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self.fails_at = fails_at

    async def store_session(self, id, data, ttl_ms):
        await self.store_sessions([(id, data, ttl_ms)])

    async def store_sessions(self, sessions):
        self.calls += 1
        number = self.calls
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.fails_at is not None and number >= self.fails_at:
            raise Unavailable("enough")
        self.stored += sessions


def recorder(**options) -> Any:
    return Recorder(**options)


def plan(**changes):
    usual: dict[str, Any] = {
        "sessions": 103,
        "concurrency": 4,
        "batch": 1,
        "size_bytes": 200,
        "rate": None,
        "ttl_ms": 5,
    }
    return Plan(**(usual | {"prefix": "load-"} | changes))


@pytest.mark.parametrize("batch", [1, 10, 1000])
async def test_every_session_is_stored_once(batch):
    cluster, told = recorder(), list[int]()
    report = await run(cluster, plan(batch=batch), told.append)
    assert sorted(id for id, _, _ in cluster.stored) == sorted(f"load-{number}" for number in range(103))
    assert {ttl_ms for _, _, ttl_ms in cluster.stored} == {5}
    assert sum(told) == 103
    assert len(report.latencies_ms) == cluster.calls == -(-103 // batch)


async def test_no_more_calls_than_asked_for_are_under_way():
    cluster = recorder()
    await run(cluster, plan(concurrency=4), lambda count: None)
    assert cluster.most_at_once == 4


async def test_the_load_ends_with_the_first_failure():
    cluster, told = recorder(fails_at=50), list[int]()
    with pytest.raises(Unavailable):
        await run(cluster, plan(), told.append)
    assert sum(told) == len(cluster.stored) == 49
    assert cluster.calls <= 50 + 4


async def test_a_rate_is_kept_from_the_beginning():
    cluster = recorder()
    report = await run(cluster, plan(sessions=11, rate=100), lambda count: None)
    # The last one is due a tenth of a second after the first, however fast the cluster is.
    assert report.seconds >= 0.1


def test_session_data_has_about_the_size_asked_for():
    for size_bytes in (20, 200, 5000):
        assert abs(len(encode_data(session_data(123_456, size_bytes), 65_536)) - size_bytes) <= 10


def test_percentiles_are_values_that_occurred():
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 1, 50, 99, 99.5, 100)] == [1, 1, 50, 99, 100, 100]
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_the_report_counts_sessions_and_calls():
    report = Report(plan(batch=50), 2.0, [1.0, 2.0, 9.0])
    assert report.to_dict() == {
        "sessions": 103,
        "calls": 3,
        "seconds": 2.0,
        "sessions_per_second": 51.5,
        "latency_p50_ms": 2.0,
        "latency_p99_ms": 9.0,
        "latency_max_ms": 9.0,
        "id_prefix": "load-",
    }
