"""Cluster time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotspare.protocol.clock import ClusterClock

HOUR_MS = 3_600_000
T_MS = 1_700_000_000_000
"""About now, in UNIX time."""


def test_a_clock_that_nobody_has_set_stands_still():
    clock = ClusterClock()

    assert not clock.known
    assert clock.read_ms(0) == clock.read_ms(HOUR_MS) == 0


def test_a_stamp_that_was_applied_is_the_least_it_can_be():
    clock = ClusterClock()

    clock.at_least(T_MS)

    assert not clock.known
    assert clock.read_ms(0) == clock.read_ms(HOUR_MS) == T_MS


def test_what_the_leader_says_goes_on_by_the_local_clock():
    clock = ClusterClock()

    clock.heard(T_MS, boot_ms=500)

    assert clock.known
    assert clock.read_ms(500) == T_MS
    assert clock.read_ms(750) == T_MS + 250


def test_a_leader_that_is_behind_makes_the_clock_wait_for_it_and_never_turns_it_back():
    clock = ClusterClock()
    clock.heard(T_MS + 100, boot_ms=0)

    clock.heard(T_MS, boot_ms=10)

    assert clock.read_ms(10) == T_MS + 110
    assert clock.read_ms(100) == T_MS + 110
    assert clock.read_ms(121) == T_MS + 111


def test_a_leader_that_is_ahead_is_followed_at_once():
    clock = ClusterClock()
    clock.heard(T_MS, boot_ms=0)

    clock.heard(T_MS + 400, boot_ms=10)

    assert clock.read_ms(10) == T_MS + 400


def test_a_stamp_ahead_of_the_clock_holds_it_until_it_has_come():
    clock = ClusterClock()
    clock.heard(T_MS, boot_ms=0)

    clock.at_least(T_MS + 50)
    clock.at_least(T_MS + 20)

    assert clock.read_ms(0) == clock.read_ms(50) == T_MS + 50
    assert clock.read_ms(51) == T_MS + 51


@pytest.mark.parametrize(
    ("walls", "start"),
    [
        ([T_MS], T_MS),
        ([T_MS + HOUR_MS, T_MS], T_MS),
        ([T_MS + HOUR_MS, T_MS, T_MS + 3], T_MS + 3),
        ([T_MS - HOUR_MS, T_MS, T_MS + 3], T_MS),
        ([T_MS + HOUR_MS, T_MS, T_MS + 3, T_MS + 5], T_MS + 3),
    ],
)
def test_one_broken_clock_does_not_rule_a_new_leader(walls: list[int], start: int):
    clock = ClusterClock()

    clock.lead(0, 0, walls, [])

    assert clock.read_ms(0) == start
    assert clock.read_ms(25) == start + 25


@pytest.mark.parametrize("source", ["last stamp", "its own reading", "an estimate among the votes"])
def test_a_new_leader_starts_no_earlier_than_any_time_known_before(source: str):
    clock = ClusterClock()
    later = T_MS + HOUR_MS
    if source == "its own reading":
        clock.heard(later, boot_ms=0)

    clock.lead(
        0,
        later if source == "last stamp" else 0,
        [T_MS, T_MS, T_MS],
        [later] if source == "an estimate among the votes" else [],
    )

    assert clock.read_ms(0) == later


@given(
    st.lists(
        st.tuples(
            st.integers(0, 100),
            st.sampled_from(["heard", "at_least", "lead", "read"]),
            st.integers(T_MS - 1000, T_MS + 1000),
        )
    )
)
def test_readings_never_decrease(steps: list[tuple[int, str, int]]):
    clock = ClusterClock()
    boot_ms = last = 0
    for passed_ms, step, time_ms in steps:
        boot_ms += passed_ms
        before = clock.read_ms(boot_ms)
        if step == "heard":
            clock.heard(time_ms, boot_ms)
        elif step == "at_least":
            clock.at_least(time_ms)
        elif step == "lead":
            clock.lead(boot_ms, 0, [time_ms], [])
        reading = clock.read_ms(boot_ms)
        assert reading >= before >= last
        last = reading
