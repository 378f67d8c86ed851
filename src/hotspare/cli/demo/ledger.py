"""What was acknowledged, and whether a copy shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Audit", "Ledger"]

Data: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Audit:
    """One copy against the ledger: numbers of sessions."""

    checked: int
    lost: int
    """Acknowledged, and not there."""
    different: int
    """There, with other data than was acknowledged last."""
    unexpected: int
    """There, though deleted or never written."""

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.different or self.unexpected)


class Ledger:
    """For each session what it may be now: data, or None for absent.

    That is one thing after an acknowledged write, and more after one whose outcome is unknown. Writes of one
    session must not overlap: their order would be unknown too.
    """

    def __init__(self) -> None:
        self.acknowledged = 0
        """Writes."""
        self._possible: dict[str, tuple[Data | None, ...]] = {}

    def begin(self, id: str, data: Data | None) -> None:
        """A write is about to be sent; None deletes."""
        self._possible[id] = (*self._possible.get(id, (None,)), data)

    def acknowledge(self, id: str) -> None:
        self._possible[id] = self._possible[id][-1:]
        self.acknowledged += 1

    def withdraw(self, id: str) -> None:
        """The write was certainly not applied."""
        self._possible[id] = self._possible[id][:-1]

    def audit(self, copy: Mapping[str, Data]) -> Audit:
        lost = different = unexpected = 0
        for id, possible in self._possible.items():
            found = copy.get(id)
            if found in possible:
                continue
            if found is None:
                lost += 1
            elif possible == (None,):
                unexpected += 1
            else:
                different += 1
        strangers = len(copy.keys() - self._possible.keys())
        return Audit(len(self._possible), lost, different, unexpected + strangers)
