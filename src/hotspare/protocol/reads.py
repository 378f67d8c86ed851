"""Linearizable reads from any copy, and how fresh a copy is.

A read asks the leader up to which index everything was committed when it asked (ReadIndex: the dissertation,
6.4), waits until that is applied here, and reads here. The same question, asked now and then by the copy
itself, tells how fresh it is: once the answer is applied, the copy holds everything that was committed
when the question left. So a copy that was cut off, paused or just started knows that it does not know. With
the answer comes a lease (see `leases`): for how long, from then on, the copy may be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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

    def answered(self, context: int, index: int) -> bool:
        """Whether it counts: only the first answer to a question of ours does."""
        if self._unanswered.pop(context, None) is None:
            return False
        self._waiting[context] = index
        return True

    def forget(self, context: int) -> None:
        self._unanswered.pop(context, None)
        self._waiting.pop(context, None)

    @property
    def is_waiting(self) -> bool:
        """Whether a question has been answered by an index that was not applied yet."""
        return bool(self._waiting)

    def begin_anew(self) -> None:
        """Answers of another history mean nothing: everything is to be asked again."""
        self._unanswered |= dict.fromkeys(self._waiting, NEVER)
        self._waiting.clear()

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
    """As of when this copy is known to be complete, and the lease under which it may be read. All times are
    local and monotonic."""

    def __init__(self, max_staleness_ms: int) -> None:
        self.max_staleness_ms = max_staleness_ms
        """The longest lease that this copy asks for."""
        self._renewal: tuple[int, int] | None = None
        """(context, when it was asked first) of the question under way."""
        self._granted_ms = 0
        """The length of the lease that was the answer to it."""
        self._pause_ms = max_staleness_ms // 4
        self._first_context: int | None = None
        """Of the first question; None: there was none, or there will be no more."""
        self._is_closed = False
        self.fresh_as_of_ms = NEVER
        """Everything committed before this time is here; NEVER until it was learned once."""
        self.lease_end_ms = NEVER
        """The last time at which the copy may be read."""

    def renew(self, now_ms: int, start: Callable[[int], int]) -> int | None:
        """Begins a question when it is time for one: its context, to be asked by the caller."""
        is_due = self._renewal is None and now_ms - self.fresh_as_of_ms >= self._pause_ms
        if not is_due or self._is_closed:
            return None
        context = start(now_ms)
        self._renewal, self._granted_ms = (context, now_ms), 0
        if self._first_context is None:
            self._first_context = context
        self._last_context = context
        return context

    def is_ours(self, context: int) -> bool:
        """Whether this is the question under way."""
        return self._renewal is not None and self._renewal[0] == context

    def granted(self, context: int, lease_ms: int) -> None:
        """The answer came. It counts once it is ripe."""
        if self.is_ours(context):
            self._granted_ms = min(lease_ms, self.max_staleness_ms)

    def ripe(self, context: int) -> bool:
        """Whether this was our question, whose answer is applied now; if so, the copy is as fresh as the
        question is old, and the lease counts from there."""
        if self._renewal is None or self._renewal[0] != context:
            return False
        _, asked_ms = self._renewal
        self.fresh_as_of_ms = max(self.fresh_as_of_ms, asked_ms)
        self.lease_end_ms = max(self.lease_end_ms, asked_ms + self._granted_ms)
        self._pause_ms = self._granted_ms // 4
        self._renewal = None
        return True

    def forget(self) -> None:
        """It is not known any more whether anything is missing."""
        self._renewal = None
        self.fresh_as_of_ms = self.lease_end_ms = NEVER

    def give_up(self, now_ms: int) -> int | None:
        """The context of a question that has been under way for so long that its answer would be worth
        nothing; another one may begin."""
        if self._renewal is None or now_ms - self._renewal[1] < self.max_staleness_ms:
            return None
        context = self._renewal[0]
        self._renewal = None
        return context

    def close(self) -> tuple[int, int] | None:
        """This copy is not read any more, and asks for no more leases: the first and the last context of
        those it has asked for, if there are any."""
        self._is_closed, self._renewal = True, None
        self.lease_end_ms = NEVER
        return None if self._first_context is None else (self._first_context, self._last_context)


class Asker(NamedTuple):
    """Whose question it is that a leader has confirmed."""

    name: str
    """Empty for the leader itself."""
    context: int
    lease_ms: int
    """The length of the lease that goes with the answer."""


class Askers:
    """Leader: whose questions are being confirmed, under numbers of our own."""

    def __init__(self, first_number: int) -> None:
        self._next_number = first_number
        self._asked: dict[int, Asker] = {}

    def add(self, asker: Asker) -> int:
        """The number under which the consensus core confirms it."""
        self._next_number += 1
        self._asked[self._next_number] = asker
        return self._next_number

    def pop(self, number: int) -> Asker | None:
        return self._asked.pop(number, None)

    def clear(self) -> None:
        self._asked.clear()
