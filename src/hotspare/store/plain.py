"""The store in dictionaries of the process: the fastest, for in-process nodes and for the simulator.

What is written goes straight into the dictionaries, so a commit costs nothing. Everything that has to know
what was there before a write (a snapshot reader; the undo log of a simulated crash) is a *watcher* of the
space, told before each write. A space without watchers is a plain `dict` in all that is done often.

**The expiry index** groups the ids of one millisecond, and the milliseconds of one bucket of about a minute.
Adding and discarding are dictionary operations and leave nothing behind. Order is made late and little of it
at a time: a bucket's milliseconds are sorted when its time comes, the ids of one millisecond when it is due.
(A heap of tuples would cost 96 bytes a session, and every touch would leave an entry in it until its time.)

**Snapshots** are copy-on-write: the list of ids is taken at once (some tens of milliseconds for a million of
them; copying the dictionary would take five times that), the records while it is read, and the old values of
what changes in between are kept aside.

One thread writes. `get` and the other reads of the store may come from any: they rely on single operations of
dictionaries being atomic.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from heapq import heapify, heappop, nsmallest
from itertools import chain
from typing import Final

from hotspare.errors import StoreError
from hotspare.store import EXPIRY_BYTES, NO_LIMIT, Row, take_rows

Watcher = Callable[[bytes, bytes | None], None]
"""Told the key and its old value (None: absent) before each write."""

BUCKET_BITS: Final = 16
"""A bucket spans 2**16 ms. An empty one costs some 300 bytes, and two weeks hold 18 000 of them."""

_NEVER: Final = 1 << 64
_NO_BUCKET: Final[dict[int, bytes | dict[bytes, bytes]]] = {}


class PlainSpace(dict[bytes, bytes]):
    __slots__ = ("_watchers",)

    def __init__(self) -> None:
        super().__init__()
        self._watchers: tuple[Watcher, ...] = ()

    # A dictionary's own `pop` raises without a default; the port's does not.
    def pop(self, key: bytes, default: None = None, /) -> bytes | None:  # type: ignore[override]
        return dict.pop(self, key, default)

    def scan(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return ((key, self[key]) for key in sorted(key for key in self if key >= start))

    def watch(self, watcher: Watcher) -> None:
        self._watchers += (watcher,)
        self.__class__ = _WatchedSpace

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers = tuple(each for each in self._watchers if each != watcher)
        if not self._watchers:
            self.__class__ = PlainSpace

    def restore(self, key: bytes, before: bytes | None) -> None:
        """Takes a write back, unseen by the watchers: they know the value from before it."""
        if before is None:
            dict.pop(self, key, None)
        else:
            dict.__setitem__(self, key, before)


class _WatchedSpace(PlainSpace):
    __slots__ = ()

    def __setitem__(self, key: bytes, value: bytes, /) -> None:
        self._tell(key)
        dict.__setitem__(self, key, value)

    def pop(self, key: bytes, default: None = None, /) -> bytes | None:  # type: ignore[override]
        self._tell(key)
        return dict.pop(self, key, default)

    def _tell(self, key: bytes) -> None:
        before = self.get(key)
        for watcher in self._watchers:
            watcher(key, before)


class TimeBuckets:
    """The expiry index.

    Invariant: `_moments` is sorted and holds every millisecond of the opened buckets (those numbered up to
    `_opened`) that has ids, and perhaps some that have lost theirs. Nothing expires before `_quiet_until_ms`.
    """

    __slots__ = ("_buckets", "_crowd", "_last_discarded", "_moments", "_opened", "_quiet_until_ms")

    def __init__(self) -> None:
        # bucket number -> expires_at_ms -> the only id of that millisecond, or several (each by itself)
        self._buckets: dict[int, dict[int, bytes | dict[bytes, bytes]]] = {}
        self._moments: list[int] = []
        self._opened = -1
        self._quiet_until_ms = _NEVER
        self._crowd: _Crowd | None = None
        self._last_discarded = b""

    def add(self, expires_at_ms: int, id: bytes, /) -> None:
        # A touch discards and adds. It must not keep a second, equal id alive beside the key of `sessions`.
        if id == self._last_discarded:
            id = self._last_discarded
        number = expires_at_ms >> BUCKET_BITS
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = {}
        group = bucket.get(expires_at_ms)
        if isinstance(group, dict):
            group[id] = id
        elif group is None:
            bucket[expires_at_ms] = id
            self._note_moment(number, expires_at_ms)
        elif group != id:
            bucket[expires_at_ms] = {group: group, id: id}
        if self._crowd is not None and self._crowd.expires_at_ms == expires_at_ms:
            self._crowd = None

    def add_all(self, expires_at_ms: int, ids: list[bytes], /) -> None:
        self.add(expires_at_ms, ids[0])
        if len(ids) == 1:
            return
        bucket = self._buckets[expires_at_ms >> BUCKET_BITS]
        group = bucket[expires_at_ms]
        if isinstance(group, bytes):
            group = bucket[expires_at_ms] = {group: group}
        group.update(zip(ids, ids, strict=True))

    def discard(self, expires_at_ms: int, id: bytes, /) -> None:
        number = expires_at_ms >> BUCKET_BITS
        bucket = self._buckets.get(number)
        if bucket is None:
            return
        group = bucket.get(expires_at_ms)
        if isinstance(group, dict):
            self._last_discarded = group.pop(id, b"")
            if group:
                return
        elif group == id:
            self._last_discarded = group
        else:
            return
        del bucket[expires_at_ms]
        if not bucket:
            del self._buckets[number]

    def due(self, now_ms: int, limit: int, /) -> list[tuple[int, bytes]]:
        if now_ms < self._quiet_until_ms:
            return []
        self._forget_past_moments()
        due: list[tuple[int, bytes]] = []
        at = 0
        while len(due) < limit:
            if at == len(self._moments) and not self._open_next(now_ms):
                break
            expires_at_ms = self._moments[at]
            if expires_at_ms > now_ms:
                self._quiet_until_ms = self._moments[0]
                break
            due += [(expires_at_ms, id) for id in self._first_ids(expires_at_ms, limit - len(due))]
            at += 1
        return due

    def due_count(self, now_ms: int, at_most: int = NO_LIMIT) -> int:
        if now_ms < self._quiet_until_ms:
            return 0
        count = 0
        for number in [number for number in self._buckets.copy() if number <= now_ms >> BUCKET_BITS]:
            for expires_at_ms, group in self._buckets.get(number, _NO_BUCKET).copy().items():
                if count >= at_most:
                    return at_most
                if expires_at_ms <= now_ms:
                    count += len(group) if isinstance(group, dict) else 1
        return min(count, at_most)

    def _note_moment(self, number: int, expires_at_ms: int) -> None:
        if expires_at_ms < self._quiet_until_ms:
            self._quiet_until_ms = expires_at_ms
        if number <= self._opened:
            at = bisect_left(self._moments, expires_at_ms)
            if at == len(self._moments) or self._moments[at] != expires_at_ms:
                self._moments.insert(at, expires_at_ms)

    def _forget_past_moments(self) -> None:
        past = 0
        while past < len(self._moments) and self._group(self._moments[past]) is None:
            past += 1
        del self._moments[:past]

    def _open_next(self, now_ms: int) -> bool:
        """Adds the moments of the next bucket, unless all of them are still to come."""
        number = min((number for number in self._buckets if number > self._opened), default=_NEVER)
        start_ms = number << BUCKET_BITS
        if start_ms > now_ms:
            if not self._moments:
                self._quiet_until_ms = start_ms
            return False
        self._opened = number
        self._moments += sorted(self._buckets[number])
        return True

    def _group(self, expires_at_ms: int) -> bytes | dict[bytes, bytes] | None:
        bucket = self._buckets.get(expires_at_ms >> BUCKET_BITS)
        return None if bucket is None else bucket.get(expires_at_ms)

    def _first_ids(self, expires_at_ms: int, limit: int) -> list[bytes]:
        group = self._group(expires_at_ms)
        if group is None:
            return []
        if isinstance(group, bytes):
            return [group]
        if len(group) <= limit:
            return sorted(group)
        if self._crowd is None or self._crowd.expires_at_ms != expires_at_ms:
            self._crowd = _Crowd(expires_at_ms, group)
        return self._crowd.first(limit)


class _Crowd:
    """A millisecond with more ids than are taken at once: a heap brings them into order as they are needed.

    Sorting a hundred thousand ids would hold everything up for fifty milliseconds, making a heap of them six.
    """

    __slots__ = ("_group", "_heap", "_ordered", "expires_at_ms")

    def __init__(self, expires_at_ms: int, group: dict[bytes, bytes]) -> None:
        self.expires_at_ms = expires_at_ms
        self._group = group
        self._ordered: list[bytes] = []
        self._heap = list(group)
        heapify(self._heap)

    def first(self, limit: int) -> list[bytes]:
        group = self._group
        self._ordered = [id for id in self._ordered if id in group]
        while len(self._ordered) < limit and self._heap:
            id = heappop(self._heap)
            if id in group:
                self._ordered.append(id)
        return self._ordered[:limit]


class _Copy:
    """What a snapshot carries, and the index that follows from it."""

    __slots__ = ("expiry", "sessions", "table")

    def __init__(self, table: PlainSpace, sessions: PlainSpace, expiry: TimeBuckets) -> None:
        self.table = table
        self.sessions = sessions
        self.expiry = expiry


class PlainStore:
    """Ends with its process.

    With `undo`, an aborted transaction is taken back as the port says, at the price of a note about every
    write: for the simulator, in which a crash in mid-transaction is an abort. Without it nothing is written
    down for that case, and after an abort (it means that the node failed) the store refuses to go on.
    """

    get: Callable[[bytes], bytes | None]
    """The dictionary's own; another one after a snapshot was installed, so do not keep it."""

    def __init__(self, *, undo: bool = False, volatile: bool = False) -> None:
        """`volatile`: no other node will be given this store after the one that has it now."""
        self.volatile = volatile
        self._undo = _UndoLog() if undo else None
        self._node = self._new_space()
        self._log = self._new_space()
        self._in_transaction = False
        self._failed = False
        self._use(self._new_copy(), self._new_copy())
        self._transaction = PlainTransaction(self)

    def begin(self) -> PlainTransaction:
        if self._failed:
            raise StoreError(
                "this process's memory", "a transaction was aborted, and its writes are still there"
            )
        assert not self._in_transaction, "transactions do not overlap"
        self._in_transaction = True
        self._begun_with = (self._copy, self._staged)
        return self._transaction

    def ids(self) -> list[bytes]:
        return sorted(self._copy.sessions)

    def records(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        sessions = self._copy.sessions
        ids = nsmallest(limit, [id for id in list(sessions) if id > after])
        records = [(id, sessions.get(id)) for id in ids]
        return [(id, record) for id, record in records if record is not None]

    def due_count(self, now_ms: int, at_most: int = NO_LIMIT) -> int:
        return self._copy.expiry.due_count(now_ms, at_most)

    def snapshot(self) -> PlainSnapshot:
        assert not self._in_transaction, "a snapshot shows what is committed"
        return PlainSnapshot(self._copy.table, self._copy.sessions)

    def close(self) -> None:
        """Nothing to close: the contents stay until nobody refers to them."""

    def _new_space(self) -> PlainSpace:
        space = PlainSpace()
        if self._undo is not None:
            space.watch(partial(self._undo.note, space.restore))
        return space

    def _new_copy(self) -> _Copy:
        expiry = TimeBuckets() if self._undo is None else _UndoableBuckets(self._undo)
        return _Copy(self._new_space(), self._new_space(), expiry)

    def _use(self, copy: _Copy, staged: _Copy) -> None:
        self._copy = copy
        self._staged = staged
        self.get = copy.sessions.get

    def _take_back(self) -> None:
        if self._undo is None:
            self._failed = True
        else:
            self._undo.take_back()
            self._use(*self._begun_with)


class PlainTransaction:
    """The only one, again and again: transactions do not overlap."""

    __slots__ = ("_store", "expiry", "log", "node", "sessions", "table")

    node: PlainSpace
    log: PlainSpace
    table: PlainSpace
    sessions: PlainSpace
    expiry: TimeBuckets

    def __init__(self, store: PlainStore) -> None:
        self._store = store
        self.node = store._node
        self.log = store._log
        self._see(store._copy)

    def stage(self, rows: Iterable[Row]) -> None:
        staged = self._store._staged
        for space, key, value in rows:
            if space == "sessions":
                staged.sessions[key] = value
                staged.expiry.add(int.from_bytes(value[:EXPIRY_BYTES], "big"), key)
            else:
                staged.table[key] = value

    def discard_staged(self) -> None:
        self._store._use(self._store._copy, self._store._new_copy())

    def install_staged(self) -> None:
        store = self._store
        store._use(store._staged, store._new_copy())
        self._see(store._copy)

    def commit(self) -> None:
        store = self._store
        store._in_transaction = False
        if store._undo is not None:
            store._undo.clear()

    def abort(self) -> None:
        self._store._in_transaction = False
        self._store._take_back()
        self._see(self._store._copy)

    def _see(self, copy: _Copy) -> None:
        self.table = copy.table
        self.sessions = copy.sessions
        self.expiry = copy.expiry


class PlainSnapshot:
    """The rows of `table` as they are now, and `sessions` copy-on-write. No particular order."""

    def __init__(self, table: PlainSpace, sessions: PlainSpace) -> None:
        self._sessions = sessions
        self._unread = list(sessions)
        self._before: dict[bytes, bytes] = {}
        self._rows = chain([("table", *row) for row in table.items()], self._records())
        sessions.watch(self._keep)

    def read(self, max_bytes: int) -> list[Row]:
        return take_rows(self._rows, max_bytes)

    def close(self) -> None:
        self._sessions.unwatch(self._keep)
        self._rows = chain()
        self._unread.clear()
        self._before.clear()

    def _records(self) -> Iterator[Row]:
        while self._unread:
            id = self._unread.pop()
            before = self._before.pop(id, None)
            yield "sessions", id, self._sessions[id] if before is None else before

    def _keep(self, id: bytes, before: bytes | None) -> None:
        if before is not None:
            self._before.setdefault(id, before)


class _UndoLog:
    """How to take back what the transaction under way did."""

    __slots__ = ("_notes",)

    def __init__(self) -> None:
        self._notes: list[Callable[[], None]] = []

    def note(self, undo: Callable[..., None], /, *arguments: object) -> None:
        self._notes.append(partial(undo, *arguments))

    def clear(self) -> None:
        self._notes.clear()

    def take_back(self) -> None:
        for undo in reversed(self._notes):
            undo()
        self.clear()


class _UndoableBuckets(TimeBuckets):
    __slots__ = ("_undo",)

    def __init__(self, undo: _UndoLog) -> None:
        super().__init__()
        self._undo = undo

    def add(self, expires_at_ms: int, id: bytes, /) -> None:
        if not self._has(expires_at_ms, id):
            self._undo.note(super().discard, expires_at_ms, id)
            super().add(expires_at_ms, id)

    def add_all(self, expires_at_ms: int, ids: list[bytes], /) -> None:
        for id in ids:
            self.add(expires_at_ms, id)

    def discard(self, expires_at_ms: int, id: bytes, /) -> None:
        if self._has(expires_at_ms, id):
            self._undo.note(super().add, expires_at_ms, id)
            super().discard(expires_at_ms, id)

    def _has(self, expires_at_ms: int, id: bytes) -> bool:
        group = self._group(expires_at_ms)
        return group is not None and (group == id if isinstance(group, bytes) else id in group)
