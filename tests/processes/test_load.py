"""The load test at toy size, so that it cannot rot: full size is `make load`."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.load.__main__ import CASES, run, show


@pytest.mark.timeout(180)
async def test_every_case_of_the_load_test_leaves_four_equal_copies():
    output = io.StringIO()
    console = Console(file=output, width=200)
    findings = await run(1000, console)
    show(findings, console)
    assert [each.verdict for each in findings] == ["as it should be"] * len(CASES)
    assert all(each.operations > 0 for each in findings)
    assert output.getvalue().count("as it should be") == len(CASES)
