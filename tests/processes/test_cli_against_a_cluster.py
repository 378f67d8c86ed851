"""The command line as operators use it, against real daemons.

Most commands run in this process, by the function that the `hotspare` script calls: starting an interpreter
for each would take longer than all the rest.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest

from hotspare.cli import main
from tests.processes.daemons import PATIENCE_SECONDS, Daemon, Daemons, eventually, free_addresses

NOBODY = "127.0.0.1:1"
"""No service is there on any usual machine."""

HOUR = ("--ttl-ms", "3600000")


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def hotspare(*words: str, node: Daemon | str, stdin: str = "") -> Ended:
    """Runs one command to its end."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HOTSPARE_NODE", node if isinstance(node, str) else node.address)
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main(words)
    assert "Traceback" not in err.getvalue()
    return Ended(code, out.getvalue(), err.getvalue())


def start(*words: str) -> subprocess.Popen[str]:
    """The same in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hotspare", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("HOTSPARE_")},
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in err
    return Ended(process.returncode, out, err)


@pytest.fixture(scope="module")
def calm() -> Iterator[Daemons]:
    """Four nodes for all tests that harm none of them. They share the sessions too: each test has its ids."""
    with Daemons() as daemons:
        daemons.add_cluster()
        daemons.start()
        wait_until_settled(daemons)
        yield daemons


def wait_until_settled(daemons: Daemons) -> None:
    asyncio.run(settle(daemons))


async def settle(daemons: Daemons) -> None:
    await asyncio.gather(*(daemon.ready() for daemon in daemons))
    await daemons.settled()


# Sessions


def test_a_session_stored_on_any_node_can_be_read_on_every_node(calm):
    data = {"user": 7, "name": "Zoë", "nested": [{"a": None}, 1.5]}
    for number, home in enumerate(calm):
        stored = hotspare("store", f"any-{number}", json.dumps(data), *HOUR, "--json", node=home).json
        for reader in calm:
            found = hotspare("get", f"any-{number}", "--read", "primary", "--json", node=reader).json
            assert found["data"] == data
            assert found["version"] == stored["version"]


def test_a_session_that_is_gone_is_gone_on_every_node(calm):
    home = calm[0]
    assert hotspare("store", "gone", "{}", *HOUR, node=home).code == 0
    assert hotspare("delete", "gone", node=calm[1]).out == "deleted\n"
    for reader in calm:
        answer = hotspare("get", "gone", "--read", "primary", node=reader)
        assert (answer.code, answer.out, answer.err) == (1, "", "hotspare: no such session\n")
    assert hotspare("delete", "gone", node=home).code == 1


def test_conditions_that_do_not_hold_change_nothing_and_exit_1(calm):
    home = calm[0]
    assert hotspare("store", "cond", '{"v": 1}', *HOUR, "--if-present", node=home).code == 1
    version = hotspare("store", "cond", '{"v": 2}', *HOUR, "--if-absent", "--json", node=home).json["version"]
    assert hotspare("store", "cond", '{"v": 3}', *HOUR, "--if-absent", node=home).code == 1
    stale = hotspare("store", "cond", '{"v": 4}', *HOUR, "--if-version", str(version + 1), node=home)
    assert stale.code == 1
    assert str(version) in stale.err
    assert hotspare("delete", "cond", "--if-version", str(version + 1), node=home).code == 1
    assert json.loads(hotspare("get", "cond", node=home).out) == {"v": 2}
    assert hotspare("store", "cond", '{"v": 5}', *HOUR, "--if-version", str(version), node=home).code == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("store", "", "{}", *HOUR), "id cannot be used"),
        (("store", "x" * 300, "{}", *HOUR), "id cannot be used"),
        (("store", "bad", "[]", *HOUR), "must be a mapping"),
        (("store", "bad", "{}", "--ttl-ms", "0"), "at least 1 ms"),
        (("store", "bad", "{}", "--ttl-ms", "-5"), "at least 1 ms"),
        (("store", "bad", "{}", "--ttl-ms", str(10**20)), "hundred years"),
        (("store", "bad", json.dumps({"x": "y" * 100_000}), *HOUR), "max_session_size_bytes"),
        (("store", "bad", json.dumps({"x": 2**70}), *HOUR), "data['x']"),
        (("get", ""), "id cannot be used"),
    ],
)
def test_bad_input_is_refused_with_a_reason(calm, words, complaint):
    answer = hotspare(*words, node=calm[0])
    assert (answer.code, answer.out) == (2, "")
    assert complaint in answer.err
    assert hotspare("get", "bad", node=calm[0]).code == 1


def test_ids_are_listed_and_counted_on_every_node(calm):
    for id in ("list-b", "list-a", "list\nc"):
        assert hotspare("store", id, "-", *HOUR, node=calm[0], stdin='{"from": "stdin"}').code == 0
    assert hotspare("flush", node=calm[0]).out == "flushed\n"
    asyncio.run(calm.settled())
    for node in calm:
        lines = [line for line in hotspare("list", node=node).out.splitlines() if "list" in line]
        assert lines == ['"list\\nc"', "list-a", "list-b"]
        ids = hotspare("list", "--json", node=node).json
        assert {"list-b", "list-a", "list\nc"} <= set(ids)
        assert int(hotspare("list", "--count", node=node).out) == len(ids)


# Operators


def test_status_shows_every_node_and_whether_the_copies_are_equal(calm):
    asyncio.run(calm.settled())
    found = hotspare("status", "--json", node=calm[1]).json
    assert found["node"] == calm[1].name
    assert sorted(each["node"] for each in found["replica_nodes"]) == sorted(
        daemon.name for daemon in calm if daemon is not calm[1]
    )
    assert [each["node"] for each in found["nodes"]] == sorted(calm.by_name)
    assert len({each["digest"] for each in found["nodes"]}) == 1
    assert [each["role"] for each in found["nodes"]].count("primary") == 1
    printed = hotspare("status", node=calm[1]).out
    assert all(name in printed for name in calm.by_name)
    assert "all 4 copies are equal" in printed
    assert "\x1b" not in printed


def test_metrics_are_flat_and_complete(calm):
    found = hotspare("metrics", "--json", node=calm[0]).json
    assert found.keys() >= {
        *("is_primary", "replica_nodes", "active_sessions", "total_replicated", "replication_lag_ms"),
        *("failed_replications", "failovers", "recovery_time_ms", "pending_replications"),
    }
    lines = hotspare("metrics", node=calm[0]).out.splitlines()
    assert [line.split()[0] for line in lines] == list(found)


def test_the_load_stores_what_it_says(calm):
    found = hotspare("load", "--count", "700", "--concurrency", "20", "--json", node=calm[2]).json
    assert (found["sessions"], found["calls"]) == (700, 700)
    batched = hotspare("load", "--count", "700", "--batch", "100", node=calm[2])
    assert "throughput" in batched.out
    prefixes = (found["id_prefix"], batched.out.split("sessions, ")[1].split("…")[0])
    ids = hotspare("list", "--json", node=calm[2]).json
    for prefix in prefixes:
        assert {id for id in ids if id.startswith(prefix)} == {f"{prefix}{number}" for number in range(700)}


def test_an_interrupted_load_says_how_far_it_came(calm):
    load = start("load", "--count", "1000000", "--rate", "300", "--node", calm[0].address)
    assert load.stderr is not None
    load.stderr.readline()  # the first line of progress
    load.send_signal(signal.SIGINT)
    interrupted = ended(load)
    assert (interrupted.code, interrupted.out) == (130, "")
    assert "acknowledged sessions" in interrupted.err


def test_promote_and_failover_move_the_leadership(cluster):
    wait_until_settled(cluster)
    primary = asyncio.run(cluster.primary())
    chosen = next(daemon for daemon in cluster if daemon is not primary)
    promoted = hotspare("promote", "--json", node=chosen).json
    assert promoted["primary"] == chosen.name
    assert asyncio.run(cluster.primary()) is chosen
    assert hotspare("failover", chosen.name, node=primary).code == 0
    successor = asyncio.run(cluster.primary())
    assert successor is not chosen
    healthy = hotspare("failover", chosen.name, node=successor)
    assert healthy.code == 0
    assert "nothing to do" in healthy.out
    unknown = hotspare("failover", NOBODY, node=successor)
    assert unknown.code == 2
    assert all(name in unknown.err for name in cluster.by_name)


def test_the_vote_of_a_dead_secondary_can_be_taken_away(cluster):
    wait_until_settled(cluster)
    primary = asyncio.run(cluster.primary())
    dead, *others = asyncio.run(cluster.secondaries())
    dead.kill()

    async def is_missed() -> bool:
        found = (await primary.status())["replica_nodes"]
        return any(each["node"] == dead.name and not each["reachable"] for each in found)

    asyncio.run(eventually(is_missed, "the primary, which decides, notices"))
    printed = hotspare("status", node=primary).out
    assert any(dead.name in line and "unreachable" in line for line in printed.splitlines())
    taken_away = hotspare("failover", dead.name, node=others[0])
    assert taken_away.code == 0
    assert "nothing to do" not in taken_away.out
    others[0].kill()  # the second one; two of three voters are left
    assert hotspare("store", "still", "{}", *HOUR, "--timeout-ms", "20000", node=others[1]).code == 0


# What is not there


def test_the_next_address_is_tried_when_one_is_down(calm):
    for addresses in (f"{NOBODY},{calm[3].address}", f"{calm[3].address},{NOBODY}"):
        assert hotspare("store", "next", "{}", *HOUR, node=addresses).code == 0
        assert hotspare("get", "next", node=addresses).code == 0


@pytest.mark.parametrize(
    "words", [("get", "x"), ("store", "x", "{}", *HOUR), ("status",), ("load", "--count", "5"), ("promote",)]
)
def test_an_unreachable_cluster_is_exit_code_2(words):
    answer = hotspare(*words, node=NOBODY)
    assert (answer.code, answer.out) == (2, "")
    assert NOBODY in answer.err


def test_a_node_that_hangs_is_given_up_in_bounded_time(daemons):
    (address,) = free_addresses(1)
    node = daemons.add(address)
    node.start()
    asyncio.run(node.listening())
    node.pause()
    for words in (("status",), ("get", "x"), ("store", "x", "{}", *HOUR)):
        # `hotspare` below does not wait for ever: that it returns is the point.
        answer = hotspare(*words, "--timeout-ms", "500", node=node)
        assert (answer.code, answer.out) == (2, "")


def test_an_address_that_is_not_hotspare_is_said_to_be_none():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(PATIENCE_SECONDS)
        host, port = listener.getsockname()
        asking = start("status", "--node", f"{host}:{port}")
        visitor, _ = listener.accept()
        with visitor:
            visitor.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
            answer = ended(asking)
    assert answer.code == 2
    assert "hotspare node" in answer.err


def test_without_a_majority_writes_fail_and_say_so(daemons):
    daemons.add_cluster(3)
    daemons.start()
    wait_until_settled(daemons)
    survivor = daemons[0]
    for daemon in list(daemons)[1:]:
        daemon.kill()
    answer = hotspare("store", "x", "{}", *HOUR, "--timeout-ms", "1000", node=survivor)
    # Certainly not applied, or sent to a primary that could not tell any more.
    assert answer.code in (2, 3)
    assert answer.err
    assert hotspare("get", "x", "--read", "primary", "--timeout-ms", "1000", node=survivor).code == 2
    assert hotspare("status", "--json", node=survivor).json["primary"] in ("", survivor.name)


# Founding and serving


def test_start_cluster_founds_a_cluster_of_empty_nodes(daemons):
    for name in free_addresses(3):
        daemons.add(name)
    daemons.start()
    for daemon in daemons:
        asyncio.run(daemon.listening())
    first, *others = daemons
    assert hotspare("store", "x", "{}", *HOUR, "--timeout-ms", "1000", node=first).code == 2
    assert "belongs to no cluster yet" in hotspare("status", node=first).out
    founded = hotspare("start-cluster", *(each.name for each in others), "--json", node=first).json
    assert founded["nodes"] == sorted(daemons.by_name)
    assert hotspare("store", "x", "{}", *HOUR, node=others[1]).code == 0
    again = hotspare("start-cluster", *(each.name for each in others), node=first)
    assert again.code == 2
    assert again.err.startswith("hotspare: ")


def test_serve_says_when_it_listens_and_ends_well_on_a_signal(daemons):
    (address,) = free_addresses(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        node = start("serve", "--node", address, "--data-dir", str(daemons.directory / "announced"))
        assert node.stdout is not None
        assert node.stdout.readline().startswith(f"hotspare {address} listening, ")
        assert hotspare("status", node=address).code == 0
        node.send_signal(number)
        assert ended(node).code == 0


def test_a_second_signal_ends_a_node_at_once(daemons):
    # With these figures the first signal waits five seconds for somebody to take the leadership over.
    daemons.add_cluster(2, health_check_interval_ms=1000, max_staleness_ms=1000)
    daemons.start()
    wait_until_settled(daemons)
    primary = asyncio.run(daemons.primary())
    (peer,) = asyncio.run(daemons.secondaries())
    peer.pause()
    primary.terminate()

    async def has_heard() -> bool:
        return "received SIGTERM" in primary.last_words()

    asyncio.run(eventually(has_heard, "the first signal is noticed"))
    primary.terminate()
    assert asyncio.run(primary.ended()) == -signal.SIGTERM


def test_a_second_node_at_the_same_place_is_told_why_it_cannot_start(calm, daemons):
    taken = calm[0]
    same_store = ended(start("serve", *taken.options))
    assert (same_store.code, same_store.out) == (5, "")
    assert "has it open" in same_store.err
    elsewhere = str(daemons.directory / "other")
    same_port = ended(start("serve", "--node", taken.name, "--data-dir", elsewhere))
    assert (same_port.code, same_port.out) == (2, "")
    assert "in use" in same_port.err
    assert hotspare("get", "nobody", node=taken).code == 1  # it serves on
