"""The public verbs: the same on a node by itself, on a primary, on a secondary, and on a client of either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from hotspare import AsyncSessionReplicator, Session, Settings
from hotspare.cluster import clocks
from hotspare.cluster.remote import RemoteEngine
from hotspare.errors import ConfigError, InvalidSession, SessionTooLarge, VersionConflict
from hotspare.record import record_flags
from tests.unit.clusters import eventually, running

MINUTE_MS = 60_000
ENGINES = ["alone", "primary", "secondary", "client"]

EVERY_KIND_OF_VALUE: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 2**63 - 1, -(2**63)],
    "floats": [0.5, -1e300, float("inf")],
    "text": "Grüße, 世界 \0",
    "bytes": b"\x00\xff",
    "nested": {"list": [1, [2, {"three": 3}]], "empty": {}},
    "aware": datetime(2026, 11, 22, 23, 59, 59, 123456, tzinfo=UTC),
    "naive": datetime(2026, 11, 22, 23, 59, 59),
    "date": date(2026, 11, 22),
    "uuid": UUID("12345678-1234-5678-1234-567812345678"),
    "decimal": Decimal("12.340"),
}


@asynccontextmanager
async def replicator(kind: str, **settings: Any) -> AsyncIterator[AsyncSessionReplicator]:
    if kind == "alone":
        async with running(1, founded=False, enabled=False, **settings) as cluster:
            yield cluster[0]
        return
    async with running(3, **settings) as cluster:
        if kind == "primary":
            yield await cluster.primary()
        elif kind == "secondary":
            yield await cluster.secondary()
        else:
            engine = RemoteEngine(cluster.names)
            async with AsyncSessionReplicator(Settings(**settings), engine=engine) as client:
                yield client


@pytest.fixture(params=ENGINES)
async def sessions(request: pytest.FixtureRequest) -> AsyncIterator[AsyncSessionReplicator]:
    async with replicator(request.param) as sessions:
        yield sessions


@pytest.fixture
async def alone() -> AsyncIterator[AsyncSessionReplicator]:
    async with replicator("alone") as sessions:
        yield sessions


async def test_what_was_stored_is_read_at_once_and_what_was_not_is_none(sessions: AsyncSessionReplicator):
    version = await sessions.store_session("s1", {"user": "alice"}, MINUTE_MS)

    assert version > 0
    assert await sessions.get_session("s1") == {"user": "alice"}
    assert await sessions.get_session("s1", read="primary") == {"user": "alice"}
    assert await sessions.get_session("s1", read="stale") == {"user": "alice"}
    assert await sessions.get_session("s2") is None
    assert await sessions.get_session("s2", read="primary") is None


async def test_every_kind_of_value_comes_back_as_it_was(sessions: AsyncSessionReplicator):
    await sessions.store_session("s1", EVERY_KIND_OF_VALUE, MINUTE_MS)

    read = await sessions.get_session("s1")

    assert read == EVERY_KIND_OF_VALUE
    assert {name: type(value) for name, value in read.items()} == {
        name: type(value) for name, value in EVERY_KIND_OF_VALUE.items()
    }
    assert [type(value) for value in read["bools"]] == [bool, bool]
    assert str(read["decimal"]) == "12.340"


async def test_each_read_gives_an_object_of_its_own(sessions: AsyncSessionReplicator):
    stored = {"cart": ["apple"]}
    await sessions.store_session("s1", stored, MINUTE_MS)
    stored["cart"].append("changed after the call")
    first = await sessions.get_session("s1")
    assert first is not None
    first["cart"].append("changed by a reader")

    assert await sessions.get_session("s1") == {"cart": ["apple"]}


async def test_versions_only_grow(sessions: AsyncSessionReplicator):
    versions = [await sessions.store_session("s1", {"n": n}, MINUTE_MS) for n in range(3)]
    versions.append(await sessions.store_session("s2", {}, MINUTE_MS))
    await sessions.delete_session("s1")
    versions.append(await sessions.store_session("s1", {}, MINUTE_MS))

    assert versions == sorted(set(versions))


async def test_a_record_says_version_and_expiry(sessions: AsyncSessionReplicator):
    before_ms = clocks.wall_ms()
    version = await sessions.store_session("s1", {"n": 1}, timedelta(minutes=1))

    record = await sessions.get_session_record("s1")

    assert record == Session("s1", {"n": 1}, version, record.expires_at_ms if record else 0)
    assert record.expires_at_ms >= before_ms + MINUTE_MS - 1000
    assert record.expires_at_ms <= clocks.wall_ms() + MINUTE_MS + 1000
    assert await sessions.get_session_record("s2") is None


# Conditions


async def test_if_absent_stores_only_what_is_not_there(sessions: AsyncSessionReplicator):
    version = await sessions.store_session("s1", {"n": 1}, MINUTE_MS, if_absent=True)

    with pytest.raises(VersionConflict) as conflict:
        await sessions.store_session("s1", {"n": 2}, MINUTE_MS, if_absent=True)

    assert (conflict.value.expected, conflict.value.current) == ("absent", version)
    assert await sessions.get_session("s1") == {"n": 1}


async def test_if_present_stores_only_over_what_is_there(sessions: AsyncSessionReplicator):
    with pytest.raises(VersionConflict) as conflict:
        await sessions.store_session("s1", {"n": 1}, MINUTE_MS, if_present=True)
    assert (conflict.value.expected, conflict.value.current) == ("present", None)
    assert await sessions.get_session("s1") is None

    await sessions.store_session("s1", {"n": 1}, MINUTE_MS)
    await sessions.store_session("s1", {"n": 2}, MINUTE_MS, if_present=True)
    assert await sessions.get_session("s1") == {"n": 2}


async def test_if_version_writes_only_over_that_version(sessions: AsyncSessionReplicator):
    old = await sessions.store_session("s1", {"n": 1}, MINUTE_MS)
    new = await sessions.store_session("s1", {"n": 2}, MINUTE_MS, if_version=old)

    for write in (
        sessions.store_session("s1", {"n": 3}, MINUTE_MS, if_version=old),
        sessions.update_session("s1", {"n": 3}, if_version=old),
        sessions.delete_session("s1", if_version=old),
    ):
        with pytest.raises(VersionConflict) as conflict:
            await write
        assert (conflict.value.expected, conflict.value.current) == (old, new)

    assert await sessions.get_session("s1") == {"n": 2}
    assert await sessions.update_session("s1", {"m": 3}, if_version=new) is not None
    assert await sessions.get_session("s1") == {"n": 2, "m": 3}


async def test_no_version_is_found_where_no_session_is(sessions: AsyncSessionReplicator):
    version = await sessions.store_session("s1", {}, MINUTE_MS)
    await sessions.delete_session("s1", if_version=version)

    for write in (
        sessions.store_session("s1", {}, MINUTE_MS, if_version=version),
        sessions.update_session("s1", {}, if_version=version),
        sessions.delete_session("s1", if_version=version),
    ):
        with pytest.raises(VersionConflict) as conflict:
            await write
        assert (conflict.value.expected, conflict.value.current) == (version, None)


async def test_of_many_who_store_if_absent_exactly_one_succeeds(sessions: AsyncSessionReplicator):
    outcomes = await asyncio.gather(
        *(sessions.store_session("s1", {"n": n}, MINUTE_MS, if_absent=True) for n in range(20)),
        return_exceptions=True,
    )

    winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(winners) == 1
    assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 19
    assert await sessions.get_session("s1") == {"n": winners[0]}


# Updating, touching, deleting, rotating


async def test_an_update_changes_the_fields_it_names_and_nothing_else(sessions: AsyncSessionReplicator):
    stored = await sessions.store_session("s1", {"kept": 1, "changed": 1, "removed": 1}, MINUTE_MS)
    before = await sessions.get_session_record("s1")

    version = await sessions.update_session("s1", {"changed": [2], "added": 2}, remove=["removed", "absent"])

    after = await sessions.get_session_record("s1")
    assert before is not None
    assert version is not None
    assert version > stored
    assert after == Session("s1", {"kept": 1, "changed": [2], "added": 2}, version, before.expires_at_ms)


async def test_updates_of_different_fields_all_survive(sessions: AsyncSessionReplicator):
    await sessions.store_session("s1", {}, MINUTE_MS)

    await asyncio.gather(*(sessions.update_session("s1", {f"field{n}": n}) for n in range(50)))

    assert await sessions.get_session("s1") == {f"field{n}": n for n in range(50)}


async def test_an_update_of_no_session_makes_none(sessions: AsyncSessionReplicator):
    assert await sessions.update_session("s1", {"n": 1}) is None
    assert await sessions.get_session("s1") is None


async def test_a_session_cannot_grow_past_the_limit_by_updates(sessions: AsyncSessionReplicator):
    await sessions.store_session("s1", {"a": "x" * 40_000}, MINUTE_MS)

    with pytest.raises(SessionTooLarge) as error:
        await sessions.update_session("s1", {"b": "x" * 40_000})

    assert error.value.limit_bytes == 65_536
    assert await sessions.get_session("s1") == {"a": "x" * 40_000}


async def test_a_touch_moves_the_expiry_and_nothing_else(sessions: AsyncSessionReplicator):
    await sessions.store_session("s1", {"n": 1}, MINUTE_MS)
    before = await sessions.get_session_record("s1")

    assert await sessions.touch_session("s1", timedelta(hours=1)) is True

    after = await sessions.get_session_record("s1")
    assert before is not None
    assert after is not None
    assert (after.data, after.version) == (before.data, before.version)
    assert after.expires_at_ms - before.expires_at_ms >= 59 * MINUTE_MS
    assert await sessions.touch_session("s2", MINUTE_MS) is False
    assert await sessions.get_session("s2") is None


async def test_a_delete_says_whether_there_was_one(sessions: AsyncSessionReplicator):
    await sessions.store_session("s1", {}, MINUTE_MS)

    assert await sessions.delete_session("s1") is True
    assert await sessions.get_session("s1") is None
    assert await sessions.delete_session("s1") is False


async def test_a_rotated_session_is_found_under_its_new_id_only(sessions: AsyncSessionReplicator):
    await sessions.store_session("old", {"n": 1}, MINUTE_MS)
    before = await sessions.get_session_record("old")

    assert await sessions.rotate_session("old", "new") is True

    after = await sessions.get_session_record("new")
    assert before is not None
    assert after is not None
    assert (after.data, after.expires_at_ms) == (before.data, before.expires_at_ms)
    assert await sessions.get_session("old") is None
    assert await sessions.rotate_session("old", "other") is False


async def test_a_rotation_takes_nobody_elses_place(sessions: AsyncSessionReplicator):
    await sessions.store_session("s1", {"n": 1}, MINUTE_MS)
    await sessions.store_session("s2", {"n": 2}, MINUTE_MS)

    with pytest.raises(VersionConflict) as conflict:
        await sessions.rotate_session("s1", "s2")

    assert conflict.value.expected == "absent"
    assert await sessions.get_session("s1") == {"n": 1}
    assert await sessions.get_session("s2") == {"n": 2}


# Many


async def test_many_are_stored_from_any_iterable(sessions: AsyncSessionReplicator):
    def items() -> Iterator[tuple[str, dict[str, int], int]]:
        for n in range(1234):
            yield f"s{n:04}", {"n": n}, MINUTE_MS

    assert await sessions.store_sessions(items()) == 1234
    assert await sessions.store_sessions([]) == 0

    assert await sessions.get_all_sessions() == [f"s{n:04}" for n in range(1234)]
    assert await sessions.session_count() == 1234
    assert await sessions.get_session("s1233") == {"n": 1233}


async def test_many_large_sessions_are_stored_too(sessions: AsyncSessionReplicator):
    large = {"pad": "x" * 60_000}

    assert await sessions.store_sessions((f"s{n}", large, MINUTE_MS) for n in range(120)) == 120

    assert await sessions.session_count() == 120
    assert await sessions.get_session("s119") == large


@pytest.mark.parametrize(
    ("item", "what"),
    [
        (("s1",), "item"),
        (("s1", {}, MINUTE_MS, "more"), "item"),
        (7, "item"),
        (("", {}, MINUTE_MS), "id"),
        (("s1", {"a": object()}, MINUTE_MS), "data"),
        (("s1", {}, 0), "ttl_ms"),
        (("s1", {}), "ttl_ms"),
    ],
)
async def test_one_bad_item_ends_the_storing_of_many(alone: AsyncSessionReplicator, item: Any, what: str):
    good: list[Any] = [(f"good{n}", {}, MINUTE_MS) for n in range(250)]

    with pytest.raises(InvalidSession) as error:
        await alone.store_sessions([*good, item, *good])

    assert error.value.what == what
    assert (await alone.get_replication_status())["pending_replications"] == 0


async def test_a_generator_that_fails_ends_the_storing_of_many_with_its_error(alone: AsyncSessionReplicator):
    def items() -> Iterator[tuple[str, dict[str, int], int]]:
        yield from ((f"s{n}", {"n": n}, MINUTE_MS) for n in range(150))
        raise LookupError("the database went away")

    with pytest.raises(LookupError, match="went away"):
        await alone.store_sessions(items())

    assert await alone.session_count() == 100
    assert (await alone.get_replication_status())["pending_replications"] == 0


# TTLs


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_ttl_must_be_given_unless_there_is_a_default(kind: str):
    async with replicator(kind, default_ttl_ms=MINUTE_MS) as sessions:
        await sessions.store_session("s1", {})
        await sessions.store_sessions([("s2", {}), ("s3", {}, None), ("s4", {}, 2 * MINUTE_MS)])

        first, second, third, fourth = [await sessions.get_session_record(f"s{n}") for n in (1, 2, 3, 4)]

        assert first is not None
        assert second is not None
        assert third is not None
        assert fourth is not None
        assert second.expires_at_ms == third.expires_at_ms
        assert fourth.expires_at_ms == second.expires_at_ms + MINUTE_MS


async def test_without_a_ttl_and_without_a_default_nothing_is_stored(alone: AsyncSessionReplicator):
    with pytest.raises(InvalidSession, match="default_ttl_ms"):
        await alone.store_session("s1", {})

    assert await alone.get_session("s1") is None


async def test_an_expired_session_is_as_good_as_gone(sessions: AsyncSessionReplicator):
    await sessions.store_sessions([("short", {}, 30), ("long", {}, MINUTE_MS)])

    async def has_expired() -> bool:
        return await sessions.get_session("short") is None

    await eventually(has_expired)
    assert await sessions.get_session_record("short") is None
    assert await sessions.get_session("short", read="stale") is None
    assert await sessions.get_session("short", read="primary") is None
    assert await sessions.get_all_sessions() == ["long"]
    assert await sessions.session_count() == 1
    assert await sessions.touch_session("short", MINUTE_MS) is False
    assert await sessions.update_session("short", {"n": 1}) is None
    assert await sessions.delete_session("short") is False
    assert await sessions.rotate_session("short", "new") is False
    assert await sessions.store_session("short", {"again": True}, MINUTE_MS, if_absent=True) > 0


# Compression


async def test_a_compressed_session_can_be_updated_and_keeps_its_expiry():
    async with replicator("secondary", enable_compression=True) as sessions:
        pad = "hotspare " * 1000
        await sessions.store_session("s1", {"pad": pad, "n": 1, "gone": 1}, MINUTE_MS)
        before = await sessions.get_session_record("s1")
        record = sessions.engine.read_local(b"s1")
        assert record is not None
        assert record_flags(record)
        assert len(record) < 1000

        version = await sessions.update_session("s1", {"n": 2}, remove=["gone"])

        after = await sessions.get_session_record("s1")
        assert before is not None
        assert version is not None
        assert after == Session("s1", {"pad": pad, "n": 2}, version, before.expires_at_ms)
        with pytest.raises(VersionConflict) as conflict:
            await sessions.update_session("s1", {"n": 3}, if_version=before.version)
        assert conflict.value.current == version
        assert await sessions.update_session("s1", {"n": 3}, if_version=version) is not None
        with pytest.raises(SessionTooLarge):
            await sessions.update_session("s1", {"more": "x" * 66_000})


async def test_updates_of_a_compressed_session_all_survive():
    async with replicator("secondary", enable_compression=True) as sessions:
        await sessions.store_session("s1", {"pad": "hotspare " * 1000}, MINUTE_MS)

        await asyncio.gather(*(sessions.update_session("s1", {f"field{n}": n}) for n in range(8)))

        data = await sessions.get_session("s1")
        assert data is not None
        assert {name for name in data if name != "pad"} == {f"field{n}" for n in range(8)}


# Bad input


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("", {}, MINUTE_MS), "id"),
        ((b"s1", {}, MINUTE_MS), "id"),
        (("x" * 256, {}, MINUTE_MS), "id"),
        (("\ud800", {}, MINUTE_MS), "id"),
        (("s1", [], MINUTE_MS), "data"),
        (("s1", {1: "key"}, MINUTE_MS), "data"),
        (("s1", {"set": {1}}, MINUTE_MS), "data"),
        (("s1", {"int": 2**64}, MINUTE_MS), "data"),
        (("s1", {}, 0), "ttl_ms"),
        (("s1", {}, -1), "ttl_ms"),
        (("s1", {}, True), "ttl_ms"),
        (("s1", {}, 1.5), "ttl_ms"),
        (("s1", {}, "60000"), "ttl_ms"),
        (("s1", {}, 2**60), "ttl_ms"),
        (("s1", {}, timedelta(days=-1)), "ttl_ms"),
    ],
)
async def test_what_cannot_be_stored_is_refused_at_the_call(
    alone: AsyncSessionReplicator, arguments: Any, what: str
):
    with pytest.raises(InvalidSession) as error:
        await alone.store_session(*arguments)

    assert error.value.what == what
    assert await alone.session_count() == 0


async def test_a_session_that_is_too_large_is_refused_at_the_call(alone: AsyncSessionReplicator):
    with pytest.raises(SessionTooLarge) as error:
        await alone.store_session("s1", {"pad": "x" * 65_536}, MINUTE_MS)

    assert error.value.limit_bytes == 65_536
    assert error.value.size_bytes > 65_536
    assert await alone.session_count() == 0


async def test_every_verb_checks_its_ids(alone: AsyncSessionReplicator):
    for call in (
        alone.get_session(""),
        alone.get_session_record(""),
        alone.get_session("", read="primary"),
        alone.update_session("", {}),
        alone.touch_session("", MINUTE_MS),
        alone.delete_session(""),
        alone.rotate_session("", "new"),
        alone.rotate_session("s1", ""),
        alone.rotate_session("s1", "s1"),
    ):
        with pytest.raises(InvalidSession):
            await call


async def test_other_arguments_are_checked_too(alone: AsyncSessionReplicator):
    await alone.store_session("s1", {"n": 1}, MINUTE_MS)
    for call in (
        alone.store_session("s1", {}, MINUTE_MS, if_absent=True, if_present=True),
        alone.store_session("s1", {}, MINUTE_MS, if_absent=True, if_version=70_000),
        alone.store_session("s1", {}, MINUTE_MS, if_version=0),
        alone.store_session("s1", {}, MINUTE_MS, if_version=True),
        alone.store_session("s1", {}, MINUTE_MS, if_version="70000"),  # type: ignore[arg-type]
        alone.delete_session("s1", if_version=-1),
        alone.update_session("s1", {"a": {1}}),
        alone.update_session("s1", []),  # type: ignore[arg-type]
        alone.update_session("s1", {}, remove="n"),
        alone.update_session("s1", {}, remove=[1]),  # type: ignore[list-item]
        alone.update_session("s1", {}, remove=5),  # type: ignore[arg-type]
        alone.touch_session("s1", 0),
    ):
        with pytest.raises(InvalidSession):
            await call
    for other in (
        alone.get_session("s1", read="eventually"),  # type: ignore[arg-type]
        alone.store_session("s1", {}, MINUTE_MS, ack="none"),  # type: ignore[arg-type]
        alone.start_cluster(["nonsense"]),
        alone.add_node(5),  # type: ignore[arg-type]
        alone.remove_node(None),  # type: ignore[arg-type]
        alone.trigger_failover(5),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            await other

    assert await alone.get_session("s1") == {"n": 1}


def test_settings_may_be_given_by_name():
    sessions = AsyncSessionReplicator(node="127.0.0.1:7499", batch_size=7)
    changed = AsyncSessionReplicator(Settings(node="127.0.0.1:7499"), batch_size=8)

    assert (sessions.settings.node, sessions.settings.batch_size) == ("127.0.0.1:7499", 7)
    assert (changed.settings.node, changed.settings.batch_size) == ("127.0.0.1:7499", 8)
    with pytest.raises(ConfigError, match="no_such_setting"):
        AsyncSessionReplicator(no_such_setting=1)
    with pytest.raises(ConfigError, match="no_such_setting"):
        AsyncSessionReplicator(Settings(), no_such_setting=1)
