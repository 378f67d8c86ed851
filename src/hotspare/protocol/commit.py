"""A group commit: everything that one turn of a node has to write, or several turns, as one transaction.

Several pieces of work may be under way at once: the node goes on while a disk writes. They are performed in
order, by one thread at a time, and meanwhile nobody else touches the table: what others may know of it is the
`TableState` that each piece leaves behind. What gathers while one transaction runs shares the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from hotspare.commands import Outcome
from hotspare.events import Event
from hotspare.raft.messages import HardState, ServerId, SnapshotChunk, SnapshotMark
from hotspare.raft.node import Ready
from hotspare.store import Row, SnapshotReader, Store, Transaction, journal
from hotspare.store.journal import Identity
from hotspare.table import Table, TableState


class Work:
    """To be performed in order with all others, by whichever thread."""

    __slots__ = (
        "compacted",
        "events",
        "fork",
        "identity",
        "is_watched",
        "outcomes",
        "readers",
        "ready",
        "received",
        "staged",
        "state",
        "store",
        "table",
    )

    outcomes: list[Outcome]
    """What came of the entries that were applied."""
    readers: list[tuple[ServerId, SnapshotReader, int]]
    """(follower, snapshot opened for it, the index it ends at)."""
    events: list[Event]
    """What happened to the sessions, if anybody listens."""
    state: TableState | None
    """What the table is after it; None: as before."""

    def __init__(
        self,
        store: Store,
        table: Table,
        ready: Ready,
        staged: Sequence[tuple[bool, list[Row]]],
        received: Sequence[SnapshotChunk],
        compacted: SnapshotMark | None,
        is_watched: bool = False,
        identity: Identity | None = None,
        fork: tuple[HardState, SnapshotMark] | None = None,
    ) -> None:
        """`staged`: parts of an arriving snapshot; True: the first of a transfer, what was staged before is
        void. `received`: those parts, to be answered when they are staged; without the one that completes the
        snapshot. `compacted`: where the log begins from now on, if that changed. `is_watched`: whether
        somebody listens to `events`. `identity`: who this server is from now on, if that changed. `fork`: how
        another history begins, once `ready` is applied."""
        self.store = store
        self.table = table
        self.ready = ready
        self.staged = staged
        self.received = received
        self.compacted = compacted
        self.is_watched = is_watched
        self.identity = identity
        self.fork = fork
        self.outcomes = []
        self.readers = []
        self.events = []
        self.state = None

    @property
    def ends_transaction(self) -> bool:
        """The copy that a snapshot replaces may be in use until the next transaction."""
        return self.ready.snapshot is not None

    def perform(self) -> None:
        """As `perform` of this alone."""
        perform((self,))

    def write(self, transaction: Transaction) -> None:
        ready = self.ready
        if ready.number or ready.snapshot is not None:
            journal.save_ready(transaction, ready.hard_state, ready.append, ready.snapshot)
        for is_first, rows in self.staged:
            if is_first:
                transaction.discard_staged()
            transaction.stage(rows)
        if ready.snapshot is not None:
            transaction.install_staged()
            self.table.reload(transaction)
        if self.identity is not None:
            journal.save_identity(transaction, self.identity)
        if self.compacted is not None and not self.store.volatile:
            journal.compact(transaction, self.compacted)

    def apply(self, transaction: Transaction) -> None:
        table, ready = self.table, self.ready
        table.watch(self.is_watched)
        for entry in ready.committed:
            self.outcomes += table.apply(transaction, entry.index, entry.term, entry.kind, entry.payload)
        if self.fork is not None:
            self._begin_history(transaction, *self.fork)
        if ready.committed or ready.snapshot is not None or self.fork is not None:
            self.state = table.state()
        if self.is_watched:
            self.events = table.take_events()

    def _begin_history(self, transaction: Transaction, hard_state: HardState, mark: SnapshotMark) -> None:
        self.table.fork(transaction, mark.index, mark.term)
        journal.save_ready(transaction, hard_state, (), mark)
        transaction.discard_staged()

    @property
    def needs_rows(self) -> bool:
        """Whether the table's own rows are needed: in a volatile store only for snapshots."""
        return bool(self.ready.snapshots_wanted if self.store.volatile else self.ready.committed)

    def open_snapshots(self) -> None:
        for follower in self.ready.snapshots_wanted:
            self.readers.append((follower, self.store.snapshot(), self.table.applied_index))


def perform(works: Sequence[Work]) -> None:
    """In order, in one transaction; only the last may be one that `ends_transaction`.

    Raises StoreError or ProtocolError; then nothing of it is there, and the node must stop.
    """
    store, table = works[0].store, works[0].table
    transaction = store.begin()
    try:
        needs_rows = False
        for work in works:
            work.write(transaction)
            work.apply(transaction)
            needs_rows = needs_rows or work.needs_rows
        if needs_rows:
            table.save(transaction)
        transaction.commit()
    except BaseException:
        transaction.abort()
        raise
    for work in works:
        if work.ready.snapshots_wanted:
            work.open_snapshots()
