"""What can be typed after `hotspare`, and the help that says so."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from hotspare import __version__
from hotspare.cli import exits
from hotspare.errors import ConfigError
from hotspare.settings import Address

__all__ = ["DEFAULT_NODE", "build_parser", "parse"]

HELP_COLUMNS = 100
DEFAULT_NODE = "127.0.0.1:7401"
NODE_VARIABLE = "HOTSPARE_NODE"

OVERVIEW = """\
Sessions for Python services that survive the death of a machine.

Nodes run with `hotspare serve`; every other command asks one of them, named by --node or HOTSPARE_NODE. With
several addresses, separated by commas, it goes on to the next one when one is down.
"""

SUMMARIES = {
    "nodes": {
        "serve": "run a node",
        "run": "run a node, and a command that attaches to it",
        "start-cluster": "found a cluster of empty nodes",
        "new-key": "make a key that nodes and clients share",
        "members": "show who belongs to the cluster, and who votes",
        "add": "take a running, empty node into the cluster",
        "remove": "take a member out of the cluster",
    },
    "sessions": {
        "store": "store a session",
        "get": "print a session",
        "delete": "delete a session",
        "list": "print the ids of all sessions",
    },
    "operating": {
        "status": "show the nodes, their roles, and whether their copies are equal",
        "metrics": "print a node's metrics",
        "events": "print what happens, as it happens",
        "flush": "wait until a node has nothing pending",
        "promote": "make a node the primary",
        "failover": "take the leadership, or a dead node's vote, away from a node",
        "failovers": "show when the primary changed, why, and for how long there was none",
    },
    "trying it out": {
        "demo": "watch four nodes survive the death of their primary",
        "load": "store many sessions and measure",
        "version": "print the versions of what runs here",
    },
}

EXAMPLES = f"""\
examples:
  hotspare demo                                        watch four nodes survive the death of their primary
  hotspare serve --node 127.0.0.1:7401 --replicas 127.0.0.1:7402,127.0.0.1:7403
  hotspare status
  hotspare store alice '{{"user": 7}}' --ttl-ms 3600000
  hotspare get alice

exit codes:
{exits.table()}

`hotspare COMMAND --help` says more about each command.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The chosen command and its options; ends the process for help, and for what cannot be parsed."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        parser.exit(exits.Exit.DONE)
    return options


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hotspare", usage="hotspare COMMAND …", description=f"{OVERVIEW}\n{_overview()}", epilog=EXAMPLES
    )
    parser.add_argument("--version", action="version", version=f"hotspare {__version__}")
    # Listed above, in groups: argparse knows one list only.
    commands = parser.add_subparsers(prog="hotspare", dest="command", help=argparse.SUPPRESS)
    for add in (
        *(_add_serve, _add_run, _add_start_cluster, _add_new_key, _add_members, _add_add, _add_remove),
        *(_add_store, _add_get, _add_delete, _add_list),
        *(_add_status, _add_metrics, _add_events, _add_flush, _add_promote, _add_failover, _add_failovers),
        *(_add_load, _add_demo, _add_version),
    ):
        add(commands)
    return parser


def _overview() -> str:
    return "\n\n".join(
        f"{group}:\n" + "\n".join(f"  {name:<14} {summary}" for name, summary in summaries.items())
        for group, summaries in SUMMARIES.items()
    )


def _summary(name: str) -> str:
    return next(summaries[name] for summaries in SUMMARIES.values() if name in summaries)


