"""The lease page: what a daemon tells the processes that read its copy beside it, without being asked.

A small file next to the environment, which the node and all readers map into memory. It says what readers
must know of the copy: until when it counts as fresh, and what cluster time is. The node writes it whenever
that changes; nobody waits for anybody.

**No torn values.** Two slots, written in turn, each with a sequence number and a checksum. Of the valid ones
the newer counts. So a reader that looks in mid-write, or after a writer that died in mid-write, sees the
value before; and neither needs a lock, nor relies on the order in which a processor makes writes visible.

**Whose word it is.** Times are of the boot clock, so a slot counts only under the boot it was written under.
It also names the server: a node that is started again with its state goes on where it ended (what it has is
what it had, so its lease lasts until its end, and cluster time does not go back), another server begins anew.
So nobody may empty an environment under a lease that lasts: readers would take what is missing for absent.
Whoever wants to be rid of one throws the files away. The page names the environment that it speaks of, and is
no word about any other.
"""

from __future__ import annotations

import mmap
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple, Self
from zlib import crc32

from hotspare.cluster import clocks
from hotspare.protocol.clock import UNKNOWN_OFFSET_MS
from hotspare.replica import Now

FILE: Final = "lease"
"""Its name in the directory of the environment."""

NEVER_MS: Final = -1
_MAGIC: Final = b"hslease1"
_ID_BYTES: Final = 16
_TAG_BYTES: Final = 8

_HEADER: Final = struct.Struct(f"<8s{_ID_BYTES}s8x")
_SLOT: Final = struct.Struct(f"<Q{_TAG_BYTES}s{_TAG_BYTES}sqqq")
_CHECKSUM: Final = struct.Struct("<I")
_SLOT_BYTES: Final = 64
_SLOTS: Final = slice(_HEADER.size, _HEADER.size + 2 * _SLOT_BYTES)

_ATTEMPTS: Final = 1000
"""Both slots are torn only for a reader that was held up while two values were written."""


class Limits(NamedTuple):
    """What readers of a copy must know. In milliseconds; local times are of the boot clock."""

    fresh_until_ms: int
    """Local; negative while it is not known what is committed."""
    offset_ms: int
    """Cluster time minus local time."""
    floor_ms: int
    """Cluster time, at least."""

    def cluster_ms(self, now_ms: int) -> int:
        return max(self.floor_ms, now_ms + self.offset_ms)

    def is_alive(self, expires_at_ms: int, now: Now, max_clock_skew_ms: int) -> bool | None:
        """Of a session that is read however old the copy is. None: it may have expired or not, because nobody
        has told this node the time since it started, and its own clock alone calls no session absent."""
        if expires_at_ms <= self.cluster_ms(now.boot_ms):
            return False
        if self.offset_ms == UNKNOWN_OFFSET_MS and expires_at_ms <= now.wall_ms + max_clock_skew_ms:
            return None
        return True


NOTHING_KNOWN: Final = Limits(NEVER_MS, UNKNOWN_OFFSET_MS, 0)


class _Slot(NamedTuple):
    sequence: int
    boot: bytes
    server: bytes
    limits: Limits


