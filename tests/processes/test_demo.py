"""`hotspare demo`, as a whole: it shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.processes.daemons import PATIENCE_SECONDS

SHARED_MEMORY = Path("/dev/shm")


def start(*options: str, **pipes: Any) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOTSPARE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "hotspare", "demo", "--sessions", "500", *options],
        text=True,
        env=inherited | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
        **pipes,
    )


def leftovers(demo: subprocess.Popen[str]) -> list[str]:
    """Directories of that demonstration, and processes whose command line names one."""
    mark = f"hotspare-demo-{demo.pid}-"
    directories = [str(path) for path in SHARED_MEMORY.glob(f"{mark}*")]
    return directories + [command for command in running_commands() if mark in command]


def running_commands() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            yield path.read_text(errors="replace")


@pytest.fixture
def demo():
    """Starts one, and does not let it outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*options: str, **pipes: Any) -> subprocess.Popen[str]:
        started.append(start(*options, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def test_the_demonstration_loses_nothing_and_leaves_nothing(demo):
    process = demo("--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["nothing_lost"] is True
    assert found["sessions"] == 500
    assert found["acknowledged_writes"] > 500
    assert found["new_primary"] not in ("", found["old_primary"])
    assert found["next_write_ms"] >= 0
    assert len(found["audits"]) == len(found["digests"]) == 4
    assert len(set(found["digests"].values())) == 1
    for audit in found["audits"].values():
        assert audit["checked"] > 500
        assert audit["lost"] == audit["different"] == audit["unexpected"] == 0
    # What happened, as lines: nobody watches.
    assert "is dead" in err
    assert f"{found['new_primary']} has taken over" in err
    assert "\x1b" not in err
    assert leftovers(process) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_leaves_nothing(demo, number):
    process = demo("--plain", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert "have founded a cluster" in process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert leftovers(process) == []


def test_on_a_terminal_it_draws_a_picture_and_gives_the_cursor_back(demo):
    ours, theirs = pty.openpty()
    process = demo(stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = read_until(ours, "have founded a cluster")
    assert "● primary" in drawn
    assert "\x1b[?25l" in drawn  # the cursor is hidden
    process.send_signal(signal.SIGINT)
    assert "\x1b[?25h" in read_until(ours, "\x1b[?25h")
    assert process.wait(PATIENCE_SECONDS) == 130
    os.close(ours)
    assert leftovers(process) == []


def read_until(terminal: int, awaited: str) -> str:
    """What is drawn there, up to the awaited text."""
    drawn = ""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while awaited not in drawn:
        readable, _, _ = select.select([terminal], [], [], max(0.0, give_up - time.monotonic()))
        assert readable, f"{awaited!r} was never drawn, only {drawn!r}"
        drawn += os.read(terminal, 65_536).decode(errors="replace")
    return drawn
