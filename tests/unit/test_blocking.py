"""The blocking verbs: from any thread, with a node on a thread of its own, and never in a forked child."""

from __future__ import annotations

import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from hotspare import Session, SessionReplicator, Settings
from hotspare.cluster.remote import RemoteEngine
from hotspare.errors import (
    ConfigError,
    ForkedProcess,
    InvalidSession,
    NotReady,
    Unavailable,
    UnknownNode,
    VersionConflict,
)
from tests.unit.clusters import FAST, PATIENCE_SECONDS, free_addresses

MINUTE_MS = 60_000


@pytest.fixture
def alone() -> Iterator[SessionReplicator]:
    with SessionReplicator(enabled=False) as sessions:
        yield sessions


@pytest.fixture
def three() -> Iterator[list[SessionReplicator]]:
    """Nodes of one cluster, each on a loop and a thread of its own."""
    names = free_addresses(3)
    with ExitStack() as stack:
        nodes = [stack.enter_context(SessionReplicator(Settings(node=name, **FAST))) for name in names]
        nodes[0].start_cluster(names[1:])
        yield nodes


def soon(condition: Callable[[], Any]) -> Any:
    """What the condition answers as soon as it is true."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        try:
            if answer := condition():
                return answer
        except (NotReady, Unavailable):
            pass
        time.sleep(0.005)
    raise AssertionError("never came true")


def holds(sessions: SessionReplicator, count: int) -> bool:
    return sessions.session_count() == count


EVERY_VERB: dict[str, Callable[[SessionReplicator], Any]] = {
    "start_cluster": lambda sessions: sessions.start_cluster(),
    "flush": lambda sessions: sessions.flush(),
    "events": lambda sessions: sessions.events().close(),
    "store_session": lambda sessions: sessions.store_session("s1", {}, MINUTE_MS),
    "store_sessions": lambda sessions: sessions.store_sessions([("s1", {}, MINUTE_MS)]),
    "store_sessions, none": lambda sessions: sessions.store_sessions([]),
    "update_session": lambda sessions: sessions.update_session("s1", {}),
    "touch_session": lambda sessions: sessions.touch_session("s1", MINUTE_MS),
    "delete_session": lambda sessions: sessions.delete_session("s1"),
    "rotate_session": lambda sessions: sessions.rotate_session("s1", "s2"),
    "get_session": lambda sessions: sessions.get_session("s1"),
    "get_session, primary": lambda sessions: sessions.get_session("s1", read="primary"),
    "get_session, stale": lambda sessions: sessions.get_session("s1", read="stale"),
    "get_session_record": lambda sessions: sessions.get_session_record("s1"),
    "get_all_sessions": lambda sessions: sessions.get_all_sessions(),
    "session_count": lambda sessions: sessions.session_count(),
    "get_replication_status": lambda sessions: sessions.get_replication_status(),
    "get_metrics": lambda sessions: sessions.get_metrics(),
    "promote_to_primary": lambda sessions: sessions.promote_to_primary(),
    "trigger_failover": lambda sessions: sessions.trigger_failover("127.0.0.1:7401"),
    "add_node": lambda sessions: sessions.add_node("127.0.0.1:7402"),
    "remove_node": lambda sessions: sessions.remove_node("127.0.0.1:7402"),
}


def test_the_list_above_has_every_verb():
    public = {name for name in vars(SessionReplicator) if not name.startswith("_")}

    assert {name.partition(",")[0] for name in EVERY_VERB} == public - {"start", "stop"}


# The verbs


def test_the_verbs_do_and_return_what_the_coroutines_do(three: list[SessionReplicator]):
    for sessions in three:
        version = sessions.store_session("s1", {"n": 1}, MINUTE_MS)
        assert sessions.get_session("s1") == {"n": 1}
        assert sessions.get_session("s1", read="primary") == {"n": 1}
        record = sessions.get_session_record("s1")
        assert record == Session("s1", {"n": 1}, version, record.expires_at_ms if record else 0)
        assert record == sessions.get_session_record("s1", read="primary")
        assert sessions.get_session_record("s2") is None
        updated = sessions.update_session("s1", {"m": 2}, remove=["n"], if_version=version)
        assert updated is not None
        assert updated > version
        assert sessions.touch_session("s1", timedelta(hours=1)) is True
        assert sessions.rotate_session("s1", "s2") is True
        assert sessions.get_session("s2") == {"m": 2}
        assert sessions.get_all_sessions() == ["s2"]
        assert sessions.session_count() == 1
        assert sessions.delete_session("s2") is True
        assert sessions.delete_session("s2") is False
        assert sessions.get_session("s2") is None
        sessions.flush()
        sessions.promote_to_primary()
        status = sessions.get_replication_status()
        assert (status["role"], status["active_sessions"]) == ("primary", 0)
        assert sessions.get_metrics()["is_primary"] is True
        assert "is primary" in sessions.trigger_failover(status["node"])


def test_errors_are_the_same_too(three: list[SessionReplicator]):
    sessions = three[1]
    with pytest.raises(InvalidSession):
        sessions.store_session("s1", {"set": {1}}, MINUTE_MS)
    with pytest.raises(InvalidSession):
        sessions.get_session("")
    with pytest.raises(ConfigError):
        sessions.get_session("s1", read="eventually")  # type: ignore[arg-type]
    with pytest.raises(UnknownNode):
        sessions.trigger_failover("127.0.0.1:1")
    sessions.store_session("s1", {}, MINUTE_MS)
    with pytest.raises(VersionConflict):
        sessions.store_session("s1", {}, MINUTE_MS, if_absent=True)


def test_many_are_stored_from_a_generator_on_the_callers_thread(three: list[SessionReplicator]):
    threads = set()

    def items() -> Iterator[tuple[str, dict[str, int], int]]:
        for n in range(2500):
            threads.add(threading.get_ident())
            yield f"s{n:04}", {"n": n}, MINUTE_MS

    assert three[2].store_sessions(items()) == 2500

    assert threads == {threading.get_ident()}
    assert three[2].session_count() == 2500
    for sessions in three:
        soon(partial(holds, sessions, 2500))
        assert sessions.get_session("s2499") == {"n": 2499}


def test_a_generator_may_use_the_replicator_itself(alone: SessionReplicator):
    alone.store_session("template", {"n": 1}, MINUTE_MS)

    def items() -> Iterator[tuple[str, Any, int]]:
        for n in range(250):
            yield f"s{n}", alone.get_session("template", read="primary"), MINUTE_MS

    assert alone.store_sessions(items()) == 250
    assert alone.session_count() == 251


def test_one_bad_item_ends_the_storing_of_many(alone: SessionReplicator):
    good = [(f"s{n}", {"n": n}, MINUTE_MS) for n in range(250)]

    with pytest.raises(InvalidSession):
        alone.store_sessions([*good, ("", {}, MINUTE_MS)])

    assert alone.get_replication_status()["pending_replications"] == 0


def test_all_threads_may_write_and_read_at_once(three: list[SessionReplicator]):
    def work(thread: int) -> None:
        sessions = three[thread % 3]
        for n in range(40):
            version = sessions.store_session(f"s{thread}", {"n": n}, MINUTE_MS)
            record = sessions.get_session_record(f"s{thread}")
            assert record is not None
            assert (record.data, record.version) == ({"n": n}, version)

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(work, range(9)))

    for sessions in three:
        soon(partial(holds, sessions, 9))


def test_a_client_of_a_cluster_blocks_as_well(three: list[SessionReplicator]):
    engine = RemoteEngine([sessions.settings.node for sessions in three])
    with SessionReplicator(Settings(), engine=engine) as client:
        version = client.store_session("s1", {"n": 1}, MINUTE_MS)
        assert client.get_session("s1") == {"n": 1}
        assert client.get_session_record("s1") == three[0].get_session_record("s1", read="primary")
        assert client.delete_session("s1", if_version=version)


# Life


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_before_its_start_and_after_its_stop_every_verb_says_that_it_does_not_run(verb: str):
    sessions = SessionReplicator(enabled=False)

    with pytest.raises(NotReady):
        EVERY_VERB[verb](sessions)
    sessions.stop()
    sessions.start()
    sessions.stop()
    with pytest.raises(NotReady):
        EVERY_VERB[verb](sessions)


def test_stopping_and_starting_twice_changes_nothing(alone: SessionReplicator):
    alone.start()
    alone.store_session("s1", {}, MINUTE_MS)
    alone.start()
    assert alone.session_count() == 1

    alone.stop()
    alone.stop()


def test_a_start_that_fails_leaves_nothing_behind():
    before = threading.active_count()
    with SessionReplicator(Settings(node=free_addresses(1)[0])) as first:
        second = SessionReplicator(Settings(node=first.settings.node))
        for _ in range(2):
            with pytest.raises(ConfigError, match="in use"):
                second.start()
        with pytest.raises(NotReady):
            second.session_count()
        second.stop()

    assert threading.active_count() == before


def test_whoever_calls_while_it_is_being_stopped_gets_an_answer():
    for _ in range(5):
        sessions = SessionReplicator(enabled=False)
        sessions.start()
        ended: list[BaseException] = []

        def call(sessions: SessionReplicator = sessions, ended: list[BaseException] = ended) -> None:
            try:
                while True:
                    sessions.store_session("s1", {}, MINUTE_MS)
            except (NotReady, Unavailable) as exc:
                ended.append(exc)

        threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        stoppers = [threading.Thread(target=sessions.stop, daemon=True) for _ in range(3)]
        for thread in stoppers:
            thread.start()
        for thread in [*stoppers, *threads]:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()

        assert len(ended) == 8


# Forks


def in_a_child(work: Callable[[], Any]) -> Any:
    """What the work returns, or the exception that it raises, in a forked child."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what it warns of is what is tested here
        pid = os.fork()
    if pid == 0:
        try:
            outcome: Any = work()
        except BaseException as exc:
            outcome = exc
        os.write(writing, pickle.dumps(outcome))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        pickled = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(pickled)


