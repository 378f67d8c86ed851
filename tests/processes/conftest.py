"""Every test gets daemons of its own; when one fails, what they logged stands in its report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes.daemons import Daemons

ROUNDS = int(os.environ.get("TEST_ROUNDS", "1"))
"""How often every fault is repeated, as a multiple of what `make test` does."""

_daemons = pytest.StashKey[Daemons]()


@pytest.fixture
def daemons(request: pytest.FixtureRequest) -> Iterator[Daemons]:
    """None yet: the test adds and starts them."""
    with Daemons() as daemons:
        request.node.stash[_daemons] = daemons
        yield daemons


@pytest.fixture
def cluster(daemons: Daemons) -> Daemons:
    """Four nodes that were just started: they are about to found a cluster."""
    daemons.add_cluster()
    daemons.start()
    return daemons


@pytest.fixture
def rounds() -> int:
    return ROUNDS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    daemons = item.stash.get(_daemons, None)
    if report.failed and daemons is not None:
        for daemon in daemons:
            report.sections.append((f"log of {daemon.name}", daemon.last_words(200)))
    return report
