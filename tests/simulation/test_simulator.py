from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation import directed
from tests.simulation.__main__ import main
from tests.simulation.broken import a_founding_is_adopted_twice, sessions_expire_by_the_local_clock
from tests.simulation.world import World


@pytest.mark.parametrize("scenario", directed.ALL, ids=lambda scenario: scenario.__name__)
def test_the_circumstances_that_bugs_need_do_no_harm_to_the_real_code(scenario: directed.Directed):
    for seed in range(2):
        World(seed, scenario=scenario(seed)).run()


def test_runs_meet_what_they_are_for():
    met: Counter[str] = Counter()
    for seed in range(2000, 2040):
        world = World(seed)
        world.run()
        met += world.met

    rare = [
        "Gap",
        "a new server under an old name",
        "a snapshot installed",
        "a write after its deadline",
        "no room",
        "a taken id",
        "put: conflict",
        "put: refused",
        "rotate: done",
        "read: absent",
    ]
    assert {what: met[what] for what in rare if met[what] < 3} == {}
    assert met["an election"] > 60
    assert met["a barrier passed"] > 400


def test_a_seed_replays_exactly_in_every_process():
    traces = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seed", "11", "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        traces.append(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    assert len(traces[0].splitlines()) > 50
    assert traces[0] == traces[1]


def test_the_command_line_names_the_seeds_that_fail(capsys: pytest.CaptureFixture[str]):
    with sessions_expire_by_the_local_clock():
        exit_code = main(["--seeds", "3", "--start", "4", "--jobs", "1"])

    assert exit_code == 1
    assert "3 failed\nfailing seeds: 4, 5, 6\n" in capsys.readouterr().out


def test_a_healthy_seed_ends_well(capsys: pytest.CaptureFixture[str]):
    assert main(["--seed", "4"]) == 0
    assert "seed 4: nothing wrong" in capsys.readouterr().out


def test_a_failing_run_is_reduced_to_the_faults_that_it_needs(capsys: pytest.CaptureFixture[str]):
    with sessions_expire_by_the_local_clock():
        exit_code = main(["--seed", "7", "--minimise"])

    # It needs none of them.
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault ")]
    assert exit_code == 1
    assert faults
    assert all("(left out)" in line for line in faults)


def test_what_was_planted_is_gone_afterwards():
    with a_founding_is_adopted_twice(), pytest.raises(AssertionError, match="adopted two clusters"):
        World(0, scenario=directed.competing_founders(0)).run()

    World(0, scenario=directed.competing_founders(0)).run()
