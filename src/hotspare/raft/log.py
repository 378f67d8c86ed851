"""The replicated log of one server, in memory: what comes after a snapshot's mark.

The log also knows the configurations, because they live in it: a configuration acts from the moment its
entry is appended, and stops acting when that entry is truncated (the dissertation, 4.1).

Five cursors move through the log, and their order is the invariant on which the rest rests:

    mark.index <= applied <= delivered <= commit <= last_index        mark.index < unwritten <= last_index + 1

Nothing at or below `commit` is ever truncated; nothing above `applied` is ever compacted away.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter

from .messages import Configuration, Entry, EntryKind, ServerId, SnapshotMark

ENTRY_OVERHEAD_BYTES = 32
"""What an entry counts beyond its payload, so that many empty ones are bounded too."""

_term_of = attrgetter("term")


def size_bytes(entries: Sequence[Entry]) -> int:
    return sum([len(entry.payload) for entry in entries]) + ENTRY_OVERHEAD_BYTES * len(entries)


CONFIGURATION = int(EntryKind.CONFIGURATION)


class Log:
    __slots__ = (
        "_entries",
        "applied",
        "bytes",
        "commit",
        "configuration",
        "configurations",
        "delivered",
        "last_index",
        "mark",
        "unwritten",
        "voters",
    )

    mark: SnapshotMark
    """The entry before the first one kept. Only its index, term and configuration are known."""

    applied: int
    """Up to here the state machine is known to be. Only grows."""

    delivered: int
    """Up to here entries were handed out for applying; `applied` follows. Only grows."""

    commit: int
    """Up to here a majority holds the entries, for good. Only grows."""

    unwritten: int
    """The first index not yet handed out for writing. Falls on truncation: what replaces is written anew."""

    bytes: int
    """The size of all entries kept."""

    configurations: dict[int, Configuration]
    """By the index of its entry, ascending; the mark's is the first, the last one is `configuration`."""

    configuration: Configuration
    """The one that acts: the latest in the log, committed or not."""

    voters: tuple[ServerId, ...]
    """Those of `configuration`, in its order."""

    def __init__(self, mark: SnapshotMark, entries: Sequence[Entry]) -> None:
        self._entries: list[Entry] = []
        self._begin_at(mark)
        self.append(entries)
        self.unwritten = self.last_index + 1

    def _begin_at(self, mark: SnapshotMark) -> None:
        self.mark = mark
        self.last_index = self.applied = self.delivered = self.commit = mark.index
        self.unwritten = mark.index + 1
        self.bytes = 0
        self._entries.clear()
        self.configurations = {mark.index: mark.configuration}
        self._configuration_changed()

    # -- looking -------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self.mark.index + 1

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.mark.term

    def term_at(self, index: int) -> int | None:
        """The term of that entry; None where the log does not reach (compacted away, or not yet there)."""
        offset = index - self.mark.index - 1
        if 0 <= offset < len(self._entries):
            return self._entries[offset].term
        return self.mark.term if offset == -1 else None

    def entry(self, index: int) -> Entry:
        assert self.first_index <= index <= self.last_index, "outside the log"
        return self._entries[index - self.first_index]

    def entries(self, first: int, max_bytes: int, last: int | None = None) -> list[Entry]:
        """Entries from `first` on, up to `last`, of about `max_bytes`: at least one if there is one."""
        assert first > self.mark.index, "compacted away"
        entries = self._entries
        begin = first - self.mark.index - 1
        limit = (self.last_index if last is None else last) - self.mark.index
        if limit == begin + 1:
            return [entries[begin]]
        end, taken_bytes = begin, 0
        while end < limit:
            taken_bytes += len(entries[end].payload) + ENTRY_OVERHEAD_BYTES
            if taken_bytes > max_bytes and end > begin:
                break
            end += 1
        return entries[begin:end]

    def is_up_to_date(self, last_term: int, last_index: int) -> bool:
        """Whether a log that ends so is at least as up to date as this one (the paper, 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def last_with_term_at_most(self, term: int, index: int) -> int:
        """The greatest index up to `index` whose entry has at most that term: above it, a log whose entry at
        `index` is of `term` cannot agree with this one, so a whole diverging term is skipped at a time."""
        within = bisect_right(self._entries, term, hi=max(0, index - self.mark.index), key=_term_of)
        if within or self.mark.term <= term:
            return min(index, self.mark.index + within)
        return min(index, self.mark.index - 1)

    def configuration_index(self) -> int:
        """The index of the acting configuration's entry."""
        return next(reversed(self.configurations))

    def last_naming(self, server: ServerId) -> tuple[int, int]:
        """Index and term of the latest configuration known that has this server; zeros if none has."""
        naming = [at for at, each in self.configurations.items() if each.by_id(server) is not None]
        index = max(naming, default=0)
        return index, self.term_at(index) or 0

    def configuration_at(self, index: int) -> Configuration:
        """The configuration that acts for the state up to `index`, which must not be compacted away."""
        assert index >= self.mark.index, "compacted away"
        return self.configurations_from(index)[0]

    def configurations_from(self, index: int) -> list[Configuration]:
        """The configuration that acts for the state up to `index`, and those that come after it."""
        acting = max(at for at in self.configurations if at <= index)
        return [configuration for at, configuration in self.configurations.items() if at >= acting]

    def mark_at(self, index: int) -> SnapshotMark:
        """The mark of a snapshot that ends at `index`, which must be committed and not compacted away."""
        term = self.term_at(index)
        assert term is not None, "outside the log"
        assert index <= self.commit
        return SnapshotMark(index, term, self.configuration_at(index))

    def index_leaving(self, keep_bytes: int) -> int:
        """Up to where to compact so that at most so many bytes are left."""
        index, excess_bytes = self.mark.index, self.bytes - keep_bytes
        for entry in self._entries:
            if excess_bytes <= 0:
                break
            excess_bytes -= len(entry.payload) + ENTRY_OVERHEAD_BYTES
            index = entry.index
        return index

    # -- changing ------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.last_index += 1
            assert entry.index == self.last_index, "entries follow each other without a gap"
            self.bytes += len(entry.payload) + ENTRY_OVERHEAD_BYTES
            if entry.kind == CONFIGURATION:
                self.configurations[entry.index] = Configuration.decode(entry.payload)
                self._configuration_changed()
        self._entries.extend(entries)

    def truncate(self, first: int) -> None:
        """Forgets the entries from `first` on; configurations among them stop acting."""
        assert self.commit < first <= self.last_index, "what is committed is never truncated"
        begin = first - self.first_index
        self.bytes -= size_bytes(self._entries[begin:])
        del self._entries[begin:]
        self.last_index = first - 1
        self.unwritten = min(self.unwritten, first)
        if self.configuration_index() >= first:
            self.configurations = {at: each for at, each in self.configurations.items() if at < first}
            self._configuration_changed()

    def merge(self, previous_index: int, entries: list[Entry]) -> None:
        """Makes the log agree with `entries`, which follow `previous_index`, where it has a matching entry.

        What is there already stays: an old message that comes late must not cut off newer entries."""
        if previous_index == self.last_index:
            self.append(entries)
            return
        for position, entry in enumerate(entries):
            if self.term_at(entry.index) != entry.term:
                if entry.index <= self.last_index:
                    self.truncate(entry.index)
                self.append(entries[position:])
                return

    def commit_to(self, index: int) -> None:
        assert self.commit <= index <= self.last_index
        self.commit = index

    def applied_to(self, index: int) -> None:
        assert index <= self.delivered, "applied what was never delivered"
        self.applied = max(self.applied, index)

    def take_unwritten(self) -> list[Entry]:
        """The entries to write next; they replace everything written from the first of them on."""
        entries = self._entries[self.unwritten - self.mark.index - 1 :]
        self.unwritten = self.last_index + 1
        return entries

    def take_committed(self, max_bytes: int) -> list[Entry]:
        """The entries to apply next. They have all been taken for writing before."""
        if self.delivered == self.commit:
            return []
        entries = self.entries(self.delivered + 1, max_bytes, self.commit)
        self.delivered = entries[-1].index
        assert self.delivered < self.unwritten
        return entries

    def compact(self, index: int) -> None:
        """Forgets the entries up to `index`, which must be applied; their last one becomes the mark."""
        assert self.mark.index <= index <= self.applied, "only what is applied is compacted"
        mark = self.mark_at(index)
        count = index - self.mark.index
        self.bytes -= size_bytes(self._entries[:count])
        del self._entries[:count]
        later = {at: each for at, each in self.configurations.items() if at > index}
        self.configurations = {index: mark.configuration, **later}
        self.mark = mark

    def restore(self, mark: SnapshotMark) -> None:
        """Begins anew after a snapshot. What follows its last entry is kept if that entry is here too, and
        is to be written again: the log on disk begins anew as well."""
        assert mark.index > self.commit, "a snapshot never takes back what is committed"
        suffix: list[Entry] = []
        if self.term_at(mark.index) == mark.term:
            suffix = self._entries[mark.index - self.mark.index :]
        self._begin_at(mark)
        self.append(suffix)

    def _configuration_changed(self) -> None:
        self.configuration = self.configurations[self.configuration_index()]
        self.voters = tuple(member.id for member in self.configuration.members if member.voter)
