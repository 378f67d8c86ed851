"""The table against a second implementation that is too simple to be wrong, on both stores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hotspare import table as table_module
from hotspare.commands import (
    ABSENT,
    BATCH,
    CONFLICT_ABSENT,
    EXPIRED,
    FORGOTTEN,
    FULL,
    IF_ABSENT,
    IF_PRESENT,
    KEEP_EXPIRY_MS,
    REGISTRATION,
    TAKEN,
    TOO_LARGE,
    UNCONDITIONAL,
    UNMERGEABLE,
    Command,
    Delete,
    Gap,
    Outcome,
    Patch,
    Put,
    RawGroup,
    Registered,
    Registration,
    Results,
    Rotate,
    Touch,
    UnknownOrigin,
    encode_batch,
)
from hotspare.data import encode_data, encode_fields
from hotspare.record import (
    COMPRESSED,
    data_checksum,
    decode_record,
    record_data,
    record_expires_at_ms,
    record_flags,
    record_version,
    verify_record,
)
from hotspare.store import Store
from hotspare.store.lmdb import LmdbStore
from hotspare.store.plain import PlainStore
from hotspare.table import recount
from tests.unit.table_helpers import NEVER_MS, START_MS, Copy, Mirror, group, put

NOOP = 0

# So small that a short log meets all bounds.
PRUNED, ORIGINS, UNSEEN, ORIGIN_TTL_MS = 2, 3, 6, 100


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "PRUNE_PER_BATCH", PRUNED)
        patch.setattr(table_module, "MAX_ORIGINS", ORIGINS)
        patch.setattr(table_module, "MAX_UNSEEN", UNSEEN)
        patch.setattr(table_module, "ORIGIN_TTL_MS", ORIGIN_TTL_MS)
        yield


# The model


class Kept(NamedTuple):
    version: int
    expires_at_ms: int
    data: dict[str, Any] | None
    """None: compressed."""

    @property
    def size_bytes(self) -> int:
        return len(b"opaque") if self.data is None else len(encode_data(self.data, 1 << 20))


@dataclass
class ModelOrigin:
    results: dict[int, int] = field(default_factory=dict)
    last: int = 0
    seen: int = 0
    active_ms: int = 0


@dataclass
class Model:
    stamp_ms: int = 0
    sessions: dict[bytes, Kept] = field(default_factory=dict)
    origins: dict[int, ModelOrigin] = field(default_factory=dict)
    """The last active one at the end."""

    def register(self, index: int, stamp_ms: int) -> list[Outcome]:
        self.advance(stamp_ms)
        self.origins[index] = ModelOrigin(active_ms=self.stamp_ms)
        if len(self.origins) > ORIGINS:
            del self.origins[next(iter(self.origins))]
        return [Registered(b"", index)]

    def batch(self, index: int, stamp_ms: int, full: bool, groups: list[GroupPlan]) -> list[Outcome]:
        self.advance(stamp_ms)
        outcomes = []
        position = 0
        for each in groups:
            outcomes.append(self.group(each, (index << 16) + position, full))
            position += len(each.commands)
        due = sorted((kept.expires_at_ms, id) for id, kept in self.sessions.items() if not self.lives(kept))
        for _, id in due[:PRUNED]:
            del self.sessions[id]
        return outcomes

    def advance(self, stamp_ms: int) -> None:
        self.stamp_ms = max(self.stamp_ms, stamp_ms)
        idle = [id for id, each in self.origins.items() if each.active_ms + ORIGIN_TTL_MS <= self.stamp_ms]
        for id in idle[:PRUNED]:
            del self.origins[id]

    def group(self, plan: GroupPlan, version: int, full: bool) -> Outcome:
        origin = self.origins.pop(plan.origin, None)
        if origin is None:
            return UnknownOrigin(plan.origin, plan.first, len(plan.commands))
        self.origins[plan.origin] = origin
        origin.active_ms = self.stamp_ms
        origin.seen = max(origin.seen, min(plan.seen, origin.last))
        end = plan.first + len(plan.commands)
        if plan.commands and (plan.first > origin.last + 1 or end - 1 - origin.seen > UNSEEN):
            return Gap(plan.origin, plan.first, origin.last + 1)
        for offset, command in enumerate(plan.commands):
            if plan.first + offset > origin.last:
                origin.last += 1
                origin.results[origin.last] = self.run(command, version + offset, full)
        numbers = range(plan.first, end)
        results = [FORGOTTEN if each <= origin.seen else origin.results[each] for each in numbers]
        return Results(plan.origin, plan.first, results)

    def run(self, command: Command, version: int, full: bool) -> int:
        if command.deadline_ms < self.stamp_ms:
            return EXPIRED
        if full and isinstance(command, Put | Patch):
            return FULL
        found = self.sessions.get(command.id)
        kept = found if found is not None and self.lives(found) else None
        if isinstance(command, Put | Delete | Patch):
            conflict = self.conflict(command.condition, kept)
            if conflict:
                return conflict
        if isinstance(command, Put):
            data = None if command.flags else decode_record(bytes(20) + b"\x10" + command.data)
            expires_at_ms = self.stamp_ms + command.ttl_ms
            if command.ttl_ms == KEEP_EXPIRY_MS and kept is not None:
                expires_at_ms = kept.expires_at_ms
            self.sessions[command.id] = Kept(version, expires_at_ms, data)
            return version
        if kept is None:
            return ABSENT
        if isinstance(command, Rotate) and command.condition not in (UNCONDITIONAL, kept.version):
            return -kept.version
        if isinstance(command, Rotate) and full and len(command.data) > kept.size_bytes:
            return FULL
        return self.change(command, kept, version)

    def change(self, command: Command, kept: Kept, version: int) -> int:
        if isinstance(command, Delete):
            del self.sessions[command.id]
        elif isinstance(command, Touch):
            self.sessions[command.id] = kept._replace(expires_at_ms=self.stamp_ms + command.ttl_ms)
        elif isinstance(command, Patch):
            if kept.data is None:
                return UNMERGEABLE
            data = {key: value for key, value in kept.data.items() if key not in command.remove}
            data |= {key: int(value[0]) for key, value in command.set}
            if len(encode_data(data, 1 << 20)) > command.limit_bytes:
                return TOO_LARGE
            self.sessions[command.id] = kept._replace(version=version, data=data)
        elif isinstance(command, Rotate):
            if command.new_id in self.sessions and self.lives(self.sessions[command.new_id]):
                return TAKEN
            del self.sessions[command.id]
            moved = (
                kept._replace(version=version, data=None) if command.data else kept._replace(version=version)
            )
            self.sessions[command.new_id] = moved
        return version

    def conflict(self, condition: int, kept: Kept | None) -> int:
        if condition == IF_ABSENT:
            return -kept.version if kept else 0
        if condition == UNCONDITIONAL:
            return 0
        if kept is None:
            return CONFLICT_ABSENT
        return 0 if condition in (IF_PRESENT, kept.version) else -kept.version

    def lives(self, kept: Kept) -> bool:
        return kept.expires_at_ms > self.stamp_ms


# Logs. Steps are drawn without knowing the state; what refers to it is worked out when they are taken.


class GroupPlan(NamedTuple):
    origin: int
    first: int
    seen: int
    commands: list[Command]

    def encode(self) -> RawGroup:
        return group(self.origin, self.first, *self.commands, seen=self.seen)


class BatchStep(NamedTuple):
    passed_ms: int
    full: bool
    groups: list[tuple[int, int, int, list[Callable[[Model], Command]]]]
    """Which origin, how far from its next number, how much unseen, commands."""


class RegisterStep(NamedTuple):
    passed_ms: int


class QuietStep(NamedTuple):
    """An entry of the consensus."""


class CommitStep(NamedTuple):
    """The second copy ends its transaction."""


class CrashStep(NamedTuple):
    """The second copy loses its transaction and applies those entries again."""


class SnapshotStep(NamedTuple):
    """A third copy begins anew with what the first one has."""


IDS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
TTLS = st.integers(1, 60)
PASSED = st.sampled_from([0, 0, 1, 5, 20, 50, -30, ORIGIN_TTL_MS])
DEADLINES = st.sampled_from([NEVER_MS, NEVER_MS, NEVER_MS, START_MS, START_MS + 100])
DATA = st.dictionaries(st.sampled_from("klm"), st.integers(0, 9), max_size=2)


@st.composite
def commands(draw: st.DrawFn) -> Callable[[Model], Command]:
    kind = draw(st.sampled_from([Put, Put, Put, Delete, Touch, Patch, Rotate]))
    id, deadline_ms, ttl_ms, data = draw(IDS), draw(DEADLINES), draw(TTLS), draw(DATA)
    wanted = draw(st.sampled_from(["any", "any", "absent", "present", "current"]))
    new_id = draw(IDS.filter(lambda other: other != id))
    flags = draw(st.sampled_from([0, 0, COMPRESSED]))
    limit_bytes = draw(st.sampled_from([1 << 16, 7]))
    if kind is Put and wanted == "current" and draw(st.booleans()):
        ttl_ms = KEEP_EXPIRY_MS
    remove = draw(st.lists(st.sampled_from("klm"), max_size=2))

    def build(model: Model) -> Command:
        condition = {"any": UNCONDITIONAL, "absent": IF_ABSENT, "present": IF_PRESENT}.get(wanted)
        if condition is None:
            condition = model.sessions[id].version if id in model.sessions else 1 << 16
        if kind is Put:
            encoded = b"opaque" if flags else encode_data(data, 1 << 16)
            return put(id, encoded, ttl_ms=ttl_ms, condition=condition, deadline_ms=deadline_ms, flags=flags)
        if kind is Delete:
            return Delete(id, deadline_ms, condition)
        if kind is Touch:
            return Touch(id, ttl_ms, deadline_ms)
        if kind is Patch:
            return Patch(id, encode_fields(data, 1 << 16), remove, deadline_ms, condition, limit_bytes)
        if wanted == "current":
            return Rotate(
                id,
                new_id,
                deadline_ms,
                condition,
                b"opaque",
                COMPRESSED,
                data_checksum(new_id, b"opaque", COMPRESSED),
            )
        return Rotate(id, new_id, deadline_ms)

    return build


GROUPS = st.tuples(
    st.integers(0, ORIGINS),
    st.sampled_from([0, 0, 0, 0, -1, -2, -5, 1]),
    st.integers(0, 4),
    st.lists(commands(), max_size=4),
)
STEPS = st.one_of(
    st.builds(BatchStep, PASSED, st.sampled_from([False, False, False, True]), st.lists(GROUPS, max_size=4)),
    st.builds(BatchStep, PASSED, st.just(False), st.lists(GROUPS, min_size=1, max_size=4)),
    st.builds(RegisterStep, PASSED),
    st.sampled_from([QuietStep(), CommitStep(), CrashStep(), SnapshotStep()]),
)


class Run:
    """One log, applied by the model and by three copies that commit, crash and join in different places."""

    def __init__(self, first: Store, second: Store, new_store: Callable[[], Store]) -> None:
        self.model = Model()
        self.now_ms = START_MS
        self.next_index = 1
        self.first = Copy(first)
        self.second = Copy(second)
        self.new_store = new_store
        self.third: Copy | None = None
        self.uncommitted: list[tuple[int, int, bytes]] = []

    def take(self, step: Any) -> None:
        if isinstance(step, BatchStep):
            self.now_ms += step.passed_ms
            groups = [self.plan(*each) for each in step.groups]
            payload = encode_batch(self.now_ms, step.full, [each.encode() for each in groups])
            expected = self.model.batch(self.next_index, self.now_ms, step.full, groups)
            self.append(BATCH, payload, expected)
        elif isinstance(step, RegisterStep):
            self.now_ms += step.passed_ms
            expected = self.model.register(self.next_index, self.now_ms)
            self.append(REGISTRATION, Registration(b"", self.now_ms).encode(), expected)
        elif isinstance(step, QuietStep):
            self.append(NOOP, b"", [])
        elif isinstance(step, CommitStep):
            self.commit_second()
        elif isinstance(step, CrashStep):
            self.crash_second()
        else:
            self.third = Copy(self.new_store())
            self.third.install(self.first.rows())

    def plan(
        self, origin: int, offset: int, unseen: int, commands: list[Callable[[Model], Command]]
    ) -> GroupPlan:
        known = list(self.model.origins)
        id = known[origin] if origin < len(known) else 1 << 40
        last = self.model.origins[id].last if id in self.model.origins else 0
        built = [command(self.model) for command in commands]
        return GroupPlan(id, max(1, last + 1 + offset), max(0, last - unseen), built)

    def append(self, kind: int, payload: bytes, expected: list[Outcome]) -> None:
        entry = (self.next_index, kind, payload)
        self.next_index += 1
        assert self.first.apply(*entry) == expected
        if self.second.txn is None:
            self.second.begin()
        assert self.second.apply(*entry) == expected
        self.uncommitted.append(entry)
        if self.third is not None:
            assert self.third.apply(*entry) == expected
        self.compare_with_model(self.first)

    def commit_second(self) -> None:
        if self.second.txn is not None:
            self.second.commit()
        self.uncommitted.clear()

    def crash_second(self) -> None:
        if self.second.txn is not None:
            self.second.table.save(self.second.txn)
            self.second.txn.abort()
        self.second = Copy(self.second.store)
        self.second.begin()
        for entry in self.uncommitted:
            self.second.apply(*entry)

    def compare_with_model(self, copy: Copy) -> None:
        model = self.model
        txn = copy.begin()
        rows = dict(txn.sessions.scan())
        indexed = txn.expiry.due(1 << 62, len(rows) + 1)
        copy.commit()
        found = {}
        for id, record in rows.items():
            verify_record(id, record)
            data = None if record_flags(record) else decode_record(record)
            assert data is not None or record_data(record) == b"opaque"
            found[id] = Kept(record_version(record), record_expires_at_ms(record), data)
        assert found == model.sessions
        assert indexed == sorted((kept.expires_at_ms, id) for id, kept in model.sessions.items())
        assert recount(rows.items()) == copy.table.totals
        assert copy.table.stamp_ms == model.stamp_ms
        assert copy.table.state().origins_count == len(model.origins)
        assert all(copy.table.has_origin(origin) for origin in model.origins)

    def finish(self) -> None:
        self.commit_second()
        copies = [self.second] if self.third is None else [self.second, self.third]
        for copy in copies:
            self.compare_with_model(copy)
            assert copy.rows() == self.first.rows()
            assert copy.table.state().digest == self.first.table.state().digest


def new_lmdb_store(cleanup: ExitStack) -> Store:
    path = cleanup.enter_context(tempfile.TemporaryDirectory())
    store = LmdbStore.open(path, durable=False, map_size_bytes=1 << 20)
    cleanup.callback(store.close)
    return store


SOME_LOG = [
    RegisterStep(0),
    BatchStep(0, False, [(0, 0, 0, [lambda _: put(b"a", ttl_ms=50), lambda _: put(b"b", ttl_ms=50)])]),
    SnapshotStep(),
    BatchStep(
        0, False, [(0, -2, 4, [lambda _: put(b"a"), lambda _: put(b"b"), lambda _: put(b"c", ttl_ms=50)])]
    ),
    CrashStep(),
    BatchStep(50, False, []),
    BatchStep(0, False, []),
]


@given(st.lists(STEPS, max_size=20))
@example(SOME_LOG)
@settings(max_examples=120)
def test_in_dictionaries_it_does_what_the_model_does(steps: list[Any]) -> None:
    def new_store() -> Store:
        return PlainStore(undo=True)

    run = Run(PlainStore(), new_store(), new_store)
    run.take(RegisterStep(0))
    for step in steps:
        run.take(step)
    run.finish()


@given(st.lists(STEPS, max_size=20))
@example(SOME_LOG)
@settings(max_examples=40)
def test_on_both_stores_it_ends_with_the_same_rows(steps: list[Any]) -> None:
    with ExitStack() as cleanup:
        run = Run(PlainStore(), new_lmdb_store(cleanup), lambda: new_lmdb_store(cleanup))
        run.take(RegisterStep(0))
        for step in steps:
            run.take(step)
        run.finish()


@given(st.lists(STEPS, max_size=20))
@example(SOME_LOG)
@settings(max_examples=100)
def test_whoever_follows_the_events_knows_the_sessions_and_nothing_else_changes(steps: list[Any]) -> None:
    """The second copy is not watched, and `Run` compares both with each other and with its model."""

    def new_store() -> PlainStore:
        return PlainStore(undo=True)

    log = Run(new_store(), new_store(), new_store)
    log.first.table.watch(True)
    mirror = Mirror()
    for step in [RegisterStep(0), *steps]:
        log.take(step)
        mirror.follow(log.first.table.take_events())
        assert mirror.versions == {id.decode(): kept.version for id, kept in log.model.sessions.items()}
    log.finish()
