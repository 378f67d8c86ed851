"""How `hotspare` ends: exit codes, messages, and no traceback for what is not our fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from hotspare.cli import commands, main
from hotspare.cli.exits import Exit
from hotspare.cluster.security import Security
from hotspare.errors import (
    InvalidSession,
    NotReady,
    OutcomeUnknown,
    StaleRead,
    Unavailable,
    UnknownNode,
    VersionConflict,
)
from hotspare.session import Session
from hotspare.settings import Settings


class Cluster:
    """Stands in for a connected replicator: answers or raises as it was told."""

    def __init__(self, **answers):
        self.answers = answers
        self.calls = []

    def __getattr__(self, verb):
        async def call(*arguments, **options):
            self.calls.append((verb, arguments, options))
            answer = self.answers[verb]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


@pytest.fixture
def cluster(monkeypatch):
    """Lets commands talk to a stand-in with these answers."""

    def use(**answers):
        stand_in = Cluster(**answers)

        @asynccontextmanager
        async def connect(addresses, timeout_ms, **security):
            yield stand_in

        monkeypatch.setattr(commands, "connect", connect)
        return stand_in

    return use


def run(*argv):
    return main(argv)


# Answers


def test_get_prints_the_data_and_nothing_else(cluster, capsys):
    cluster(get_session_record=Session("s", {"user": 7}, 65536, 1000))
    assert run("get", "s") == Exit.DONE
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"user": 7}
    assert captured.err == ""


def test_get_as_json_has_version_and_expiry(cluster, capsys):
    cluster(get_session_record=Session("s", {"user": 7}, 65536, 1000))
    assert run("get", "s", "--json") == Exit.DONE
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"id": "s", "data": {"user": 7}, "version": 65536, "expires_at_ms": 1000}


@pytest.mark.parametrize("rest", [[], ["--json"]])
def test_an_absent_session_is_a_message_and_exit_code_1(cluster, capsys, rest):
    cluster(get_session_record=None, delete_session=False)
    for command in ("get", "delete"):
        assert run(command, "s", *rest) == Exit.NO
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "no such session" in captured.err


def test_store_passes_on_its_condition_and_prints_the_version(cluster, capsys):
    stand_in = cluster(store_session=65537)
    assert run("store", "s", '{"a": [1]}', "--ttl-ms", "5", "--if-version", "9") == Exit.DONE
    assert capsys.readouterr().out == "stored, version 65537\n"
    ((verb, arguments, options),) = stand_in.calls
    assert (verb, arguments) == ("store_session", ("s", {"a": [1]}, 5))
    assert options == {"if_version": 9, "if_absent": False, "if_present": False, "ack": None}


def test_store_reads_the_data_from_stdin(cluster, monkeypatch, capsys, tmp_path):
    stand_in = cluster(store_session=65537)
    (tmp_path / "session.json").write_text('{"from": "stdin"}')
    with (tmp_path / "session.json").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("store", "s", "-", "--ttl-ms", "5") == Exit.DONE
    assert stand_in.calls[0][1] == ("s", {"from": "stdin"}, 5)


def test_list_prints_sorted_ids_a_line_each(cluster, capsys):
    cluster(get_all_sessions=["b", "c\nd", "a"], session_count=3)
    assert run("list") == Exit.DONE
    assert capsys.readouterr().out == 'a\nb\n"c\\nd"\n'
    assert run("list", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out) == ["a", "b", "c\nd"]
    assert run("list", "--count") == Exit.DONE
    assert capsys.readouterr().out == "3\n"
    assert run("list", "--count", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out) == {"count": 3}


def test_metrics_are_lines_or_json(cluster, capsys):
    cluster(get_metrics={"is_primary": True, "replication_lag_ms": 0.5})
    assert run("metrics") == Exit.DONE
    assert capsys.readouterr().out == "is_primary          true\nreplication_lag_ms  0.5\n"
    assert run("metrics", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out) == {"is_primary": True, "replication_lag_ms": 0.5}


def test_failover_says_what_became_of_it(cluster, capsys):
    stand_in = cluster(trigger_failover="there is nothing to do")
    assert run("failover", "127.0.0.1:7402") == Exit.DONE
    assert capsys.readouterr().out == "there is nothing to do\n"
    assert stand_in.calls == [("trigger_failover", ("127.0.0.1:7402",), {})]


# Failures


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VersionConflict("absent", 65536), 1),
        (Unavailable("no node answers"), 2),
        (NotReady("it has just started"), 2),
        (StaleRead(2000, 1000), 2),
        (InvalidSession("ttl_ms", "it must be at least 1 ms"), 2),
        (UnknownNode("x", ("y",)), 2),
        (OutcomeUnknown("no answer came"), 3),
    ],
)
def test_every_failure_has_its_exit_code_and_its_sentence(cluster, capsys, error, code):
    cluster(store_session=error)
    assert run("store", "s", "{}", "--ttl-ms", "5") == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"hotspare: {error}\n"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("{", "not JSON"),
        ('{"a": NaN}', "JSON has no NaN"),
        ("[" * 100_000, "nested too deeply"),
        ("", "not JSON"),
    ],
)
def test_data_that_is_no_json_is_refused_before_anybody_is_asked(cluster, capsys, data, complaint):
    stand_in = cluster()
    assert run("store", "s", data, "--ttl-ms", "5") == Exit.FAILED
    assert complaint in capsys.readouterr().err
    assert stand_in.calls == []


def test_a_defect_of_ours_is_not_mistaken_for_an_answer(cluster, capsys):
    cluster(get_session_record=ZeroDivisionError("oops"))
    assert run("get", "s") == Exit.DEFECT
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_is_quiet(cluster, capsys):
    cluster(get_session_record=KeyboardInterrupt())
    assert run("get", "s") == Exit.INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_no_defect():
    """As `hotspare version | true`, with the reader gone for sure before anything is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "hotspare", "version"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (Exit.UNREAD, "")


