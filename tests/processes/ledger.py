"""What the clients of a load asked for and were told, and what may therefore be in the copies afterwards.

Two kinds of sessions are kept apart. A few are contended: what is done with them is a history in the
simulator's form, judged by its search for an order that explains everything. Many are touched by one writer
only: for each of them there is a short list of what it may hold in the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeAlias

from tests.simulation import linearizability
from tests.simulation.history import FOREVER, Condition, Operation, Verb, Verdict

SKEW_MS = 500
"""How far the cluster's clock may be from this machine's (which all nodes share): `max_clock_skew_ms`."""

Data: TypeAlias = Mapping[str, Any]


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class History:
    """The operations on contended sessions, with moments that are numbered as they are observed here."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._number = 0
        self._moment = 0
        self._deadlines: dict[int, float] = {}

    def begin(self, client: str, verb: Verb, id: str, timeout_ms: int) -> Operation:
        self._number += 1
        operation = Operation(self._number, client, verb, id)
        operation.invoked = self._next_moment()
        operation.earliest_ms = wall_ms() - SKEW_MS
        self._deadlines[operation.number] = time.monotonic() + timeout_ms / 1000
        return operation

    def end(self, operation: Operation, verdict: Verdict, version: int = 0) -> None:
        operation.returned = self._next_moment()
        operation.latest_ms = wall_ms() + SKEW_MS
        operation.verdict, operation.version = verdict, version
        self.operations.append(operation)

    def end_unknown(self, operation: Operation) -> None:
        """It took effect before its deadline or never. Whoever hears so only after the deadline (and the skew
        allowed for) may rely on it; before, it may still happen at any time."""
        self.end(operation, Verdict.UNKNOWN)
        if time.monotonic() < self._deadlines[operation.number] + SKEW_MS / 1000:
            operation.returned = operation.latest_ms = FOREVER

    def problems(self) -> list[str]:
        """What no order of the operations explains, in words."""
        failure = linearizability.check(self.operations)
        return [] if failure is None else [str(failure)]

    def _next_moment(self) -> int:
        self._moment += 1
        return self._moment


class Ledger:
    """What each session that has one writer only may hold: None stands for "no such session"."""

    def __init__(self) -> None:
        self.acknowledged = 0
        """Writes."""
        self._possible: dict[str, list[Data | None]] = {}

    def done(self, id: str, data: Data | None) -> None:
        self.acknowledged += 1
        self._possible[id] = [data]

    def unknown(self, id: str, data: Data | None) -> None:
        self._possible[id] = [*self._possible.get(id, [None]), data]

    def refused(self, id: str) -> None:
        """It stays as it was: if it was never stored, it must not be there."""
        self._possible.setdefault(id, [None])

    def contradictions(self, found: Mapping[str, Data], prefix: str) -> list[str]:
        """In words. Every session with this prefix is one of ours."""
        problems = []
        for id, possible in self._possible.items():
            if found.get(id) not in possible:
                problems.append(f"{id} is {found.get(id)}, and may be {' or '.join(map(str, possible))}")
        strangers = [id for id in found if id.startswith(prefix) and id not in self._possible]
        return problems + [f"{id} is there, and nobody stored it" for id in strangers]


__all__ = ["Condition", "Data", "History", "Ledger", "Operation", "Verb", "Verdict", "wall_ms"]
