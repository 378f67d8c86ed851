"""How loudly to say what others do wrong: health checks, scanners and broken peers come back every second."""

from __future__ import annotations

import logging

MAX_COMPLAINTS = 256
"""Distinct ones; each is a warning once, until so many others have been."""


class Complaints:
    """Those of one node, or of one part of it."""

    def __init__(self) -> None:
        self._made: set[str] = set()

    def level(self, complaint: str) -> int:
        """At which level of `logging` to say it now."""
        level = logging.DEBUG if complaint in self._made else logging.WARNING
        if len(self._made) >= MAX_COMPLAINTS:
            self._made.clear()
        self._made.add(complaint)
        return level
