"""The replicated state machine: what the entries of the log do to the sessions.

The problem: every copy applies the same log by itself, years and versions apart, and all must end with the
same bytes. So everything here follows from the log alone. There is one clock, the stamp of the entry being
applied; a session is gone once `expires_at_ms <= stamp_ms`, whether it has been pruned yet or not. Limits
travel in the commands. Nothing is compressed here, no setting of the node is consulted, and whatever an
entry holds, it ends as a result and not as an exception: a command that stopped one copy would stop them
all.

**Exactly once.** A write whose answer got lost is sent again, perhaps through another leader, and must not
run twice. Who issues writes therefore registers as an *origin* (Ongaro, "Consensus: bridging theory and
practice", 6.3): the index of its registration is its id, and it numbers its commands from 1. They run
strictly in that order. A number at or below the last one is answered from the stored results; a gap is
refused, to be sent again in order. The origin says up to which number it has seen results, and those are
forgotten. Highest-number-wins would not do: commands that overtook each other would count as done without
having run.

**No late surprises.** Each command carries a deadline in cluster time. Under a later stamp it is refused,
and its number counts as done, so that the following ones go on. A caller who gave up knows that after the
deadline nothing happens any more.

**Bounded steps.** A hundred thousand sessions that expire in one moment must not stall every copy at once:
each batch prunes at most `PRUNE_PER_BATCH` of them, in (expires_at_ms, id) order.

The rows (integers big-endian), in the store's `table` space, where a snapshot finds them with the sessions:

    "c"                       applied index and term, stamp, count, bytes, digest
    "o" origin                last number, seen number, stamp and rank of its last activity, seal of its nonce
    "r" origin, first number  the results of one run of commands, 8 bytes each
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from struct import Struct, pack, unpack
from struct import error as struct_error
from typing import Any, Final, NamedTuple
from zlib import crc32

from hotspare.commands import (
    ABSENT,
    BATCH,
    CONFLICT_ABSENT,
    EXPIRED,
    FORGOTTEN,
    FULL,
    IF_ABSENT,
    IF_PRESENT,
    INVALID,
    KEEP_EXPIRY_MS,
    REGISTRATION,
    TAKEN,
    TOO_LARGE,
    UNMERGEABLE,
    Batch,
    Command,
    Delete,
    Gap,
    Group,
    Outcome,
    Patch,
    Put,
    Registered,
    Registration,
    Results,
    Rotate,
    Touch,
    UnknownOrigin,
    decode_batch,
    decode_registration,
)
from hotspare.data import splice
from hotspare.errors import StoreCorrupt, corrupt
from hotspare.events import (
    Event,
    Missed,
    SessionChanged,
    SessionCreated,
    SessionDeleted,
    SessionExpired,
    SessionRotated,
)
from hotspare.record import (
    ENCRYPTED,
    HEADER_BYTES,
    RECORD_FORMAT,
    data_checksum,
    digest_term,
    pack_header,
    pack_record,
    record_checksum,
    record_data,
    record_expires_at_ms,
    record_flags,
    record_version,
    with_expiry,
)
from hotspare.rules import MAX_ID_BYTES, MAX_TTL_MS
from hotspare.store import ExpiryIndex, Space, Store, Transaction

PRUNE_PER_BATCH = 512
"""Expired sessions that one batch deletes: some milliseconds of work on the slower store. So for origins."""

ORIGIN_TTL_MS = 10 * 60 * 1000
"""An origin that issued nothing for so long is forgotten: far longer than any write may take."""

MAX_ORIGINS = 1 << 16
"""A bound on what clients that come, write once and go can make every copy remember."""

MAX_UNSEEN = 1 << 16
"""Results kept for one origin. It waits for answers long before: its own writes in flight are bounded too."""

SESSION_OVERHEAD_BYTES: Final = 200
"""What a session is taken to occupy beside its id and its record: entries of two trees and the free part of
their pages in one store, entries of dictionaries and headers of objects in the other. One estimate for both,
because all copies must agree on when they are full."""


class Totals(NamedTuple):
    """Follows from the sessions alone. Two tables that applied the same log have the same totals."""

    sessions: int = 0
    """Kept ones: expired ones that are not pruned yet included."""
    bytes: int = 0
    """Of ids and records."""
    digest: int = 0
    """The sum of the records' `digest_term`s modulo 2**64."""


