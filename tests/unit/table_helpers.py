"""A copy of the table on a store, driven without a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hotspare.commands import (
    BATCH,
    REGISTRATION,
    UNCONDITIONAL,
    Command,
    Delete,
    Outcome,
    Patch,
    Put,
    RawGroup,
    Registration,
    Results,
    Rotate,
    Touch,
    encode_batch,
    encode_commands,
)
from hotspare.data import encode_data, encode_fields
from hotspare.events import (
    Event,
    SessionChanged,
    SessionCreated,
    SessionDeleted,
    SessionExpired,
    SessionRotated,
)
from hotspare.record import ENCRYPTED, data_checksum
from hotspare.store import Row, Store, Transaction
from hotspare.table import Table

START_MS = 1_700_000_000_000
NEVER_MS = 1 << 50
"""A deadline that no test reaches."""


def put(
    id: bytes,
    data: Mapping[str, Any] | bytes = b"\x80",
    *,
    ttl_ms: int = 60_000,
    condition: int = UNCONDITIONAL,
    deadline_ms: int = NEVER_MS,
    flags: int = 0,
) -> Put:
    encoded = data if isinstance(data, bytes) else encode_data(data, 1 << 20)
    return Put(id, encoded, flags, data_checksum(id, encoded, flags), ttl_ms, deadline_ms, condition)


def delete(id: bytes, condition: int = UNCONDITIONAL, deadline_ms: int = NEVER_MS) -> Delete:
    return Delete(id, deadline_ms, condition)


def touch(id: bytes, ttl_ms: int = 60_000, deadline_ms: int = NEVER_MS) -> Touch:
    return Touch(id, ttl_ms, deadline_ms)


def rotate(id: bytes, new_id: bytes, deadline_ms: int = NEVER_MS) -> Rotate:
    return Rotate(id, new_id, deadline_ms)


def rotate_anew(id: bytes, new_id: bytes, condition: int, data: bytes = b"for new") -> Rotate:
    return Rotate(id, new_id, NEVER_MS, condition, data, ENCRYPTED, data_checksum(new_id, data, ENCRYPTED))


def patch(
    id: bytes,
    changes: dict[str, Any],
    remove: list[str] | None = None,
    *,
    condition: int = UNCONDITIONAL,
    deadline_ms: int = NEVER_MS,
    limit_bytes: int = 1 << 16,
) -> Patch:
    return Patch(id, encode_fields(changes, 1 << 20), remove or [], deadline_ms, condition, limit_bytes)


def group(origin: int, first: int, *commands: Command, seen: int = 0) -> RawGroup:
    return RawGroup(origin, first, len(commands), seen, encode_commands(commands))


class Copy:
    """Applies entries one by one, each in a transaction of its own unless one has been begun."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.txn: Transaction | None = None
        self.restart()

    def restart(self) -> None:
        """All that the table knows is what its rows say."""
        txn = self.store.begin()
        self.table = Table(txn)
        txn.commit()

    def begin(self) -> Transaction:
        self.txn = self.store.begin()
        return self.txn

    def commit(self) -> None:
        assert self.txn is not None
        self.table.save(self.txn)
        self.txn.commit()
        self.txn = None

    def apply(self, index: int, kind: int, payload: bytes = b"") -> list[Outcome]:
        alone = self.txn is None
        outcomes = self.table.apply(self.txn or self.begin(), index, 1, kind, payload)
        if alone:
            self.commit()
        return outcomes

    def rows(self) -> list[Row]:
        """What a snapshot of this copy holds, in order."""
        reader = self.store.snapshot()
        rows: list[Row] = []
        while part := reader.read(1 << 16):
            rows += part
        reader.close()
        return sorted(rows)

    def install(self, rows: list[Row]) -> None:
        txn = self.begin()
        txn.discard_staged()
        txn.stage(rows)
        txn.install_staged()
        self.table.reload(txn)
        self.commit()


class Driver(Copy):
    """A copy with a log of its own and one origin, whose commands it numbers."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.next_index = 1
        self.stamp_ms = START_MS
        self.origin = self.register()
        self.next_number = 1

    def register(self) -> int:
        origin = self.next_index
        self.append(REGISTRATION, Registration(b"nonce", self.stamp_ms).encode())
        return origin

    def append(self, kind: int, payload: bytes = b"") -> list[Outcome]:
        self.next_index += 1
        return self.apply(self.next_index - 1, kind, payload)

    def batch(self, *groups: RawGroup, full: bool = False) -> list[Outcome]:
        return self.append(BATCH, encode_batch(self.stamp_ms, full, groups))

    def run(self, *commands: Command, full: bool = False) -> list[int]:
        """The results of the commands, numbered as the next ones of the origin."""
        first = self.next_number
        self.next_number += len(commands)
        (outcome,) = self.batch(group(self.origin, first, *commands), full=full)
        assert isinstance(outcome, Results), outcome
        return outcome.results

    def run_one(self, command: Command, *, full: bool = False) -> int:
        (result,) = self.run(command, full=full)
        return result

    def wait(self, duration_ms: int) -> None:
        """Cluster time goes on; nothing is applied, so nothing is pruned."""
        self.stamp_ms += duration_ms


class Mirror:
    """Which sessions there are, and their versions, by events alone."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}

    def follow(self, events: Iterable[Event]) -> None:
        versions = self.versions
        for event in events:
            match event:
                case SessionCreated(id=id, version=version):
                    assert id not in versions
                    versions[id] = version
                case SessionChanged(id=id, version=version):
                    assert versions[id] < version
                    versions[id] = version
                case SessionRotated(id=id, version=version, old_id=old_id):
                    assert id not in versions
                    assert versions.pop(old_id) < version
                    versions[id] = version
                case SessionDeleted(id=id, version=version) | SessionExpired(id=id, version=version):
                    assert versions.pop(id) == version
                case _:
                    raise AssertionError(event)
