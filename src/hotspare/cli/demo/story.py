"""The choreography: fill four nodes, kill the primary under load, bring it back, count what was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from rich.text import Text

from hotspare.cli.client import connect_with
from hotspare.cli.demo.daemons import Daemons
from hotspare.cli.demo.ledger import Audit, Ledger
from hotspare.cli.demo.monitor import Monitor, View
from hotspare.cli.demo.stage import Pulse, Stage, strip
from hotspare.cli.demo.writers import Writers, store_many
from hotspare.cli.output import thousands
from hotspare.record import decode_record, verify_record
from hotspare.replicator import AsyncSessionReplicator
from hotspare.settings import Settings

__all__ = ["DemoFailed", "Findings", "tell"]

TIMEOUT_MS = 5000
PATIENCE_SECONDS = 15.0
"""For each thing that has to happen."""
POLL_SECONDS = 0.003

CALM_SECONDS = 2.5
"""The load before the kill."""
OUTAGE_SECONDS = 3.0
"""How long the node stays dead."""
REUNION_SECONDS = 1.5
"""The load after it is back."""
LOOK_SECONDS = 1.0

STEP_SECONDS = 0.02
STEPS_BEFORE = 10
STEPS_AFTER = 25
"""Of the strip that shows the outage from close up."""

PAGE = 1000


class DemoFailed(Exception):
    """Something that had to happen did not, in time."""


@dataclass
class Findings:
    """What the demonstration showed. Durations in ms."""

    sessions: int = 0
    acknowledged_writes: int = 0
    refused_writes: int = 0
    unknown_writes: int = 0
    old_primary: str = ""
    new_primary: str = ""
    next_write_ms: int = 0
    """From the SIGKILL until the first write begun after it was acknowledged."""
    catch_up_entries: int = 0
    catch_up_ms: int = 0
    """From the start of the dead node until it had what it had missed."""
    digests: dict[str, str] = field(default_factory=dict)
    audits: dict[str, Audit] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        return all(audit.is_clean for audit in self.audits.values()) and len(set(self.digests.values())) == 1


async def tell(daemons: Daemons, monitor: Monitor, stage: Stage, sessions: int) -> Findings:
    """Raises DemoFailed or HotspareError."""
    return await _Story(daemons, monitor, stage, sessions).tell()


class _Story:
    def __init__(self, daemons: Daemons, monitor: Monitor, stage: Stage, sessions: int) -> None:
        self._daemons = daemons
        self._monitor = monitor
        self._stage = stage
        self._sessions = sessions
        self._ledger = Ledger()
        self._findings = Findings()

    async def tell(self) -> Findings:
        await self._gather()
        await self._fill()
        await self._agree("all four copies are equal")
        first = await self._primary()
        writers = await self._begin_load([view.node for view in self._monitor.views if view is not first])
        try:
            await asyncio.sleep(CALM_SECONDS)
            self._monitor.stare()
            await asyncio.sleep(LOOK_SECONDS)
            primary = await self._primary()
            await self._kill(primary, writers)
            await asyncio.sleep(OUTAGE_SECONDS)
            await self._bring_back(primary)
            await asyncio.sleep(REUNION_SECONDS)
        finally:
            await writers.stop()
        self._conclude_load(writers)
        await self._agree("all four copies are equal again")
        await self._verify()
        return self._findings

    async def _gather(self) -> None:
        self._stage.doing("starting four nodes …")
        self._daemons.start()
        views = self._monitor.views
        await self._until("the four nodes form a cluster", lambda: all(view.is_ready for view in views))
        self._stage.say(f"four nodes have founded a cluster; {(await self._primary()).node} is primary")
        await self._stage.pause(LOOK_SECONDS)

    async def _fill(self) -> None:
        self._stage.doing(f"storing {thousands(self._sessions)} sessions …")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._stage.progress(done, self._sessions)

        began = monotonic()
        async with connect_to([view.node for view in self._monitor.views]) as replicator:
            await store_many(replicator, self._ledger, self._sessions, advance)
        seconds = monotonic() - began
        rate = thousands(self._sessions / seconds)
        self._stage.say(f"{thousands(self._sessions)} sessions stored in {seconds:.1f} s, {rate} a second")

    async def _agree(self, message: str) -> None:
        self._stage.doing("comparing the copies …")
        await self._until("all copies are equal", lambda: self._monitor.are_equal)
        digest = self._monitor.views[0].digest
        self._stage.say(f"{message}: digest {digest}", "green")
        self._findings.digests = {view.node: view.digest for view in self._monitor.views}
        await self._stage.pause(LOOK_SECONDS)

    async def _begin_load(self, nodes: Sequence[str]) -> Writers:
        pulse = self._stage.pulse = Pulse()
        writers = Writers(connect_to, nodes, self._ledger, pulse.beat)
        await writers.start()
        self._stage.doing("writing through the three secondaries, without a pause …")
        self._stage.say("eight writers begin to write through the three secondaries")
        return writers

    async def _kill(self, primary: View, writers: Writers) -> None:
        term = primary.status["term"] if primary.status is not None else 0
        next_acknowledged = writers.next_acknowledged()
        killed = monotonic()
        primary.daemon.kill()
        self._findings.old_primary = primary.node
        self._stage.say(f"kill -9 {primary.daemon.pid}: the primary {primary.node} is dead", "bold red")

        def successor() -> View | None:
            found = self._monitor.primary
            return found if found is not None and found.status and found.status["term"] > term else None

        await self._until("a secondary takes over", lambda: successor() is not None)
        new = successor()
        assert new is not None
        self._findings.new_primary = new.node
        self._stage.say(f"{new.node} has taken over", "bold green")
        await self._until("a write is acknowledged", next_acknowledged.done)
        self._findings.next_write_ms = round((next_acknowledged.result() - killed) * 1000)
        self._stage.say(
            f"the next write was acknowledged {self._findings.next_write_ms} ms after the kill", "bold green"
        )
        self._monitor.relax()
        self._stage.doing("writing through the three survivors, without a pause …")
        await self._until("there is more to see", lambda: monotonic() > killed + STEPS_AFTER * STEP_SECONDS)
        self._show_outage(killed)

    def _show_outage(self, killed: float) -> None:
        assert self._stage.pulse is not None
        began = killed - STEPS_BEFORE * STEP_SECONDS
        counts = self._stage.pulse.counts(began, STEP_SECONDS, STEPS_BEFORE + STEPS_AFTER)
        before, after = counts[:STEPS_BEFORE], counts[STEPS_BEFORE:]
        self._stage.say(
            Text.assemble(
                "writes per 20 ms: ",
                strip(before, max(counts)),
                (" kill -9 ", "bold red"),
                strip(after, max(counts)),
            )
        )

    async def _bring_back(self, view: View) -> None:
        self._monitor.stare()
        target = max(each.applied_index for each in self._monitor.views)
        began = monotonic()
        view.daemon.start()
        self._stage.say(f"{view.node} is started again, with the same command")
        await self._until("it answers", lambda: view.status is not None)
        missed = max(0, target - view.applied_index)
        await self._until("it has caught up", lambda: view.is_ready and view.applied_index >= target)
        self._findings.catch_up_ms = _ms_since(began)
        self._findings.catch_up_entries = missed
        self._stage.say(
            f"{view.node} is back after {self._findings.catch_up_ms} ms, and has what it missed", "green"
        )
        self._monitor.relax()
        self._stage.doing("writing through the three others, without a pause …")

    def _conclude_load(self, writers: Writers) -> None:
        self._stage.pulse = None
        self._findings.sessions = self._sessions
        self._findings.acknowledged_writes = self._ledger.acknowledged
        self._findings.refused_writes = writers.refused
        self._findings.unknown_writes = writers.unknown
        failed = writers.refused + writers.unknown
        outcome = "none failed" if not failed else f"{failed} failed"
        self._stage.say(
            f"the load ends: {thousands(self._ledger.acknowledged)} writes acknowledged, {outcome}"
        )

    async def _verify(self) -> None:
        self._stage.doing("comparing every acknowledged write with every copy …")
        nodes = [view.node for view in self._monitor.views]
        audits = await asyncio.gather(*(self._audit(node) for node in nodes))
        self._findings.audits = dict(zip(nodes, audits, strict=True))
        if self._findings.is_clean:
            checked = thousands(audits[0].checked)
            self._stage.say(f"{checked} sessions compared on each node: nothing is lost", "bold green")
        else:
            self._stage.say("acknowledged writes are missing or different", "bold red")

    async def _audit(self, node: str) -> Audit:
        return self._ledger.audit(await read_copy(node))

    async def _primary(self) -> View:
        await self._until("there is a primary", lambda: self._monitor.primary is not None)
        primary = self._monitor.primary
        assert primary is not None
        return primary

    async def _until(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = monotonic() + PATIENCE_SECONDS
        while not is_so():
            if monotonic() > deadline:
                raise DemoFailed(
                    f"after {PATIENCE_SECONDS:.0f} s still waiting until {what}\n{self._last_words()}"
                )
            await asyncio.sleep(POLL_SECONDS)

    def _last_words(self) -> str:
        return "\n".join(
            f"{name} said last:\n{daemon.last_words()}" for name, daemon in self._daemons.by_name.items()
        )


def connect_to(nodes: Sequence[str]) -> AsyncSessionReplicator:
    return connect_with(Settings(replication_rpc_timeout_ms=TIMEOUT_MS), nodes)


async def read_copy(node: str) -> dict[str, dict[str, Any]]:
    """All sessions in the copy of one node."""
    copy: dict[str, dict[str, Any]] = {}
    after = b""
    async with connect_to([node]) as replicator:
        while page := await replicator.engine.call("records", TIMEOUT_MS, after=after, limit=PAGE):
            for id, record in page:
                verify_record(id, record)
                copy[id.decode()] = decode_record(record)
                after = id
            await asyncio.sleep(0)
    return copy


def _ms_since(began: float) -> int:
    return round((monotonic() - began) * 1000)