class LeasePage:
    """The node's end."""

    def __init__(self, directory: Path, mapping: mmap.mmap, boot_id: str) -> None:
        self.directory = directory
        self.id = _id_of(mapping)
        self._map = mapping
        self._boot = _tag(boot_id)
        slots = _valid_slots(mapping[_SLOTS])
        self._sequence = max((slot.sequence for slot in slots), default=0)
        newest = max(slots, default=None)
        if newest is not None and newest.boot != self._boot:
            newest = None
        self._server = newest.server if newest is not None else b""
        self._server_id = ""
        self.limits = newest.limits if newest is not None else NOTHING_KNOWN
        """What it says now."""

    @classmethod
    def open(cls, directory: Path, environment_id: str, boot_id: str) -> Self:
        """Goes on with the page of this environment, or makes one. `boot_id` is that of this boot.

        Of the node that has the directory for itself. Raises OSError.
        """
        directory = directory.resolve()
        try:
            mapping, _ = _map(directory / FILE, writable=True)
            is_to_be_made = _id_of(mapping) != environment_id
        except (FileNotFoundError, ValueError):
            is_to_be_made = True
        if is_to_be_made:
            _create(directory, environment_id)
            mapping, _ = _map(directory / FILE, writable=True)
        return cls(directory, mapping, boot_id)

    def write(self, server_id: str, limits: Limits, now_ms: int) -> None:
        """What the server of this incarnation says from now on. Its lease only ever grows."""
        if server_id != self._server_id:
            self._server_id, tag = server_id, _tag(server_id)
            if tag != self._server:
                self._server, self.limits = tag, NOTHING_KNOWN
        before = self.limits
        if limits.fresh_until_ms < before.fresh_until_ms:
            limits = limits._replace(fresh_until_ms=before.fresh_until_ms)
        if limits.offset_ms <= UNKNOWN_OFFSET_MS:  # it was started again, and nobody has told it the time yet
            limits = limits._replace(offset_ms=before.offset_ms)
        if limits[:2] == before[:2] and limits.floor_ms <= before.cluster_ms(now_ms):
            return  # readers work that out for themselves
        self._put(limits)

    def _put(self, limits: Limits) -> None:
        self.limits = limits
        self._sequence += 1
        body = _SLOT.pack(self._sequence, self._boot, self._server, *limits)
        start = _SLOTS.start + self._sequence % 2 * _SLOT_BYTES
        self._map[start : start + _SLOT.size + _CHECKSUM.size] = body + _CHECKSUM.pack(crc32(body))


class LeaseView:
    """A reader's end."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        """Raises OSError, or ValueError for what is no page."""
        self._map, self._inode = _map(directory / FILE, writable=False)
        self.id = _id_of(self._map)
        self._file = directory / FILE
        self._boot = _tag(boot_id)
        self._seen: tuple[bytes, Limits] = (b"", NOTHING_KNOWN)

    def limits(self) -> Limits:
        """Any thread. By what this view has shown, cluster time never goes back."""
        seen, limits = self._seen
        raw = self._map[_SLOTS]
        return limits if raw == seen else self._look()

    def begin_at(self, cluster_ms: int) -> None:
        """It is at least that late: somebody has seen it."""
        self._seen = (b"", NOTHING_KNOWN._replace(floor_ms=cluster_ms))

    @property
    def is_in_place(self) -> bool:
        """Whether it is still the page in its directory."""
        try:
            return _inode(os.stat(self._file)) == self._inode
        except OSError:
            return False

    def _look(self) -> Limits:
        for _ in range(_ATTEMPTS):
            raw = self._map[_SLOTS]
            slots = _valid_slots(raw)
            if slots:
                limits = self._continued(max(slots))
                self._seen = (raw, limits)
                return limits
        return self._seen[1]._replace(fresh_until_ms=NEVER_MS)

    def _continued(self, slot: _Slot) -> Limits:
        before = self._seen[1]
        limits = slot.limits if slot.boot == self._boot else NOTHING_KNOWN
        return limits._replace(floor_ms=max(limits.floor_ms, before.cluster_ms(clocks.boot_ms())))


def _create(directory: Path, environment_id: str) -> None:
    """Under its name only when it is complete."""
    new = directory / f"{FILE}.new"
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(_HEADER.pack(_MAGIC, bytes.fromhex(environment_id)) + bytes(2 * _SLOT_BYTES))
    new.replace(directory / FILE)


def _map(file: Path, *, writable: bool) -> tuple[mmap.mmap, tuple[int, int]]:
    """The mapping, and which file it is. Raises OSError, or ValueError for what is no page."""
    descriptor = os.open(file, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        mapping = mmap.mmap(descriptor, _SLOTS.stop, access=access)
        inode = _inode(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    if mapping[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{file} is no lease page of this version")
    return mapping, inode


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _id_of(mapping: mmap.mmap) -> str:
    """Of the environment that it speaks of: there may be another one beside it by now."""
    id: bytes = _HEADER.unpack(mapping[: _HEADER.size])[1]
    return id.hex()


def _tag(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=_TAG_BYTES).digest()


def _valid_slots(raw: bytes) -> list[_Slot]:
    slots = []
    for start in (0, _SLOT_BYTES):
        body = raw[start : start + _SLOT.size]
        (checksum,) = _CHECKSUM.unpack_from(raw, start + _SLOT.size)
        sequence, boot, server, *limits = _SLOT.unpack(body)
        if sequence and crc32(body) == checksum:
            slots.append(_Slot(sequence, boot, server, Limits(*limits)))
    return slots