def recount(sessions: Iterable[tuple[bytes, bytes]]) -> Totals:
    """The totals of these rows (`transaction.sessions.scan()`), from scratch."""
    count = size = digest = 0
    for id, record in sessions:
        count += 1
        size += len(id) + len(record)
        digest += digest_term(record)
    return Totals(count, size, digest & _U64)


class TableState:
    """What a table was at one moment: for those who may not look at it while another thread applies. Nobody
    changes it."""

    __slots__ = (
        "applied_index",
        "applied_term",
        "origins_count",
        "origins_due_ms",
        "stamp_ms",
        "totals",
    )

    origins_due_ms: int
    """From this stamp on there are origins to forget."""

    def __init__(
        self,
        applied_index: int,
        applied_term: int,
        stamp_ms: int,
        totals: Totals,
        origins_count: int,
        origins_due_ms: int,
    ) -> None:
        self.applied_index = applied_index
        self.applied_term = applied_term
        self.stamp_ms = stamp_ms
        self.totals = totals
        self.origins_count = origins_count
        self.origins_due_ms = origins_due_ms

    @property
    def bytes_used(self) -> int:
        """About what the sessions occupy; equal on all copies."""
        return self.totals.bytes + self.totals.sessions * SESSION_OVERHEAD_BYTES

    @property
    def digest(self) -> str:
        return f"{self.totals.digest:016x}"

    def prune_due(self, store: Store, stamp_ms: int) -> bool:
        """Whether a batch without commands, of that stamp, would have something to prune."""
        return self.origins_due_ms <= stamp_ms or store.due_count(stamp_ms, at_most=1) > 0


