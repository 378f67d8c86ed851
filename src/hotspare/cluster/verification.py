"""A look at everything in a store on a disk, before a node relies on it.

LMDB's pages have no checksums. Where a disk has damaged one, whoever reads it may find rows missing, which
would look like "no such session", or be killed in mid-read. So processes of their own read the whole store
first, one from each end until they meet: each record against its checksum, and all of them against the
totals that the table has kept as they came and went. If one of them dies, the store is damaged too; the node
reports it and stops. It costs about a second per million sessions. (The log and who the node is have
checksums of their own, which are checked as they are loaded.)
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, cast
from zlib import crc32

import msgspec

from hotspare.errors import HotspareError, StoreCorrupt, StoreError, StoreForeign
from hotspare.record import HEADER_BYTES, verify_record
from hotspare.store import Transaction, journal
from hotspare.store.lmdb import LmdbRows, view
from hotspare.table import Table, Totals

_CHECKSUM: Final = slice(16, 20)
"""Of a record: where it keeps its `data_checksum`."""


FIRST: Final = "first"
LAST: Final = "last"


class Found(NamedTuple):
    owner: str
    """The node whose store it is; empty where that cannot be read."""
    problem: str
    """Empty if nothing is wrong."""


class Half(NamedTuple):
    """What one process has found."""

    owner: str = ""
    problem: str = ""
    counted: Totals = Totals(0, 0, 0)
    """Of this half."""
    expected: Totals = Totals(0, 0, 0)
    """Of both, as the table has kept them."""
    indexed: int = 0
    border: str = ""
    """The id with which the last half begins, in hexadecimal digits; empty if there is none."""


def verify_store(directory: Path) -> None:
    """Raises StoreCorrupt, or StoreError if nothing could be found out."""
    problem = inspect_store(directory).problem
    if problem:
        raise StoreCorrupt(str(directory), problem)


def inspect_store(directory: Path) -> Found:
    """Looks at a store that no process writes. Raises StoreError if it cannot."""
    with _looking_at(directory, FIRST) as one, _looking_at(directory, LAST) as other:
        first, last = _half(directory, one), _half(directory, other)
    return Found(first.owner or last.owner, first.problem or last.problem or _difference(first, last))


def _looking_at(directory: Path, half: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__, str(directory), half]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _half(directory: Path, process: subprocess.Popen[str]) -> Half:
    output, errors = process.communicate()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return Half(problem=f"what is in it is damaged: reading it ends a process ({name})")
    try:
        return msgspec.json.decode(output, type=Half)
    except msgspec.DecodeError:
        last = errors.strip().rpartition("\n")[2]
        raise StoreError(str(directory), f"it could not be verified ({last or process.returncode})") from None


def _difference(first: Half, last: Half) -> str:
    """Between what was stored and what is there."""
    one, other = first.counted, last.counted
    digest = (one.digest + other.digest) & (2**64 - 1)
    found = Totals(one.sessions + other.sessions, one.bytes + other.bytes, digest)
    if found != first.expected or first.border != last.border:
        return f"its sessions are not those that were stored ({found}, not {first.expected})"
    if first.indexed != found.sessions:
        return f"it has {found.sessions} sessions, and {first.indexed} in the order of expiry"
    return ""


def look(directory: Path, half: str) -> Half:
    """At one half, in this process, which damaged pages may end."""
    owner = ""
    try:
        with view(directory) as rows:
            if rows is None:
                return Half()
            transaction = cast(Transaction, rows)  # to read from
            identity = journal.load_identity(transaction)
            owner = identity.name if identity is not None else ""
            expected = Table(transaction).totals
            counted, border = _count(rows.sessions, half)
            return Half(owner, "", counted, expected, rows.indexed, border)
    except StoreForeign:
        return Half(owner)  # whoever opens it says so
    except HotspareError as exc:
        return Half(owner, exc.reason if isinstance(exc, StoreError) else str(exc))
    except Exception as exc:  # whatever damaged bytes lead to
        return Half(owner, f"what is in it is damaged ({type(exc).__name__}: {exc})")


def _count(sessions: LmdbRows, half: str) -> tuple[Totals, str]:
    """The totals of the half, and its border."""
    middle = sessions.count // 2
    if half == FIRST:
        rows = sessions.forwards()
        totals, _ = _recount(islice(rows, middle))
        border, _ = next(rows, (b"", b""))
    else:
        totals, border = _recount(islice(sessions.backwards(), sessions.count - middle))
    return totals, border.hex()


def _recount(rows: Iterable[tuple[bytes, bytes]]) -> tuple[Totals, bytes]:
    """As `hotspare.table.recount`, and verifies each record; the last id, too. On local names: there may be
    millions."""
    count = size = digest = 0
    crc, header_bytes, checksum_at, checked_from = crc32, HEADER_BYTES, _CHECKSUM, _CHECKSUM.stop
    id = b""
    for id, record in rows:
        if crc(id, crc(record[checked_from:])).to_bytes(4, "big") != record[checksum_at]:
            verify_record(id, record)  # which says what is wrong
        header = crc(record[:header_bytes])
        digest += header * header
        size += len(id) + len(record)
        count += 1
    return Totals(count, size, digest & (2**64 - 1)), id


if __name__ == "__main__":
    print(msgspec.json.encode(look(Path(sys.argv[1]), sys.argv[2])).decode())
