"""`hotspare events`: what happens, a line each, until it is interrupted."""

from __future__ import annotations

from argparse import Namespace

import msgspec

from hotspare.cli.exits import Exit
from hotspare.cli.output import print_json, say, shown_id
from hotspare.events import (
    Event,
    Missed,
    PrimaryChanged,
    RoleChanged,
    SessionChanged,
    SessionCreated,
    SessionDeleted,
    SessionExpired,
    SessionRotated,
)
from hotspare.replicator import AsyncSessionReplicator

__all__ = ["line_of", "show"]


async def show(replicator: AsyncSessionReplicator, options: Namespace) -> Exit:
    shown = 0
    async with replicator.events() as events:
        # Asked after the events, and answered after they began.
        node = (await replicator.get_replication_status())["node"]
        say(f"hotspare: listening to {node}")
        async for event in events:
            if options.json:
                print_json(msgspec.to_builtins(event), at_once=True)
            else:
                print(line_of(event), flush=True)
            shown += 1
            if shown == options.count:
                break
    return Exit.DONE


def line_of(event: Event) -> str:
    kind, what = _described(event)
    return f"{kind:<8} {what}"


def _described(event: Event) -> tuple[str, str]:
    match event:
        case SessionCreated(id=id, version=version):
            return "created", f"{shown_id(id)}  version {version}"
        case SessionChanged(id=id, version=version, reason=reason):
            return "changed", f"{shown_id(id)}  version {version}, {reason}"
        case SessionRotated(id=id, version=version, old_id=old_id):
            return "rotated", f"{shown_id(id)}  version {version}, was {shown_id(old_id)}"
        case SessionDeleted(id=id, version=version):
            return "deleted", f"{shown_id(id)}  version {version}"
        case SessionExpired(id=id, version=version):
            return "expired", f"{shown_id(id)}  version {version}"
        case PrimaryChanged(primary="", previous=previous, term=term):
            return "primary", f"none  term {term}, was {previous or 'none'}"
        case PrimaryChanged(primary=primary, previous=previous, term=term, recovery_time_ms=lost_ms):
            after = f", after {lost_ms} ms without one" if lost_ms else ""
            return "primary", f"{primary}  term {term}, was {previous or 'none'}{after}"
        case RoleChanged(role=role, previous=previous):
            return "role", f"{role}  was {previous}"
        case Missed(count=None):
            return "missed", "an unknown number of events: read anew what matters"
        case Missed(count=count):
            return "missed", f"{count} events: read anew what matters"
