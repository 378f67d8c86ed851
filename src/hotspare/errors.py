"""Everything that can go wrong, each as a class with fields and a sentence of its own.

A sentence says what was wrong, what was expected, and what to do. It never holds a session id, session data
or a key: errors end up in logs. Foreign exceptions are translated into these once, at the edge where they
appear.

Errors cross the wire and process boundaries as plain values: `to_dict` and `from_dict`, keyed by class name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import msgspec

__all__ = [
    "ClusterMismatch",
    "ConfigError",
    "ForkedProcess",
    "HotspareError",
    "InvalidSession",
    "NotReady",
    "OutcomeUnknown",
    "ProtocolError",
    "Refused",
    "SessionTooLarge",
    "StaleRead",
    "StoreCorrupt",
    "StoreError",
    "StoreForeign",
    "StoreFull",
    "StoreInUse",
    "StoreOutdated",
    "Unavailable",
    "Undecryptable",
    "UnknownNode",
    "VersionConflict",
    "from_dict",
]

_kinds: dict[str, type[HotspareError]] = {}


# Equality stays identity, as for every exception: hence eq=False here and below.
@dataclass(eq=False)
class HotspareError(Exception):
    """The root of all errors that hotspare raises on purpose."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _kinds[cls.__name__] = cls

    def to_dict(self) -> dict[str, Any]:
        """The error as plain values, for JSON or MessagePack: its class name as "error", and its fields."""
        return {"error": type(self).__name__} | self._fields()

    def _fields(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    def __reduce__(self) -> tuple[Callable[..., HotspareError], tuple[Any, ...]]:
        # Exceptions pickle their positional arguments only; ours are made of named fields.
        return _rebuild, (type(self), self._fields())


def _rebuild(kind: type[HotspareError], values: dict[str, Any]) -> HotspareError:
    return kind(**values)


def from_dict(values: Mapping[str, Any]) -> HotspareError:
    """The error that `to_dict` described.

    Never raises: what does not describe a known error comes back as a `ProtocolError` about that.
    """
    described = dict(values)
    name = described.pop("error", None)
    kind = _kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        return ProtocolError(f"it reported an error {name!r:.80}", "an error that this version knows")
    try:
        return msgspec.convert(described, kind)
    except msgspec.ValidationError as exc:
        return ProtocolError(
            f"its {kind.__name__} error is malformed ({fault_of(exc)})", "the fields of that error"
        )


UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what was asked for: more than errors of its own."""


def fault_of(failure: Exception) -> str:
    """What a decoder found (`UNDECODABLE`), without what it found it in: that may be anything."""
    if isinstance(failure, RecursionError):
        return "it is nested too deeply"
    if isinstance(failure, UnicodeDecodeError):
        return "a text is not UTF-8"
    quoted, _, place = str(failure).rpartition(" - at ")
    problem = "Invalid value" if "'" in (quoted or place) else quoted or place
    return f"{problem} - at {place}" if quoted else problem


# What callers hand in


@dataclass(eq=False)
class InvalidSession(HotspareError, ValueError):
    """An id, a TTL or session data that cannot be stored. Nothing was sent."""

    what: str
    """Which argument: "id", "data", "ttl_ms", …"""
    reason: str
    """What is wrong with it, and what is allowed."""
    where: str = ""
    """The place inside it, such as data['cart'][0]; empty when the whole argument is meant."""

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        return f"the session's {self.what} cannot be used{place}: {self.reason}"


@dataclass(eq=False)
class SessionTooLarge(InvalidSession):
    """The encoded session is larger than `max_session_size_bytes`. Nothing was sent."""

    what: str = field(default="data", init=False)
    reason: str = field(default="it is too large", init=False)
    where: str = field(default="", init=False)
    size_bytes: int
    limit_bytes: int

    def __str__(self) -> str:
        return (
            f"the session's data takes {self.size_bytes} bytes encoded, and max_session_size_bytes allows "
            f"{self.limit_bytes}: store less in it, or raise the limit on every node"
        )


@dataclass(eq=False)
class ConfigError(HotspareError, ValueError):
    """A setting that is unknown, malformed, out of range, or contradicts another one."""

    key: str
    problem: str
    """What is wrong with its value; never the value of a secret."""
    expected: str
    source: str = ""
    """Where the value came from: a file or an environment variable; empty for an argument."""

    def __str__(self) -> str:
        source = f" (from {self.source})" if self.source else ""
        return f"setting {self.key}{source}: {self.problem}; expected {self.expected}"


@dataclass(eq=False)
class UnknownNode(HotspareError, LookupError):
    """A node was named that is no part of this cluster."""

    node: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        known = ", ".join(self.known) or "not known yet"
        return f"this cluster has no node {self.node!r}; its nodes are {known}"


@dataclass(eq=False)
class ForkedProcess(HotspareError, RuntimeError):
    """A replicator with an in-process node was used in a forked child, which has none of its threads."""

    started_in_pid: int
    used_in_pid: int

    def __str__(self) -> str:
        return (
            f"this replicator was started in process {self.started_in_pid} and is used in its forked child "
            f"{self.used_in_pid}, where its node does not run: start one after the fork, in each child"
        )


# How an operation ended


@dataclass(eq=False)
class VersionConflict(HotspareError):
    """A condition on the stored session did not hold. Nothing was changed."""

    expected: int | str
    """The version asked for, or "absent" or "present"."""
    current: int | None
    """The version found; None when there is no such session."""

    def __str__(self) -> str:
        wanted = f"at version {self.expected}" if isinstance(self.expected, int) else str(self.expected)
        found = "absent" if self.current is None else f"at version {self.current}"
        return f"the session was expected to be {wanted} and is {found}: read it again and decide anew"


@dataclass(eq=False)
class Unavailable(HotspareError):
    """The operation could not be done and was certainly not applied, now or later."""

    reason: str

    def __str__(self) -> str:
        return f"unavailable: {self.reason}; nothing was applied, so trying again is safe"


@dataclass(eq=False)
class OutcomeUnknown(HotspareError, TimeoutError):
    """A write was sent and not answered in time. It took effect before its deadline, or never will.

    Or its effect is only partly known: with `ack="all"`, it was applied (`is_applied`), but not every copy
    that may answer reads was seen to show it in time.
    """

    reason: str
    is_applied: bool = False

    def __str__(self) -> str:
        if self.is_applied:
            return (
                f"the write was applied, but {self.reason}: there is no need to repeat it, and no copy shows "
                "what was before for longer than max_staleness_ms"
            )
        return (
            f"the outcome of the write is unknown: {self.reason}; it took effect before its deadline or "
            "never will: read the session with read='primary' to learn which, before writing again"
        )


@dataclass(eq=False)
class StaleRead(HotspareError):
    """This copy has not heard from the primary for too long. The session may well be there."""

    staleness_ms: int
    limit_ms: int

    def __str__(self) -> str:
        return (
            f"this copy last heard from the primary {self.staleness_ms} ms ago, and max_staleness_ms allows "
            f"{self.limit_ms}: ask another node, or read with read='stale' where an old answer will do"
        )


@dataclass(eq=False)
class NotReady(HotspareError):
    """This node cannot answer yet. Any session may well be there."""

    reason: str

    def __str__(self) -> str:
        return f"this node is not ready: {self.reason}; wait until its status says so, or ask another node"


@dataclass(eq=False)
class Undecryptable(HotspareError):
    """A session is there, and this process cannot read it with the encryption keys it has."""

    reason: str
    """What is wrong, and what to do about it."""
    key_id: str = ""
    """Of the key under which the session is encrypted, in hexadecimal; empty if it is not encrypted."""

    def __str__(self) -> str:
        key = f", encrypted under the key {self.key_id}," if self.key_id else ""
        return f"the session is there{key} and cannot be read: {self.reason}"


@dataclass(eq=False)
class Refused(HotspareError):
    """An operator's command that must not be carried out as things are."""

    operation: str
    reason: str
    """Why not, and what would change that."""

    def __str__(self) -> str:
        return f"{self.operation} was refused: {self.reason}"


# Between nodes


@dataclass(eq=False)
class ClusterMismatch(HotspareError):
    """Two nodes met whose histories have nothing to do with each other."""

    node: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return (
            f"{self.node} belongs to cluster {self.theirs} and this node to {self.ours}; they never mix: "
            "correct the address, or start the node that is to change sides without its state"
        )


@dataclass(eq=False)
class ProtocolError(HotspareError):
    """The other end of a connection does not speak as hotspare does."""

    problem: str
    expected: str
    peer: str = ""

    def __str__(self) -> str:
        return (
            f"{self.peer or 'the other end'} cannot be understood: {self.problem}; expected {self.expected}. "
            "Check that the address is a hotspare node and that both run the same version"
        )


# The store


@dataclass(eq=False)
class StoreError(HotspareError):
    """A node's store cannot go on. The node stops; the others go on without it."""

    path: str
    reason: str

    advice: ClassVar[str] = "look at the directory and its permissions, then start the node again"

    def __str__(self) -> str:
        return f"the store in {self.path} failed: {self.reason}; {self.advice}"


@dataclass(eq=False)
class StoreCorrupt(StoreError):
    """What was read is not what was written."""

    advice: ClassVar[str] = (
        "move the directory away, or start the node once with --discard: it comes back as a new server and "
        "copies everything from the others"
    )


def corrupt(reason: str) -> StoreCorrupt:
    """From those who do not know which store they read: only its adapter does. The sentence holds without."""
    return StoreCorrupt("this node's data directory", reason)


@dataclass(eq=False)
class StoreFull(StoreError):
    """No room is left for another transaction."""

    advice: ClassVar[str] = "free space there, or raise max_memory_bytes, then start the node again"


@dataclass(eq=False)
class StoreInUse(StoreError):
    """Another process has the store open for writing."""

    advice: ClassVar[str] = "stop the other process, or give this node a directory of its own"


@dataclass(eq=False)
class StoreOutdated(StoreError):
    """It holds less than its node once acknowledged: somebody put an old copy in its place."""

    advice: ClassVar[str] = (
        "start the node once with --discard (in a program of yours: with an empty store): it comes back as a "
        "new server and copies everything from the others"
    )


@dataclass(eq=False)
class StoreForeign(StoreError):
    """The store was written by another node, another program or a newer version."""

    advice: ClassVar[str] = "give this node a directory of its own, or start the version that wrote this one"