class _Parser(argparse.ArgumentParser):
    """Keeps the line breaks of the texts, and allows no abbreviations, which break as options are added."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **({"max_help_position": 32} | options))


Commands = argparse._SubParsersAction  # what add_subparsers returns has no public name


# Nodes


def _add_serve(commands: Commands[_Parser]) -> None:
    command = _command(
        commands,
        "serve",
        """\
        Runs a node until SIGTERM or Ctrl-C; then it hands the leadership over, so that no write fails. A
        second signal ends it at once. It logs to stderr.

        Settings come from hotspare.toml, then HOTSPARE_* variables, then these options; later ones win. When
        every node lists the others as replicas, the cluster founds itself once all of them are there, in any
        starting order. A node that was killed is started again with the same command.
        """,
        """\
        hotspare serve --node 127.0.0.1:7401 --replicas 127.0.0.1:7402,127.0.0.1:7403
        hotspare serve --node 127.0.0.1:7409 --role observer --replicas 127.0.0.1:7401,127.0.0.1:7402
        hotspare serve --config /etc/hotspare.toml
        HOTSPARE_NODE=127.0.0.1:7401 hotspare serve
        """,
    )
    _add_node_options(command)
    command.add_argument(
        "--discard",
        action="store_true",
        help="gives up what this node has stored: it starts as a new server and copies from the others",
    )


def _add_run(commands: Commands[_Parser]) -> None:
    command = _command(
        commands,
        "run",
        """\
        Runs a node as the agent of a command: starts the node, waits until it is ready, and runs the command
        with HOTSPARE_ATTACH set, so that its processes read this node's copy. Signals are passed on to the
        command. When it has ended the node hands over and leaves, and the exit code is the command's, or 128
        and the number of the signal that ended it.

        Settings and options of the node are those of serve. If the node cannot go on, the command is ended.
        """,
        """\
        hotspare run --node 127.0.0.1:7401 --replicas 127.0.0.1:7402,127.0.0.1:7403 -- gunicorn shop:app
        hotspare run --config /etc/hotspare.toml -- python -m worker
        """,
    )
    _add_node_options(command)
    command.add_argument(
        "--ready-timeout-ms",
        type=_positive,
        metavar="MS",
        help="give up if the node is not ready by then (default: wait)",
    )
    command.add_argument("program", metavar="COMMAND", help="what to run; put -- before it")
    command.add_argument("arguments", metavar="…", nargs=argparse.REMAINDER, help="its arguments")


def _add_node_options(command: _Parser) -> None:
    command.add_argument(
        "--node", metavar="HOST:PORT", help="its name, and its address unless said otherwise"
    )
    command.add_argument(
        "--replicas",
        type=_list,
        metavar="HOST:PORT,…",
        help="the other nodes; its own name may be among them",
    )
    command.add_argument(
        "--role", metavar="ROLE", help="member (the default) has a vote, observer a copy only"
    )
    command.add_argument(
        "--storage",
        metavar="MODE",
        help="where sessions live: memory (the default) survives all but a reboot, disk that too",
    )
    command.add_argument(
        "--data-dir", metavar="DIR", help="where it keeps its store; in memory mode chosen for it if not"
    )
    command.add_argument(
        "--config", metavar="FILE", help="the settings file (default: hotspare.toml, if there)"
    )
    command.add_argument("--listen", metavar="HOST:PORT", help="where it listens, if not at its name")
    command.add_argument(
        "--advertise", metavar="HOST:PORT", help="where the others reach it, if not at its name"
    )
    command.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info"
    )
    _add_security(command)
    command.set_defaults(json=False)


def _add_start_cluster(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "start-cluster",
        """\
        Makes the asked node and the given ones one cluster. Needed once, and not at all where the nodes were
        started with --replicas.
        """,
        "hotspare start-cluster 127.0.0.1:7402 127.0.0.1:7403 --node 127.0.0.1:7401",
    )
    command.add_argument("replicas", nargs="*", metavar="HOST:PORT", type=_address, help="the other nodes")


def _add_new_key(commands: Commands[_Parser]) -> None:
    command = _command(
        commands,
        "new-key",
        """\
        Prints a new random key, for the settings cluster_key and cluster_key_file. If the output is a file,
        nobody but its user may read it afterwards.
        """,
        "hotspare new-key > cluster.key",
    )
    command.set_defaults(json=False)


def _add_members(commands: Commands[_Parser]) -> None:
    _client_command(
        commands,
        "members",
        """\
        Shows the members of the cluster as the asked node knows them: who votes, who is still catching up,
        who is away; and the observers that are connected to it.
        """,
        """\
        hotspare members
        hotspare members --json | jq '.[] | select(.votes) | .node'
        """,
    )


def _add_add(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "add",
        """\
        The node must be running and empty: `hotspare serve --node HOST:PORT` without replicas waits for this.
        It gets a copy first, and votes as soon as that is up to date. One that was removed and still has its
        state can be added again.
        """,
        "hotspare add 127.0.0.1:7404",
    )
    command.add_argument("newcomer", metavar="HOST:PORT", type=_address, help="the node's name")


def _add_remove(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "remove",
        """\
        Takes the vote away from a member, and then its place, whether it answers or not; the primary hands
        its leadership over first. Refused where too few would remain to go on. The node acts no more and says
        so in its status, as soon as any member can tell it: then it can be stopped.
        """,
        "hotspare remove 127.0.0.1:7404",
    )
    command.add_argument("leaving", metavar="NODE", help="the node's name")


# Sessions


def _add_store(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "store",
        """\
        Stores a session, and returns when a majority of the nodes has it; with --ack all when, beyond that,
        every copy that may answer reads shows it. Prints its new version.
        """,
        """\
        hotspare store alice '{"user": 7}' --ttl-ms 3600000
        hotspare store alice '{"user": 7}' --ttl-ms 3600000 --ack all
        hotspare store alice - --ttl-ms 3600000 < session.json
        hotspare store alice '{"user": 7}' --ttl-ms 3600000 --if-absent
        """,
    )
    command.add_argument("id", metavar="ID", help="of the session; put -- before one that starts with a dash")
    command.add_argument("data", metavar="JSON", help="its data, an object; - reads it from stdin")
    command.add_argument(
        "--ttl-ms", type=_whole, required=True, metavar="MS", help="how long it lives, in milliseconds"
    )
    condition = command.add_mutually_exclusive_group()
    condition.add_argument(
        "--if-absent", action="store_true", help="only if there is no such session; else exit 1"
    )
    condition.add_argument("--if-present", action="store_true", help="only if there is one; else exit 1")
    condition.add_argument(
        "--if-version", type=_positive, metavar="N", help="only if it still has that version; else exit 1"
    )
    _add_ack(command)


def _add_get(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "get",
        """\
        Prints the data of a session as JSON; with --json also its version and when it expires. With no such
        session it says so on stderr and exits 1.

        What JSON lacks is shown as text: bytes as "base64:…", dates and times in ISO 8601, UUID, Decimal, NaN
        and infinities as Python writes them.
        """,
        """\
        hotspare get alice
        hotspare get alice --read primary
        hotspare get alice --json | jq .version
        """,
    )
    command.add_argument("id", metavar="ID")
    command.add_argument(
        "--read",
        choices=("local", "primary", "stale"),
        default="local",
        help="local: the copy of the node asked (the default); primary: the very latest; stale: however old",
    )


def _add_delete(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "delete",
        """\
        Deletes a session on all nodes, and returns when a majority has done so; with --ack all when, beyond
        that, no copy that may answer reads shows it any more. With no such session it says so on stderr and
        exits 1.
        """,
        """\
        hotspare delete alice
        hotspare delete alice --ack all
        """,
    )
    command.add_argument("id", metavar="ID")
    command.add_argument(
        "--if-version", type=_positive, metavar="N", help="only if it still has that version"
    )
    _add_ack(command)


def _add_list(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "list",
        """\
        Prints the ids of all sessions, sorted, one a line. An id that would break its line is shown as a JSON
        string; with --json all are.
        """,
        """\
        hotspare list
        hotspare list --count
        """,
    )
    command.add_argument("--count", action="store_true", help="only how many there are")


# Operators


def _add_status(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "status",
        """\
        Asks a node for its status, and then every other member for its own: so the digests show whether the
        copies are equal. While writes are under way, copies may be a few entries apart.
        """,
        """\
        hotspare status
        hotspare status --json | jq .primary
        hotspare status --ready --node 127.0.0.1:7401 --timeout-ms 1000
        """,
    )
    command.add_argument(
        "--ready",
        action="store_true",
        help="only whether the asked node is ready: exit 0 if it is, 1 if not, 2 if it does not answer",
    )


def _add_metrics(commands: Commands[_Parser]) -> None:
    _client_command(commands, "metrics", "Prints the metrics of one node.", "hotspare metrics --json")


def _add_events(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "events",
        """\
        Prints what happens to the sessions of the asked node's copy and to the node, a line each, until it is
        interrupted: sessions created, changed, rotated, deleted and expired, and changes of the primary and
        of the node's role. With --json a JSON object a line. Where events are missing it says so.
        """,
        """\
        hotspare events
        hotspare events --json | jq .id
        hotspare events --count 10 --node 127.0.0.1:7402
        """,
    )
    command.add_argument("--count", type=_positive, metavar="N", help="end after so many")


def _add_flush(commands: Commands[_Parser]) -> None:
    _client_command(
        commands,
        "flush",
        "Returns when every write that the asked node has accepted so far is answered.",
        "hotspare flush",
    )


def _add_promote(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "promote",
        """\
        The asked node flushes what is pending and takes the leadership over in an orderly way: nothing is
        lost, and writers see no error. Returns when it is the primary.

        Where a majority of the members is lost for good, --force lets the asked node go on alone, as a new
        cluster, from what it has. What only the others had is lost, acknowledged or not. It is refused while
        a primary or a majority answers. Those who come back say that they are superseded; started with
        `hotspare serve --discard` they take part again.
        """,
        """\
        hotspare promote --node 127.0.0.1:7402
        hotspare promote --force --node 127.0.0.1:7403
        """,
    )
    command.add_argument("--force", action="store_true", help="go on alone, without the others; loses data")
    command.add_argument("--yes", action="store_true", help="with --force: do not ask whether that is meant")


def _add_failover(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "failover",
        """\
        On the primary: moves the leadership to the most up-to-date secondary. On a secondary that cannot be
        reached: takes its vote away, so that the others can survive losing one more; it votes again when it
        is back and has caught up. On a healthy secondary there is nothing to do.
        """,
        "hotspare failover 127.0.0.1:7402",
    )
    command.add_argument("failing", metavar="NODE", help="the node's name")


def _add_failovers(commands: Commands[_Parser]) -> None:
    _client_command(
        commands,
        "failovers",
        """\
        Shows the failovers that the asked node has seen since it started, at most the last hundred: when,
        from whom to whom, for how many milliseconds there was no primary, and why: `killed` (the primary's
        connections broke), `silent` (it hung, or was cut off), `ordered` (by an operator), `stopped` (in good
        order).
        """,
        """\
        hotspare failovers
        hotspare failovers --json | jq '.[-1].without_primary_ms'
        """,
    )


# Trying it out


def _add_load(commands: Commands[_Parser]) -> None:
    command = _client_command(
        commands,
        "load",
        """\
        Stores sessions with ids of its own, and prints throughput and latencies. It stops at the first write
        that fails. The sessions stay until their TTL is over.
        """,
        """\
        hotspare load --count 10000
        hotspare load --count 200000 --batch 100
        hotspare load --count 30000 --rate 1000 --node 127.0.0.1:7401,127.0.0.1:7402
        """,
    )
    command.add_argument(
        "--count", type=_positive, default=10_000, metavar="N", help="sessions (default: 10000)"
    )
    command.add_argument(
        "--concurrency", type=_positive, default=64, metavar="N", help="calls at a time (default: 64)"
    )
    command.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="sessions in one call, pipelined (default: 1)"
    )
    command.add_argument(
        "--size-bytes", type=_positive, default=200, metavar="N", help="of each session, about (default: 200)"
    )
    command.add_argument(
        "--rate", type=_positive, metavar="N", help="sessions a second (default: as fast as it goes)"
    )
    command.add_argument("--ttl-ms", type=_whole, default=3_600_000, metavar="MS", help="default: an hour")


def _add_demo(commands: Commands[_Parser]) -> None:
    command = _command(
        commands,
        "demo",
        """\
        Starts four nodes on this machine, fills them with sessions, kills the primary with SIGKILL while a
        load is running, starts it again, and compares every acknowledged write with every copy. Exits 1 if
        anything was lost. Takes less than a minute, and cleans up after itself.
        """,
        """\
        hotspare demo
        hotspare demo --json 2> /dev/null
        """,
    )
    command.add_argument("--sessions", type=_positive, default=10_000, metavar="N", help="default: 10000")
    command.add_argument(
        "--plain", action="store_true", help="lines instead of a picture, also on a terminal"
    )
    _add_json(command)


def _add_version(commands: Commands[_Parser]) -> None:
    command = _command(commands, "version", "", "hotspare version --json")
    _add_json(command)


# The pieces that commands have in common


def _command(commands: Commands[_Parser], name: str, description: str, examples: str) -> _Parser:
    summary = _summary(name)
    command: _Parser = commands.add_parser(
        name,
        help=summary,
        description=_paragraphs(description) or f"{summary.capitalize()}.",
        epilog="examples:\n" + _indented(examples),
    )
    return command


def _client_command(commands: Commands[_Parser], name: str, description: str, examples: str) -> _Parser:
    command = _command(commands, name, description, examples)
    command.add_argument(
        "--node",
        type=_addresses,
        default=os.environ.get(NODE_VARIABLE) or DEFAULT_NODE,
        metavar="HOST:PORT,…",
        help=f"the nodes to ask, one after the other (default: ${NODE_VARIABLE}, or {DEFAULT_NODE})",
    )
    command.add_argument(
        "--timeout-ms", type=_positive, default=5000, metavar="MS", help="how long to try (default: 5000)"
    )
    _add_security(command)
    _add_json(command)
    return command


def _add_ack(command: _Parser) -> None:
    command.add_argument(
        "--ack",
        choices=("quorum", "all"),
        help="when to return (default: the setting ack, and quorum without one)",
    )


SECURITY = {
    "cluster_key_file": "the key that all nodes and clients share",
    "tls_cert": "the certificate to show, in PEM",
    "tls_key": "its private key",
    "tls_ca": "the certificate of the cluster's own authority",
}
"""Settings that are files, by name. Not the key itself: everybody can see the arguments of a process."""


def _add_security(command: _Parser) -> None:
    for key, what in SECURITY.items():
        command.add_argument(f"--{key.replace('_', '-')}", metavar="FILE", help=what)


def security(options: argparse.Namespace) -> dict[str, Any]:
    """Those settings, None where they were not given."""
    return {key: vars(options).get(key) for key in SECURITY}


def _add_json(command: _Parser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON; errors too, on stderr")


def _paragraphs(text: str) -> str:
    paragraphs = textwrap.dedent(text).strip().split("\n\n")
    return "\n\n".join(textwrap.fill(each, HELP_COLUMNS) for each in paragraphs)


def _indented(text: str) -> str:
    return "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())


def _rejecting(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows the message of its own exception only."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ConfigError as exc:
            raise argparse.ArgumentTypeError(f"{exc.problem}; expected {exc.expected}") from None
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None

    return parse


@_rejecting
def _address(text: str) -> str:
    return str(Address.parse(text.strip()))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@_rejecting
def _addresses(text: str) -> list[str]:
    addresses = [str(Address.parse(part)) for part in _list(text)]
    if not addresses:
        raise ValueError(f"{text!r} names no node; expected host:port, several separated by commas")
    return addresses


@_rejecting
def _whole(text: str) -> int:
    """What is allowed is said by the verb that takes it."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r:.40} is not a whole number") from None


@_rejecting
def _positive(text: str) -> int:
    number: int = _whole(text)
    if number < 1:
        raise ValueError(f"{text!r:.40} is less than 1")
    return number
