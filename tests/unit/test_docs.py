"""The documentation says what is the case: examples are executed, tables are compared with the code.

Examples are blocks of ```python; those of one file run in order in one namespace. What they print is
compared with the comment behind each print. Addresses in them stand for free ones: 127.0.0.1:7401 to 7404
for a cluster that runs already, the others for nodes that an example starts.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import hotspare
from hotspare import SessionReplicator, Settings, errors, events
from hotspare.cli import arguments, exits
from hotspare.cluster.remote import RemoteEngine
from hotspare.errors import Unavailable
from hotspare.settings import AVAILABLE
from tests.unit.clusters import PATIENCE_SECONDS, free_addresses

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*.md")])
GUIDE, GUARANTEES = ROOT / "docs" / "guide.md", ROOT / "docs" / "guarantees.md"
CLI = ROOT / "docs" / "cli.md"
MAX_COLUMNS = 120

RUNNING = [f"127.0.0.1:{port}" for port in range(7401, 7405)]
"""In examples: the cluster that the shell's examples start."""
STARTED = [f"127.0.0.1:{port}" for port in range(7411, 7415)]
"""In examples: nodes that Python's examples start."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if found[1] in languages
    ]


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", page.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"{name_of(page)} has no section {heading!r}"
    return found[1]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table's rows, without the heading."""
    found = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
        for table in found
    ]


def first_column(text: str) -> list[str]:
    (table,) = tables(text)
    return [row[0].strip("`") for row in table]


# Examples


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of four daemons that have founded a cluster."""
    addresses = free_addresses(4)
    directory = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        log = stack.enter_context((directory / "log").open("w"))
        for address in addresses:
            options = ["--node", address, "--replicas", ",".join(addresses), "--data-dir", address]
            command = [sys.executable, "-m", "hotspare", "serve", *options]
            daemon = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log, cwd=directory))
            stack.callback(daemon.terminate)
        wait_until_ready(addresses)
        yield addresses


def wait_until_ready(addresses: list[str]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while addresses:
        assert time.monotonic() < give_up
        with suppress(Unavailable), SessionReplicator(engine=RemoteEngine(addresses[-1:])) as client:
            if client.get_replication_status()["ready"]:
                addresses = addresses[:-1]
        time.sleep(0.02)


def with_free_addresses(text: str, running: list[str], started: list[str]) -> str:
    """Ports stand in addresses and, in Python, by themselves."""
    for written, free in zip([*RUNNING, *STARTED], [*running, *started], strict=True):
        text = re.sub(rf"\b{written.rpartition(':')[2]}\b", str(int(free.rpartition(":")[2])), text)
    return text


def expected_lines(text: str) -> list[str]:
    return re.findall(r"^\s*print\(.*\)  # (.*)$", text, re.MULTILINE)


PAGES_WITH_EXAMPLES = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=name_of)
def test_the_examples_do_what_they_say(page: Path, cluster: list[str]):
    started = free_addresses(len(STARTED))
    namespace: dict[str, Any] = {"__name__": "example"}
    try:
        for block in blocks(page, "python"):
            text = with_free_addresses(block.text, cluster, started)
            code = compile("\n" * (block.line - 1) + text, name_of(page), "exec")
            output = io.StringIO()
            with redirect_stdout(output):
                exec(code, namespace)
            assert output.getvalue().splitlines() == expected_lines(text), f"line {block.line} and following"
    finally:
        stop_all(namespace)


def stop_all(namespace: dict[str, Any]) -> None:
    for value in [*namespace.values(), *namespace.get("nodes", ())]:
        if isinstance(value, SessionReplicator):
            value.stop()


def test_there_are_examples_of_what_reads_and_writes():
    written = "".join(block.text for page in PAGES for block in blocks(page, "python"))
    for verb in public_verbs():
        assert "session" not in verb or verb == "get_all_sessions" or f".{verb}(" in written, verb


@pytest.mark.parametrize("name", ["quickstart.py", "quickstart_async.py"])
def test_the_programs_among_the_examples_run(name: str, tmp_path: Path):
    text = (ROOT / "examples" / name).read_text()
    program = tmp_path / name
    program.write_text(with_free_addresses(text, free_addresses(4), free_addresses(4)))
    ended = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "alice" in ended.stdout or "visits" in ended.stdout


def test_the_recipe_among_the_examples_works():
    ports = " ".join(address.rpartition(":")[2] for address in free_addresses(4))
    environment = os.environ | {"PORTS": ports, "HOTSPARE": str(Path(sys.executable).with_name("hotspare"))}
    ended = subprocess.run(
        ["sh", ROOT / "examples" / "four_nodes.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert '"user": 7' in ended.stdout, "the session outlived the primary"
    assert "unreachable" in ended.stdout


def test_the_settings_file_in_the_guide_is_one(tmp_path: Path):
    (block,) = blocks(GUIDE, "toml")
    file = tmp_path / "hotspare.toml"
    file.write_text(block.text)
    assert Settings.load(file, {}).replica_nodes == ("127.0.0.1:7402", "127.0.0.1:7403")


# The command line


def commands_in(text: str) -> Iterator[list[str]]:
    """The arguments of every `hotspare …` in a piece of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("$ALL", ",".join(RUNNING)), comments=True)
        while words and "=" in words[0]:
            words.pop(0)
        if words[:1] == ["hotspare"]:
            ends = [
                position for position, word in enumerate(words) if word in {"|", "<", ">", "2>", "&", "&&"}
            ]
            yield words[1 : min(ends, default=len(words))]


