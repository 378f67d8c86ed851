"""For the simulator only."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def little_garbage() -> Iterator[None]:
    """A run makes many objects and few cycles: the collector need not look so often, nor at what the tests
    loaded before."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
