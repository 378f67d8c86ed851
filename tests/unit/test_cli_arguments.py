"""What can be typed, and what is said about the rest."""

from __future__ import annotations

import re

import pytest

from hotspare.cli import arguments
from hotspare.cli.arguments import SUMMARIES, build_parser, parse, security

COMMANDS = [name for summaries in SUMMARIES.values() for name in summaries]
CLIENT_COMMANDS = {
    "start-cluster": [],
    "store": ["s", "{}", "--ttl-ms", "1"],
    "get": ["s"],
    "delete": ["s"],
    "list": [],
    "status": [],
    "metrics": [],
    "flush": [],
    "promote": [],
    "failover": ["127.0.0.1:7402"],
    "load": [],
}


def refusal(capsys, *argv):
    """What is said on stderr about arguments that are refused."""
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        parse([*argv])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_overview_lists_exactly_the_commands_that_there_are(capsys):
    for name in COMMANDS:
        assert help_of(capsys, name, "--help").startswith(f"usage: hotspare {name} ")
    assert "invalid choice" in refusal(capsys, "frobnicate")
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert sorted(commands or ()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_can_be_parsed(capsys, name):
    examples = help_of(capsys, name, "--help").partition("examples:\n")[2].strip().splitlines()
    assert examples
    for example in examples:
        words = example.split("|")[0].split("<")[0].split(" 2>")[0].split(" >")[0].split()
        words = words[words.index("hotspare") + 1 :]
        joined = re.sub(r"'([^']*)'", lambda quoted: quoted.group(1).replace(" ", ""), " ".join(words))
        assert parse(joined.split()).command == name


@pytest.mark.parametrize(("name", "rest"), CLIENT_COMMANDS.items())
def test_every_client_command_takes_what_a_secured_cluster_wants_to_see(name, rest):
    given = {key: f"/etc/{key}" for key in ("cluster_key_file", "tls_cert", "tls_key", "tls_ca")}
    words = [word for key, file in given.items() for word in (f"--{key.replace('_', '-')}", file)]
    assert security(parse([name, *rest, *words])) == given
    assert security(parse([name, *rest])) == dict.fromkeys(given)


def test_the_help_tells_the_exit_codes(capsys):
    printed = help_of(capsys, "--help")
    for code in (0, 1, 2, 3, 4, 130, 141):
        assert re.search(rf"^ +{code}  \w", printed, re.MULTILINE)


def test_hotspare_alone_prints_the_help(capsys):
    assert help_of(capsys) == help_of(capsys, "--help")


@pytest.mark.parametrize(("name", "rest"), CLIENT_COMMANDS.items())
def test_every_client_command_takes_nodes_a_timeout_and_json(name, rest):
    options = parse([name, *rest, "--node", "127.0.0.1:1,localhost:2", "--timeout-ms", "7", "--json"])
    assert (options.node, options.timeout_ms, options.json) == (["127.0.0.1:1", "localhost:2"], 7, True)


def test_the_nodes_come_from_the_environment_when_none_are_given(monkeypatch):
    assert parse(["status"]).node == [arguments.DEFAULT_NODE]
    monkeypatch.setenv("HOTSPARE_NODE", "127.0.0.1:1, [::1]:2")
    assert parse(["status"]).node == ["127.0.0.1:1", "[::1]:2"]
    assert parse(["status", "--node", "127.0.0.1:3"]).node == ["127.0.0.1:3"]


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["status", "--node", "nowhere"], "'nowhere' has no port"),
        (["status", "--node", "127.0.0.1:0"], "no port from 1 to 65535"),
        (["status", "--node", ","], "names no node"),
        (["status", "--timeout-ms", "0"], "'0' is less than 1"),
        (["load", "--count", "many"], "'many' is not a whole number"),
        (["load", "--rate", "-5"], "'-5' is less than 1"),
        (["store", "s", "{}"], "--ttl-ms"),
        (["store", "s", "{}", "--ttl-ms", "1.5"], "'1.5' is not a whole number"),
        (["store", "s", "{}", "--ttl-ms", "1", "--if-absent", "--if-version", "3"], "not allowed with"),
        (["get", "s", "--read", "wrongly"], "invalid choice"),
        (["start-cluster", "7402"], "'7402' has no port"),
        (["status", "--time", "5"], "unrecognized arguments: --time 5"),
        (["get"], "required: ID"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(capsys, argv, complaint):
    assert complaint in refusal(capsys, *argv)


def test_serve_passes_on_what_the_settings_check():
    options = parse(["serve", "--node", "a", "--replicas", "b, c,", "--storage", "d", "--data-dir", "e"])
    assert (options.node, options.replicas, options.storage, options.data_dir) == ("a", ["b", "c"], "d", "e")
    assert parse(["serve"]).node is None


def test_the_version_is_printed(capsys):
    from hotspare import __version__

    assert help_of(capsys, "--version") == f"hotspare {__version__}\n"
