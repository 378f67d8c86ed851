from __future__ import annotations

import pytest

from tests.simulation.broken import BUGS, Bug
from tests.simulation.world import World


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_known_bug_is_caught(bug: Bug):
    """Within the number of seeds that stands beside it in `broken`."""
    with bug.plant():
        assert any(fails(seed, bug) for seed in range(bug.within)), f"not within {bug.within} seeds"


def fails(seed: int, bug: Bug) -> bool:
    try:
        World(seed, scenario=bug.scenario(seed) if bug.scenario else None).run()
    except Exception:
        return True
    return False
