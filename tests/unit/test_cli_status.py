"""The status table: every member in it, and the truth about their copies."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hotspare.cli import status
from hotspare.errors import Unavailable


def member(node, **changes):
    """What a ready secondary says of itself."""
    usual = {
        "node": node,
        "role": "secondary",
        "primary": "a:1",
        "term": 3,
        "cluster_id": "c0ffee" * 5,
        "ready": True,
        "active_sessions": 12345,
        "applied_index": 100,
        "digest": "d1",
        "replica_nodes": [],
    }
    return usual | changes


def other(node, **changes):
    """What one member says of another one."""
    usual = {"node": node, "role": "secondary", "reachable": True, "lag_entries": 0, "lag_ms": 0.1}
    return usual | changes


class Asked:
    def __init__(self, answer):
        self.answer = answer

    async def get_replication_status(self):
        return dict(self.answer)


@pytest.fixture
def cluster(monkeypatch):
    """Members by their addresses; the others cannot be reached."""
    members: dict[str, Any] = {}

    @asynccontextmanager
    async def connect(addresses, timeout_ms, **security):
        (address,) = addresses
        if address not in members:
            raise Unavailable(f"{address} cannot be reached")
        yield Asked(members[address])

    monkeypatch.setattr(status, "connect", connect)
    return members


async def shown(capsys, answer, *, as_json=False):
    asked: Any = Asked(answer)
    code = await status.show(asked, Namespace(json=as_json, timeout_ms=1000, ready=False))
    assert code == 0
    return capsys.readouterr().out


async def test_every_member_is_asked_for_its_own_view(cluster, capsys):
    cluster["b:2"] = member("b:2", applied_index=90, digest="d0")
    primary = member("a:1", role="primary", replica_nodes=[other("b:2", lag_entries=10)])
    headline, header, first, second, verdict = (await shown(capsys, primary)).splitlines()
    assert headline == "cluster c0ffeec0ffee, term 3, primary a:1"
    assert header.split() == ["node", "role", "ready", "sessions", "applied", "lag", "digest"]
    assert first.split() == ["a:1", "primary", "yes", "12", "345", "100", "d1", "←", "asked"]
    assert second.split() == ["b:2", "secondary", "yes", "12", "345", "90", "10", "d0"]
    assert verdict == "copies are up to 10 entries apart, as they are while writes are under way."


async def test_a_member_is_asked_at_the_address_that_it_advertises(cluster, capsys):
    cluster["elsewhere:9"] = member("b:2")
    primary = member("a:1", role="primary", replica_nodes=[other("b:2", address="elsewhere:9")])
    assert "all 2 copies are equal." in await shown(capsys, primary)


async def test_a_member_that_does_not_answer_stays_in_the_table(cluster, capsys):
    primary = member("a:1", role="primary", replica_nodes=[other("b:2", reachable=False, lag_entries=None)])
    printed = await shown(capsys, primary)
    assert ["b:2", "unreachable"] in [line.split() for line in printed.splitlines()]


async def test_an_unfounded_node_says_what_to_do(cluster, capsys):
    answer = member("a:1", role="unfounded", primary="", cluster_id="", term=0, ready=False)
    printed = await shown(capsys, answer)
    assert "cluster none, term 0, primary none at the moment" in printed
    assert "start-cluster" in printed


async def test_a_name_with_brackets_is_shown_whole(cluster, capsys):
    assert "[::1]:7401" in await shown(capsys, member("[::1]:7401", role="primary"))


async def test_json_has_the_asked_node_first_and_all_nodes_beside(cluster, capsys):
    cluster["b:2"] = member("b:2")
    primary = member("a:1", role="primary", replica_nodes=[other("b:2"), other("c:3", reachable=False)])
    printed = json.loads(await shown(capsys, primary, as_json=True))
    assert {key: printed[key] for key in primary} == primary
    assert [(each["node"], each["reachable"]) for each in printed["nodes"]] == [
        ("a:1", True),
        ("b:2", True),
        ("c:3", False),
    ]


def reachable(**changes):
    return {"reachable": True, "role": "secondary", "applied_index": 1, "digest": "d"} | changes


@pytest.mark.parametrize(
    ("nodes", "verdict"),
    [
        ([reachable(), reachable()], "all 2 copies are equal"),
        ([reachable(), reachable(), {"reachable": False, "role": "secondary"}], "2 copies are equal"),
        ([reachable(), {"reachable": False, "role": "secondary"}], "there is one copy in reach"),
        ([reachable(role="unfounded")], "there is no copy yet"),
        ([reachable(), reachable(digest="e")], "COPIES DIFFER"),
        ([reachable(), reachable(digest="e", applied_index=5)], "copies are up to 4 entries apart"),
        # The same sessions after a no-op more or less.
        ([reachable(), reachable(applied_index=2)], "all 2 copies are equal"),
    ],
)
def test_the_verdict_on_the_copies(nodes, verdict):
    assert status.copies(nodes).startswith(verdict)


# --ready


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (member("a:1", ready=True), 0, "a:1 is ready"),
        (member("a:1", ready=False, role="learner", staleness_ms=3), 1, "it is learner"),
        (member("a:1", ready=False, role="secondary", staleness_ms=None), 1, "has not learned yet"),
    ],
)
async def test_readiness_is_an_exit_code(capsys, answer, code, words):
    answer = {"staleness_ms": 0} | answer
    asked: Any = Asked(answer)
    assert await status.show(asked, Namespace(json=False, timeout_ms=1000, ready=True)) == code
    assert words in capsys.readouterr().out
    assert await status.show(asked, Namespace(json=True, timeout_ms=1000, ready=True)) == code
    assert json.loads(capsys.readouterr().out)["ready"] is (code == 0)
