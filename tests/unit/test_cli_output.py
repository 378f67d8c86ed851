"""How values, ids and errors look when they are printed."""

from __future__ import annotations

import io
import json
import math
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from hotspare.cli.output import console, print_error, shown_id, thousands, to_json
from hotspare.errors import UnknownNode


def test_plain_data_is_printed_as_it_is():
    data = {"user": 7, "name": "Zoë", "tags": ["a", None, True, 1.5], "big": 2**64 - 1}
    assert json.loads(to_json(data)) == data


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\x00\xff", "base64:AP8="),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
        (date(2026, 1, 2), "2026-01-02"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Decimal("1.50"), "1.50"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (("a", b""), ["a", "base64:"]),
        ({"deep": [b"x"]}, {"deep": ["base64:eA=="]}),
    ],
)
def test_what_json_lacks_is_shown_as_text(value, shown):
    assert json.loads(to_json({"value": value})) == {"value": shown}


def test_json_cannot_steer_a_terminal():
    printed = to_json({"name": "\x1b[2J\x9b2J\x7f\u2028"})
    assert printed.isprintable()
    assert json.loads(printed) == {"name": "\x1b[2J\x9b2J\x7f\u2028"}


def test_json_stays_ascii_where_the_output_is_not_unicode(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert to_json("Zoë ☃") == '"Zo\\u00eb \\u2603"'


@pytest.mark.parametrize("id", ["alice", "a b", "Zoë", "{}", "[::1]:7401"])
def test_a_usual_id_is_shown_as_it_is(id):
    assert shown_id(id) == id


@pytest.mark.parametrize("id", ["two\nlines", "\x1b[31mred", '"quoted"', " padded ", "\u2028"])
def test_an_id_that_would_break_its_line_is_shown_as_json(id):
    assert shown_id(id).isprintable()
    assert shown_id(id) == shown_id(id).strip()
    assert json.loads(shown_id(id)) == id


def test_an_error_is_one_sentence_on_stderr(capsys):
    print_error(UnknownNode("b", ("a",)))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hotspare: this cluster has no node 'b'; its nodes are a\n"


def test_an_error_as_json_has_its_fields_and_its_sentence(capsys):
    error = UnknownNode("b", ("a",))
    print_error(error, as_json=True)
    assert json.loads(capsys.readouterr().err) == {
        "error": "UnknownNode",
        "node": "b",
        "known": ["a"],
        "message": str(error),
    }


def test_thousands_are_set_apart():
    assert [thousands(number) for number in (0, 999, 1000, 1234567.6)] == ["0", "999", "1 000", "1 234 568"]


def test_nothing_is_coloured_where_there_is_no_terminal(capsys):
    from rich.text import Text

    console().print(Text("x" * 150, "bold red"))
    assert capsys.readouterr().out == "x" * 150 + "\n"
