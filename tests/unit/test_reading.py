"""Local reads: under a lease only, and judged by the clock after the record was read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hotspare.cluster.reading import LocalReads
from hotspare.errors import HotspareError, NotReady, StaleRead
from hotspare.protocol.clock import ClusterClock
from hotspare.record import pack_record
from hotspare.replica import Now
from hotspare.store.plain import PlainStore

T_MS = 50_000
"""Some time, of the local clock."""
CLUSTER_MS = 1_800_000_000_000
LIMIT_MS = 1000
SKEW_MS = 500
SERVER = "a server"


class Clock:
    """Stands still, unless a test moves it."""

    def __init__(self) -> None:
        self.now_ms = float(T_MS)

    def __call__(self, which: int) -> float:
        return self.now_ms / 1000


class HoldingUp(PlainStore):
    """While it looks up a record, something else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] = lambda: None
        look_up = self.get

        def get(id: bytes) -> bytes | None:
            record = look_up(id)
            self.meanwhile()
            return record

        self.get = get


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("hotspare.cluster.reading._clock_gettime", clock)
    return clock


@pytest.fixture
def store() -> HoldingUp:
    store = HoldingUp()
    transaction = store.begin()
    transaction.sessions[b"s1"] = record(CLUSTER_MS + 60_000)
    transaction.commit()
    return store


def record(expires_at_ms: int) -> bytes:
    return pack_record(1, expires_at_ms, 0, 0, b"\x80")


@pytest.fixture
def reads(clock: Clock, store: HoldingUp) -> LocalReads:
    def not_fresh(overdue_ms: int | None) -> HotspareError:
        return NotReady("none") if overdue_ms is None else StaleRead(LIMIT_MS + overdue_ms, LIMIT_MS)

    return LocalReads(store, not_fresh, SKEW_MS)


def told() -> ClusterClock:
    clock = ClusterClock()
    clock.heard(CLUSTER_MS, T_MS)
    return clock


def test_the_lease_is_checked_after_the_record_was_read(reads: LocalReads, clock: Clock, store: HoldingUp):
    """A reader may be held up for any time in between: what it holds then is not to be answered."""
    reads.publish(T_MS + 10, told(), T_MS, SERVER)
    assert reads.read(b"s1") is not None

    def be_held_up() -> None:
        clock.now_ms = T_MS + 11.0

    store.meanwhile = be_held_up

    with pytest.raises(StaleRead):
        reads.read(b"s1")
    clock.now_ms = T_MS
    with pytest.raises(StaleRead):
        reads.read(b"absent")


def test_a_renewal_meanwhile_does_not_save_a_reader_that_was_held_up(
    reads: LocalReads, clock: Clock, store: HoldingUp
):
    """It may have looked the record up before what the renewed lease promises was applied."""
    reads.publish(T_MS + 10, told(), T_MS, SERVER)

    def be_held_up() -> None:
        clock.now_ms = T_MS + 11.0
        reads.publish(T_MS + LIMIT_MS, told(), T_MS + 11, SERVER)

    store.meanwhile = be_held_up

    with pytest.raises(StaleRead):
        reads.read(b"s1")


def test_the_last_moment_of_a_lease_belongs_to_it(reads: LocalReads, clock: Clock):
    reads.publish(T_MS + 10, told(), T_MS, SERVER)

    clock.now_ms = T_MS + 10.0
    assert reads.read(b"s1") is not None
    clock.now_ms = T_MS + 10.2
    with pytest.raises(StaleRead) as caught:
        reads.read(b"s1")

    assert caught.value.staleness_ms > caught.value.limit_ms


@pytest.mark.parametrize("late_ms", [0.001, 0.5, 1, 1.5, 70_000])
def test_an_error_never_tells_an_age_that_would_have_been_allowed(
    reads: LocalReads, clock: Clock, late_ms: float
):
    reads.publish(T_MS, told(), T_MS, SERVER)
    clock.now_ms = T_MS + late_ms

    with pytest.raises(StaleRead) as caught:
        reads.read(b"s1")

    assert caught.value.staleness_ms >= LIMIT_MS + late_ms
    assert caught.value.staleness_ms > LIMIT_MS


def test_without_a_lease_nothing_is_answered(reads: LocalReads):
    with pytest.raises(NotReady):
        reads.read(b"s1")
    reads.publish(T_MS + 10, told(), T_MS, SERVER)

    reads.close()

    with pytest.raises(NotReady):
        reads.read(b"s1")
    with pytest.raises(NotReady):
        reads.check_fresh(T_MS)


@pytest.mark.parametrize("age_ms", [4.0, 4.9, 5.0, 6.0])
def test_a_session_expires_as_time_passes_and_nobody_says_anything(
    reads: LocalReads, clock: Clock, store: HoldingUp, age_ms: float
):
    transaction = store.begin()
    transaction.sessions[b"s1"] = record(CLUSTER_MS + 5)
    transaction.commit()
    reads.publish(T_MS + LIMIT_MS, told(), T_MS, SERVER)

    clock.now_ms = T_MS + age_ms

    assert (reads.read(b"s1") is None) == (age_ms >= 5)


@pytest.mark.parametrize("stamp_ms", [59_999, 60_000])
def test_what_expired_by_a_stamp_that_was_applied_is_not_read(reads: LocalReads, stamp_ms: int):
    """The clock of this host may be behind the leader's."""
    cluster_clock = told()
    cluster_clock.at_least(CLUSTER_MS + stamp_ms)
    reads.publish(T_MS + LIMIT_MS, cluster_clock, T_MS, SERVER)

    assert (reads.read(b"s1") is None) == (stamp_ms >= 60_000)


# However old


def test_a_stale_read_answers_without_a_lease(reads: LocalReads):
    reads.publish(-1, told(), T_MS, SERVER)

    assert reads.read_any_age(b"s1", Now(T_MS, CLUSTER_MS)) is not None
    assert reads.read_any_age(b"absent", Now(T_MS, CLUSTER_MS)) is None
    assert reads.read_any_age(b"s1", Now(T_MS + 60_000, CLUSTER_MS)) is None


def test_a_node_that_has_not_heard_the_time_shows_nothing_that_may_have_expired(reads: LocalReads):
    """It was started again, and the others cannot be reached."""
    clock = ClusterClock()
    clock.at_least(CLUSTER_MS - 5_000)
    reads.publish(-1, clock, T_MS, SERVER)
    alive_until_ms = CLUSTER_MS + 60_000

    assert reads.read_any_age(b"s1", Now(T_MS, alive_until_ms - SKEW_MS - 1)) is not None
    for wall_ms in (alive_until_ms - SKEW_MS, alive_until_ms + 9_000_000):
        with pytest.raises(NotReady):  # its clock may be wrong, so the session is not called absent
            reads.read_any_age(b"s1", Now(T_MS, wall_ms))
    assert reads.read_any_age(b"absent", Now(T_MS, alive_until_ms)) is None


def test_what_expired_by_the_last_stamp_is_gone_whatever_the_clocks_say(reads: LocalReads):
    clock = ClusterClock()
    clock.at_least(CLUSTER_MS + 60_000)
    reads.publish(-1, clock, T_MS, SERVER)

    assert reads.read_any_age(b"s1", Now(T_MS, 0)) is None
