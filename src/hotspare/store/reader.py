"""A daemon's store, seen from another process: what `LmdbStore` writes, read-only.

LMDB lets any process of the host read while the node writes: each read is a consistent view of what was
committed, and nobody waits. Three of its rules shape this file.

* **A process opens an environment once.** Its locks belong to the process, and closing a second handle would
  let go of the first one's. So all readers of one directory in this process share one.
* **An environment must not be carried through a fork.** The child would share its parent's places in the
  table of readers. So it is closed before every fork of this process, and opened again by whoever reads next,
  in the parent and in the child alike. A read that this interrupts on another thread begins anew.
* **Its map has a size.** When the node was started again with a larger one, it is opened again here.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lmdb

from hotspare.errors import StoreError, StoreInUse
from hotspare.store.lmdb import GENERATION_KEY, ID_KEY, MAX_DATABASES

Inode = tuple[int, int]
"""Which file: device and number."""

SAME_NUMBER = (
    "another process with the number of this one reads it; containers that share a copy must share their "
    "process namespace, too"
)
GONE = "the copy that was read there is gone"


class _Opened(NamedTuple):
    id: str
    environment: lmdb.Environment
    store: lmdb._Database
    sessions: tuple[lmdb._Database, lmdb._Database]
    table: tuple[lmdb._Database, lmdb._Database]
    node: lmdb._Database


class LmdbReader:
    """See the module's docstring. Any thread. Made by `open_reader`, closed by whoever asked for it."""

    def __init__(self, path: Path, inode: Inode, opened: _Opened) -> None:
        self.path = path
        self.inode = inode
        self.id = opened.id
        """Of the environment, as `LmdbStore.id`."""
        self._opened: _Opened | None = opened
        self._users = 0

    def get(self, id: bytes, /) -> bytes | None:
        """The record of a session, committed. Raises StoreError."""
        while True:
            opened = self._opened or self._open()
            try:
                txn = opened.environment.begin(opened.store)
                try:
                    # Which generation counts is part of the same view: no snapshot can come between.
                    return txn.get(id, None, opened.sessions[txn.get(GENERATION_KEY) == b"1"])
                finally:
                    txn.abort()
            except lmdb.Error as exc:
                self._recover(opened, exc)

    def get_rows(self, *, node: bytes, table: bytes) -> tuple[bytes | None, bytes | None]:
        """A row of the space `node` and one of the space `table`, of one moment. Raises StoreError."""
        while True:
            opened = self._opened or self._open()
            try:
                with opened.environment.begin(opened.store) as txn:
                    number = txn.get(GENERATION_KEY) == b"1"
                    return txn.get(node, None, opened.node), txn.get(table, None, opened.table[number])
            except lmdb.Error as exc:
                self._recover(opened, exc)

    def close(self) -> None:
        """Of one of those who use it. Whoever reads afterwards gets a StoreError."""
        with _opening:
            self._users -= 1
            if not self._users:
                del _readers[self.inode]
                self._close()

    def _open(self) -> _Opened:
        with _opening:
            if self._opened is None:
                if not self._users or _inode_of(self.path) != self.inode:
                    raise StoreError(str(self.path), GONE)
                opened = _open(self.path)
                if opened.id != self.id:
                    opened.environment.close()
                    raise StoreError(str(self.path), GONE)
                self._opened = opened
            return self._opened

    def _recover(self, opened: _Opened, exc: lmdb.Error) -> None:
        """Returns if another attempt is worth it. Raises StoreError."""
        with _opening:
            if self._opened is not opened:  # closed under us, for a fork
                return
            if isinstance(exc, lmdb.MapResizedError):
                self._opened = None
                opened.environment.close()
                return
            if isinstance(exc, lmdb.ReadersFullError) and opened.environment.reader_check():
                return
        raise StoreError(str(self.path), str(exc)) from exc

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.environment.close()


_readers: dict[Inode, LmdbReader] = {}
_opening = threading.Lock()
"""Held while an environment is opened or closed, and through every fork."""


def open_reader(path: Path) -> LmdbReader:
    """The reader of what lies in this directory now. Raises StoreError."""
    with _opening:
        inode = _inode_of(path)
        reader = _readers.get(inode)
        if reader is None:
            reader = _readers[inode] = LmdbReader(path, inode, _open(path))
        reader._users += 1
        return reader


def _inode_of(path: Path) -> Inode:
    with _translated(path):
        found = os.stat(path / "data.mdb")
    return found.st_dev, found.st_ino


def _open(path: Path) -> _Opened:
    with _translated(path):
        if not os.access(path / "lock.mdb", os.W_OK):
            # On a read-only file system LMDB reads without taking a place: pages would change under it.
            raise StoreError(str(path), "its lock file cannot be written here; a mount must not be read-only")
        # Size 0: that of the node's own map. Spare transactions spare the lock on the table of readers.
        environment = lmdb.open(
            str(path), map_size=0, max_dbs=MAX_DATABASES, max_spare_txns=1, readonly=True, create=False
        )
        try:
            environment.reader_check()  # places of processes that were killed
            databases = {
                name: environment.open_db(name.encode(), create=False)
                for name in ("store", "sessions.0", "sessions.1", "table.0", "table.1", "node")
            }
            with environment.begin(databases["store"]) as txn:
                id = txn.get(ID_KEY)
            if id is None:
                raise StoreError(str(path), "its node has not written down yet which one it is")
        except BaseException:
            environment.close()
            raise
    return _Opened(
        id.hex(),
        environment,
        databases["store"],
        (databases["sessions.0"], databases["sessions.1"]),
        (databases["table.0"], databases["table.1"]),
        databases["node"],
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as exc:
        if "already open" in str(exc):  # it has no class of its own
            raise StoreInUse(str(path), "a node in this very process has it open") from exc
        if exc.code in (errno.EAGAIN, errno.EACCES):
            raise StoreError(str(path), SAME_NUMBER) from exc
        raise StoreError(str(path), str(exc)) from exc
    except OSError as exc:
        raise StoreError(str(path), exc.strerror or str(exc)) from exc


def _before_fork() -> None:
    _opening.acquire()
    for reader in _readers.values():
        reader._close()


os.register_at_fork(before=_before_fork, after_in_parent=_opening.release, after_in_child=_opening.release)
