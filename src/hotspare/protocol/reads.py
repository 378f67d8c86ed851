"""Linearizable reads from any copy, and how fresh a copy is.

A read asks the leader up to which index everything was committed when it asked (ReadIndex: the dissertation,
6.4), waits until that is applied here, and reads here. The same question, asked now and then by the copy
itself, tells how fresh it is: once the answer is applied, the copy holds everything that was committed
when the question left. So a copy that was cut off, paused or just started knows that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable

NEVER = -1


class Reads:
    """The questions of one node, from asking to being readable."""

    def __init__(self, first_context: int, retry_ms: int) -> None:
        self._next_context = first_context
        """Random, so that an answer to a question of an earlier life is not taken for one of ours."""
        self._retry_ms = retry_ms
        self._unanswered: dict[int, int] = {}
        """context -> when it was asked last (ms)."""
        self._waiting: dict[int, int] = {}
        """context -> the index that must be applied."""

    def start(self, now_ms: int) -> int:
        """A new question, to be asked by the caller."""
        context = self._next_context
        self._next_context += 1
        self._unanswered[context] = now_ms
        return context

    def answered(self, context: int, index: int) -> None:
        if self._unanswered.pop(context, None) is not None:
            self._waiting[context] = index

    def forget(self, context: int) -> None:
        self._unanswered.pop(context, None)
        self._waiting.pop(context, None)

    @property
    def is_waiting(self) -> bool:
        """Whether a question has been answered by an index that was not applied yet."""
        return bool(self._waiting)

    def ripe(self, applied: int) -> list[int]:
        """The questions whose answers are applied now; they are done with."""
        ripe = [context for context, index in self._waiting.items() if index <= applied]
        for context in ripe:
            del self._waiting[context]
        return ripe

    def to_ask_again(self, now_ms: int, at_once: bool = False) -> list[int]:
        again = [
            context
            for context, asked_ms in self._unanswered.items()
            if at_once or now_ms - asked_ms >= self._retry_ms
        ]
        self._unanswered.update(dict.fromkeys(again, now_ms))
        return again


class Freshness:
    """As of when this copy is known to be complete. All times are local and monotonic."""

    def __init__(self, max_staleness_ms: int) -> None:
        self._max_staleness_ms = max_staleness_ms
        self._renewal: tuple[int, int] | None = None
        """(context, when it was asked first) of the question under way."""
        self.fresh_as_of_ms = NEVER
        """Everything committed before this time is here; NEVER until it was learned once."""

    def renew(self, now_ms: int, start: Callable[[int], int]) -> int | None:
        """Begins a question when it is time for one: its context, to be asked by the caller."""
        if self._renewal is not None or now_ms - self.fresh_as_of_ms < self._max_staleness_ms // 4:
            return None
        context = start(now_ms)
        self._renewal = (context, now_ms)
        return context

    def ripe(self, context: int) -> bool:
        """Whether this was our question; if so, the copy is as fresh as the question is old."""
        if self._renewal is None or self._renewal[0] != context:
            return False
        self.fresh_as_of_ms = max(self.fresh_as_of_ms, self._renewal[1])
        self._renewal = None
        return True

    def give_up(self, now_ms: int) -> int | None:
        """The context of a question that has been under way for so long that its answer would be worth
        nothing; another one may begin."""
        if self._renewal is None or now_ms - self._renewal[1] < self._max_staleness_ms:
            return None
        context = self._renewal[0]
        self._renewal = None
        return context


class Askers:
    """Leader: whose questions are being confirmed, under numbers of our own."""

    def __init__(self, first_number: int) -> None:
        self._next_number = first_number
        self._asked: dict[int, tuple[str, int]] = {}

    def add(self, asker: str, context: int) -> int:
        """The number under which the consensus core confirms it; `asker` is empty for this node."""
        self._next_number += 1
        self._asked[self._next_number] = (asker, context)
        return self._next_number

    def pop(self, number: int) -> tuple[str, int] | None:
        return self._asked.pop(number, None)

    def clear(self) -> None:
        self._asked.clear()
