"""Everything that a node is, behind one small port: ordered keys in one transactional space.

Five spaces. Keys and values are bytes, keys are ordered bytewise.

* `node`: what makes this server this server: incarnation, hard state, where the log begins. Never copied.
* `log`: the entries, by index (8 bytes, big-endian).
* `table`: the state machine's own small rows: stamp, counters, origins and their stored results.
* `sessions`: record by session id (UTF-8). All that a store knows of a record: it begins with expires_at_ms.
* `expiry`: session ids by (expires_at_ms, id). Follows from `sessions`; rebuilt when a snapshot comes.

A group commit is one transaction: what was appended, what was applied, what was pruned. It is there whole or
not at all, so there is never a half-done state, and a snapshot (`table` and `sessions`) is a consistent read.

One writer: transactions do not overlap. `get` and `ids` may be called from any thread at any time and see
only committed transactions (the plain store may show single applied commands of the transaction under way:
they are committed in Raft's sense by then).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

Row = tuple[str, bytes, bytes]
"""Space name (`table` or `sessions`), key, value."""

EXPIRY_BYTES: Final = 8
"""So many bytes at the beginning of a record are its expires_at_ms, big-endian."""

NO_LIMIT: Final = 1 << 62

MAX_KEY_BYTES: Final = 500
"""Keys have between one byte and this many."""


class Space(Protocol):
    """One ordered space inside a transaction. Sees the transaction's own writes."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def __setitem__(self, key: bytes, value: bytes, /) -> None: ...

    def pop(self, key: bytes, default: None = None, /) -> bytes | None:
        """Deletes and returns what was there, if anything was."""

    def scan(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All rows from `start` on, in key order. Not for use while the space is being written."""


class ExpiryIndex(Protocol):
    """Session ids ordered by (expires_at_ms, id): exact, never any debris."""

    def add(self, expires_at_ms: int, id: bytes, /) -> None: ...

    def add_all(self, expires_at_ms: int, ids: list[bytes], /) -> None:
        """The same for several (at least one), which must not be there yet."""

    def discard(self, expires_at_ms: int, id: bytes, /) -> None: ...

    def due(self, now_ms: int, limit: int, /) -> list[tuple[int, bytes]]:
        """The first `limit` with expires_at_ms <= now_ms, in order. Cheap when nothing is due."""


class Transaction(Protocol):
    @property
    def node(self) -> Space: ...

    @property
    def log(self) -> Space: ...

    @property
    def table(self) -> Space: ...

    @property
    def sessions(self) -> Space: ...

    @property
    def expiry(self) -> ExpiryIndex: ...

    def stage(self, rows: Iterable[Row]) -> None:
        """Adds rows to the staging area of an arriving snapshot: each key once, in any order."""

    def discard_staged(self) -> None:
        """Empties the staging area."""

    def install_staged(self) -> None:
        """The staged rows become `table` and `sessions`, all at once; `expiry` follows from them. The staging
        area is empty then: twice in a row empties all three."""

    def commit(self) -> None:
        """Raises StoreError; then nothing of the transaction is there, and `abort` does no more harm."""

    def abort(self) -> None: ...


class SnapshotReader(Protocol):
    """A consistent view of `table` and `sessions` as they were when it was opened, while writes go on."""

    def read(self, max_bytes: int) -> list[Row]:
        """The next rows, about `max_bytes` of them (at least one), each row once, in the store's own order;
        empty at the end."""

    def close(self) -> None: ...


class Store(Protocol):
    @property
    def volatile(self) -> bool:
        """Whether it ends with its process: then nobody ever reads the log in it, and none is kept there."""

    def begin(self) -> Transaction: ...

    def get(self, id: bytes, /) -> bytes | None:
        """The record of a session, committed; any thread."""

    def ids(self) -> list[bytes]:
        """All session ids (expired ones not yet pruned included), in order; any thread."""

    def records(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` sessions in id order, from the first id greater than `after` on; any thread."""

    def due_count(self, now_ms: int, at_most: int = NO_LIMIT) -> int:
        """How many sessions are expired at `now_ms` and not pruned yet, up to `at_most`; any thread."""

    def snapshot(self) -> SnapshotReader:
        """Opens a reader, between two transactions. It is to be closed, and before the store is."""

    def close(self) -> None: ...


def take_rows(rows: Iterator[Row], max_bytes: int) -> list[Row]:
    """The next of them, about `max_bytes` (at least one); what a `SnapshotReader` reads."""
    taken: list[Row] = []
    size_bytes = 0
    while size_bytes < max_bytes and (row := next(rows, None)) is not None:
        taken.append(row)
        size_bytes += len(row[1]) + len(row[2])
    return taken
