"""A look at everything in a store on a disk, before a node relies on it.

LMDB's pages have no checksums. Where a disk has damaged one, whoever reads it may find rows missing, which
would look like "no such session", or be killed in mid-read. So a process of its own reads the whole store
first: each record against its checksum, and all of them against the totals that the table has kept as they
came and went. If that process dies, the store is damaged too; the node reports it and stops. It costs one to
two seconds per million sessions. (The log and who the node is have checksums of their own, which are checked
as they are loaded.)
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple, cast
from zlib import crc32

from hotspare.errors import HotspareError, StoreCorrupt, StoreError, StoreForeign
from hotspare.record import HEADER_BYTES, verify_record
from hotspare.store import Transaction, journal
from hotspare.store.lmdb import LmdbView, view
from hotspare.table import Table, Totals

_CHECKSUM: Final = slice(16, 20)
"""Of a record: where it keeps its `data_checksum`."""


class Found(NamedTuple):
    owner: str
    """The node whose store it is; empty where that cannot be read."""
    problem: str
    """Empty if nothing is wrong."""


def verify_store(directory: Path) -> None:
    """Raises StoreCorrupt, or StoreError if nothing could be found out."""
    problem = inspect_store(directory).problem
    if problem:
        raise StoreCorrupt(str(directory), problem)


def inspect_store(directory: Path) -> Found:
    """Looks at a store that no process writes. Raises StoreError if it cannot."""
    command = [sys.executable, "-m", __name__, str(directory)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return Found("", f"what is in it is damaged: reading it ends a process ({name})")
    try:
        owner, problem = json.loads(child.stdout)
    except ValueError:
        last = child.stderr.strip().rpartition("\n")[2]
        raise StoreError(str(directory), f"it could not be verified ({last or child.returncode})") from None
    return Found(owner, problem)


def inspect_here(directory: Path) -> Found:
    """The same in this process, which damaged pages may end."""
    owner = ""
    try:
        with view(directory) as rows:
            if rows is None:
                return Found("", "")
            transaction = cast(Transaction, rows)  # to read from
            identity = journal.load_identity(transaction)
            owner = identity.name if identity is not None else ""
            _check(rows, Table(transaction))
    except StoreForeign:
        return Found(owner, "")  # whoever opens it says so
    except HotspareError as exc:
        return Found(owner, exc.reason if isinstance(exc, StoreError) else str(exc))
    except Exception as exc:  # whatever damaged bytes lead to
        return Found(owner, f"what is in it is damaged ({type(exc).__name__}: {exc})")
    return Found(owner, "")


def _check(rows: LmdbView, table: Table) -> None:
    found = _recount(rows)
    if found != table.totals:
        raise StoreCorrupt("", f"its sessions are not those that were stored ({found}, not {table.totals})")
    if rows.indexed != found.sessions:
        raise StoreCorrupt("", f"it has {found.sessions} sessions, and {rows.indexed} in the order of expiry")


def _recount(rows: LmdbView) -> Totals:
    """As `hotspare.table.recount`, and verifies each record. On local names: there may be millions."""
    count = size = digest = 0
    crc, header_bytes, checksum_at = crc32, HEADER_BYTES, _CHECKSUM
    for id, record in rows.sessions.scan():
        if crc(id, crc(record[header_bytes:])).to_bytes(4, "big") != record[checksum_at]:
            verify_record(id, record)  # which says what is wrong
        header = crc(record[:header_bytes])
        digest += header * header
        size += len(id) + len(record)
        count += 1
    return Totals(count, size, digest & (2**64 - 1))


if __name__ == "__main__":
    print(json.dumps(inspect_here(Path(sys.argv[1]))))
