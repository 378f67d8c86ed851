"""`hotspare version`: what runs here, for reports of defects."""

from __future__ import annotations

import platform
from argparse import Namespace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from hotspare import __version__, table
from hotspare.cli.exits import Exit
from hotspare.cli.output import print_json

PARTS = ("lmdb", "msgspec", "rich", "uvloop", "zstandard", "redis")


def version(options: Namespace) -> int:
    found = {"hotspare": __version__, "python": platform.python_version(), "system": platform.platform()}
    found |= {part: installed for part in PARTS if (installed := _installed(part))}
    found["build"] = build()
    if options.json:
        print_json(found)
    else:
        for part, number in found.items():
            print(f"{part:<10} {number}")
    return Exit.DONE


def build() -> str:
    """Whether the modules that may be compiled are."""
    return "interpreted" if str(table.__file__).endswith(".py") else "compiled"


def _installed(part: str) -> str | None:
    try:
        return version_of(part)
    except PackageNotFoundError:
        return None