@pytest.mark.parametrize("verb", ["start", "stop", *EVERY_VERB])
def test_in_a_forked_child_every_verb_says_so(alone: SessionReplicator, verb: str):
    call = {"start": SessionReplicator.start, "stop": SessionReplicator.stop} | EVERY_VERB
    alone.store_session("s1", {"n": 1}, MINUTE_MS)

    error = in_a_child(lambda: call[verb](alone))

    assert isinstance(error, ForkedProcess)
    assert error.started_in_pid == os.getpid()
    assert error.used_in_pid != os.getpid()
    assert alone.get_session("s1") == {"n": 1}


def test_a_child_that_leaves_the_with_statement_leaves_the_parents_node_alone():
    with SessionReplicator(enabled=False) as sessions:

        def leave() -> str:
            sessions.__exit__(None, None, None)
            return "left"

        assert in_a_child(leave) == "left"
        sessions.store_session("s1", {}, MINUTE_MS)


def test_a_replicator_made_before_the_fork_can_be_started_in_the_child():
    sessions = SessionReplicator(enabled=False)

    def work() -> Any:
        with sessions:
            sessions.store_session("s1", {"n": 1}, MINUTE_MS)
            return sessions.get_session("s1")

    assert in_a_child(work) == {"n": 1}
    assert work() == {"n": 1}