def test_a_cluster_that_is_not_there_is_exit_code_2(capsys):
    # Nothing listens on port 1.
    assert run("get", "s", "--node", "127.0.0.1:1") == Exit.FAILED
    assert "127.0.0.1:1" in capsys.readouterr().err
    assert run("get", "s", "--node", "127.0.0.1:1,127.0.0.1:2", "--json") == Exit.FAILED
    assert json.loads(capsys.readouterr().err)["error"] == "Unavailable"


# Serving: everything that can be said before a node runs


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--node", "nowhere"], "setting node: 'nowhere' has no port"),
        (["--node", "192.0.2.1:7401"], "cluster_key"),
        (["--storage", "paper"], "setting storage_mode"),
        (["--replicas", "127.0.0.1:1,127.0.0.1:1"], "listed twice"),
        (["--config", "no-such-file.toml"], "cannot be read"),
    ],
)
def test_a_node_that_cannot_start_says_why(capsys, argv, complaint):
    assert run("serve", *argv) == Exit.FAILED
    assert complaint in capsys.readouterr().err


def test_a_store_that_cannot_be_opened_has_an_exit_code_of_its_own(capsys):
    assert run("serve", "--data-dir", "/dev/null/x") == Exit.STORE
    assert "the store in /dev/null/x failed" in capsys.readouterr().err


def test_the_versions_are_printed(capsys):
    assert run("version", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out).keys() >= {"hotspare", "python", "lmdb", "msgspec", "rich"}


def test_a_new_key_is_another_one_each_time_and_good_enough_for_a_node(capsys):
    keys = set()
    for _ in range(3):
        assert main(["new-key"]) == Exit.DONE
        keys.add(capsys.readouterr().out)
    assert len(keys) == 3
    for key in keys:
        assert Security.load(Settings(cluster_key=key.strip())).key == key.strip().encode()


def test_a_new_key_in_a_file_is_for_its_user_alone(tmp_path):
    file = tmp_path / "cluster.key"
    with file.open("wb") as output:
        os.fchmod(output.fileno(), 0o666)
        subprocess.run([sys.executable, "-m", "hotspare", "new-key"], stdout=output, check=True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert Security.load(Settings(cluster_key_file=str(file))).key == file.read_bytes().strip()
