"""The shop among the examples under a real pre-fork server: four workers, one of them logs somebody in."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.processes.daemons import PATIENCE_SECONDS, Daemon, Daemons, free_addresses
from tests.processes.test_run import Agent

EXAMPLES = Path(__file__).parents[2] / "examples"
WORKERS = 4


def gunicorn(address: str, *options: str) -> list[str]:
    where = [
        "--chdir",
        str(EXAMPLES),
        "--bind",
        address,
        "--workers",
        str(WORKERS),
        "--graceful-timeout",
        "5",
    ]
    return [sys.executable, "-m", "gunicorn", *where, *options, "shop:app"]


class Browser:
    """Asks over a new connection each time, so that any worker may answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.cookie = ""

    def ask(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        host, _, port = self.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        try:
            connection.request(method, path, headers={"Cookie": self.cookie} if self.cookie else {})
            response = connection.getresponse()
            if found := response.getheader("Set-Cookie"):
                self.cookie = found.partition(";")[0]
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def soon(self, condition: Callable[[int, dict[str, Any]], Any], path: str = "/") -> Any:
        give_up = time.monotonic() + PATIENCE_SECONDS
        last: Any = None
        while time.monotonic() < give_up:
            with suppress(ConnectionError):
                last = self.ask("GET", path)
                if condition(*last):
                    return last[1]
            time.sleep(0.02)
        raise AssertionError(f"never came true, last: {last}")

    def workers_that_know(self, user: str, count: int = WORKERS) -> set[int]:
        """The workers that answer, as soon as there are so many; each knows the user."""
        seen: set[int] = set()

        def is_known(status: int, body: dict[str, Any]) -> bool:
            assert (status, body.get("user")) == (200, user)
            seen.add(body["worker"])
            return len(seen) >= count

        # Several at once, or else the same worker may always be the quickest.
        threads = [threading.Thread(target=self._bother, args=(seen, count)) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        try:
            self.soon(is_known)
        finally:
            for thread in threads:
                thread.join()
        return seen

    def _bother(self, seen: set[int], count: int) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while len(seen) < count and time.monotonic() < give_up:
            with suppress(ConnectionError):
                self.ask("GET", "/")


@contextmanager
def serving(daemon: Daemon, *options: str) -> Iterator[Browser]:
    (address,) = free_addresses(1)
    environment = os.environ | {"HOTSPARE_ATTACH": daemon.address}
    with (
        daemon.log.with_name("gunicorn.log").open("w") as log,
    ):
        process = subprocess.Popen(
            gunicorn(address, *options), env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            browser = Browser(address)
            browser.soon(lambda status, body: status == 401)
            yield browser
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("options", [("--preload",), ()], ids=["started before the fork", "after the fork"])
async def test_whoever_logs_in_on_one_worker_is_known_to_all(
    cluster: Daemons, options: tuple[str, ...]
) -> None:
    await cluster.settled()
    primary = await cluster.primary()
    beside = (await cluster.secondaries())[0]

    def work() -> None:
        with serving(beside, *options) as browser:
            assert browser.ask("POST", "/login?user=alice")[0] == 200
            workers = browser.workers_that_know("alice")
            # The cluster's primary dies: readers do not notice, and writers wait for the next one.
            primary.kill()
            assert browser.workers_that_know("alice") == workers
            for n in range(10):
                status, body = browser.ask("POST", f"/cart?add=tea{n}")
                assert (status, len(body["cart"])) == (200, n + 1)
            # A worker dies: the one that takes its place knows everything.
            os.kill(min(workers), signal.SIGKILL)
            successors = browser.workers_that_know("alice")
            assert min(workers) not in successors
            # On logout, alice is gone from all of them.
            assert browser.ask("POST", "/logout")[0] == 200
            for _ in range(20):
                assert browser.ask("GET", "/")[0] == 401

    await asyncio.to_thread(work)


async def test_while_the_daemon_is_started_again_nobody_is_logged_out(cluster: Daemons) -> None:
    await cluster.settled()
    beside = (await cluster.secondaries())[0]

    def work() -> None:
        with serving(beside, "--preload") as browser:
            assert browser.ask("POST", "/login?user=alice")[0] == 200
            answers: set[int] = set()
            ends = threading.Event()

            def look() -> None:
                while not ends.is_set():
                    answers.add(browser.ask("GET", "/")[0])

            looking = [threading.Thread(target=look) for _ in range(WORKERS)]
            for thread in looking:
                thread.start()
            for _ in range(3):
                beside.kill()
                beside.start()
                browser.soon(lambda status, body: status == 200)
                assert browser.ask("POST", "/cart?add=tea")[0] in (200, 503)
            ends.set()
            for thread in looking:
                thread.join()
            assert answers <= {200, 503}, "known, or not known just now; never unknown"
            assert 200 in answers
            browser.workers_that_know("alice")

    await asyncio.to_thread(work)


async def test_the_shop_with_a_node_of_its_own(daemons: Daemons) -> None:
    """Of four: when the server ends, the node hands over and leaves, and what it knew is known elsewhere."""
    names = free_addresses(4)
    for name in names[:3]:
        daemons.add(name, "--replicas", ",".join(names))
    agent = Agent(names[3], daemons.directory, "--replicas", ",".join(names))
    daemons.by_name[agent.name] = agent
    (address,) = free_addresses(1)
    agent.arguments = tuple(gunicorn(address, "--preload"))
    daemons.start()

    def work() -> None:
        browser = Browser(address)
        browser.soon(lambda status, body: status == 401)
        assert browser.ask("POST", "/login?user=alice")[0] == 200
        browser.workers_that_know("alice")

    await asyncio.to_thread(work)
    assert await agent.stop() == 0
    async with daemons[0].client() as sessions:
        (id,) = await sessions.get_all_sessions()
        assert await sessions.get_session(id) == {"user": "alice", "cart": []}