class Table:
    """The sessions and origins of one copy. What it caches of its rows, `save` writes once a group commit.

    If `apply` raises or the transaction is aborted, the table must be reloaded before it is used again. One
    thread at a time; others look at its `state()`.
    """

    applied_index: int
    applied_term: int
    stamp_ms: int
    """Cluster time of the last entry that had one, in UNIX ms. Never goes back."""
    totals: Totals

    def __init__(self, txn: Transaction) -> None:
        self._events: list[Event] | None = None
        """What was applied since it was taken; None: nobody listens."""
        self.reload(txn)

    def reload(self, txn: Transaction) -> None:
        """Takes everything from the rows: at the start, after an abort, after a snapshot was installed.

        Raises `StoreCorrupt`.
        """
        row = txn.table.get(COUNTERS_KEY)
        try:
            self.applied_index, self.applied_term, self.stamp_ms, *totals = _COUNTERS.unpack(
                row or _NO_COUNTERS
            )
            self._origins = _Origins(txn.table)
        except (struct_error, LookupError) as exc:
            raise corrupt("the rows of the state machine are damaged") from exc
        self.totals = Totals(*totals)
        self._saved = row
        events = self._events
        if events is not None:
            events.append(Missed(None))

    def save(self, txn: Transaction) -> None:
        """Writes what changed since the last time. Must come before the commit of what was applied."""
        row = _COUNTERS.pack(self.applied_index, self.applied_term, self.stamp_ms, *self.totals)
        if row != self._saved:
            txn.table[COUNTERS_KEY] = row
            self._saved = row
        self._origins.save(txn.table)

    def watch(self, on: bool) -> None:
        """Whether what is applied from now on is told by `take_events`. It decides nothing else."""
        if on is not self.is_watched:
            self._events = [] if on else None

    @property
    def is_watched(self) -> bool:
        return self._events is not None

    def take_events(self) -> list[Event]:
        """What was applied since the last time, in order, while somebody listens."""
        events = self._events
        if not events:
            return []
        self._events = []
        return events

    def state(self) -> TableState:
        return TableState(
            self.applied_index,
            self.applied_term,
            self.stamp_ms,
            self.totals,
            len(self._origins),
            self._origins.due_ms(),
        )

    def has_origin(self, origin: int) -> bool:
        return self._origins.find(origin) is not None

    def is_registered(self, origin: int, nonce: bytes) -> bool:
        """Whether that is the origin's nonce, which nobody else knows: a number can be guessed."""
        found = self._origins.find(origin)
        return found is not None and found.seal == _seal(nonce)

    def apply(self, txn: Transaction, index: int, term: int, kind: int, payload: bytes) -> list[Outcome]:
        """Runs one committed entry. The outcomes are those of its groups, in order, or of its registration.

        Raises `ProtocolError` if the payload does not decode, and `StoreCorrupt`. This copy must stop then.
        """
        assert index > self.applied_index, f"entry {index} was applied before {self.applied_index}"
        self.applied_index = index
        self.applied_term = term
        if kind == BATCH:
            return self._run(txn, index, decode_batch(payload))
        if kind == REGISTRATION:
            return [self._register(txn, index, decode_registration(payload))]
        return []

    def fork(self, txn: Transaction, index: int, term: int) -> None:
        """The same sessions are the state of another history at that index: nobody who wrote them is known
        there."""
        assert index > self.applied_index
        self.applied_index, self.applied_term = index, term
        self._origins.forget_all(txn.table)
        self.save(txn)

    def _register(self, txn: Transaction, index: int, registration: Registration) -> Outcome:
        self._advance(txn, registration.stamp_ms)
        self._origins.register(txn.table, index, self.stamp_ms, _seal(registration.nonce))
        return Registered(registration.nonce, index)

    def _run(self, txn: Transaction, index: int, batch: Batch) -> list[Outcome]:
        self._advance(txn, batch.stamp_ms)
        events = self._events
        if events is None:
            sessions = _Sessions(txn, self.stamp_ms, batch.full, self.totals)
        else:
            sessions = _WatchedSessions(txn, self.stamp_ms, batch.full, self.totals, events.append)
        outcomes: list[Outcome] = []
        version = index << 16
        for rank, group in enumerate(batch.groups, index << 16):
            outcomes.append(self._run_group(txn.table, sessions, group, version, rank))
            version += group.count
        sessions.prune()
        self.totals = sessions.totals()
        return outcomes

    def _run_group(self, table: Space, sessions: _Sessions, group: Group, version: int, rank: int) -> Outcome:
        origin = self._origins.find(group.origin)
        if origin is None:
            return UnknownOrigin(group.origin, group.first, group.count)
        self._origins.note_activity(origin, self.stamp_ms, rank)
        if group.seen > origin.seen:
            origin.forget_seen(table, group.seen)
        if not group.commands:
            return Results(group.origin, group.first, [])
        done = origin.last + 1 - group.first
        if done < 0 or group.count - done > MAX_UNSEEN - (origin.last - origin.seen):
            return Gap(group.origin, group.first, origin.last + 1)
        if not done:
            results = sessions.run(group.commands, version)
            origin.keep(results)
            return Results(group.origin, group.first, results)
        results = origin.stored_results(group.first, min(done, group.count))
        fresh = sessions.run(group.commands[done:], version + done)
        if fresh:
            origin.keep(fresh)
        return Results(group.origin, group.first, results + fresh)

    def _advance(self, txn: Transaction, stamp_ms: int) -> None:
        if stamp_ms > self.stamp_ms:  # a new leader whose clock is behind must not bring sessions back
            self.stamp_ms = stamp_ms
        if self._origins.due(self.stamp_ms):
            self._origins.expire(txn.table, self.stamp_ms)


