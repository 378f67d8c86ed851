"""What happens to the sessions of a copy and to its node, as small frozen values.

    async for event in replicator.events():
        match event:
            case SessionExpired(id=id) | SessionDeleted(id=id):
                ...

Events come in the order in which the node applied them, after its copy shows them. They tell of versions, not
of data: who wants that reads it. A touch is no event, as neither data nor version change.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from hotspare.errors import ProtocolError

__all__ = [
    "Event",
    "Missed",
    "PrimaryChanged",
    "RoleChanged",
    "SessionChanged",
    "SessionCreated",
    "SessionDeleted",
    "SessionExpired",
    "SessionRotated",
]


class _Event(msgspec.Struct, frozen=True, tag_field="event"):
    pass


class SessionCreated(_Event, frozen=True, tag="created"):
    """There was no session under that id, and now there is."""

    id: str
    version: int


class SessionChanged(_Event, frozen=True, tag="changed"):
    id: str
    version: int
    """The new one."""
    reason: Literal["stored", "updated"]
    """Stored anew as a whole, or single fields of it updated."""


class SessionRotated(_Event, frozen=True, tag="rotated"):
    """The session under `old_id` has another id now, and a new version."""

    id: str
    version: int
    old_id: str


class SessionDeleted(_Event, frozen=True, tag="deleted"):
    id: str
    version: int
    """The last one it had."""


class SessionExpired(_Event, frozen=True, tag="expired"):
    """It was removed, its time being over. Nobody could read it any more before: an idle cluster removes what
    has expired every `cleanup_interval_ms` only."""

    id: str
    version: int
    """The last one it had."""


class PrimaryChanged(_Event, frozen=True, tag="primary"):
    """This node sees another primary, or none any more. With a `previous` and another `primary` it is a
    failover."""

    primary: str
    """Its name; empty while there is none."""
    previous: str
    """The last one that this node knew of; empty for none."""
    term: int
    recovery_time_ms: int
    """Of a failover: how long there was no primary, as seen here."""


class RoleChanged(_Event, frozen=True, tag="role"):
    """This node has another part in the cluster: see `role` in the status."""

    role: str
    previous: str


class Missed(_Event, frozen=True, tag="missed"):
    """Here some events are missing: the consumer was slower than they came, or they were never seen, because
    the copy was replaced by a snapshot or the connection to its node was lost."""

    count: int | None
    """How many; None where nobody knows. Read what matters anew."""


Event: TypeAlias = (
    SessionCreated
    | SessionChanged
    | SessionRotated
    | SessionDeleted
    | SessionExpired
    | PrimaryChanged
    | RoleChanged
    | Missed
)


def from_values(values: Any) -> list[Event]:
    """Events that were encoded as maps. Raises ProtocolError."""
    try:
        return msgspec.convert(values, list[Event])
    except msgspec.ValidationError as exc:
        raise ProtocolError(f"it sent what are no events ({exc})", "events that this version knows") from exc
