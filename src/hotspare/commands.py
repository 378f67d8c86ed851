"""The vocabulary of the log: what its entries ask of the state machine, and what that answers.

An entry registers an origin, or it is a batch: groups of commands, each group from one origin, which numbers
them. The result of a command is one integer; the outcome of a group, their results or why they did not run.

The bounds in these types are those of the fields that keep the values: what exceeds them is no command at
all, and is refused before it enters the log. Rules for sessions are up to the state machine, in `table.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from hotspare.data import MAX_DATA_BYTES
from hotspare.errors import UNDECODABLE, ProtocolError, fault_of
from hotspare.record import data_checksum

REGISTRATION: Final = 2
"""The kind of a log entry that registers an origin. Its payload is a `Registration`."""

BATCH: Final = 3
"""The kind of a log entry that runs commands. Its payload comes from `encode_batch`."""

MAX_COMMANDS_PER_BATCH: Final = 1 << 16
"""A version is the index of its entry and the command's position in it, which has 16 bits."""

MAX_GROUP_BYTES: Final = 4 * 1024 * 1024
"""Larger than any group of one command, and small enough for every frame that may carry it on."""

MAX_STORED_BYTES: Final = MAX_DATA_BYTES + 1024
"""Of one session's data, with what encryption adds to it."""


# What the log holds

_U4 = Annotated[int, Meta(ge=0, le=15)]
_U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_Count = Annotated[int, Meta(ge=0, le=MAX_COMMANDS_PER_BATCH)]
_Number = Annotated[int, Meta(ge=1, le=2**62)]
_Natural = Annotated[int, Meta(ge=0, le=2**62)]


