"""`hotspare events` on real daemons: what one node tells while another one dies."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.processes.daemons import PATIENCE_SECONDS, Daemon, Daemons

MINUTE_MS = 60_000


@asynccontextmanager
async def listening(node: Daemon, *options: str) -> AsyncIterator[Process]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOTSPARE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hotspare", "events", "--node", node.address, *options),
        stdout=PIPE,
        stderr=PIPE,
        env=environment,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.stderr.readline() == f"hotspare: listening to {node.name}\n".encode()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def next_line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        return (await process.stdout.readline()).decode()


async def test_what_happens_is_printed_as_it_happens(daemons: Daemons) -> None:
    daemons.add_cluster(3)
    daemons.start()
    await daemons.settled()
    primary = await daemons.primary()
    node = (await daemons.secondaries())[0]
    async with listening(node, "--json") as process, listening(node, "--count", "2") as counting:
        async with primary.client() as sessions:
            created = await sessions.store_session("a b", {}, MINUTE_MS)
            assert json.loads(await next_line(process)) == {
                "event": "created",
                "id": "a b",
                "version": created,
            }
            await sessions.delete_session("a b")
            assert json.loads(await next_line(process))["event"] == "deleted"
        assert await next_line(counting) == f"created  a b  version {created}\n"
        assert await next_line(counting) == f"deleted  a b  version {created}\n"
        assert await counting.wait() == 0
        primary.kill()
        event: dict[str, Any] = {}
        while event.get("event") != "primary" or not event["primary"]:
            event = json.loads(await next_line(process))
        assert event["previous"] == primary.name
        assert event["primary"] in {daemon.name for daemon in daemons.running}
        assert event["recovery_time_ms"] >= 0
