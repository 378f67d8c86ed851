from __future__ import annotations

import pytest

from hotspare.cli.events import line_of
from hotspare.events import (
    Event,
    Missed,
    PrimaryChanged,
    RoleChanged,
    SessionChanged,
    SessionCreated,
    SessionDeleted,
    SessionExpired,
    SessionRotated,
)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (SessionCreated("a", 1), "created  a  version 1"),
        (SessionChanged("a", 2, "updated"), "changed  a  version 2, updated"),
        (SessionRotated("b", 3, "a"), "rotated  b  version 3, was a"),
        (SessionDeleted("a\n", 4), 'deleted  "a\\n"  version 4'),
        (SessionExpired("\x1b[2J", 5), 'expired  "\\u001b[2J"  version 5'),
        (PrimaryChanged("", "n1", 3, 0), "primary  none  term 3, was n1"),
        (PrimaryChanged("n1", "", 1, 0), "primary  n1  term 1, was none"),
        (PrimaryChanged("n2", "n1", 4, 31), "primary  n2  term 4, was n1, after 31 ms without one"),
        (RoleChanged("primary", "secondary"), "role     primary  was secondary"),
        (Missed(7), "missed   7 events: read anew what matters"),
        (Missed(None), "missed   an unknown number of events: read anew what matters"),
    ],
)
def test_an_event_is_one_line_whatever_its_id_holds(event: Event, line: str):
    assert line_of(event) == line
