"""`hotspare members`: who belongs to the cluster, as one node knows it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from hotspare.cli.exits import Exit
from hotspare.cli.output import console, print_json
from hotspare.cli.status import ROLE_STYLES
from hotspare.replicator import AsyncSessionReplicator

__all__ = ["show"]

VOTING = ("primary", "secondary")


async def show(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    status = await replicator.get_replication_status()
    members = [_member(each) for each in [status | {"reachable": True}, *status["replica_nodes"]]]
    members.sort(key=lambda member: (member["role"] == "observer", member["node"]))
    if options.json:
        print_json(members)
    else:
        _print_table(members)
    return Exit.DONE


def _member(status: dict[str, Any]) -> dict[str, Any]:
    kept = {key: status[key] for key in ("node", "address", "role", "reachable")}
    return kept | {"votes": status["role"] in VOTING, "lag_entries": status.get("lag_entries")}


def _print_table(members: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("node", "address", "role", "votes", "reachable"):
        table.add_column(heading, no_wrap=True)
    table.add_column("lag", justify="right", no_wrap=True)
    for each in members:
        table.add_row(
            Text(each["node"]),
            Text(each["address"]),
            Text(each["role"], ROLE_STYLES.get(each["role"], "")),
            "yes" if each["votes"] else "no",
            Text("yes") if each["reachable"] else Text("no", "bold red"),
            "" if each["lag_entries"] is None else str(each["lag_entries"]),
        )
    console().print(table)
