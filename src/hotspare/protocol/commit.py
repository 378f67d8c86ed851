"""A group commit: everything that one turn of a node has to write, as one transaction."""

from __future__ import annotations

from dataclasses import dataclass, field

from hotspare.raft.messages import ServerId, SnapshotMark
from hotspare.raft.node import Ready
from hotspare.store import Row, SnapshotReader, Store, journal
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

    def perform(self) -> None:
        """Raises StoreError or ProtocolError; then nothing of it is there, and the node must stop."""
        transaction = self.store.begin()
        try:
            journal.save_ready(transaction, self.ready.hard_state, self.ready.append, self.ready.snapshot)
            for is_first, rows in self.staged:
                if is_first:
                    transaction.discard_staged()
                transaction.stage(rows)
            if self.ready.snapshot is not None:
                transaction.install_staged()
                self.table.reload(transaction)
            for entry in self.ready.committed:
                self.outcomes += self.table.apply(
                    transaction, entry.index, entry.term, entry.kind, entry.payload
                )
            if self.compacted is not None:
                journal.compact(transaction, self.compacted)
            if self.ready.committed:
                self.table.save(transaction)
            transaction.commit()
        except BaseException:
            transaction.abort()
            raise
        for follower in self.ready.snapshots_wanted:
            self.readers.append((follower, self.store.snapshot(), self.table.applied_index))