SHELL = [block for page in PAGES for block in blocks(page, "sh", "console")]


@pytest.mark.parametrize("block", SHELL, ids=[f"{name_of(block.page)}:{block.line}" for block in SHELL])
def test_every_command_in_the_documentation_can_be_typed(block: Block):
    for words in commands_in(block.text):
        assert arguments.parse(words).command == words[0]


def subcommands() -> dict[str, Any]:
    (found,) = (action.choices for action in arguments.build_parser()._actions if action.dest == "command")
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_is_mentioned_exists(page: Path):
    mentioned = re.findall(r"`hotspare ([a-z][a-z-]*)", page.read_text())
    assert set(mentioned) <= set(subcommands())
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("name", subcommands())
def test_every_command_has_a_section_with_its_options(name: str):
    text = section(CLI, name)
    common = section(CLI, "Which node is asked") if name in client_commands() else ""
    assert [words for block in blocks(CLI, "sh") for words in commands_in(block.text) if words[0] == name]
    for action in subcommands()[name]._actions:
        for option in action.option_strings:
            if option not in ("-h", "--help"):
                assert f"{option} " in text + common or f"{option}`" in text + common


def client_commands() -> set[str]:
    return {name for name, parser in subcommands().items() if "--timeout-ms" in parser.format_help()}


def test_the_commands_without_a_node_to_ask_are_those_that_are_named():
    (named,) = re.findall(r"Every command but (.*) asks a running node", CLI.read_text())
    assert set(re.findall(r"`([a-z-]+)`", named)) == set(subcommands()) - client_commands()


def test_the_exit_codes_are_these():
    (table,) = tables(section(CLI, "Exit codes"))
    told = {int(code): meaning for code, meaning in table}
    assert told == {int(code): meaning for code, meaning in exits.MEANINGS.items()}


# Tables