class _Sessions:
    """The sessions as the commands of one batch meet them: in its transaction, at its stamp."""

    __slots__ = ("_bytes", "_count", "_digest", "_expiry", "_full", "_get", "_records", "_stamp_ms")

    def __init__(self, txn: Transaction, stamp_ms: int, full: bool, totals: Totals) -> None:
        self._records: Space = txn.sessions
        self._get = txn.sessions.get
        self._expiry: ExpiryIndex = txn.expiry
        self._stamp_ms = stamp_ms
        self._full = full
        self._count, self._bytes, self._digest = totals

    def totals(self) -> Totals:
        return Totals(self._count, self._bytes, self._digest & _U64)

    def run(self, commands: list[Command], first_version: int) -> list[int]:
        """The results. Nearly all commands of a busy cluster are puts: they run here, on local names, and new
        sessions that expire together enter the index together."""
        results: list[int] = []
        done = results.append
        get, records, expiry = self._get, self._records, self._expiry
        stamp_ms, full = self._stamp_ms, self._full
        count = size = digest = 0
        new_ids: list[bytes] = []
        new_expiry_ms = 0
        for version, command in enumerate(commands, first_version):
            if type(command) is not Put:
                if new_ids:
                    expiry.add_all(new_expiry_ms, new_ids)
                    new_ids = []
                done(_RUN[type(command)](self, command, version))
                continue
            id, data, ttl_ms = command.id, command.data, command.ttl_ms
            if command.deadline_ms < stamp_ms:
                done(EXPIRED)
            elif not (
                data
                and 0 < len(id) <= MAX_ID_BYTES
                and (0 < ttl_ms <= MAX_TTL_MS or (ttl_ms == KEEP_EXPIRY_MS and command.condition > 0))
            ):
                done(INVALID)
            elif full:
                done(FULL)
            else:
                old = get(id)
                if command.condition and (conflict := self._conflict(command.condition, old)):
                    done(conflict)
                    continue
                expires_at_ms = stamp_ms + ttl_ms if ttl_ms or old is None else record_expires_at_ms(old)
                header = pack_header(expires_at_ms, version, command.checksum, RECORD_FORMAT | command.flags)
                records[id] = record = header + data
                crc = crc32(header)
                digest += crc * crc  # its `digest_term`
                size += len(record)
                done(version)
                if new_ids and (old is not None or expires_at_ms != new_expiry_ms):
                    expiry.add_all(new_expiry_ms, new_ids)
                    new_ids = []
                if old is None:
                    count += 1
                    size += len(id)
                    new_ids.append(id)
                    new_expiry_ms = expires_at_ms
                else:
                    size -= len(old)
                    digest -= digest_term(old)
                    expiry.discard(record_expires_at_ms(old), id)
                    expiry.add(expires_at_ms, id)
        if new_ids:
            expiry.add_all(new_expiry_ms, new_ids)
        self._count += count
        self._bytes += size
        self._digest += digest
        return results

    def prune(self) -> None:
        for expires_at_ms, id in self._expiry.due(self._stamp_ms, PRUNE_PER_BATCH):
            record = self._records.pop(id)
            if record is None:
                raise corrupt("the expiry index names a session that is not there")
            self._expiry.discard(expires_at_ms, id)
            self._uncount(id, record)

    # One method for each other command. All check in this order: deadline, rules, room, condition. (Whether a
    # rotation needs room is known only once the session is found.)

    def _delete(self, command: Delete, version: int) -> int:
        if command.deadline_ms < self._stamp_ms:
            return EXPIRED
        if not 0 < len(command.id) <= MAX_ID_BYTES:
            return INVALID
        record = self._live(command.id)
        if command.condition and (conflict := self._conflict(command.condition, record)):
            return conflict
        if record is None:
            return ABSENT
        self._remove(command.id, record)
        return version

    def _touch(self, command: Touch, version: int) -> int:
        if command.deadline_ms < self._stamp_ms:
            return EXPIRED
        if not (0 < len(command.id) <= MAX_ID_BYTES and 0 < command.ttl_ms <= MAX_TTL_MS):
            return INVALID
        record = self._live(command.id)
        if record is None:
            return ABSENT
        self._replace(command.id, record, with_expiry(record, self._stamp_ms + command.ttl_ms))
        return version

    def _patch(self, command: Patch, version: int) -> int:
        if command.deadline_ms < self._stamp_ms:
            return EXPIRED
        if not 0 < len(command.id) <= MAX_ID_BYTES:
            return INVALID
        if self._full:
            return FULL
        record = self._live(command.id)
        if command.condition and (conflict := self._conflict(command.condition, record)):
            return conflict
        if record is None:
            return ABSENT
        if record_flags(record):
            return UNMERGEABLE
        data = _verified_data(command.id, record)
        try:
            patched = splice(data, command.set, command.remove)
        except StoreCorrupt:
            return UNMERGEABLE  # it is what its origin stored: the checksum says so
        if len(patched) > command.limit_bytes:
            return TOO_LARGE
        checksum = data_checksum(command.id, patched, 0)
        self._replace(
            command.id, record, pack_record(version, record_expires_at_ms(record), 0, checksum, patched)
        )
        return version

    def _rotate(self, command: Rotate, version: int) -> int:
        id, new_id = command.id, command.new_id
        if command.deadline_ms < self._stamp_ms:
            return EXPIRED
        if not (0 < len(id) <= MAX_ID_BYTES and 0 < len(new_id) <= MAX_ID_BYTES) or id == new_id:
            return INVALID
        if command.data and command.condition <= 0:
            return INVALID
        record = self._live(id)
        if record is None:
            return ABSENT
        if command.condition and (conflict := self._conflict(command.condition, record)):
            return conflict
        if self._full and len(command.data) > len(record) - HEADER_BYTES:
            return FULL
        if not command.data and record_flags(record) & ENCRYPTED:
            return UNMERGEABLE
        in_the_way = self._get(new_id)
        if in_the_way is not None:
            if record_expires_at_ms(in_the_way) > self._stamp_ms:
                return TAKEN
            self._remove(new_id, in_the_way)
        if command.data:
            flags, checksum, data = command.flags, command.checksum, command.data
        else:
            flags, data = record_flags(record), _verified_data(id, record)
            checksum = data_checksum(new_id, data, flags)
        self._remove(id, record)
        self._add(new_id, pack_record(version, record_expires_at_ms(record), flags, checksum, data))
        return version

    def _live(self, id: bytes) -> bytes | None:
        record = self._get(id)
        return None if record is None or record_expires_at_ms(record) <= self._stamp_ms else record

    def _conflict(self, condition: int, record: bytes | None) -> int:
        """The result of a condition that does not hold, 0 if it holds."""
        if condition < IF_PRESENT:
            return INVALID
        if record is None or record_expires_at_ms(record) <= self._stamp_ms:
            return 0 if condition == IF_ABSENT else CONFLICT_ABSENT
        version = record_version(record)
        return 0 if condition in (IF_PRESENT, version) else -version

    def _add(self, id: bytes, record: bytes) -> None:
        self._records[id] = record
        self._expiry.add(record_expires_at_ms(record), id)
        self._count += 1
        self._bytes += len(id) + len(record)
        self._digest += digest_term(record)

    def _remove(self, id: bytes, record: bytes) -> None:
        self._records.pop(id)
        self._expiry.discard(record_expires_at_ms(record), id)
        self._uncount(id, record)

    def _replace(self, id: bytes, old: bytes, new: bytes) -> None:
        if record_expires_at_ms(old) != record_expires_at_ms(new):
            self._expiry.discard(record_expires_at_ms(old), id)
            self._expiry.add(record_expires_at_ms(new), id)
        self._records[id] = new
        self._bytes += len(new) - len(old)
        self._digest += digest_term(new) - digest_term(old)

    def _uncount(self, id: bytes, record: bytes) -> None:
        self._count -= 1
        self._bytes -= len(id) + len(record)
        self._digest -= digest_term(record)


