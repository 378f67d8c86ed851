"""That the judges of these tests see what they are there to see."""

from __future__ import annotations

import shutil

import pytest

from tests.processes.daemons import Daemons, copy_store
from tests.processes.ledger import History, Ledger, Operation, Verb, Verdict
from tests.processes.load import MAX_STALENESS_SECONDS, Load, Watched


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.seconds)
        monkeypatch.setattr("time.time_ns", lambda: int(self.seconds * 1e9))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# Keepers


def test_what_was_acknowledged_must_be_there():
    ledger = Ledger()
    ledger.done("a", {"n": 1})
    assert ledger.contradictions({"a": {"n": 1}}, "") == []
    assert len(ledger.contradictions({}, "")) == 1
    assert len(ledger.contradictions({"a": {"n": 0}}, "")) == 1


def test_what_was_deleted_must_not_be_there():
    ledger = Ledger()
    ledger.done("a", {"n": 1})
    ledger.done("a", None)
    assert ledger.contradictions({}, "") == []
    assert len(ledger.contradictions({"a": {"n": 1}}, "")) == 1


def test_what_was_refused_must_not_be_there():
    ledger = Ledger()
    ledger.refused("a")
    assert ledger.contradictions({}, "") == []
    assert len(ledger.contradictions({"a": {"n": 1}}, "")) == 1


def test_an_unknown_write_may_have_happened_or_not():
    ledger = Ledger()
    ledger.done("a", {"n": 1})
    ledger.unknown("a", None)
    assert ledger.contradictions({"a": {"n": 1}}, "") == []
    assert ledger.contradictions({}, "") == []
    assert len(ledger.contradictions({"a": {"n": 2}}, "")) == 1


def test_what_nobody_stored_must_not_be_there():
    assert len(Ledger().contradictions({"ours-1": {}, "theirs-1": {}}, "ours")) == 1


# Watchers


def watched(clock: Clock) -> tuple[Watched, list[str]]:
    violations: list[str] = []
    return Watched(2, violations), violations


def test_a_copy_must_not_go_back_in_time(clock):
    watched_, violations = watched(clock)
    watched_.saw(0, 1, 7, watched_.least(0, 1))
    watched_.saw(0, 1, 7, watched_.least(0, 1))
    assert violations == []
    watched_.saw(0, 1, 6, watched_.least(0, 1))
    assert len(violations) == 1


def test_a_copy_must_show_at_once_what_its_own_node_acknowledged(clock):
    watched_, violations = watched(clock)
    watched_.acknowledged(1, 3)
    watched_.saw(0, 1, 0, watched_.least(0, 1))
    assert violations == []
    watched_.saw(1, 1, 2, watched_.least(1, 1))
    assert len(violations) == 1


def test_a_copy_must_not_be_older_than_it_promises(clock):
    watched_, violations = watched(clock)
    watched_.acknowledged(1, 3)
    clock.seconds += 0.9 * MAX_STALENESS_SECONDS
    watched_.saw(0, 1, 2, watched_.least(0, 1))
    assert violations == []
    clock.seconds += 0.9 * MAX_STALENESS_SECONDS
    watched_.saw(0, 1, 2, watched_.least(0, 1))
    assert len(violations) == 1


# Contenders


def put(history: History, timeout_ms: int = 1000) -> Operation:
    operation = history.begin("c", Verb.PUT, "a", timeout_ms)
    operation.data, operation.ttl_ms = frozenset({("by", f"{operation.number}")}), 600_000
    return operation


def read(history: History, found: Operation | None) -> None:
    operation = history.begin("c", Verb.READ, "a", 1000)
    if found is None:
        history.end(operation, Verdict.ABSENT)
    else:
        operation.data, operation.expires_at_ms = found.data, found.latest_ms - 500 + found.ttl_ms
        history.end(operation, Verdict.DONE, 70_000 * found.number)


def test_a_linearizable_read_must_show_the_last_write(clock):
    history = History()
    first = put(history)
    history.end(first, Verdict.DONE, 70_000 * first.number)
    read(history, first)
    second = put(history)
    history.end(second, Verdict.DONE, 70_000 * second.number)
    assert history.problems() == []
    read(history, first)
    assert len(history.problems()) == 1


@pytest.mark.parametrize(("told_after_seconds", "may_still_happen"), [(0.1, True), (1.6, False)])
def test_an_unknown_write_must_not_happen_after_its_deadline(clock, told_after_seconds, may_still_happen):
    """Who is told after the deadline may rely on it; before the deadline it may still happen later."""
    history = History()
    write = put(history, timeout_ms=1000)
    clock.seconds += told_after_seconds
    history.end_unknown(write)
    read(history, None)
    write.latest_ms = min(write.latest_ms, history.operations[-1].latest_ms)
    read(history, write)
    assert (history.problems() == []) == may_still_happen


# All of them


async def test_a_cluster_that_forgets_what_it_acknowledged_is_found_out(cluster: Daemons) -> None:
    """All nodes get the files of a while ago, at the same moment: no cluster can notice that.

    Watchers need not either: whose next write comes before its next read hides what was forgotten.
    """
    await cluster.settled()
    for daemon in cluster:
        daemon.kill()
        copy_store(daemon.data_dir, cluster.directory / "backup" / daemon.data_dir.name)
    cluster.start()
    await cluster.settled()
    async with Load(cluster) as load:
        await load.progress(200)
        for daemon in cluster:
            daemon.kill()
            shutil.rmtree(daemon.data_dir)
            copy_store(cluster.directory / "backup" / daemon.data_dir.name, daemon.data_dir)
        cluster.start()
        await load.progress()
    problems = "\n".join(await load.problems())
    assert "and may be" in problems, "keepers"
    assert "no order of these operations" in problems, "contenders"
