"""The commands that ask a running node: one coroutine each, which prints and returns the exit code."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from hotspare.cli.arguments import security
from hotspare.cli.client import connect
from hotspare.cli.exits import Exit
from hotspare.cli.output import print_json, say, shown_id, to_json
from hotspare.errors import InvalidSession
from hotspare.replicator import AsyncSessionReplicator

__all__ = ["run"]

Command: TypeAlias = Callable[[AsyncSessionReplicator, Namespace], Awaitable[Exit]]


def run(options: Namespace) -> Exit:
    return asyncio.run(_run(options))


async def _run(options: Namespace) -> Exit:
    if options.command == "store":
        # Whatever is wrong with the data, nobody needs to be connected to in order to say so.
        options.data = _read_data(options.data)
    async with connect(options.node, options.timeout_ms, **security(options)) as replicator:
        return await COMMANDS[options.command](replicator, options)


# Sessions


async def store(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    version = await replicator.store_session(
        options.id,
        options.data,
        options.ttl_ms,
        if_version=options.if_version,
        if_absent=options.if_absent,
        if_present=options.if_present,
        ack=options.ack,
    )
    _print(options, f"stored, version {version}", {"id": options.id, "version": version})
    return Exit.DONE


async def get(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    session = await replicator.get_session_record(options.id, read=options.read)
    if session is None:
        return _no_such_session(options)
    if options.json:
        print_json(
            {
                "id": session.id,
                "data": session.data,
                "version": session.version,
                "expires_at_ms": session.expires_at_ms,
            }
        )
    else:
        print(to_json(session.data, indent=2))
    return Exit.DONE


async def delete(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    if not await replicator.delete_session(options.id, if_version=options.if_version, ack=options.ack):
        return _no_such_session(options)
    _print(options, "deleted", {"id": options.id, "deleted": True})
    return Exit.DONE


async def list_sessions(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    if options.count:
        count = await replicator.session_count()
        _print(options, str(count), {"count": count})
        return Exit.DONE
    ids = sorted(await replicator.get_all_sessions())
    if options.json:
        print_json(ids)
    else:
        sys.stdout.writelines(f"{shown_id(id)}\n" for id in ids)
    return Exit.DONE


def _read_data(text: str) -> Any:
    """Raises InvalidSession for what is not JSON."""
    if text == "-":
        text = sys.stdin.read()
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidSession("data", "it is nested too deeply") from None
    except ValueError as exc:
        raise InvalidSession(
            "data", f'it is not JSON ({exc}); expected an object such as {{"user": 7}}'
        ) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _no_such_session(options: Namespace) -> Exit:
    message = "no such session"
    say(to_json({"error": None, "message": message}) if options.json else f"hotspare: {message}")
    return Exit.NO


# Operators


async def start_cluster(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    await replicator.start_cluster(options.replicas)
    status = await replicator.get_replication_status()
    nodes = sorted({status["node"], *(each["node"] for each in status["replica_nodes"])})
    cluster_id = status["cluster_id"]
    _print(
        options,
        f"founded cluster {cluster_id} of {len(nodes)} nodes; the primary is {status['primary']}",
        {"cluster_id": cluster_id, "nodes": nodes, "primary": status["primary"]},
    )
    return Exit.DONE


async def show_status(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    from hotspare.cli import status

    return await status.show(replicator, options)


async def metrics(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    found = await replicator.get_metrics()
    if options.json:
        print_json(found)
        return Exit.DONE
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {to_json(value)}")
    return Exit.DONE


async def flush(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    await replicator.flush()
    _print(options, "flushed", {"flushed": True})
    return Exit.DONE


async def promote(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    if options.force:
        return await _promote_by_force(replicator, options)
    await replicator.promote_to_primary()
    status = await replicator.get_replication_status()
    found = {key: status[key] for key in ("node", "primary", "term")}
    _print(options, f"{status['primary']} is the primary (term {status['term']})", found)
    return Exit.DONE


async def _promote_by_force(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    status = await replicator.get_replication_status()
    if not options.yes and not _is_confirmed(status):
        say("hotspare: nothing was done")
        return Exit.FAILED
    outcome = await replicator.promote_to_primary(force=True)
    status = await replicator.get_replication_status()
    found = {key: status[key] for key in ("node", "primary", "term", "cluster_id", "ancestry")}
    _print(options, outcome, found | {"outcome": outcome})
    return Exit.DONE


def _is_confirmed(status: dict[str, Any]) -> bool:
    say(
        f"{status['node']} will go on alone, as a new cluster, from what it has: {status['active_sessions']} "
        f"sessions, entry {status['applied_index']}.\n"
        "Whatever was acknowledged and only the others have is lost, and what they may write now, too.\n"
        "They never mix with the new cluster: those who come back must be started with --discard."
    )
    if not sys.stdin.isatty():
        say("Without a terminal to ask on, --yes says that this is meant.")
        return False
    print("Type the node's name to go on: ", end="", file=sys.stderr, flush=True)
    typed, name = sys.stdin.readline().strip(), str(status["node"])
    return typed == name


async def _operate(verb: Callable[[str], Awaitable[str]], node: str, options: Namespace) -> Exit:
    outcome = await verb(node)
    _print(options, outcome, {"node": node, "outcome": outcome})
    return Exit.DONE


async def failover(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    return await _operate(replicator.trigger_failover, options.failing, options)


async def events(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    from hotspare.cli import events

    return await events.show(replicator, options)


async def add(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    return await _operate(replicator.add_node, options.newcomer, options)


async def remove(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    return await _operate(replicator.remove_node, options.leaving, options)


async def members(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    from hotspare.cli import members

    return await members.show(replicator, options)


async def failovers(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    from hotspare.cli import failovers

    return await failovers.show(replicator, options)


async def load(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    from hotspare.cli import load

    return await load.show(replicator, options)


def _print(options: Namespace, text: str, value: dict[str, Any]) -> None:
    if options.json:
        print_json(value)
    else:
        print(text)


COMMANDS: dict[str, Command] = {
    "store": store,
    "get": get,
    "delete": delete,
    "list": list_sessions,
    "start-cluster": start_cluster,
    "status": show_status,
    "metrics": metrics,
    "flush": flush,
    "promote": promote,
    "failover": failover,
    "events": events,
    "failovers": failovers,
    "members": members,
    "add": add,
    "remove": remove,
    "load": load,
}
