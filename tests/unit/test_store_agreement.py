"""The stores against each other, and against a deliberately simple third one.

Random transactions and snapshots: the same answers at every step, the same contents at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, TypeAlias

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from hotspare.store import Row, SnapshotReader, Space, Store, Transaction
from hotspare.store.lmdb import LmdbStore
from hotspare.store.plain import PlainStore

Operation: TypeAlias = tuple[Any, ...]
SPACES = ("node", "log", "table", "sessions")
TIMES = (0, 1, 2, 65_535, 65_536, 65_537, 1_000_000, 1 << 40)

KEYS = [b"a", b"aa", b"b", b"c", b"\x00", b"\xff"]


def value(expires_at_ms: int, rest: bytes) -> bytes:
    return expires_at_ms.to_bytes(8, "big") + rest


def staged_row(space: str, key: bytes) -> Row:
    # A key is staged once in a transfer, so it may as well always come with the same value.
    return space, key, value(TIMES[KEYS.index(key)], b"staged " + key)


keys = st.sampled_from(KEYS)
times = st.sampled_from(TIMES)
values = st.builds(value, times, st.sampled_from([b"", b"x", b"yy"]))
spaces = st.sampled_from(SPACES)
rows = st.lists(st.builds(staged_row, st.sampled_from(["table", "sessions"]), keys), max_size=6)
operations = st.one_of(
    st.tuples(st.just("set"), spaces, keys, values),
    st.tuples(st.just("set"), st.just("sessions"), keys, values),
    st.tuples(st.just("get"), spaces, keys),
    st.tuples(st.just("pop"), spaces, keys),
    st.tuples(st.just("scan"), spaces, keys),
    st.tuples(st.just("add"), times, keys),
    st.tuples(st.just("add"), times, keys),
    st.tuples(st.just("discard"), times, keys),
    st.tuples(st.just("due"), times, st.integers(1, 5)),
    st.tuples(st.just("stage"), rows),
    st.tuples(st.just("discard staged")),
    st.tuples(st.just("install staged")),
)
transactions = st.lists(operations, max_size=12)


def perform(txn: Transaction, operation: Operation) -> object:
    name, *arguments = operation
    if name in ("set", "get", "pop", "scan"):
        space: Space = getattr(txn, arguments[0])
        return _on_space(space, name, *arguments[1:])
    actions: dict[str, Callable[..., object]] = {
        "add": txn.expiry.add,
        "discard": txn.expiry.discard,
        "due": txn.expiry.due,
        "stage": txn.stage,
        "discard staged": txn.discard_staged,
        "install staged": txn.install_staged,
    }
    return actions[name](*arguments)


def _on_space(space: Space, name: str, key: bytes, *value: bytes) -> object:
    if name == "set":
        space[key] = value[0]
        return None
    if name == "scan":
        return list(space.scan(key))
    return space.get(key) if name == "get" else space.pop(key)


class SimpleStore:
    """Copies everything on every occasion."""

    def __init__(self) -> None:
        self.spaces: dict[str, dict[bytes, bytes]] = {name: {} for name in SPACES}
        self.staged: dict[str, dict[bytes, bytes]] = {"table": {}, "sessions": {}}
        self.expiry: set[tuple[int, bytes]] = set()

    def copy(self) -> SimpleStore:
        copied = SimpleStore()
        copied.spaces = {name: dict(space) for name, space in self.spaces.items()}
        copied.staged = {name: dict(space) for name, space in self.staged.items()}
        copied.expiry = set(self.expiry)
        return copied

    def rows(self) -> list[Row]:
        return sorted((name, *row) for name in ("table", "sessions") for row in self.spaces[name].items())

    def perform(self, operation: Operation) -> object:
        match operation:
            case ("set", space, key, value):
                self.spaces[space][key] = value
            case ("get", space, key):
                return self.spaces[space].get(key)
            case ("pop", space, key):
                return self.spaces[space].pop(key, None)
            case ("scan", space, key):
                return sorted(row for row in self.spaces[space].items() if row[0] >= key)
            case ("add", at_ms, id):
                self.expiry.add((at_ms, id))
            case ("discard", at_ms, id):
                self.expiry.discard((at_ms, id))
            case ("due", now_ms, limit):
                return sorted(pair for pair in self.expiry if pair[0] <= now_ms)[:limit]
            case ("stage", rows):
                for space, key, value in rows:
                    self.staged[space][key] = value
            case ("discard staged",):
                self.staged = {"table": {}, "sessions": {}}
            case ("install staged",):
                self.spaces |= self.staged
                self.staged = {"table": {}, "sessions": {}}
                self.expiry = {(int.from_bytes(v[:8], "big"), k) for k, v in self.spaces["sessions"].items()}
            case _:
                raise AssertionError(operation)
        return None


class Reading:
    """One snapshot of each store, and what it must show."""

    def __init__(self, expected: list[Row], readers: list[SnapshotReader]) -> None:
        self.expected = expected
        self.readers = readers
        self.read: list[list[Row]] = [[] for _ in readers]

    def go_on(self, max_bytes: int) -> None:
        for reader, rows in zip(self.readers, self.read, strict=True):
            rows += reader.read(max_bytes)

    def finish(self) -> None:
        for reader, rows in zip(self.readers, self.read, strict=True):
            while part := reader.read(20):
                rows += part
            reader.close()
            assert sorted(rows) == self.expected


class Stores(RuleBasedStateMachine):
    readings: Bundle[Reading] = Bundle("readings")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.simple = SimpleStore()
        self.lmdb = LmdbStore.open(self.directory.name, durable=False, map_size_bytes=1 << 24)
        # This one cannot take back what was aborted, so it only gets what will be committed.
        self.plain = PlainStore()
        self.undoing: list[Store] = [PlainStore(undo=True), self.lmdb]
        self.unclosed: list[Reading] = []

    @property
    def stores(self) -> list[Store]:
        return [self.plain, *self.undoing]

    @rule(operations=transactions)
    def commit(self, operations: list[Operation]) -> None:
        expected = [self.simple.perform(operation) for operation in operations]
        for store in self.stores:
            txn = store.begin()
            assert [perform(txn, operation) for operation in operations] == expected
            txn.commit()

    @rule(operations=transactions)
    def abort(self, operations: list[Operation]) -> None:
        attempt = self.simple.copy()
        expected = [attempt.perform(operation) for operation in operations]
        for store in self.undoing:
            txn = store.begin()
            assert [perform(txn, operation) for operation in operations] == expected
            txn.abort()

    @rule(target=readings)
    def open_snapshot(self) -> Reading:
        reading = Reading(self.simple.rows(), [store.snapshot() for store in self.stores])
        self.unclosed.append(reading)
        return reading

    @rule(reading=readings, max_bytes=st.integers(1, 60))
    def read_on(self, reading: Reading, max_bytes: int) -> None:
        reading.go_on(max_bytes)

    @rule(reading=consumes(readings))
    def finish_reading(self, reading: Reading) -> None:
        self.unclosed.remove(reading)
        reading.finish()

    @invariant()
    def the_committed_contents_are_the_same(self) -> None:
        sessions = self.simple.spaces["sessions"]
        for store in self.stores:
            assert store.ids() == sorted(sessions)
            assert store.records(b"", 100) == sorted(sessions.items())
            assert store.records(b"aa", 2) == sorted(row for row in sessions.items() if row[0] > b"aa")[:2]
            assert {id: store.get(id) for id in sessions} == sessions
            assert store.get(b"absent") is None
            for now_ms in TIMES:
                assert store.due_count(now_ms) == sum(at_ms <= now_ms for at_ms, _ in self.simple.expiry)

    def teardown(self) -> None:
        for reading in self.unclosed:
            reading.finish()
        self.commit([("scan", name, b"") for name in SPACES] + [("due", 1 << 62, 1_000)])
        self.lmdb.close()
        self.directory.cleanup()


TestStoresAgree = Stores.TestCase
TestStoresAgree.settings = settings(max_examples=80, stateful_step_count=20)
