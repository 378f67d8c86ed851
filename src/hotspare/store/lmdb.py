"""The daemon's store: one LMDB environment, which any process of the host can read while the node writes.

In a directory of its own:

* `data.mdb`, `lock.mdb`: the environment. Its named databases are `node`, `log`, and two *generations* of
  `table`, `sessions` and `expiry`, with `.0` and `.1` after their names. The row `generation` of the database
  `store` says which one is in use; the other is the staging area of an arriving snapshot, so that installing
  a million sessions means to change one row. Its row `id` tells this environment from all others. `expiry`
  has a key for each session: expires_at_ms (8 bytes, big-endian), then the id.
* `hotspare.json`: the format, the mode, and the boot under which this was written.
* `owner.lock`: locked by the one process that writes.
* `lease`: the node's word on how fresh this is, for readers in other processes; see `hotspare.cluster.lease`.

**Two modes.** Without `durable` nothing is ever synced: the contents outlive the process, not the host, and
are valid only under the boot they were written under. With it every commit is on the disk when it returns.
Then LMDB's default flags must stay: without its syncs, pages of acknowledged transactions could be reused.

**Writing in place.** Without `durable` pages are written through the map (WRITEMAP), which saves a copy of
each. It has a price: a page that the file system cannot give any more would end the process (SIGBUS). So room
is claimed from it before it is needed (`_Room`), which fails in a way that can be answered. A process
that dies in the middle leaves pages behind that nothing points to yet.

**Damage.** LMDB's pages have no checksums: what a disk has damaged may end the process that reads it, or
read as "no such session". So whoever opens a durable store may have it inspected before any of it is mapped
(`inspect`), and each record that leaves it verified (`verify`).

**Transactions** collect their changes in dictionaries and write them at the end, sorted: neighbours then
share the walk down the tree and the copied page, and what was written twice is written once. LMDB demands
that a write transaction stays on the thread that began it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import secrets
import stat
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from urllib.parse import quote

import lmdb

from hotspare.errors import ForkedProcess, StoreCorrupt, StoreError, StoreForeign, StoreFull, StoreInUse
from hotspare.store import EXPIRY_BYTES, NO_LIMIT, Row, take_rows

FORMAT: Final = 1
"""Of the directory and the databases. A newer one is refused."""

MAX_READERS: Final = 1024
"""Read transactions open at one moment, in all processes together."""

MAX_DATABASES: Final = 16

_CLAIM_BYTES: Final = 8 * 1024 * 1024
"""So much room is claimed ahead, so that it is not asked for with every transaction."""

_PAGES_PER_TRANSACTION: Final = 32
"""The paths from the roots down, and the list of pages that became free."""

_NODE_BYTES: Final = 16
"""What a row takes in a page beyond its key and its value."""

_MARKER: Final = "hotspare.json"
_OWNER: Final = "owner.lock"
_DATA: Final = "data.mdb"
_LOCK: Final = "lock.mdb"
_LEASE: Final = "lease"
GENERATION_KEY: Final = b"generation"
ID_KEY: Final = b"id"
_ID_BYTES: Final = 16

_READER_CHECK_TRANSACTIONS: Final = 1024
"""So often we look for readers that died in mid-read: what they were reading could never be reused."""

_NEVER: Final = 1 << 64

Verify = Callable[[bytes, bytes], None]
"""Raises StoreCorrupt unless the record (second) is whole and of that id (first)."""


def default_directory(node: str) -> Path:
    """Where a node keeps its state in memory mode: in the memory of the host, privately for this user.

    Raises StoreError when the user's directory there was made by somebody else.
    """
    shared_memory = Path("/dev/shm")
    base = shared_memory if _is_tmpfs(shared_memory) else Path(tempfile.gettempdir())
    of_user = base / _of_user()
    _make_private(of_user)
    # A node's name may hold anything. The dot is quoted where it could lead out of the directory.
    name = quote(node, safe=":")
    return of_user / (f"%2E{name[1:]}" if name.startswith(".") else name)


def share(directory: Path, group: int | None) -> None:
    """Lets the members of this group read the store in `directory`, or (None) nobody but its user.

    LMDB's readers write their places into the lock file; nothing else is theirs to write. Raises StoreError.
    """
    with _translated(directory):
        for name, shared_mode in ((_MARKER, 0o640), (_DATA, 0o640), (_LOCK, 0o660), (_LEASE, 0o640)):
            os.chown(directory / name, -1, -1 if group is None else group)
            os.chmod(directory / name, 0o600 if group is None else shared_mode)
        if group is not None:
            os.chown(directory, -1, group)
            os.chmod(directory, stat.S_IMODE(directory.stat().st_mode) | 0o050)
            if directory.parent.name == _of_user():
                os.chmod(directory.parent, 0o711)  # to be passed through


def is_durable(directory: Path) -> bool:
    """Whether the store there was written in disk mode. Raises StoreError."""
    with _translated(directory):
        marker = _read_marker(directory)
    return marker is not None and marker["mode"] == "disk"


def _of_user() -> str:
    return f"hotspare-{os.getuid()}"


def current_boot_id() -> str:
    """Another one after each start of the host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        command = ["sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class LmdbStore:
    """See the module's docstring, and `hotspare.store` for the contract."""

    volatile = False

    def __init__(
        self, path: Path, environment: lmdb.Environment, owner: int, verify: Verify | None = None
    ) -> None:
        self.path = path
        self._environment = environment
        self._begin: Callable[..., lmdb.Transaction[bytes]] = environment.begin
        self._owner: int | None = owner
        self._opened_in_pid = os.getpid()
        self._verify = verify
        self._room = _Room(path / _DATA, environment) if environment.flags()["writemap"] else None
        if self._room is not None:
            self._room.begin()
        self._node = environment.open_db(b"node")
        self._log = environment.open_db(b"log")
        self._store = environment.open_db(b"store")
        self._generations = [_open_generation(environment, number) for number in (0, 1)]
        with environment.begin(self._store) as txn:
            number = int(txn.get(GENERATION_KEY, b"0"))
            id = txn.get(ID_KEY)
        if id is None:
            id = secrets.token_bytes(_ID_BYTES)
            with environment.begin(self._store, write=True) as txn:
                txn.put(ID_KEY, id)
        self.id = id.hex()
        """Of this environment: another one under the same path has another."""
        self._current = self._generations[number]
        self._staging_is_stale = True
        # Nothing expires before. Known to the writing thread; others may see one that is too low.
        self._quiet_until_ms = 0
        self._begun = 0
        _open_stores.add(self)

    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        durable: bool,
        map_size_bytes: int,
        boot_id: str | None = None,
        inspect: Callable[[Path], None] | None = None,
        verify: Verify | None = None,
    ) -> LmdbStore:
        """Opens or creates the store in the directory `path`.

        `map_size_bytes` is the most that it can hold until it is opened again; address space is taken for it,
        memory is not. Not `durable`, its contents are thrown away if `boot_id` (of this boot, unless given)
        is another one than theirs. `inspect` is called with the directory before anything that was stored is
        read, `verify` with each session's id and record that leaves the store; both raise StoreError where
        something is wrong. Raises StoreError, StoreInUse, StoreForeign, StoreCorrupt, StoreFull.
        """
        directory = Path(path)
        with _translated(directory):
            _make_directory(directory)
            owner = _lock(directory)
            try:
                _claim(directory, "" if durable else boot_id or current_boot_id())
                if inspect is not None and (directory / _DATA).exists():
                    inspect(directory)
                is_in_place = not durable and _is_on_tmpfs(directory)
                open_environment = partial(
                    lmdb.open,
                    str(directory),
                    map_size=_map_size_bytes(directory, map_size_bytes, durable),
                    max_dbs=MAX_DATABASES,
                    max_readers=MAX_READERS,
                    max_spare_txns=1,
                    mode=0o600,
                    sync=durable,
                    metasync=durable,
                    writemap=is_in_place,
                )
                if is_in_place:
                    open_environment().close()
                    _claim_all(directory / _LOCK)
                environment = open_environment()
                try:
                    if durable:
                        _sync_directory(directory)
                    _fill_up(directory / _DATA, environment)
                    environment.reader_check()
                    return LmdbStore(directory, environment, owner, verify)
                except BaseException:
                    environment.close()
                    raise
            except BaseException:
                os.close(owner)
                raise

    @staticmethod
    def discard(path: str | os.PathLike[str]) -> None:
        """Empties the directory of a store that nobody uses, so that its node starts as a new server. What
        hotspare did not write stays, and so does what another process has open. Raises StoreError."""
        directory = Path(path)
        with _translated(directory):
            if not directory.exists():
                return
            owner = _lock(directory)
            try:
                if (directory / _DATA).exists() and not (directory / _MARKER).exists():
                    raise StoreForeign(str(directory), f"it holds a {_DATA} that hotspare did not write")
                # The marker goes last: without it, what is left would look like somebody else's.
                for name in (_DATA, _LOCK, _MARKER):
                    (directory / name).unlink(missing_ok=True)
                _sync_directory(directory)
            finally:
                os.close(owner)

    def begin(self) -> LmdbTransaction:
        with self._translated():
            self._begun += 1
            if self._begun % _READER_CHECK_TRANSACTIONS == 0:
                self._environment.reader_check()
            return LmdbTransaction(self)

    def get(self, id: bytes, /) -> bytes | None:
        record: bytes | None = None
        is_read = False
        try:
            while not is_read:
                current = self._current
                txn = self._begin(current.sessions)
                try:
                    # As in `_reading`, which would cost as much again.
                    is_read = current is self._current
                    record = txn.get(id) if is_read else None
                finally:
                    txn.abort()
        except lmdb.Error as exc:
            raise _failure(self.path, exc) from exc
        if record is not None and self._verify is not None:
            self._verify(id, record)
        return record

    def ids(self) -> list[bytes]:
        with self._reading() as (txn, current), txn.cursor(current.sessions) as cursor:
            return list(cursor.iternext(keys=True, values=False))

    def records(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        with self._reading() as (txn, current), txn.cursor(current.sessions) as cursor:
            if not cursor.set_range(after) or (cursor.key() == after and not cursor.next()):
                return []
            records = list(islice(cursor.iternext(), limit))
        if self._verify is not None:
            for id, record in records:
                self._verify(id, record)
        return records

    def due_count(self, now_ms: int, at_most: int = NO_LIMIT) -> int:
        if now_ms < self._quiet_until_ms:
            return 0
        end = (now_ms + 1).to_bytes(EXPIRY_BYTES, "big")
        with self._reading() as (txn, current), txn.cursor(current.expiry) as cursor:
            count = 0
            for key in cursor.iternext(keys=True, values=False):
                if key >= end or count == at_most:
                    break
                count += 1
            return count

    def snapshot(self) -> LmdbSnapshot:
        with self._translated():
            return LmdbSnapshot(self.path, self._begin(), self._current, self._verify)

    def close(self) -> None:
        """May be called twice. Whoever uses the store afterwards gets a StoreError."""
        if self._owner is not None:
            self._environment.close()
            # By name, in case a child was forked this very moment and still holds the descriptor.
            fcntl.flock(self._owner, fcntl.LOCK_UN)
            os.close(self._owner)
            self._owner = None
            _open_stores.discard(self)

    @contextmanager
    def _reading(self) -> Iterator[tuple[lmdb.Transaction[bytes], _Generation]]:
        with self._translated():
            while True:
                current = self._current
                with self._begin() as txn:
                    # A generation is emptied after another one took its place here. So this one is whole.
                    if current is self._current:
                        yield txn, current
                        return

    def _translated(self) -> AbstractContextManager[None]:
        return _translated(self.path)

    def _leave_to_parent(self) -> None:
        """In a forked child: the lock goes with the process that took it, and LMDB is not made for forks."""
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None
        self._begin = self._refuse

    def _refuse(self, *_: object, **__: object) -> lmdb.Transaction[bytes]:
        raise ForkedProcess(self._opened_in_pid, os.getpid())


class LmdbTransaction:
    """On an error of the store it can only be aborted."""

    __slots__ = (
        "_current",
        "_staging_is_stale",
        "_store",
        "_txn",
        "expiry",
        "log",
        "node",
        "sessions",
        "table",
    )

    node: LmdbSpace
    log: LmdbSpace
    table: LmdbSpace
    sessions: LmdbSpace
    expiry: LmdbExpiry

    def __init__(self, store: LmdbStore) -> None:
        self._store = store
        self._txn = store._begin(write=True)
        try:
            self._open(store)
        except BaseException:
            self._txn.abort()
            raise

    def _open(self, store: LmdbStore) -> None:
        if store._room is not None:
            with store._translated():
                store._room.begin()
        self.node = LmdbSpace(store.path, self._txn, store._node, store._room)
        self.log = LmdbSpace(store.path, self._txn, store._log, store._room)
        self._use(store._current)
        self._staging_is_stale = store._staging_is_stale
        if self._staging_is_stale:
            self.discard_staged()

    def stage(self, rows: Iterable[Row]) -> None:
        staged = self._staged()
        table: list[tuple[bytes, bytes]] = []
        sessions: list[tuple[bytes, bytes]] = []
        for name, key, value in rows:
            (sessions if name == "sessions" else table).append((key, value))
        expiry = [(record[:EXPIRY_BYTES] + id, b"") for id, record in sessions]
        room = self._store._room
        for database, part in ((staged.table, table), (staged.sessions, sessions), (staged.expiry, expiry)):
            space = LmdbSpace(self._store.path, self._txn, database, room)
            space.update(part)
            with self._store._translated():
                space.write()

    def discard_staged(self) -> None:
        other = self._store._generations[1 - self._current.number]
        databases = (other.table, other.sessions, other.expiry)
        with self._store._translated():
            if self._store._room is not None:
                self._store._room.claim_list_of_free(sum(_pages(self._txn, each) for each in databases))
            for database in databases:
                self._txn.drop(database, delete=False)
        self._staging_is_stale = False

    def install_staged(self) -> None:
        staged = self._staged()
        with self._store._translated():
            self._txn.put(GENERATION_KEY, b"%d" % staged.number, db=self._store._store)
        # A new object each time: that is how readers notice.
        self._use(staged._replace())
        # Readers may be on their way into the old one: the next transaction empties it.
        self._staging_is_stale = True
        self._store._quiet_until_ms = 0

    def commit(self) -> None:
        store = self._store
        try:
            with store._translated():
                for space in (self.node, self.log, self.table, self.sessions, self.expiry.keys):
                    space.write()
                self._txn.commit()
        except StoreError:
            self.abort()
            raise
        store._current = self._current
        store._staging_is_stale = self._staging_is_stale

    def abort(self) -> None:
        self._store._quiet_until_ms = 0
        self._txn.abort()

    def _use(self, generation: _Generation) -> None:
        path, txn, room = self._store.path, self._txn, self._store._room
        self._current = generation
        self.table = LmdbSpace(path, txn, generation.table, room)
        self.sessions = LmdbSpace(path, txn, generation.sessions, room)
        self.expiry = LmdbExpiry(self._store, LmdbSpace(path, txn, generation.expiry, room))

    def _staged(self) -> _Generation:
        if self._staging_is_stale:
            self.discard_staged()
        return self._store._generations[1 - self._current.number]


class LmdbSpace(dict[bytes, bytes | None]):
    """The changes of this transaction (None: deleted), over what the database holds."""

    __slots__ = ("_database", "_deletes", "_path", "_room", "_txn")

    def __init__(
        self,
        path: Path,
        txn: lmdb.Transaction[bytes],
        database: lmdb._Database,
        room: _Room | None = None,
    ) -> None:
        super().__init__()
        self._path = path
        self._txn = txn
        self._database = database
        self._room = room
        self._deletes = False

    def get(self, key: bytes, /) -> bytes | None:  # type: ignore[override]
        if key in self:
            return self[key]
        try:
            return self._txn.get(key, None, self._database)
        except lmdb.Error as exc:
            raise _failure(self._path, exc) from exc

    def pop(self, key: bytes, default: None = None, /) -> bytes | None:  # type: ignore[override]
        value = self.get(key)
        if value is not None:
            self.delete(key)
        return value

    def delete(self, key: bytes) -> None:
        """Whether it is there or not."""
        self[key] = None
        self._deletes = True

    def scan(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with _translated(self._path):
            self.write()
            with self._txn.cursor(self._database) as cursor:
                if cursor.set_range(start):
                    yield from cursor.iternext()

    def write(self) -> None:
        """Brings the changes into the database (still within the transaction)."""
        if not self:
            return
        deleted: list[bytes] = []
        if self._deletes:
            deleted = sorted([key for key, value in self.items() if value is None])
            for key in deleted:
                del self[key]
            self._deletes = False
        there = cast(dict[bytes, bytes], self)  # by now
        if self._room is not None:
            self._room.claim(self._txn, self._database, there.keys(), there.values(), len(deleted))
        if there:
            keys = sorted(there)  # twice as fast as to sort the pairs
            _put(self._txn, self._database, list(zip(keys, map(there.__getitem__, keys), strict=True)))
        for key in deleted:
            self._txn.delete(key, b"", self._database)
        self.clear()


class LmdbExpiry:
    __slots__ = ("_store", "keys")

    def __init__(self, store: LmdbStore, keys: LmdbSpace) -> None:
        self._store = store
        self.keys = keys

    def add(self, expires_at_ms: int, id: bytes, /) -> None:
        self.keys[expires_at_ms.to_bytes(EXPIRY_BYTES, "big") + id] = b""
        if expires_at_ms < self._store._quiet_until_ms:
            self._store._quiet_until_ms = expires_at_ms

    def add_all(self, expires_at_ms: int, ids: list[bytes], /) -> None:
        when = expires_at_ms.to_bytes(EXPIRY_BYTES, "big")
        self.keys.update({when + id: b"" for id in ids})
        if expires_at_ms < self._store._quiet_until_ms:
            self._store._quiet_until_ms = expires_at_ms

    def discard(self, expires_at_ms: int, id: bytes, /) -> None:
        self.keys.delete(expires_at_ms.to_bytes(EXPIRY_BYTES, "big") + id)

    def due(self, now_ms: int, limit: int, /) -> list[tuple[int, bytes]]:
        if now_ms < self._store._quiet_until_ms:
            return []
        due: list[tuple[int, bytes]] = []
        next_ms = _NEVER
        for key, _ in self.keys.scan():
            next_ms = int.from_bytes(key[:EXPIRY_BYTES], "big")
            if next_ms > now_ms or len(due) == limit:
                break
            due.append((next_ms, key[EXPIRY_BYTES:]))
        self._store._quiet_until_ms = due[0][0] if due else next_ms
        return due


class LmdbSnapshot:
    """A read transaction, open until `close`. The rows come in key order, those of `table` first."""

    def __init__(
        self,
        path: Path,
        txn: lmdb.Transaction[bytes],
        generation: _Generation,
        verify: Verify | None,
    ) -> None:
        self._path = path
        self._txn = txn
        self._rows = self._all(generation)
        self._verify = verify

    def read(self, max_bytes: int) -> list[Row]:
        with _translated(self._path):
            rows = take_rows(self._rows, max_bytes)
        if self._verify is not None:
            for space, key, value in rows:
                if space == "sessions":
                    self._verify(key, value)
        return rows

    def close(self) -> None:
        self._rows = iter([])
        self._txn.abort()

    def _all(self, generation: _Generation) -> Iterator[Row]:
        for name, database in (("table", generation.table), ("sessions", generation.sessions)):
            for key, value in self._txn.cursor(database):
                yield name, key, value


class LmdbView(NamedTuple):
    """What is committed, for whoever looks at a store that nobody writes."""

    node: LmdbSpace
    log: LmdbSpace
    table: LmdbSpace
    sessions: LmdbRows
    indexed: int
    """How many sessions the expiry index names."""


class LmdbRows:
    """Of one database, from both ends. For millions of them: the cursor's own iterators, which raise
    lmdb.Error."""

    def __init__(self, txn: lmdb.Transaction[bytes], database: lmdb._Database) -> None:
        self._txn = txn
        self._database = database
        self.count: int = txn.stat(database)["entries"]

    def forwards(self) -> Iterator[tuple[bytes, bytes]]:
        return self._txn.cursor(self._database).iternext()

    def backwards(self) -> Iterator[tuple[bytes, bytes]]:
        return self._txn.cursor(self._database).iterprev()


@contextmanager
def view(path: str | os.PathLike[str]) -> Iterator[LmdbView | None]:
    """Opens a store that no process writes, to look at it; None if nothing was ever stored there. Raises
    StoreError."""
    directory = Path(path)
    with (
        _translated(directory),
        lmdb.open(str(directory), readonly=True, lock=False, max_dbs=MAX_DATABASES) as environment,
    ):
        try:
            names = (b"node", b"log", b"store")
            node, log, store = (environment.open_db(name, create=False) for name in names)
            generations = [_open_generation(environment, number, create=False) for number in (0, 1)]
        except lmdb.NotFoundError:
            yield None
            return
        with environment.begin() as txn:
            current = generations[int(txn.get(GENERATION_KEY, b"0", store))]
            node_space, log_space, table = (
                LmdbSpace(directory, txn, database) for database in (node, log, current.table)
            )
            sessions, indexed = LmdbRows(txn, current.sessions), txn.stat(current.expiry)["entries"]
            yield LmdbView(node_space, log_space, table, sessions, indexed)


class _Room:
    """What the file system has promised: the process may write that far through the map, and no further."""

    def __init__(self, data: Path, environment: lmdb.Environment) -> None:
        self._data = data
        self._environment = environment
        self._page_bytes: int = environment.stat()["psize"]
        self._limit_bytes: int = environment.info()["map_size"]
        self._promised_bytes = 0
        self._claimed_pages = 0

    def begin(self) -> None:
        """A transaction begins: what the one before did not use is free again. Raises OSError if there is no
        room."""
        self._claimed_pages = 0
        self._claim(_PAGES_PER_TRANSACTION)

    def claim(
        self,
        txn: lmdb.Transaction[bytes],
        database: lmdb._Database,
        keys: Collection[bytes],
        values: Collection[bytes],
        deleted: int,
    ) -> None:
        """Before these rows are written and so many deleted. Raises OSError if there is no room.

        Each row has a leaf copied, unless others do, with the branches above it; each copy may split. What is
        new beyond that fills pages by halves at least. A long value has pages of its own.
        """
        stat, changes = txn.stat(database), len(keys) + deleted
        leaves = min(changes, stat["leaf_pages"])
        branches = min(changes * stat["depth"], stat["branch_pages"])
        new_bytes = sum(map(len, keys)) + sum(map(len, values)) + _NODE_BYTES * len(keys)
        is_long = 4 * max(map(len, values), default=0) > self._page_bytes
        long = sum([4 * len(value) > self._page_bytes for value in values]) if is_long else 0
        self._claim(2 * (leaves + branches + long) + 3 * (new_bytes // self._page_bytes))

    def claim_list_of_free(self, pages: int) -> None:
        """Before so many pages are freed at once: LMDB keeps a number for each, and may write them twice."""
        self._claim(2 * (8 * pages // self._page_bytes + 1))

    def _claim(self, pages: int) -> None:
        self._claimed_pages += pages
        # As if nothing that is free could be used again: it may be in use by a reader.
        pages_before: int = self._environment.info()["last_pgno"] + 1
        needed_bytes = (pages_before + self._claimed_pages) * self._page_bytes
        needed_bytes = min(needed_bytes, self._limit_bytes)  # beyond it, LMDB says that the map is full
        if needed_bytes > self._promised_bytes:
            self._extend(needed_bytes)

    def _extend(self, needed_bytes: int) -> None:
        file = os.open(self._data, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                self._promise(file, min(needed_bytes + _CLAIM_BYTES, self._limit_bytes))
                return
            self._promise(file, needed_bytes)
        finally:
            os.close(file)

    def _promise(self, file: int, upto_bytes: int) -> None:
        os.posix_fallocate(file, self._promised_bytes, upto_bytes - self._promised_bytes)
        self._promised_bytes = upto_bytes


class _Generation(NamedTuple):
    number: int
    table: lmdb._Database
    sessions: lmdb._Database
    expiry: lmdb._Database


def _open_generation(environment: lmdb.Environment, number: int, *, create: bool = True) -> _Generation:
    names = (f"{name}.{number}".encode() for name in ("table", "sessions", "expiry"))
    return _Generation(number, *(environment.open_db(name, create=create) for name in names))


def _pages(txn: lmdb.Transaction[bytes], database: lmdb._Database) -> int:
    stat = txn.stat(database)
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]


def _put(txn: lmdb.Transaction[bytes], database: lmdb._Database, rows: list[tuple[bytes, bytes]]) -> None:
    """In the order of their keys."""
    with txn.cursor(database) as cursor:
        cursor.putmulti(rows)


# The directory


def _mounts() -> list[tuple[str, str]]:
    """(where, kind) of each file system, where the system tells."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return []
    return [(where, kind) for _, where, kind, *_ in (line.split() for line in lines)]


def _is_tmpfs(path: Path) -> bool:
    return (str(path), "tmpfs") in _mounts()


def _is_on_tmpfs(directory: Path) -> bool:
    """Elsewhere a page that was claimed may still be impossible to write: where pages are copied on write."""
    path = f"{directory.resolve()}/"
    around = [(where, kind) for where, kind in _mounts() if path.startswith(where.rstrip("/") + "/")]
    return max(around, key=lambda mount: len(mount[0]), default=("", ""))[1] == "tmpfs"


def _make_private(directory: Path) -> None:
    """Anybody may create directories in these places, under any name. So we look who created ours."""
    with _translated(directory):
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StoreError(
            str(directory),
            "it must be a directory that belongs to this user, with no one else allowed to write; remove it, "
            "or set data_dir",
        )


def _make_directory(directory: Path) -> None:
    """The names of new directories, too, must be on the disk before anything in them counts."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(each.parent)
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))


def _map_size_bytes(directory: Path, wanted_bytes: int, durable: bool) -> int:
    """A store that has filled its map finds a larger one when it is opened again."""
    try:
        found = (directory / _DATA).stat()
    except FileNotFoundError:
        return wanted_bytes
    # One that is written through the map is as long as that from the beginning.
    return max(wanted_bytes, 2 * (found.st_size if durable else 512 * found.st_blocks))


def _lock(directory: Path) -> int:
    """Takes the lock, which ends with the process, and returns its file descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    owner = os.open(directory / _OWNER, flags, 0o600)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(owner, 0)
        os.write(owner, b"%d\n" % os.getpid())
    except BlockingIOError:
        holder = os.read(owner, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(owner)
        raise StoreInUse(str(directory), f"the process {holder} has it open") from None
    except BaseException:
        os.close(owner)
        raise
    return owner


def _claim(directory: Path, boot_id: str) -> None:
    """Sees to it that the directory holds what is ours and valid, or nothing. No `boot_id`: disk mode."""
    mode = "memory" if boot_id else "disk"
    marker = {"format": FORMAT, "mode": mode, "boot_id": boot_id}
    found = _read_marker(directory)
    if found is None and (directory / _DATA).exists():
        raise StoreForeign(str(directory), f"it holds a {_DATA} that hotspare did not write")
    if found is not None and found["format"] != FORMAT:
        raise StoreForeign(
            str(directory), f"it has format {found['format']}, and this version knows format {FORMAT}"
        )
    if found is not None and found["mode"] != mode:
        raise StoreForeign(
            str(directory), f"it was written in {found['mode']} mode, and this node is in {mode} mode"
        )
    if found == marker:
        return
    # In this order: what is marked with this boot's id counts as valid.
    for name in (_LEASE, _DATA, _LOCK):
        (directory / name).unlink(missing_ok=True)
    _write_marker(directory, marker)


def _read_marker(directory: Path) -> dict[str, Any] | None:
    try:
        text = (directory / _MARKER).read_text()
    except FileNotFoundError:
        return None
    try:
        marker = json.loads(text)
        return {"format": marker["format"], "mode": marker["mode"], "boot_id": marker["boot_id"]}
    except (ValueError, TypeError, KeyError) as exc:
        raise StoreCorrupt(str(directory), f"its {_MARKER} cannot be read") from exc


def _write_marker(directory: Path, marker: dict[str, Any]) -> None:
    new = directory / f"{_MARKER}.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(marker, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(directory / _MARKER)
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    """A file survives a crash of the host only when its name does."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill_up(data: Path, environment: lmdb.Environment) -> None:
    """Reading mapped pages beyond the end of the file would kill the process (SIGBUS). In a file that was cut
    off, zeros make LMDB report corruption instead."""
    size_bytes = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if data.stat().st_size < size_bytes:
        os.truncate(data, size_bytes)


def _claim_all(lock: Path) -> None:
    """LMDB makes its lock file with a hole in it: a reader that finds its place there, and no room left in
    the file system, would be killed (SIGBUS). Not while LMDB has it open: whoever closes a file lets go of
    all locks that the process has on it. Raises OSError if there is no room."""
    file = os.open(lock, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.posix_fallocate(file, 0, os.fstat(file).st_size)
    finally:
        os.close(file)


# Errors


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (lmdb.Error, OSError) as exc:
        raise _failure(path, exc) from exc


_FOREIGN = (lmdb.VersionMismatchError, lmdb.IncompatibleError)
# Where there was no store of ours, nothing is opened: so what LMDB does not recognise was one once.
_CORRUPT = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.PanicError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ALMOST_NOTHING_BYTES = 1 << 20


def _failure(path: Path, exc: lmdb.Error | OSError) -> StoreError:
    code = exc.errno if isinstance(exc, OSError) else exc.code
    reason = os.strerror(code) if code and code > 0 else str(exc)
    if isinstance(exc, lmdb.MapFullError) or code in _FULL or (code == errno.EIO and _is_full(path)):
        return StoreFull(str(path), f"there is no room left in it ({reason})")
    if isinstance(exc, _CORRUPT):
        return StoreCorrupt(str(path), f"what is in it is damaged ({reason})")
    if isinstance(exc, _FOREIGN):
        return StoreForeign(str(path), f"LMDB does not know what is in it ({reason})")
    return StoreError(str(path), reason)


def _is_full(path: Path) -> bool:
    """LMDB reports what fits only in part as an input/output error."""
    free = os.statvfs(path)
    room_bytes = free.f_bavail * free.f_frsize
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit_bytes != resource.RLIM_INFINITY:
        room_bytes = min(room_bytes, limit_bytes - (path / _DATA).stat().st_size)
    return room_bytes < _ALMOST_NOTHING_BYTES


# Forks

_open_stores: set[LmdbStore] = set()


def _leave_to_parent() -> None:
    for store in _open_stores:
        store._leave_to_parent()
    _open_stores.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
