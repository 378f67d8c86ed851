"""Who may import whom. Imports point downward only, and what decides is pure.

The table below is the architecture in one place: a part may import the parts named beside it, all of which
stand above it here. A new part needs a line of its own. Pure parts take time and random numbers as arguments
and do no input or output: so the simulator can run a whole cluster in one thread, and replay it exactly.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hotspare

ROOT = Path(hotspare.__file__).parent

DECIDING = "errors events session rules data record store raft commands table protocol"
EVERYTHING_BELOW = (
    f"{DECIDING} settings encryption encoder store.plain store.lmdb store.reader store.journal replica "
    "engine cluster redis"
)

# `store` is the port alone; its adapters are parts of their own.
MAY_IMPORT: dict[str, frozenset[str]] = {
    part: frozenset(below.split())
    for part, below in {
        "errors": "",
        "settings": "errors",
        "events": "errors",
        "session": "",
        "rules": "errors",
        "data": "errors",
        "record": "errors rules data",
        "encryption": "errors settings record",
        "store": "errors",
        "raft": "errors",
        "commands": "errors data record",
        "table": "errors events rules data record store commands",
        "store.plain": "errors store",
        "store.lmdb": "errors store",
        "store.reader": "errors store store.lmdb",
        "store.journal": "errors store raft",
        "protocol": "errors events data record store store.journal raft commands table",
        "replica": f"{DECIDING} store.journal",
        "encoder": "errors rules data record commands",
        "engine": "errors events commands",
        "cluster": f"{DECIDING} settings store.plain store.lmdb store.reader store.journal replica engine",
        "redis": "errors events settings session rules data record commands engine",
        "portal": "errors commands engine",
        "replicator": EVERYTHING_BELOW,
        "blocking": f"{EVERYTHING_BELOW} portal replicator",
        "metrics": f"{EVERYTHING_BELOW} replicator blocking",
        "contrib": "errors events settings session replicator blocking metrics root",
        "cli": f"{EVERYTHING_BELOW} portal replicator blocking metrics root",
        "__main__": "cli",
    }.items()
}

# The package itself, which gathers the public names, may import everything; few may import it.
GATHERING = "root"

PURE = frozenset(f"{DECIDING} encoder store.journal replica".split())
PURE_MAY_INSTALL = {"msgspec"}
COMPRESSORS = {"record": {"zstandard"}}
IMPURE = frozenset(
    "_thread asyncio builtins concurrent ctypes fcntl glob importlib io logging mmap multiprocessing os "
    "pathlib queue random sched secrets select selectors shutil signal socket socketserver sqlite3 ssl "
    "subprocess tempfile threading time urllib http".split()
)
# Clocks and dice inside modules that are welcome otherwise, and the built-in functions that reach outside.
IMPURE_NAMES = {
    *("datetime.now", "datetime.today", "datetime.utcnow", "date.today"),
    *("uuid.uuid1", "uuid.uuid4", "uuid.getnode"),
    *("open", "print", "input", "eval", "exec", "__import__"),
}

BASE_INSTALL = {"lmdb", "msgspec", "rich"}
NEEDS_EXTRAS = {"redis", "contrib"}


class Import(NamedTuple):
    target: str
    line: int


def test_imports_point_downward_only():
    assert [each for name, tree in modules() for each in upward_imports(name, tree)] == []


def test_what_decides_is_pure():
    assert [each for name, tree in modules() for each in impurities(name, tree)] == []


def test_every_module_has_a_place_in_the_table():
    parts = {part_of(name) for name, _ in modules()}
    assert parts - {GATHERING} <= MAY_IMPORT.keys() | {part for part in parts if is_contrib(part)}


def test_the_base_install_is_enough_to_import_what_needs_no_extra():
    found = [
        f"{name}:{each.line} imports {each.target}"
        for name, tree in modules()
        if family(part_of(name)) not in NEEDS_EXTRAS
        for each in imports(name, tree, anywhere=False)
        if is_installed(each.target) and top(each.target) not in BASE_INSTALL
    ]
    assert found == []


def test_the_table_itself_points_downward():
    above: set[str] = {GATHERING}
    for part, below in MAY_IMPORT.items():
        assert below <= above, part
        above.add(part)


def test_pure_parts_may_import_pure_parts_only():
    for part in PURE:
        assert MAY_IMPORT[part] <= PURE, part


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Dotted names below the package, with a trailing dot for packages, and syntax trees."""
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix("__init__"), ast.parse(path.read_text(encoding="utf-8"), str(path))


def part_of(name: str) -> str:
    """The part that a module belongs to: its first word, and two words below store and contrib."""
    words = name.rstrip(".").split(".")
    return ".".join(words[: 2 if words[0] in ("store", "contrib") else 1]) or GATHERING


def is_contrib(part: str) -> bool:
    return family(part) == "contrib"


def family(part: str) -> str:
    return part.partition(".")[0]


def top(target: str) -> str:
    return target.partition(".")[0]


def is_installed(target: str) -> bool:
    return top(target) not in sys.stdlib_module_names and top(target) != "hotspare"


def imports(name: str, tree: ast.Module, *, anywhere: bool = True) -> Iterator[Import]:
    """What a module imports, by full names; without `anywhere` only what it needs to be imported at all."""
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(name, node)
            yield from (Import(f"{source}.{alias.name}", node.lineno) for alias in node.names)


def absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = ["hotspare", *name.split(".")][: -node.level]
    return ".".join([*base, *([node.module] if node.module else [])])


def imported_part(target: str) -> str | None:
    """The part that an import reaches, or None for what lies outside the package."""
    package, _, name = target.partition(".")
    if package != "hotspare":
        return None
    part = part_of(name)
    if part in MAY_IMPORT or is_contrib(part):
        return part
    # The last word may be a name inside a module, not a module.
    return family(part) if family(part) in MAY_IMPORT else GATHERING


def upward_imports(name: str, tree: ast.Module) -> list[str]:
    part = part_of(name)
    if part == GATHERING:
        return []
    allowed = MAY_IMPORT.get("contrib" if is_contrib(part) else part, frozenset()) | {part}
    return [
        f"{name}:{each.line} imports {each.target}"
        for each in imports(name, tree)
        if (reached := imported_part(each.target)) is not None and reached not in allowed
    ]


def impurities(name: str, tree: ast.Module) -> list[str]:
    part = part_of(name)
    if part not in PURE:
        return []
    welcome = PURE_MAY_INSTALL | COMPRESSORS.get(part, set())
    imported = list(imports(name, tree))
    found = [
        each
        for each in imported
        if top(each.target) in IMPURE
        or each.target in IMPURE_NAMES
        or (is_installed(each.target) and top(each.target) not in welcome)
    ]
    used = [
        Import(ast.unparse(node), node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.expr) and is_impure_use(node)
    ]
    return [f"{name}:{each.line} uses {each.target}" for each in found + used]


def is_impure_use(node: ast.expr) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr=attribute):
            return f"{owner}.{attribute}" in IMPURE_NAMES
        case ast.Attribute(value=ast.Attribute(attr=owner), attr=attribute):
            return f"{owner}.{attribute}" in IMPURE_NAMES
        case ast.Call(func=ast.Name(id=function)):
            return function in IMPURE_NAMES
    return False


# The checks themselves, on planted violations


def planted(name: str, code: str) -> list[str]:
    tree = ast.parse(code)
    return upward_imports(name, tree) + impurities(name, tree)


def test_an_import_that_points_upward_is_caught():
    for name, code in [
        ("errors", "from hotspare.settings import Settings"),
        ("session", "import hotspare.raft.node"),
        ("raft.node", "from hotspare import table"),
        ("raft.node", "from ..table import Table"),
        ("raft.", "from ..protocol.messages import Envelope"),
        ("raft.", "from .. import protocol"),
        ("table", "def f():\n    from hotspare.protocol import origin"),
        ("protocol.origin", "from hotspare import Settings"),
        ("protocol.origin", "import hotspare"),
        ("replica", "from hotspare.store.lmdb import LmdbStore"),
        ("replica", "from hotspare.store import lmdb"),
        ("store.plain", "from .lmdb import LmdbStore"),
        ("store.", "from . import plain"),
        ("cluster.node", "from hotspare.replicator import AsyncSessionReplicator"),
        ("replicator", "from hotspare.blocking import SessionReplicator"),
        ("contrib.flask", "from hotspare.contrib.django import SessionStore"),
        ("contrib.flask", "from .django import SessionStore"),
        ("contrib.flask", "from hotspare.cluster import node"),
        ("stranger", "from hotspare.errors import Unavailable"),
    ]:
        assert planted(name, code), (name, code)


def test_what_is_not_pure_is_caught():
    for name, code in [
        *(("raft.node", f"import {module}") for module in sorted(IMPURE)),
        ("protocol.clock", "from time import monotonic"),
        ("table", "def f():\n    import os.path"),
        ("table", "import datetime\nx = datetime.datetime.now()"),
        ("session", "from datetime import datetime\nx = datetime.utcnow"),
        ("session", "from datetime import date\nx = date.today()"),
        ("protocol.founding", "from uuid import uuid4"),
        ("protocol.founding", "import uuid\nx = uuid.uuid4()"),
        ("raft.log", "print('committed')"),
        ("store.journal", "open('log')"),
        ("raft.node", "import zstandard"),
        ("replica", "import lmdb"),
    ]:
        assert planted(name, code), (name, code)


def test_what_is_allowed_is_let_through():
    for name, code in [
        (
            "raft.node",
            "from .messages import Entry\nfrom hotspare.raft import quorum\nimport hotspare.errors",
        ),
        ("raft.", "from .node import Node\nfrom ..errors import Refused"),
        ("table", "import msgspec\nfrom hotspare.store import Transaction\nfrom datetime import datetime"),
        ("record", "import zstandard\nfrom uuid import UUID"),
        ("protocol.clock", "def f(clock, now):\n    return clock.now(), now"),
        ("replica", "from hotspare.store import Store, journal"),
        ("cluster.node", "import asyncio, socket\nfrom hotspare.store.lmdb import LmdbStore"),
        ("contrib.flask", "from hotspare import SessionReplicator\nimport flask"),
        (
            "cli.main",
            "from hotspare import __version__\nfrom hotspare.cluster import node\nfrom . import demo",
        ),
        ("", "from hotspare.replicator import AsyncSessionReplicator"),
    ]:
        assert planted(name, code) == [], (name, code)
