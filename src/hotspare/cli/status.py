"""`hotspare status`: every member in one table, each as it sees itself."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, TypeAlias

from hotspare.cli.arguments import security
from hotspare.cli.client import connect
from hotspare.cli.exits import Exit
from hotspare.cli.output import console, print_json, thousands
from hotspare.errors import HotspareError
from hotspare.replicator import AsyncSessionReplicator

__all__ = ["ROLE_STYLES", "ask_nodes", "copies", "show"]

PEER_TIMEOUT_MS = 1000
"""For the other members, each on its own: one that hangs must not hide the rest for long."""

SHOWN_DIGITS = 12
"""Of digests and cluster ids: enough to see whether they are equal."""

ROLE_STYLES = {
    "primary": "bold green",
    "secondary": "cyan",
    "observer": "blue",
    "learner": "yellow",
    "unfounded": "yellow",
    "removed": "red",
    "superseded": "red",
}

NO_COPY = ("unfounded", "removed", "superseded")
"""Roles of nodes whose copy counts for nothing."""

Status: TypeAlias = dict[str, Any]


async def show(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    asked = await replicator.get_replication_status()
    if options.ready:
        return _show_readiness(asked, options)
    nodes = await ask_nodes(asked, min(PEER_TIMEOUT_MS, options.timeout_ms), **security(options))
    if options.json:
        print_json(asked | {"nodes": nodes})
    else:
        _print_table(asked, nodes)
    return Exit.DONE


def _show_readiness(asked: Status, options: Namespace) -> Exit:
    if options.json:
        print_json({key: asked[key] for key in ("node", "ready", "role", "primary", "staleness_ms")})
    elif asked["ready"]:
        print(f"{asked['node']} is ready")
    else:
        print(f"{asked['node']} is not ready (it is {asked['role']}, {_staleness(asked)})")
    return Exit.DONE if asked["ready"] else Exit.NO


def _staleness(asked: Status) -> str:
    if asked["staleness_ms"] is None:
        return "and has not learned yet what is committed"
    return f"its copy {asked['staleness_ms']} ms old"


async def ask_nodes(asked: Status, timeout_ms: int, **security: Any) -> list[Status]:
    """What all members say of themselves, in the order of their names; one that is silent as it is known."""
    others = asked["replica_nodes"]
    answers = await asyncio.gather(*(_ask(each, timeout_ms, security) for each in others))
    lags = {each["node"]: each["lag_entries"] for each in others}
    found = [asked | {"reachable": True}, *answers]
    for each in found:
        each.pop("replica_nodes", None)
        each["lag_entries"] = lags.get(each["node"])
    return sorted(found, key=lambda each: str(each["node"]))


async def _ask(member: Status, timeout_ms: int, security: dict[str, Any]) -> Status:
    address = member.get("address") or member["node"]
    try:
        async with connect([address], timeout_ms, **security) as replicator:
            return await replicator.get_replication_status() | {"reachable": True}
    except HotspareError:
        return {"node": member["node"], "role": member["role"], "reachable": False}


def copies(nodes: Sequence[Status]) -> str:
    """In a sentence: whether all copies are equal."""
    held = [each for each in nodes if each["reachable"] and each["role"] not in NO_COPY]
    missing = len(nodes) - len(held)
    positions = [each["applied_index"] for each in held]
    if not held:
        return "there is no copy yet"
    if len({each["digest"] for each in held}) == 1:
        all_of = "all " if not missing else ""
        return "there is one copy in reach" if len(held) == 1 else f"{all_of}{len(held)} copies are equal"
    apart = max(positions) - min(positions)
    if apart:
        return f"copies are up to {thousands(apart)} entries apart, as they are while writes are under way"
    return "COPIES DIFFER although they applied the same entries: this is a defect, please report it"


def _print_table(asked: Status, nodes: Sequence[Status]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(_headline(asked))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading, justify in (
        *(("node", "left"), ("role", "left"), ("ready", "left"), ("sessions", "right")),
        *(("applied", "right"), ("lag", "right"), ("digest", "left"), ("", "left")),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for each in nodes:
        table.add_row(*_row(each, is_asked=each["node"] == asked["node"]))
    out.print(table)
    if asked.get("trouble"):
        out.print(Text(f"{asked['trouble'][:1].upper()}{asked['trouble'][1:]}.", "yellow"))
    elif asked["role"] == "unfounded":
        out.print(
            Text(
                "This node belongs to no cluster yet: it waits for its replicas or `hotspare start-cluster`.",
                "yellow",
            )
        )
    else:
        out.print(Text(f"{copies(nodes)}."))


def _headline(asked: Status) -> str:
    primary = asked["primary"] or "none at the moment"
    cluster = (asked["cluster_id"] or "none")[:SHOWN_DIGITS]
    return f"cluster {cluster}, term {asked['term']}, primary {primary}"


def _row(node: Status, *, is_asked: bool) -> list[Any]:
    from rich.text import Text

    if not node["reachable"]:
        return [Text(node["node"]), Text("unreachable", "bold red")]
    return [
        Text(node["node"]),
        Text(node["role"], ROLE_STYLES.get(node["role"], "")),
        Text("yes") if node["ready"] else Text("no", "yellow"),
        thousands(node["active_sessions"]),
        str(node["applied_index"]),
        "" if node["lag_entries"] is None else str(node["lag_entries"]),
        node["digest"][:SHOWN_DIGITS],
        Text("← asked" if is_asked else "", "dim"),
    ]