def written_default(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return f"`{str(value).lower()}`"
        case tuple():
            return f"`{list(value)}`"
    return f"`{value}`"


def test_the_settings_are_all_there_with_their_defaults():
    (table,) = tables(section(GUIDE, "Settings"))
    told = [(key.strip("`"), default) for key, default, _ in table]
    fields = Settings.__struct_fields__
    actual = [(key, written_default(getattr(Settings(), key))) for key in fields]
    assert sorted(told) == sorted(actual)
    assert all(note.strip(" |") for _, _, note in table)


def test_settings_whose_feature_is_to_come_say_so():
    (table,) = tables(section(GUIDE, "Settings"))
    to_come = {key.strip("`") for key, _, note in table if "to come" in note}
    assert to_come == set(AVAILABLE)


def test_the_errors_are_all_there():
    assert sorted(first_column(section(GUIDE, "Errors"))) == sorted(
        {*errors.__all__} - {"HotspareError", "from_dict"}
    )


def test_the_events_are_all_there_with_their_fields():
    (table,) = tables(section(GUIDE, "Events"))
    told = {name.strip("`"): set(re.findall(r"`(\w+)`", fields)) for name, fields, _ in table}
    kinds = {name: getattr(events, name) for name in events.__all__ if name != "Event"}
    assert told == {name: {*kind.__struct_fields__} for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[SessionReplicator]:
    addresses = free_addresses(2)
    first, second = (SessionReplicator(Settings(node=address)) for address in addresses)
    with first, second:
        first.start_cluster(addresses[1:])
        yield first


def test_the_status_is_explained_key_by_key(two_nodes: SessionReplicator):
    status = two_nodes.get_replication_status()
    own, of_member = tables(section(GUIDE, "Status"))
    assert [row[0].strip("`") for row in own] == list(status)
    assert [row[0].strip("`") for row in of_member] == list(status["replica_nodes"][0])


def test_the_metrics_are_explained_key_by_key(two_nodes: SessionReplicator):
    assert first_column(section(GUIDE, "Metrics")) == list(two_nodes.get_metrics())


def test_every_verb_is_in_the_guide_with_its_arguments():
    told = dict(re.findall(r"`(\w+)\((.*?)\)`", section(GUIDE, "The verbs")))
    verbs = public_verbs()
    assert set(told) == set(verbs)
    for name, written in told.items():
        (signature,) = ast.parse(f"def verb({written}): ...").body
        assert isinstance(signature, ast.FunctionDef)
        assert {each.arg for each in [*signature.args.args, *signature.args.kwonlyargs]} <= {*verbs[name]}


def public_verbs() -> dict[str, Mapping[str, inspect.Parameter]]:
    return {
        name: inspect.signature(verb).parameters
        for name, verb in inspect.getmembers(SessionReplicator, inspect.isfunction)
        if not name.startswith("_")
    }


# Guarantees


def names_in(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text()).body:
        within = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for each in within:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test_"):
                names.add(prefix + each.name)
    return names


def promises() -> dict[str, list[tuple[str, str]]]:
    """Numbered heading -> the tests named under it."""
    found = re.findall(
        r"^### (\d+\. [^\n]*)\n(.*?)(?=^##|\Z)", GUARANTEES.read_text(), re.MULTILINE | re.DOTALL
    )
    return {heading: re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", text) for heading, text in found}


@pytest.mark.parametrize("promise", promises())
def test_every_promise_names_tests_that_exist(promise: str):
    named = promises()[promise]
    assert named
    for path, name in named:
        assert name in names_in(ROOT / path), f"{path} has no {name}"


def test_nothing_is_unpickled_or_evaluated():
    """Session data, messages, files: whatever came from outside stays data."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "marshal", "shelve", "dill"} & {*modules}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__"), path


# Form


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.M)
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
    for reference in re.findall(r"\]\[([^\]]+)\]", text):
        assert f"\n[{reference}]: " in text, reference


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_fit_and_tables_have_as_many_cells_in_every_row(page: Path):
    text = page.read_text()
    for line in re.sub(r"^<!-- numbers -->.*?^<!-- /numbers -->", "", text, flags=re.M | re.S).splitlines():
        assert len(line) <= MAX_COLUMNS or "https://" in line or "::" in line, line
        assert line == line.rstrip(), line
    for table in tables(text):
        assert len({len(row) for row in table}) == 1, table[0]


def test_the_changelog_has_a_place_for_what_comes_next():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert hotspare.__version__ in headings[1:] or len(headings) == 1
