"""What clients asked for, and what they were told: the material that is checked.

A history knows nothing of how the cluster works. Moments are numbered in the order in which things were
observed, so that two events of the same millisecond still have an order. Times on the cluster's clock, which
decide about expiry and deadlines, are known to the observer within bounds only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

Fields: TypeAlias = frozenset[tuple[str, str]]
"""The data of a session: top-level fields and their values, each value written once in a run."""

FOREVER = 1 << 62


class Verb(Enum):
    PUT = "put"
    DELETE = "delete"
    TOUCH = "touch"
    PATCH = "patch"
    ROTATE = "rotate"
    READ = "read"
    """A linearizable read: `read="primary"`."""


class Condition(Enum):
    NONE = "always"
    ABSENT = "if absent"
    PRESENT = "if present"
    VERSION = "if version"


class Verdict(Enum):
    """How a write ended. (A read that was not answered is no part of a history.)"""

    DONE = "done"
    ABSENT = "absent"
    """No such session: for delete, touch, patch and rotate a result."""
    CONFLICT = "conflict"
    """The condition did not hold. `version` is what was there (0: nothing)."""
    TAKEN = "taken"
    """The new id of a rotation exists."""
    REFUSED = "refused"
    """`Unavailable`, or not merged: certainly not applied."""
    UNKNOWN = "unknown"
    """`OutcomeUnknown`, or its caller died."""


@dataclass(slots=True)
class Operation:
    number: int
    client: str
    verb: Verb
    id: str
    condition: Condition = Condition.NONE
    if_version: int = 0
    data: Fields = frozenset()
    """What a put stores, a patch sets; what a read found."""
    remove: frozenset[str] = frozenset()
    ttl_ms: int = 0
    new_id: str = ""

    invoked: int = 0
    """Moments."""
    returned: int = FOREVER
    """When the caller was told; of an unknown one, when it could not take effect any more."""
    earliest_ms: int = 0
    """Bounds of cluster time while it may have taken effect."""
    latest_ms: int = FOREVER

    verdict: Verdict = Verdict.UNKNOWN
    version: int = 0
    """The one that was given, found, or in the way; 0: none, or not told."""
    expires_at_ms: int = 0
    """As a read found it."""

    def __str__(self) -> str:
        what = [f"#{self.number} {self.client} {self.verb.value} {self.id}"]
        if self.new_id:
            what.append(f"-> {self.new_id}")
        if self.condition is not Condition.NONE:
            what.append(f"{self.condition.value} {self.if_version or ''}".strip())
        if self.data:
            what.append(str(dict(sorted(self.data))))
        if self.remove:
            what.append(f"without {sorted(self.remove)}")
        if self.ttl_ms:
            what.append(f"for {self.ttl_ms} ms")
        until = "…" if self.returned >= FOREVER else self.returned
        expiry = f", expires {self.expires_at_ms}" if self.expires_at_ms else ""
        told = f"{self.verdict.value} {self.version or ''}".strip()
        clock = f"{self.earliest_ms}..{'…' if self.latest_ms >= FOREVER else self.latest_ms}"
        return f"[{self.invoked}, {until}] {' '.join(what)}: {told}{expiry} (at {clock})"
