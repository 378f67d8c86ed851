"""Events: what the table tells, how that waits for its consumers, and what reaches them."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from hotspare import AsyncSessionReplicator, SessionReplicator, Settings
from hotspare.cluster import service
from hotspare.cluster.feeds import MAX_TAKEN, Feed, Feeds
from hotspare.cluster.remote import RemoteEngine
from hotspare.commands import (
    CONFLICT_ABSENT,
    IF_PRESENT,
    INVALID,
    KEEP_EXPIRY_MS,
    Delete,
    Patch,
    Rotate,
    Touch,
)
from hotspare.errors import NotReady, ProtocolError, Refused, Unavailable
from hotspare.events import (
    Event,
    Missed,
    PrimaryChanged,
    RoleChanged,
    SessionChanged,
    SessionCreated,
    SessionDeleted,
    SessionExpired,
    SessionRotated,
    from_values,
)
from hotspare.replicator import EventStream
from hotspare.store.plain import PlainStore
from tests.unit.clusters import Cluster, eventually, free_addresses, node_of, running
from tests.unit.table_helpers import NEVER_MS, START_MS, Driver, put

MINUTE_MS = 60_000


# What the table tells


@pytest.fixture
def driver() -> Driver:
    driver = Driver(PlainStore(undo=True))
    driver.table.watch(True)
    return driver


def run(driver: Driver, *commands: Any) -> list[int]:
    return driver.run(*commands)


def test_every_change_of_a_session_is_told_with_its_version(driver: Driver):
    created, stored, updated, merged, rotated, deleted = run(
        driver,
        put(b"a"),
        put(b"a"),
        Patch(b"a", [("x", b"\x01")], [], NEVER_MS, 0, 1000),
        put(b"b"),
        Rotate(b"a", b"c", NEVER_MS),
        Delete(b"c", NEVER_MS),
    )
    assert deleted > rotated
    assert driver.table.take_events() == [
        SessionCreated("a", created),
        SessionChanged("a", stored, "stored"),
        SessionChanged("a", updated, "updated"),
        SessionCreated("b", merged),
        SessionRotated("c", rotated, "a"),
        SessionDeleted("c", rotated),
    ]
    assert driver.table.take_events() == []
    (again,) = run(driver, put(b"b", ttl_ms=KEEP_EXPIRY_MS, condition=merged))
    assert driver.table.take_events() == [SessionChanged("b", again, "updated")]


def test_what_changes_nothing_is_no_event(driver: Driver):
    run(driver, put(b"a"))
    driver.table.take_events()
    results = run(
        driver,
        Touch(b"a", 1000, NEVER_MS),
        Touch(b"b", 1000, NEVER_MS),
        Delete(b"b", NEVER_MS),
        put(b"b", condition=IF_PRESENT),
        put(b"b", deadline_ms=START_MS - 1),
        put(b""),
        Rotate(b"a", b"a", NEVER_MS),
        Rotate(b"b", b"", NEVER_MS),
    )
    assert results[3] == CONFLICT_ABSENT
    assert results[5:] == [INVALID] * 3
    assert driver.table.take_events() == []


def test_expiry_is_told_when_it_is_pruned_and_before_its_id_is_used_again(driver: Driver):
    a, b, c, d = run(driver, *(put(id, ttl_ms=10) for id in (b"a", b"b", b"c", b"d")))
    (live,) = run(driver, put(b"live"))
    driver.table.take_events()
    driver.wait(10)
    results = run(driver, put(b"a"), Delete(b"b", NEVER_MS), Rotate(b"live", b"c", NEVER_MS))
    assert driver.table.take_events() == [
        SessionExpired("a", a),
        SessionCreated("a", results[0]),
        SessionExpired("c", c),
        SessionRotated("c", results[2], "live"),
        SessionExpired("b", b),
        SessionExpired("d", d),
    ]
    assert live < results[0]


def test_nothing_is_told_to_nobody(driver: Driver):
    run(driver, put(b"a"))
    driver.table.watch(True)
    assert len(driver.table.take_events()) == 1, "listening twice loses nothing"
    driver.table.watch(False)
    run(driver, put(b"b"))
    driver.table.watch(True)
    assert driver.table.take_events() == []


def test_a_snapshot_that_replaces_the_copy_is_told(driver: Driver):
    other = Driver(PlainStore(undo=True))
    other.run(put(b"x"))
    run(driver, put(b"a"))
    driver.install(other.rows())
    *before, last = driver.table.take_events()
    assert len(before) == 1
    assert last == Missed(None)


def test_ids_that_are_no_text_can_be_told(driver: Driver):
    run(driver, put(b"\xff"))
    (event,) = driver.table.take_events()
    assert isinstance(event, SessionCreated)
    assert event.id == "\\xff"


# How they wait


def numbered(*numbers: int) -> list[Event]:
    return [SessionCreated("s", number) for number in numbers]


async def test_a_feed_gives_everything_in_order():
    feed = Feed(10)
    feed.add(numbered(1, 2))
    feed.add(numbered(3))
    assert await feed.take() == numbered(1, 2, 3)
    waiting = asyncio.ensure_future(feed.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    feed.add(numbered(4))
    assert await waiting == numbered(4)


async def test_who_is_slow_is_told_how_many_events_were_missed_and_where():
    feed = Feed(3)
    feed.add(numbered(1, 2))
    feed.add(numbered(3, 4, 5))
    assert await feed.take() == [Missed(2), *numbered(3, 4, 5)]
    feed.add(numbered(6))
    assert await feed.take() == numbered(6), "once is enough"


async def test_of_what_nobody_knows_the_number_is_not_known():
    feed = Feed(2)
    feed.add([Missed(None), *numbered(1)])
    assert await feed.take() == [Missed(None), *numbered(1)]
    feed.add([*numbered(2), Missed(None), *numbered(3, 4, 5)])
    assert await feed.take() == [Missed(None), *numbered(4, 5)]


async def test_a_take_that_is_cancelled_takes_nothing():
    feed = Feed(10)
    for added_first in (False, True):
        waiting = asyncio.ensure_future(feed.take())
        await asyncio.sleep(0)
        if added_first:
            feed.add(numbered(1))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert await feed.take() == numbered(1)


async def test_several_that_wait_for_one_feed_share_its_events():
    feed = Feed(10)
    waiting = [asyncio.ensure_future(feed.take()) for _ in range(2)]
    await asyncio.sleep(0)
    feed.add(numbered(1))
    done, (other,) = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert done.pop().result() == numbered(1)
    feed.add(numbered(2))
    assert await other == numbered(2)


async def test_a_closed_feed_gives_what_is_there_and_ends():
    feed = Feed(1000)
    feed.add(numbered(*range(MAX_TAKEN + 1)))
    feed.close()
    assert len(await feed.take()) == MAX_TAKEN
    assert len(await feed.take()) == 1
    assert await feed.take() == []


async def test_a_feed_that_nobody_holds_is_gone():
    feeds = Feeds()
    feed = feeds.open(10)
    closed = feeds.open(10)
    closed.close()
    feeds.publish(numbered(1))
    assert await closed.take() == []
    assert feeds
    assert await feed.take() == numbered(1)
    del feed
    gc.collect()
    assert not feeds


def test_events_are_read_from_values_or_refused():
    events: list[Event] = [Missed(None), RoleChanged("primary", "secondary"), *numbered(1)]
    assert from_values(msgspec.to_builtins(events)) == events
    for nonsense in ([{"event": "unheard of"}], [{"event": "created"}], "x", [1], None):
        with pytest.raises(ProtocolError):
            from_values(nonsense)


# On nodes


async def following(events: EventStream, count: int) -> list[Event]:
    """The next events about sessions: on a busy machine there may be an election at any time."""
    heard: list[Event] = []
    async with asyncio.timeout(30):
        while len(heard) < count:
            event = await anext(events)
            if not isinstance(event, PrimaryChanged | RoleChanged):
                heard.append(event)
    return heard


@asynccontextmanager
async def listener(kind: str) -> AsyncIterator[tuple[AsyncSessionReplicator, AsyncSessionReplicator]]:
    """Who writes, and who listens."""
    async with running(3) as cluster:
        primary, secondary = await cluster.primary(), await cluster.secondary()
        if kind == "client":
            settings = Settings()
            async with AsyncSessionReplicator(settings, engine=RemoteEngine(cluster.names)) as client:
                yield client, client
        else:
            yield primary, primary if kind == "primary" else secondary


@pytest.mark.parametrize("kind", ["primary", "secondary", "client"])
async def test_what_is_written_anywhere_is_heard_in_order(kind: str):
    async with listener(kind) as (writer, reader):
        async with reader.events() as events:
            created = await writer.store_session("a", {"n": 1}, MINUTE_MS)
            updated = await writer.update_session("a", {"n": 2})
            assert updated is not None
            await writer.touch_session("a", MINUTE_MS)
            assert await writer.rotate_session("a", "b")
            rotated = await writer.get_session_record("b", read="primary")
            assert rotated is not None
            await writer.delete_session("b")
            await writer.store_session("c", {}, 1)
            heard = await following(events, 5)
        assert heard[:4] == [
            SessionCreated("a", created),
            SessionChanged("a", updated, "updated"),
            SessionRotated("b", rotated.version, "a"),
            SessionDeleted("b", rotated.version),
        ]
        assert isinstance(heard[4], SessionCreated)


async def test_a_copy_shows_what_its_events_tell():
    async with running(3) as cluster:
        secondary = await cluster.secondary()
        writer = await cluster.primary()
        async with secondary.events() as events:
            for number in range(50):
                await writer.store_session("a", {"n": number}, MINUTE_MS)
                (event,) = await following(events, 1)
                session = await secondary.get_session_record("a")
                assert session is not None
                assert isinstance(event, SessionCreated | SessionChanged)
                assert session.version >= event.version


async def test_expiry_is_heard():
    async with running(1, cleanup_interval_ms=20) as cluster, cluster[0].events() as events:
        version = await cluster[0].store_session("a", {}, 1)
        assert await following(events, 2) == [SessionCreated("a", version), SessionExpired("a", version)]


async def test_a_failover_is_heard_by_those_who_survive():
    async with running(3) as cluster:
        leader = cluster.leader()
        heard: dict[str, list[Event]] = {}
        streams = {each.settings.node: each.events() for each in cluster if each.settings.node != leader}
        await cluster.crash(leader)

        async def listen(name: str, events: EventStream) -> None:
            heard[name] = []
            async for event in events:
                heard[name].append(event)
                if isinstance(event, PrimaryChanged) and event.primary:
                    break

        async with asyncio.timeout(30):
            await asyncio.gather(*(listen(name, events) for name, events in streams.items()))
            for *_, last in heard.values():
                assert isinstance(last, PrimaryChanged)
                assert last.previous == leader
                assert last.primary in streams
                assert last.term > 0
            assert isinstance(last, PrimaryChanged)
            while (event := await anext(streams[last.primary])) != RoleChanged("primary", "secondary"):
                assert isinstance(event, PrimaryChanged | RoleChanged)


async def test_a_slow_consumer_slows_nobody_and_is_told():
    async with running(1) as cluster, cluster[0].events(max_waiting=10) as events:
        await cluster[0].store_sessions((str(number), {}, MINUTE_MS) for number in range(100))
        first, *others = await following(events, 11)
        assert first == Missed(90)
        assert [event.id for event in others if isinstance(event, SessionCreated)] == [
            str(number) for number in range(90, 100)
        ]


async def test_events_end_with_their_replicator():
    async with running(2) as cluster:
        sessions = cluster[0]
        events = sessions.events()
        await sessions.store_session("a", {}, MINUTE_MS)
        waiting = asyncio.ensure_future(collect(events))
        await asyncio.sleep(0)
        await cluster.stop(cluster.names[0])
        heard = await waiting
        assert isinstance(heard[0], SessionCreated)
        with pytest.raises(NotReady):
            sessions.events()


async def collect(events: EventStream) -> list[Event]:
    return [event async for event in events]


async def test_a_table_goes_back_to_telling_nothing_when_nobody_listens_any_more():
    async with running(1) as cluster:
        sessions, replica = cluster[0], node_of(cluster[0]).replica
        events = sessions.events()
        await sessions.store_session("a", {}, MINUTE_MS)
        assert replica.is_watched
        await following(events, 1)
        del events
        gc.collect()
        await sessions.store_session("b", {}, MINUTE_MS)
        assert not replica.is_watched
        async with sessions.events() as events:
            assert replica.is_watched
            await sessions.store_session("c", {}, MINUTE_MS)
            (event,) = await following(events, 1)
            assert isinstance(event, SessionCreated)
            assert event.id == "c"


# In clients


@asynccontextmanager
async def client_of(cluster: Cluster, **settings: Any) -> AsyncIterator[AsyncSessionReplicator]:
    engine = RemoteEngine(cluster.names, timeout_ms=settings.get("replication_rpc_timeout_ms", 5000))
    async with AsyncSessionReplicator(Settings(**settings), engine=engine) as client:
        yield client


def home_of(client: AsyncSessionReplicator) -> str:
    assert isinstance(client.engine, RemoteEngine)
    return client.engine.home


async def test_a_client_whose_home_is_lost_is_told_that_it_missed_something():
    async with running(3) as cluster, client_of(cluster) as client:
        events = client.events()
        await client.store_session("a", {}, MINUTE_MS)
        await following(events, 1)
        home = home_of(client)
        await cluster.crash(home)
        assert await following(events, 1) == [Missed(None)]
        assert home_of(client) != home
        await client.store_session("b", {}, MINUTE_MS)
        heard: list[Event] = []
        while not heard or not isinstance(heard[-1], SessionCreated) or heard[-1].id != "b":
            heard += await following(events, 1)
        # The copy there may show "a" only now.
        assert all(isinstance(each, PrimaryChanged | RoleChanged | SessionCreated) for each in heard)


async def test_a_client_that_does_not_ask_is_sent_nothing_and_told_later():
    async with running(1) as cluster, client_of(cluster) as client:
        events = client.events(max_waiting=10)
        await client.store_sessions((str(number), {}, MINUTE_MS) for number in range(100))
        heard = await following(events, 11)
        assert heard[0] == Missed(90)
        assert len({event.id for event in heard[1:] if isinstance(event, SessionCreated)}) == 10


async def test_a_question_that_was_cancelled_loses_no_event():
    async with running(1) as cluster, client_of(cluster) as client:
        events = client.events()
        for number in range(20):
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await client.store_session(str(number), {}, MINUTE_MS)
        heard = await following(events, 20)
        assert [getattr(event, "id", event) for event in heard] == [str(number) for number in range(20)]


async def test_without_any_node_a_client_is_told_so_and_can_go_on_later():
    async with running(1) as cluster, client_of(cluster, replication_rpc_timeout_ms=300) as client:
        events = client.events()
        await client.store_session("a", {}, MINUTE_MS)
        await following(events, 1)
        store = node_of(cluster[0]).settings
        await cluster.crash(cluster.names[0])
        with pytest.raises(Unavailable):
            await following(events, 1)
        again = await cluster.start(cluster.names[0], enabled=store.enabled)
        assert again is cluster[0]
        await again.start_cluster()
        while True:
            try:
                (event,) = await following(events, 1)
                break
            except Unavailable:
                continue
        assert event == Missed(None)


async def test_what_a_client_closes_or_lets_go_of_is_forgotten_by_its_home():
    async with running(1) as cluster, client_of(cluster) as client:
        feeds = node_of(cluster[0])._feeds
        async with client.events() as events:
            await client.store_session("a", {}, MINUTE_MS)
            await following(events, 1)
            assert feeds
        forgotten = client.events()
        await client.store_session("b", {}, MINUTE_MS)
        await following(forgotten, 1)
        del forgotten

        def is_silent() -> bool:
            gc.collect()
            return not feeds

        await eventually(is_silent)
    async with running(1) as cluster:
        async with client_of(cluster) as client:
            kept = client.events()
            await client.session_count()
            assert node_of(cluster[0])._feeds
        await eventually(lambda: gc.collect() >= 0 and not node_of(cluster[0])._feeds)
        assert await collect(kept) == []


async def test_one_client_may_not_listen_without_bound():
    async with running(1) as cluster, client_of(cluster) as client:
        streams = [client.events() for _ in range(service.MAX_FEEDS + 1)]
        with pytest.raises(Refused, match="close some"):
            await following(streams[-1], 1)
        await client.store_session("a", {}, MINUTE_MS)
        for events in streams[:-1]:
            assert isinstance((await following(events, 1))[0], SessionCreated)


# Blocking


@pytest.fixture(params=["node", "client"])
def blocking(request: pytest.FixtureRequest) -> Any:
    if request.param == "node":
        with SessionReplicator(enabled=False) as sessions:
            yield sessions
        return
    (name,) = free_addresses(1)
    with SessionReplicator(Settings(node=name)) as node:
        node.start_cluster()
        with SessionReplicator(engine=RemoteEngine([name])) as client:
            yield client


def test_a_loop_over_events_waits_for_each(blocking: SessionReplicator):
    heard: list[str] = []
    events = blocking.events()

    def listen() -> None:
        for event in events:
            assert isinstance(event, SessionCreated)
            heard.append(event.id)

    thread = threading.Thread(target=listen)
    thread.start()
    blocking.store_sessions((str(number), {}, MINUTE_MS) for number in range(1000))
    give_up = threading.Event()
    while len(heard) < 1000 and not give_up.wait(0.005):
        assert thread.is_alive()
    events.close()
    thread.join(30)
    assert not thread.is_alive()
    assert heard == [str(number) for number in range(1000)]


def test_stopping_ends_a_loop_over_events(blocking: SessionReplicator):
    events = blocking.events()
    blocking.store_session("a", {}, MINUTE_MS)
    assert isinstance(next(events), SessionCreated)
    stopper = threading.Timer(0.05, blocking.stop)
    stopper.start()
    assert list(events) == []
    stopper.join()
    assert list(events) == []
    events.close()


def test_a_node_that_does_not_run_has_no_events():
    with pytest.raises(NotReady):
        SessionReplicator(enabled=False).events()


def test_events_can_be_written_as_json():
    shown = json.dumps(msgspec.to_builtins(SessionRotated("b", 2, "a")))
    assert json.loads(shown) == {"event": "rotated", "id": "b", "version": 2, "old_id": "a"}