class _Encoded(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """A field that is not known is refused: copies of different age would make different things of it."""


UNCONDITIONAL: Final = 0
IF_ABSENT: Final = -1
IF_PRESENT: Final = -2

KEEP_EXPIRY_MS: Final = 0
"""In place of a TTL: the expiry stays. Only in a put under an exact version."""


class _Command(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Not frozen: the deadline is set as it leaves, which may be long after it was made."""


class Put(_Command, tag=0):
    """Stores a session. `condition`: one of the above, or the version that must be there."""

    id: bytes
    data: bytes
    flags: _U4
    checksum: _U32
    ttl_ms: int
    deadline_ms: int
    condition: int = UNCONDITIONAL


class Delete(_Command, tag=1):
    id: bytes
    deadline_ms: int
    condition: int = UNCONDITIONAL


class Touch(_Command, tag=2):
    """Moves the expiry and nothing else: version and data stay, so that it never undoes a write."""

    id: bytes
    ttl_ms: int
    deadline_ms: int


class Patch(_Command, tag=3):
    """Removes and sets encoded top-level fields, unless the data would grow beyond `limit_bytes`."""

    id: bytes
    set: list[tuple[str, bytes]]
    remove: list[str]
    deadline_ms: int
    condition: int
    limit_bytes: int


class Rotate(_Command, tag=4):
    """Gives a session a new id and a new version; the expiry stays, and so does the data.

    Encrypted data is bound to its id, and no node can look into it. So the origin brings the same data anew,
    encrypted for the new id, under the exact version that it has read.
    """

    id: bytes
    new_id: bytes
    deadline_ms: int
    condition: int = UNCONDITIONAL
    data: bytes = b""
    flags: _U4 = 0
    checksum: _U32 = 0


Command: TypeAlias = Put | Delete | Touch | Patch | Rotate


class Group(_Encoded, frozen=True):
    """Commands of one origin, numbered from `first`; it has seen the results up to number `seen`.

    One without commands keeps its origin alive and tells what that has seen.
    """

    origin: _Natural
    first: _Number
    count: _Count
    seen: _Natural
    commands: list[Command]


class RawGroup(_Encoded, frozen=True):
    """The same bytes, with the commands as their origin encoded them: so groups travel to the leader."""

    origin: _Natural
    first: _Number
    count: _Count
    seen: _Natural
    commands: msgspec.Raw


class Batch(_Encoded, frozen=True):
    """The payload of a `BATCH` entry. `full`: the primary has no room left for puts and patches."""

    stamp_ms: _Natural
    full: bool
    groups: list[Group]


class RawBatch(_Encoded, frozen=True):
    stamp_ms: _Natural
    full: bool
    groups: Sequence[RawGroup]


class Registration(_Encoded, frozen=True):
    """The payload of a `REGISTRATION` entry. By the nonce, who asked for it recognises it."""

    nonce: bytes
    stamp_ms: _Natural

    def encode(self) -> bytes:
        return _encode(self)


def encode_commands(commands: Sequence[Command]) -> msgspec.Raw:
    return msgspec.Raw(_encode(commands))


def check_group(group: RawGroup) -> None:
    """Raises `ProtocolError` unless the commands are whole and bounded: for the home node of their origin,
    and for the leader before they enter the log.

    What passes here runs on every copy. So a record that later fails its checksum was damaged on that copy.
    """
    if len(group.commands) > MAX_GROUP_BYTES:
        raise ProtocolError("it sent a group that is too large", f"at most {MAX_GROUP_BYTES} bytes")
    try:
        commands = _decode_commands(group.commands)
    except UNDECODABLE as exc:
        raise ProtocolError(
            f"it sent commands that do not decode ({fault_of(exc)})", "encoded commands"
        ) from None
    if len(commands) != group.count:
        raise _miscounted(group.count, len(commands))
    for command in commands:
        if type(command) is Put:
            data, checksum = command.data, data_checksum(command.id, command.data, command.flags)
        elif type(command) is Rotate and command.data:
            data, checksum = command.data, data_checksum(command.new_id, command.data, command.flags)
        elif type(command) is Patch and not 0 <= command.limit_bytes <= MAX_DATA_BYTES:
            raise ProtocolError(
                "it sent a patch that may become too large", f"at most {MAX_DATA_BYTES} bytes"
            )
        else:
            continue
        if len(data) > MAX_STORED_BYTES:
            raise ProtocolError("it sent a session that is too large", f"at most {MAX_STORED_BYTES} bytes")
        if checksum != command.checksum:
            raise ProtocolError("it sent a session that does not match its checksum", "undamaged data")


def encode_batch(stamp_ms: int, full: bool, groups: Sequence[RawGroup]) -> bytes:
    """Raises ValueError if there are more commands or groups than `MAX_COMMANDS_PER_BATCH`."""
    size = max(len(groups), sum([group.count for group in groups]))
    if size > MAX_COMMANDS_PER_BATCH:
        raise ValueError(
            f"{size} commands or groups in a batch; at most {MAX_COMMANDS_PER_BATCH} get a version"
        )
    return _encode(RawBatch(stamp_ms, full, groups))


def decode_batch(payload: bytes) -> Batch:
    """Raises `ProtocolError` for what no leader that checked its groups has written."""
    try:
        batch = _decode_batch(payload)
    except UNDECODABLE as exc:
        raise ProtocolError(
            f"a batch in the log does not decode ({fault_of(exc)})", "an encoded batch"
        ) from None
    for group in batch.groups:
        if len(group.commands) != group.count:
            raise _miscounted(group.count, len(group.commands))
    return batch


def decode_registration(payload: bytes) -> Registration:
    """Raises `ProtocolError`."""
    try:
        return _decode_registration(payload)
    except UNDECODABLE as exc:
        raise ProtocolError(
            f"a registration in the log does not decode ({fault_of(exc)})", "a registration"
        ) from None


def stamp_of(kind: int, payload: bytes) -> int | None:
    """The cluster time of an entry in UNIX ms, None if its kind has none. Raises `ProtocolError`."""
    if kind == REGISTRATION:
        return decode_registration(payload).stamp_ms
    return decode_batch(payload).stamp_ms if kind == BATCH else None


def _miscounted(announced: int, found: int) -> ProtocolError:
    return ProtocolError(f"a group announced {announced} commands and holds {found}", "as many as announced")


_encode = msgspec.msgpack.Encoder().encode
_decode_batch = msgspec.msgpack.Decoder(Batch).decode
_decode_commands = msgspec.msgpack.Decoder(list[Command]).decode
_decode_registration = msgspec.msgpack.Decoder(Registration).decode


# What comes of it

ABSENT: Final = 0
"""There was no such session. Above it: done; of put, patch and rotate it is the new version."""

CONFLICT_ABSENT: Final = -1
"""The condition asked for a session, and there was none. For other conflicts see `conflicting_version`."""

EXPIRED: Final = -2
"""Ordered after its deadline."""
FULL: Final = -3
"""The cluster has no room for puts and patches."""
TOO_LARGE: Final = -4
"""The patched data would exceed the command's limit."""
UNMERGEABLE: Final = -5
"""The data is compressed or encrypted, or no mapping: its origin must merge it. Of a rotation: it is bound to
its id, and its origin must bring it for the new one."""
TAKEN: Final = -6
"""The new id of a rotation holds a session."""
FORGOTTEN: Final = -7
"""It ran, and its origin said that it had seen the result."""
INVALID: Final = -8
"""An id, TTL, condition or data that no origin should have let pass."""


def conflicting_version(result: int) -> int | None:
    """The version that was there, if the result is a failed condition's (other than `CONFLICT_ABSENT`)."""
    return -result if result <= -MAX_COMMANDS_PER_BATCH else None


class Results(_Encoded, frozen=True, tag=0):
    """The group's commands have run, now or before."""

    origin: int
    first: int
    results: list[int]


class Gap(_Encoded, frozen=True, tag=1):
    """Nothing of the group ran. Number `expected` comes next; if that is `first`, the origin has
    `MAX_UNSEEN` (of the table) results to see before."""

    origin: int
    first: int
    expected: int


class UnknownOrigin(_Encoded, frozen=True, tag=2):
    """Nothing of the group ran now. Whether it had run before is not known any more."""

    origin: int
    first: int
    count: int


class Registered(_Encoded, frozen=True, tag=3):
    nonce: bytes
    origin: int


Outcome: TypeAlias = Results | Gap | UnknownOrigin | Registered
