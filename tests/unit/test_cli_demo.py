"""The parts of the demonstration: its book-keeping must not miss a loss."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from hotspare.cli import demo, main
from hotspare.cli.demo.daemons import free_addresses
from hotspare.cli.demo.ledger import Audit, Ledger
from hotspare.cli.demo.monitor import Monitor, View
from hotspare.cli.demo.stage import Picture, Pulse, Stage, open_stage, strip
from hotspare.cli.demo.story import DemoFailed, Findings
from hotspare.cli.demo.writers import WRITERS, Writers, store_many
from hotspare.errors import OutcomeUnknown, Unavailable

# The ledger


def written(*writes):
    """A ledger after acknowledged writes of (id, data)."""
    ledger = Ledger()
    for id, data in writes:
        ledger.begin(id, data)
        ledger.acknowledge(id)
    return ledger


def test_a_copy_with_everything_as_acknowledged_is_clean():
    ledger = written(("a", {"v": 1}), ("b", {"v": 1}), ("a", {"v": 2}), ("b", None))
    audit = ledger.audit({"a": {"v": 2}})
    assert audit == Audit(checked=2, lost=0, different=0, unexpected=0)
    assert audit.is_clean
    assert ledger.acknowledged == 4


@pytest.mark.parametrize(
    ("copy", "finding"),
    [
        ({}, {"lost": 1}),
        ({"a": {"v": 1}}, {"different": 1}),
        ({"a": {"v": 2}, "b": {"v": 1}}, {"unexpected": 1}),
        ({"a": {"v": 2}, "stranger": {}}, {"unexpected": 1}),
    ],
)
def test_every_kind_of_damage_is_found(copy, finding):
    ledger = written(("a", {"v": 1}), ("a", {"v": 2}), ("b", {"v": 1}), ("b", None))
    audit = ledger.audit(copy)
    assert not audit.is_clean
    assert audit == Audit(**({"checked": 2, "lost": 0, "different": 0, "unexpected": 0} | finding))


def test_a_write_of_unknown_outcome_may_show_or_not():
    ledger = written(("a", {"v": 1}))
    ledger.begin("a", {"v": 2})
    assert ledger.audit({"a": {"v": 1}}).is_clean
    assert ledger.audit({"a": {"v": 2}}).is_clean
    assert not ledger.audit({}).is_clean
    ledger.begin("a", None)
    assert ledger.audit({}).is_clean


def test_a_refused_write_must_not_show():
    ledger = written(("a", {"v": 1}))
    ledger.begin("a", {"v": 2})
    ledger.withdraw("a")
    assert ledger.audit({"a": {"v": 1}}).is_clean
    assert not ledger.audit({"a": {"v": 2}}).is_clean


def test_a_first_write_that_was_refused_leaves_nothing():
    ledger = Ledger()
    ledger.begin("a", {"v": 1})
    ledger.withdraw("a")
    assert ledger.audit({}).is_clean
    assert ledger.audit({"a": {"v": 1}}).unexpected == 1


# The load


class Store:
    """A cluster in a dictionary; the writes named in `troubles` fail."""

    def __init__(self, troubles=None):
        self.sessions = {}
        self.troubles = troubles or {}

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def store_session(self, id, data, ttl_ms):
        await asyncio.sleep(0)
        error = self.troubles.pop(id, None)
        if not isinstance(error, Unavailable):
            self.sessions[id] = data
        if error is not None:
            raise error

    async def delete_session(self, id):
        await asyncio.sleep(0)
        self.sessions.pop(id, None)

    async def store_sessions(self, sessions):
        self.sessions.update({id: data for id, data, _ in sessions})


def store_with(kind: Any = Store) -> Any:
    return kind()


async def test_the_first_load_stores_and_remembers_everything():
    store, ledger, told = store_with(), Ledger(), list[int]()
    await store_many(store, ledger, 1003, told.append)
    assert len(store.sessions) == ledger.acknowledged == sum(told) == 1003
    assert ledger.audit(store.sessions).is_clean


async def test_the_writers_remember_exactly_what_was_acknowledged():
    store, ledger, enough, beats = store_with(), Ledger(), asyncio.Event(), 0
    store.troubles = {"writer-0-0": Unavailable("no"), "writer-1-1": OutcomeUnknown("silence")}
    homes = []

    def connect(addresses):
        homes.append(list(addresses))
        return store

    def note():
        nonlocal beats
        beats += 1
        if beats == 40 * WRITERS:
            enough.set()

    writers = Writers(connect, ["a", "b", "c"], ledger, note)
    await writers.start()
    async with asyncio.timeout(30):
        await enough.wait()
    await writers.stop()
    assert (writers.refused, writers.unknown) == (1, 1)
    assert beats == ledger.acknowledged
    assert ledger.audit(store.sessions).is_clean
    assert [home[0] for home in homes] == ["a", "b", "c", "a", "b", "c", "a", "b"]
    assert all(sorted(home) == ["a", "b", "c"] for home in homes)


async def test_the_next_acknowledged_write_is_one_that_began_afterwards():
    gate = asyncio.Event()

    class Held(Store):
        async def store_session(self, id, data, ttl_ms):
            await gate.wait()
            await super().store_session(id, data, ttl_ms)

    ledger = Ledger()
    writers = Writers(lambda _: store_with(Held), ["a"], ledger, lambda: None)
    await writers.start()
    await asyncio.sleep(0)
    first = writers.next_acknowledged()
    gate.set()
    async with asyncio.timeout(30):
        await first
    # Every writer had one under way, which does not count.
    assert ledger.acknowledged > WRITERS
    await writers.stop()


# The stage


def view(node="a:1", *, is_running=True, **status):
    usual: dict[str, Any] = {
        "role": "secondary",
        "ready": True,
        "active_sessions": 5,
        "applied_index": 7,
        "digest": "d",
        "term": 1,
    }
    daemon: Any = SimpleNamespace(node=node, is_running=is_running)
    return View(daemon, usual | status if is_running else None)


def test_the_pulse_counts_beats_in_steps():
    pulse = Pulse()
    pulse._times.extend([8.0, 8.125, 8.25, 8.875, 11.0])
    assert pulse.counts(8.0, 0.25, 5) == [2, 1, 0, 1, 0]
    assert pulse.counts(8.5, 0.25, 2) == [0, 1]
    assert Pulse().now() == []


def test_an_outage_shows_in_the_strip():
    assert strip([8, 0, 4, 1]).plain == "█_▅▂"
    assert strip([]).plain == ""


def text_of(stage: Any) -> str:
    stage.console.print(stage.picture())
    shown: str = stage.console.file.getvalue()
    return shown


def terminal(**options) -> Any:
    usual = {
        "width": 100,
        "height": 40,
        "force_terminal": True,
        "legacy_windows": False,
        "color_system": None,
    }
    return Console(file=io.StringIO(), **(usual | options))


def test_the_picture_has_a_row_for_each_node_and_the_events():
    stage = Picture(terminal(), [view("a:1", role="primary"), view("b:2", is_running=False), view("[::1]:3")])
    stage.doing("writing")
    stage.say("kill -9")
    shown = text_of(stage)
    assert "● primary" in shown
    assert "✗ dead" in shown
    assert "[::1]:3" in shown
    assert "kill -9" in shown
    stage.progress(3, 10)
    assert "3 of 10" in text_of(stage)


def test_old_events_leave_the_picture_before_it_outgrows_the_terminal():
    stage = Picture(terminal(height=24), [view(f"node:{number}") for number in range(4)])
    for number in range(30):
        stage.say(f"event {number}.")
    shown = text_of(stage)
    assert "event 29." in shown
    assert "event 5." not in shown
    assert len(shown.splitlines()) <= 24


def test_without_room_for_a_picture_events_are_lines(capsys):
    for console in (terminal(height=10), terminal(width=40), terminal(force_terminal=False)):
        assert type(open_stage(console, [view()], plain=False)) is Stage
    assert type(open_stage(terminal(), [view()], plain=True)) is Stage
    assert type(open_stage(terminal(), [view()], plain=False)) is Picture


def test_a_stage_without_a_picture_prints_each_event_at_once():
    console = terminal(force_terminal=False)
    stage = Stage(console, [view()])
    stage.doing("nothing to see")
    stage.progress(1, 2)
    stage.say("something [happened]")
    assert console.file.getvalue() == "  0.00 s  something [happened]\n"


# The verdict


def findings(**changes):
    clean = {node: Audit(5, 0, 0, 0) for node in "abcd"}
    return Findings(audits=clean | changes.pop("audits", {}), digests=dict.fromkeys("abcd", "d1") | changes)


def outcome(monkeypatch, capsys, result, *options):
    async def run(_):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(demo, "_run", run)
    code = main(["demo", *options])
    return code, capsys.readouterr()


def test_a_demonstration_without_losses_exits_0(monkeypatch, capsys):
    code, printed = outcome(monkeypatch, capsys, findings())
    assert code == 0
    assert "0 are lost" in printed.out
    code, printed = outcome(monkeypatch, capsys, findings(), "--json")
    assert code == 0
    assert json.loads(printed.out)["nothing_lost"] is True


@pytest.mark.parametrize(
    "damage",
    [
        {"audits": {"b": Audit(5, 1, 0, 0)}},
        {"audits": {"b": Audit(5, 0, 1, 0)}},
        {"audits": {"b": Audit(5, 0, 0, 1)}},
        {"c": "d2"},  # the digest of one copy
    ],
)
def test_a_demonstration_that_finds_damage_exits_1(monkeypatch, capsys, damage):
    assert outcome(monkeypatch, capsys, findings(**damage))[0] == 1
    code, printed = outcome(monkeypatch, capsys, findings(**damage), "--json")
    assert code == 1
    assert json.loads(printed.out)["nothing_lost"] is False


def test_a_demonstration_that_could_not_be_held_exits_2(monkeypatch, capsys):
    code, printed = outcome(monkeypatch, capsys, DemoFailed("still waiting until there is a primary"))
    assert (code, printed.out) == (2, "")
    assert "still waiting" in printed.err


# The nodes


def monitor_of_nobody():
    connect: Any = None
    return Monitor([], connect)


def test_the_primary_is_the_one_of_the_latest_term():
    monitor = monitor_of_nobody()
    monitor.views = [view("a", role="primary", term=1), view("b", role="primary", term=2), view("c")]
    assert monitor.primary is monitor.views[1]
    monitor.views = [view("c")]
    assert monitor.primary is None


def test_copies_are_equal_only_when_every_node_shows_the_same():
    monitor = monitor_of_nobody()
    for others, equal in [
        ([view()], True),
        ([view(digest="e")], False),
        ([view(applied_index=8)], False),
        ([view(ready=False)], False),
        ([view(is_running=False)], False),
    ]:
        monitor.views = [view(), *others]
        assert monitor.are_equal is equal


def test_addresses_that_are_taken_are_left_out():
    first, *_ = free_addresses(4)
    host, port = first.split(":")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, int(port)))
        taken.listen()
        assert first not in free_addresses(4)