class _WatchedSessions(_Sessions):
    """The same for those who listen: each command by itself, with a look at what was there before it."""

    __slots__ = ("_tell",)

    def __init__(
        self, txn: Transaction, stamp_ms: int, full: bool, totals: Totals, tell: Callable[[Event], None]
    ) -> None:
        super().__init__(txn, stamp_ms, full, totals)
        self._tell = tell

    def run(self, commands: list[Command], first_version: int) -> list[int]:
        results: list[int] = []
        for version, command in enumerate(commands, first_version):
            before = self._look_at(command.id)
            in_the_way = self._look_at(command.new_id) if isinstance(command, Rotate) else None
            (result,) = super().run([command], version)
            results.append(result)
            if result > 0:
                self._tell_of(command, version, before, in_the_way)
        return results

    def prune(self) -> None:
        for _, id in self._expiry.due(self._stamp_ms, PRUNE_PER_BATCH):
            record = self._get(id)
            if record is not None:
                self._tell_expired(id, record)
        super().prune()

    def _look_at(self, id: bytes) -> bytes | None:
        return self._get(id) if 0 < len(id) <= MAX_ID_BYTES else None

    def _tell_of(
        self, command: Command, version: int, before: bytes | None, in_the_way: bytes | None
    ) -> None:
        """It has run. `in_the_way`: what was under the new id."""
        id = _shown(command.id)
        if isinstance(command, Put):
            if before is not None and record_expires_at_ms(before) <= self._stamp_ms:
                self._tell_expired(command.id, before)
                before = None
            if before is None:
                self._tell(SessionCreated(id, version))
            else:
                is_merged = command.ttl_ms == KEEP_EXPIRY_MS
                self._tell(SessionChanged(id, version, "updated" if is_merged else "stored"))
        elif isinstance(command, Patch):
            self._tell(SessionChanged(id, version, "updated"))
        elif isinstance(command, Rotate):
            if in_the_way is not None:
                self._tell_expired(command.new_id, in_the_way)
            self._tell(SessionRotated(_shown(command.new_id), version, id))
        elif isinstance(command, Delete) and before is not None:
            self._tell(SessionDeleted(id, record_version(before)))

    def _tell_expired(self, id: bytes, record: bytes) -> None:
        self._tell(SessionExpired(_shown(id), record_version(record)))


