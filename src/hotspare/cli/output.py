"""What the command line prints: data on stdout, messages on stderr, colours on terminals only.

JSON has no bytes, times, UUIDs, decimals, NaN or infinities. They are shown as text: bytes as `base64:…`,
times in ISO 8601, the others as Python writes them. That is for reading; stored again, they would stay text.
"""

from __future__ import annotations

import json
import math
import re
import sys
from base64 import b64encode
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hotspare.errors import HotspareError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "console",
    "presentable",
    "print_error",
    "print_json",
    "say",
    "shown_id",
    "thousands",
    "to_json",
]

# Sessions hold what strangers typed, and these can steer a terminal. json escapes what is below the space.
CONTROL_CHARACTERS = re.compile("[\x7f-\x9f\u2028\u2029]")

# Without a terminal nobody wraps: a table in a pipe keeps one line a row.
PIPE_COLUMNS = 200


def to_json(value: Any, *, indent: int | None = None) -> str:
    encoded = json.dumps(presentable(value), ensure_ascii=not _is_unicode(), indent=indent, allow_nan=False)
    return CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match.group()):04x}", encoded)


def presentable(value: Any) -> Any:
    """The same with nothing in it that JSON lacks."""
    match value:
        case dict():
            return {key: presentable(each) for key, each in value.items()}
        case list() | tuple():
            return [presentable(each) for each in value]
        case float() if not math.isfinite(value):
            return str(value)
        case bytes():
            return f"base64:{b64encode(value).decode()}"
        case date():  # and datetime, which is one
            return value.isoformat()
        case UUID() | Decimal():
            return str(value)
    return value


def print_json(value: Any, *, at_once: bool = False) -> None:
    """One line, so that lines of several commands can be told apart. `at_once`: even into a pipe."""
    print(to_json(value), flush=at_once)


def shown_id(id: str) -> str:
    """The id, or the id as a JSON string where it would break the line or steer the terminal."""
    return id if id.isprintable() and not id.startswith('"') and id.strip() == id else to_json(id)


def say(message: str) -> None:
    """A message for people, which is not what the command was asked for."""
    print(message, file=sys.stderr)


def print_error(error: HotspareError, *, as_json: bool = False) -> None:
    say(to_json(error.to_dict() | {"message": str(error)}) if as_json else f"hotspare: {error}")


def thousands(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")


def console(*, stderr: bool = False) -> Console:
    # Imported here: most commands print a line, and rich takes longer to import than they take to run.
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream is not None and stream.isatty()
    return Console(stderr=stderr, highlight=False, markup=False, width=None if is_terminal else PIPE_COLUMNS)


def _is_unicode() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or ""
    return encoding.lower().replace("-", "") in ("utf8", "utf16", "utf32")
