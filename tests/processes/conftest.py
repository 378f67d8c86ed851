"""Every test gets daemons of its own; when one fails, what they logged stands in its report.

`TEST_ROUNDS=10 pytest tests/processes` repeats every fault ten times as often.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes.daemons import Daemons

ROUNDS = int(os.environ.get("TEST_ROUNDS", "1"))
TIMEOUT_SECONDS = 120
"""Of a test with one round."""

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
    """What to multiply the number of faults with."""
    return ROUNDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS * ROUNDS))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long failovers took; not shown when several processes run the tests."""
    for name in ("failover_ms",):
        reports = terminalreporter.getreports("passed")
        values = [value for report in reports for key, value in report.user_properties if key == name]
        if values:
            terminalreporter.write_line(
                f"{name}: median {statistics.median(values):.0f}, max {max(values):.0f} of {len(values)}"
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    daemons = item.stash.get(_daemons, None)
    if report.failed and daemons is not None:
        for daemon in daemons:
            report.sections.append((f"log of {daemon.name}", daemon.last_words(200)))
    return report