def _shown(id: bytes) -> str:
    # No origin of ours sends other ids than UTF-8, but others may.
    return id.decode(errors="backslashreplace")


_RUN: Final[dict[type, Callable[[_Sessions, Any, int], int]]] = {
    Delete: _Sessions._delete,
    Touch: _Sessions._touch,
    Patch: _Sessions._patch,
    Rotate: _Sessions._rotate,
}


def _verified_data(id: bytes, record: bytes) -> bytes:
    """A new checksum over damaged data would hide the damage for good."""
    data = record_data(record)
    if data_checksum(id, data, record_flags(record)) != record_checksum(record):
        raise corrupt("a session's record does not match its checksum")
    return data


class _Origin:
    """One origin. Invariant: 0 <= seen <= last, and the runs, which follow each other without a gap, hold the
    results of at least all numbers above `seen` and none above `last`. Those that begin with `unsaved` or
    later have no row yet: most are seen, and forgotten, before they would get one."""

    __slots__ = ("_runs", "_unsaved", "active_ms", "id", "last", "rank", "seal", "seen")

    def __init__(self, id: int, last: int, seen: int, active_ms: int, rank: int, seal: bytes) -> None:
        self.id = id
        self.last = last
        self.seen = seen
        self.active_ms = active_ms
        self.rank = rank
        """Where in the log it was last active: orders the origins, also those of one entry."""
        self.seal = seal
        """Of the nonce of its registration."""
        self._runs: dict[int, Sequence[int]] = {}
        """By first number, ascending."""
        self._unsaved = last + 1

    def load_run(self, first: int, row: bytes) -> None:
        """Rows come in ascending order."""
        self._runs[first] = unpack(f">{len(row) // 8}q", row)

    def check(self) -> None:
        """Raises `StoreCorrupt` unless all results that are still to be seen were loaded."""
        number = next(iter(self._runs), self.last + 1)
        is_complete = number <= self.seen + 1
        for first, run in self._runs.items():
            is_complete = is_complete and first == number
            number += len(run)
        if not is_complete or number != self.last + 1:
            raise corrupt("the stored results of an origin are not there")

    def keep(self, results: list[int]) -> None:
        """Stores the results of the commands after `last`."""
        self._runs[self.last + 1] = results
        self.last += len(results)

    def stored_results(self, first: int, count: int) -> list[int]:
        """The results of `count` numbers from `first` on, none of them above `last`."""
        end = first + count
        forgotten = max(0, min(end, self.seen + 1) - first)
        results = [FORGOTTEN] * forgotten
        number = first + forgotten
        firsts = list(self._runs)
        while number < end:
            run = firsts[bisect_right(firsts, number) - 1]
            part = self._runs[run][number - run : end - run]
            results += part
            number += len(part)
        return results

    def forget_seen(self, table: Space, seen: int) -> None:
        """Deletes the runs that the origin has seen as a whole."""
        self.seen = seen = min(seen, self.last)
        runs = self._runs
        while runs:
            first = next(iter(runs))
            if first + len(runs[first]) - 1 > seen:
                break
            del runs[first]
            if first < self._unsaved:
                table.pop(_RUN_KEY.pack(b"r", self.id, first))

    def save(self, table: Space) -> None:
        table[_ORIGIN_KEY.pack(b"o", self.id)] = _ORIGIN.pack(
            self.last, self.seen, self.active_ms, self.rank, self.seal
        )
        for first in reversed(self._runs):
            if first < self._unsaved:
                break
            run = self._runs[first]
            table[_RUN_KEY.pack(b"r", self.id, first)] = pack(f">{len(run)}q", *run)
        self._unsaved = self.last + 1

    def forget_all(self, table: Space) -> None:
        for first in self._runs:
            table.pop(_RUN_KEY.pack(b"r", self.id, first))
        table.pop(_ORIGIN_KEY.pack(b"o", self.id))


