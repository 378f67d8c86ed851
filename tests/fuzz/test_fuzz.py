"""A short run of every target. A long one: `make fuzz FRAMES=1000000`."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

FRAMES_AT_A_TIME = 10


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    target = TARGETS[request.param]()
    yield target
    target.close()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_no_frame_makes_anybody_fall_over(target: Target, seed: int):
    rng = Random(seed)
    for _ in range(FRAMES_AT_A_TIME):
        target.feed(rng)


@pytest.mark.parametrize("seed", range(3))
def test_neither_do_many_of_them(target: Target, seed: int):
    rng = Random(seed)
    for _ in range(500):
        target.feed(rng)
