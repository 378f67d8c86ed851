"""`hotspare failovers`: when the primary changed, as one node saw it."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime
from typing import Any

from hotspare.cli.exits import Exit
from hotspare.cli.output import console, print_json, thousands
from hotspare.replicator import AsyncSessionReplicator

__all__ = ["show"]


async def show(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    status = await replicator.get_replication_status()
    if options.json:
        print_json(status["failovers"])
    elif status["failovers"]:
        _print_table(status["failovers"])
    else:
        print(f"{status['node']} has seen no failover since it started")
    return Exit.DONE


def _print_table(records: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("when", "why", "from", "to"):
        table.add_column(heading, no_wrap=True)
    for heading in ("without primary", "term"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in records:
        when = datetime.fromtimestamp(each["at_ms"] / 1000, UTC)
        table.add_row(
            when.isoformat(sep=" ", timespec="milliseconds"),
            Text(each["why"]),
            Text(each["from"]),
            Text(each["to"]),
            f"{thousands(each['without_primary_ms'])} ms",
            str(each["term"]),
        )
    console().print(table)