class _Origins:
    """All origins, the one that has been idle for longest first.

    That is the order of ranks and, as stamps never go back, of `active_ms` too: expiring looks at one end.
    """

    def __init__(self, table: Space) -> None:
        loaded: dict[int, _Origin] = {}
        for key, row in table.scan(b"o"):
            if key[:1] == b"o":
                _, id = _ORIGIN_KEY.unpack(key)
                loaded[id] = _Origin(id, *_ORIGIN.unpack(row))
            elif key[:1] == b"r":
                _, id, first = _RUN_KEY.unpack(key)
                loaded[id].load_run(first, row)
        for origin in loaded.values():
            origin.check()
        by_rank = sorted(loaded.values(), key=lambda origin: origin.rank)
        self._by_id = OrderedDict((origin.id, origin) for origin in by_rank)
        self._unsaved: dict[int, _Origin] = {}
        self._quiet_until_ms = 0
        """None expires before; when one becomes active again, perhaps none does for longer."""

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, id: int) -> _Origin | None:
        return self._by_id.get(id)

    def register(self, table: Space, index: int, stamp_ms: int, seal: bytes) -> None:
        origin = _Origin(index, 0, 0, stamp_ms, index << 16, seal)
        self._by_id[index] = origin
        self._unsaved[index] = origin
        if len(self._by_id) > MAX_ORIGINS:
            self._forget_idlest(table)

    def note_activity(self, origin: _Origin, stamp_ms: int, rank: int) -> None:
        origin.active_ms = stamp_ms
        origin.rank = rank
        self._by_id.move_to_end(origin.id)
        self._unsaved[origin.id] = origin

    def due(self, stamp_ms: int) -> bool:
        if stamp_ms < self._quiet_until_ms or not self._by_id:
            return False
        self._quiet_until_ms = self.due_ms()
        return self._quiet_until_ms <= stamp_ms

    def due_ms(self) -> int:
        """When the one that has been idle for longest is to be forgotten."""
        idlest = next(iter(self._by_id.values()), None)
        return _NEVER_MS if idlest is None else idlest.active_ms + ORIGIN_TTL_MS

    def expire(self, table: Space, stamp_ms: int) -> None:
        for _ in range(PRUNE_PER_BATCH):
            if self.due_ms() > stamp_ms:
                break
            self._forget_idlest(table)

    def save(self, table: Space) -> None:
        for origin in self._unsaved.values():
            origin.save(table)
        self._unsaved.clear()

    def forget_all(self, table: Space) -> None:
        while self._by_id:
            self._forget_idlest(table)

    def _forget_idlest(self, table: Space) -> None:
        id, origin = self._by_id.popitem(last=False)
        self._unsaved.pop(id, None)
        origin.forget_all(table)


_U64: Final = 2**64 - 1
_NEVER_MS: Final = 1 << 62
COUNTERS_KEY: Final = b"c"
"""Of the row of a copy's space `table` that `applied_index_in` takes."""
_COUNTERS: Final = Struct(">6Q")
_NO_COUNTERS: Final = bytes(_COUNTERS.size)
_ORIGIN_KEY: Final = Struct(">cQ")
_SEAL_BYTES: Final = 16
_ORIGIN: Final = Struct(f">4Q{_SEAL_BYTES}s")
_RUN_KEY: Final = Struct(">cQQ")


def _seal(nonce: bytes) -> bytes:
    return blake2b(nonce, digest_size=_SEAL_BYTES).digest()


def applied_index_in(counters: bytes | None) -> int:
    """Up to where a copy had applied the log when it held this row."""
    index: int = _COUNTERS.unpack(counters or _NO_COUNTERS)[0]
    return index
