"""A group commit: everything that one turn of a node has to write, as one transaction."""

from __future__ import annotations

from dataclasses import dataclass, field

from hotspare.events import Event
from hotspare.raft.messages import ServerId, SnapshotMark
from hotspare.raft.node import Ready
from hotspare.store import Row, SnapshotReader, Store, Transaction, journal
from hotspare.table import Outcome, Table


@dataclass(slots=True)
class Work:
    """To be performed in order with all others, by whichever thread."""

    store: Store
    table: Table
    ready: Ready
    staged: list[tuple[bool, list[Row]]]
    """Parts of an arriving snapshot; True: the first of a transfer, what was staged before is void."""
    compacted: SnapshotMark | None
    """Where the log begins from now on, if that changed."""

    outcomes: list[Outcome] = field(default_factory=list)
    """What came of the entries that were applied."""
    readers: list[tuple[ServerId, SnapshotReader, int]] = field(default_factory=list)
    """(follower, snapshot opened for it, the index it ends at)."""
    events: list[Event] = field(default_factory=list)
    """What happened to the sessions, if anybody listens."""

    def perform(self) -> None:
        """Raises StoreError or ProtocolError; then nothing of it is there, and the node must stop."""
        transaction = self.store.begin()
        try:
            self._write(transaction)
            self._apply(transaction)
            transaction.commit()
            self.events = self.table.take_events()
        except BaseException:
            transaction.abort()
            raise
        for follower in self.ready.snapshots_wanted:
            self.readers.append((follower, self.store.snapshot(), self.table.applied_index))

    def _write(self, transaction: Transaction) -> None:
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
        if self.compacted is not None and not self.store.volatile:
            journal.compact(transaction, self.compacted)

    def _apply(self, transaction: Transaction) -> None:
        table = self.table
        for entry in self.ready.committed:
            self.outcomes += table.apply(transaction, entry.index, entry.term, entry.kind, entry.payload)
        volatile, snapshots_wanted = self.store.volatile, self.ready.snapshots_wanted
        if snapshots_wanted if volatile else self.ready.committed:
            table.save(transaction)  # what nobody starts from is needed for snapshots only
