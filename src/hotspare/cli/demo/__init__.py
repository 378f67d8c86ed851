"""`hotspare demo`: the promise of the project, kept in front of your eyes."""

from __future__ import annotations

import asyncio
import signal
from argparse import Namespace
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotspare.cli.demo.daemons import Daemons
from hotspare.cli.demo.monitor import Monitor
from hotspare.cli.demo.stage import open_stage
from hotspare.cli.demo.story import DemoFailed, Findings, connect_to, tell
from hotspare.cli.exits import Exit
from hotspare.cli.output import console, print_json, say, thousands

__all__ = ["demo"]

NODES = 4


def demo(options: Namespace) -> int:
    try:
        findings = asyncio.run(_run(options))
    except DemoFailed as exc:
        say(f"hotspare: the demonstration failed: {exc}")
        return Exit.FAILED
    except asyncio.CancelledError:
        return Exit.INTERRUPTED
    if options.json:
        print_json(asdict(findings) | {"nothing_lost": findings.is_clean})
    else:
        _print_result(console(), findings)
    return Exit.DONE if findings.is_clean else Exit.NO


async def _run(options: Namespace) -> Findings:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        # So that what was started is ended, whoever ends us.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    out = console(stderr=options.json)
    with Daemons(NODES) as daemons:
        async with (
            Monitor(list(daemons.by_name.values()), connect_to) as monitor,
            open_stage(out, monitor.views, plain=options.plain) as stage,
        ):
            return await tell(daemons, monitor, stage, options.sessions)


def _print_result(out: Console, findings: Findings) -> None:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("node", "sessions compared", "lost", "different", "unexpected"):
        table.add_column(heading, justify="left" if heading == "node" else "right")
    for node, audit in findings.audits.items():
        bad = "green" if audit.is_clean else "bold red"
        numbers = (audit.lost, audit.different, audit.unexpected)
        table.add_row(
            Text(node), thousands(audit.checked), *(Text(thousands(number), bad) for number in numbers)
        )
    out.print()
    out.print(table)
    out.print()
    out.print(_facts(findings))


def _facts(findings: Findings) -> Table:
    lost = sum(audit.lost + audit.different for audit in findings.audits.values())
    failed = findings.refused_writes + findings.unknown_writes
    facts = Table.grid(padding=(0, 3))
    facts.add_row(
        "acknowledged writes",
        Text.assemble(
            f"{thousands(findings.acknowledged_writes)}, of which ",
            (f"{thousands(lost)} are lost", "bold green" if findings.is_clean else "bold red"),
            f"; {thousands(failed)} others failed" if failed else "",
        ),
    )
    facts.add_row("kill -9", Text(f"{findings.old_primary}; {findings.new_primary} took over"))
    facts.add_row("next write", Text(f"acknowledged {findings.next_write_ms} ms after the kill", "bold"))
    facts.add_row("back again", Text(f"{findings.catch_up_ms} ms from its start until it had what it missed"))
    return facts
