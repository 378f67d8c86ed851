from __future__ import annotations

import pytest

from tests.simulation.world import run_seed

SEEDS = 1000
SEEDS_PER_TEST = 25


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_clusters_keep_their_promises_whatever_goes_wrong(first: int):
    failed = [outcome for seed in range(first, first + SEEDS_PER_TEST) if (outcome := run_seed(seed)).failure]

    again = "\n".join(f"python -m tests.simulation --seed {seed} --trace\n{text}" for seed, text in failed)
    assert not failed, again
