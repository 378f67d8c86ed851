"""What a server writes of itself: who it is, Raft's hard state, and its log.

In the space `node`: `identity`, `hard_state`, and `mark`, the place where the log begins (no such row: at the
very beginning). In `log`: each entry under its index (8 bytes, big-endian), without holes. Every value
begins with a CRC-32 of its key and itself, so that what was damaged or misplaced is noticed at the start,
before it is told to anyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar
from zlib import crc32

import msgspec

from hotspare.errors import UNDECODABLE, StoreCorrupt, StoreForeign, fault_of
from hotspare.raft.messages import Configuration, Entry, HardState, ServerId, SnapshotMark
from hotspare.store import Space, Transaction

FORMAT: Final = 1
"""Of everything that is written here. A newer one is refused."""

BEGINNING: Final = SnapshotMark(0, 0, Configuration("", ()))

IDENTITY_KEY: Final = b"identity"
"""Of the row of the space `node` that `identity_in` takes."""
_HARD_STATE: Final = b"hard_state"
_MARK: Final = b"mark"
_CHECKSUM_BYTES: Final = 4

# Which directory it is, only the adapter knows; the sentences hold without it.
_WHERE: Final = "this node's data directory"


class Identity(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Who this server is."""

    incarnation: ServerId
    name: str
    cluster_id: str = ""
    """The cluster it became part of; empty before that."""
    format: int = FORMAT
    removed_at: int = 0
    removed_in: int = 0
    """Index and term with which it was told that it is no server of its cluster any more; 0: it was not."""
    superseded_by: str = ""
    """The cluster that an operator forced to go on from ours, without this server."""


class State(NamedTuple):
    """What a server that was part of a cluster goes on from."""

    hard_state: HardState
    mark: SnapshotMark
    entries: list[Entry]


Value = TypeVar("Value", Identity, HardState, SnapshotMark, Entry)

_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Identity, HardState, SnapshotMark, Entry)
}


def save_identity(txn: Transaction, identity: Identity) -> None:
    _write(txn.node, IDENTITY_KEY, identity)


def identity_in(row: bytes) -> Identity:
    """Raises StoreCorrupt."""
    return _unseal(IDENTITY_KEY, row, Identity, "the row that says which server this is")


def load_identity(txn: Transaction) -> Identity | None:
    """None in an empty store. Raises StoreCorrupt, StoreForeign."""
    row = txn.node.get(IDENTITY_KEY)
    identity = None if row is None else identity_in(row)
    if identity is not None and identity.format > FORMAT:
        raise StoreForeign(_WHERE, f"it has format {identity.format}, and this version knows up to {FORMAT}")
    return identity


def check_owner(identity: Identity, name: str) -> None:
    """Raises StoreForeign if another node wrote this: no two nodes may share one server's votes."""
    if identity.name != name:
        raise StoreForeign(_WHERE, f"it is the directory of node {identity.name}, and this is node {name}")


def save_ready(
    txn: Transaction,
    hard_state: HardState | None = None,
    append: Sequence[Entry] = (),
    mark: SnapshotMark | None = None,
) -> None:
    """What one `Ready` of the consensus core asks to persist.

    With a `mark`, a snapshot took the place of the whole log. What was kept from the first index of `append`
    on is replaced by it.
    """
    if hard_state is not None:
        _write(txn.node, _HARD_STATE, hard_state)
    if mark is not None:
        _delete_entries(txn.log, _load_mark(txn).index + 1)
        _write(txn.node, _MARK, mark)
    for entry in append:
        _write(txn.log, _key(entry.index), entry)
    if append:
        _delete_entries(txn.log, append[-1].index + 1)


def compact(txn: Transaction, mark: SnapshotMark) -> None:
    """Deletes the entries up to `mark.index`."""
    for index in range(_load_mark(txn).index + 1, mark.index + 1):
        txn.log.pop(_key(index))
    _write(txn.node, _MARK, mark)


def load(txn: Transaction) -> State | None:
    """None for a server that was never part of a cluster. Raises StoreCorrupt, naming the damaged entry."""
    hard_state = _read(txn.node, _HARD_STATE, HardState, "the row with its term and vote")
    mark = _load_mark(txn)
    entries = _load_entries(txn.log, mark.index)
    if hard_state is None:
        if mark.index or entries:
            raise _corrupt("it has a log, but the row with its term and vote is missing")
        return None
    return State(hard_state, mark, entries)


def reset(txn: Transaction) -> None:
    """Forgets everything, the sessions too: what starts next is a new server."""
    for space in (txn.node, txn.log):
        for key in [key for key, _ in space.scan()]:
            space.pop(key)
    txn.discard_staged()
    txn.install_staged()


def _load_mark(txn: Transaction) -> SnapshotMark:
    return _read(txn.node, _MARK, SnapshotMark, "the row that says where its log begins") or BEGINNING


def _load_entries(log: Space, after: int) -> list[Entry]:
    entries: list[Entry] = []
    for key, sealed in log.scan():
        index = after + 1 + len(entries)
        if key != _key(index):
            found = int.from_bytes(key, "big")
            raise _corrupt(f"entry {index} of its log was expected, and {found} was found")
        entries.append(_unseal(key, sealed, Entry, f"entry {index} of its log"))
    return entries


def _delete_entries(log: Space, first: int) -> None:
    index = first
    while log.pop(_key(index)) is not None:
        index += 1


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")


def _write(space: Space, key: bytes, value: Value) -> None:
    body = _encode(value)
    space[key] = crc32(body, crc32(key)).to_bytes(_CHECKSUM_BYTES, "big") + body


def _read(space: Space, key: bytes, kind: type[Value], what: str) -> Value | None:
    sealed = space.get(key)
    return None if sealed is None else _unseal(key, sealed, kind, what)


def _unseal(key: bytes, sealed: bytes, kind: type[Value], what: str) -> Value:
    body = memoryview(sealed)[_CHECKSUM_BYTES:]
    if crc32(body, crc32(key)).to_bytes(_CHECKSUM_BYTES, "big") != sealed[:_CHECKSUM_BYTES]:
        raise _corrupt(f"{what} does not match its checksum")
    try:
        value: Value = _decoders[kind].decode(body)
    except UNDECODABLE as exc:
        raise _corrupt(f"{what} cannot be decoded ({fault_of(exc)})") from None
    return value


def _corrupt(reason: str) -> StoreCorrupt:
    return StoreCorrupt(_WHERE, reason)
