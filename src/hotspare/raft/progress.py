"""What a leader knows of one follower: of one incarnation, never of a name.

A follower is in one of three states. In PROBE the leader does not know where the logs agree and has one
message under way at a time. In REPLICATE it does, and streams: `next` runs ahead of `match`, within bounds.
In SNAPSHOT the leader's log no longer reaches back far enough, and nothing is sent until a snapshot has
arrived or failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum

from .log import size_bytes
from .messages import Entry, ServerId

MAX_IN_FLIGHT_APPENDS = 64
MAX_IN_FLIGHT_BYTES = 8 * 1024 * 1024
"""Unanswered messages to one follower. Enough for a round trip of a fast network; a slow follower costs no
more."""


class State(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    __slots__ = (
        "active",
        "heard_ms",
        "id",
        "in_flight",
        "in_flight_bytes",
        "match",
        "next",
        "reachable",
        "round",
        "state",
        "told_commit",
        "waiting_since_ms",
    )

    match: int
    """Up to here the follower durably holds the leader's log. match < next."""

    next: int
    """The entry to send next."""

    told_commit: int
    """The commit index that the follower was told last. It may have got lost: every heartbeat repeats it."""

    round: int
    """The last heartbeat round that the follower answered."""

    active: bool
    """Heard from within the last election timeout."""

    heard_ms: int
    """When it was heard from last (or could not have been heard before: the start of a term, the end of a
    pause)."""

    reachable: bool
    """False from the moment its connection was lost until it is back or heard from: nothing is sent
    meanwhile."""

    waiting_since_ms: int | None
    """Since when an answer is due, if one is: since the oldest message in flight or the last answer."""

    def __init__(self, id: ServerId, next: int, now_ms: int, *, reachable: bool) -> None:
        self.id = id
        self.match = 0
        self.next = next
        self.told_commit = 0
        self.round = 0
        self.active = False
        self.heard_ms = now_ms
        self.reachable = reachable
        self.state = State.PROBE
        self.waiting_since_ms = None
        self.in_flight: deque[tuple[int, int]] = deque()  # last index and size of each message, oldest first
        self.in_flight_bytes = 0

    # -- sending -------------------------------------------------------------------------------------------

    def may_send(self, last_index: int) -> bool:
        """Whether an Append should leave now, given where the leader's log ends."""
        if not self.reachable:
            return False
        if self.state is State.REPLICATE:
            if self.next > last_index:
                return False
            return len(self.in_flight) < MAX_IN_FLIGHT_APPENDS and self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
        return self.state is State.PROBE and self.match < last_index and self.waiting_since_ms is None

    def is_behind_commit(self, commit: int) -> bool:
        """Whether it could be told of more that is committed and that it holds."""
        told = self.told_commit
        return told < commit and told < self.match and self.reachable

    def sent(self, entries: Sequence[Entry], commit: int, now_ms: int) -> None:
        if self.waiting_since_ms is None:
            self.waiting_since_ms = now_ms
        if self.state is State.REPLICATE:
            last, sent_bytes = entries[-1].index, size_bytes(entries)
            self.next = last + 1
            told = commit if commit < last else last
            if told > self.told_commit:
                self.told_commit = told
            self.in_flight.append((last, sent_bytes))
            self.in_flight_bytes += sent_bytes

    # -- hearing -------------------------------------------------------------------------------------------

    def heard(self, now_ms: int) -> None:
        self.heard_ms = now_ms
        self.active = True
        self.reachable = True

    def acknowledged(self, index: int, now_ms: int) -> None:
        """The follower holds everything up to `index`."""
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
        self.waiting_since_ms = now_ms if self.in_flight else None
        if index >= self.match:
            self.match = index
            if self.state is State.PROBE:
                self.state = State.REPLICATE
                self.next = index + 1
        if self.next <= self.match:
            self.next = self.match + 1

    def rejected(self, index: int, agreed: int) -> None:
        """The follower's log does not match at `index`; it may at `agreed`."""
        is_stale = index <= self.match or (self.state is State.PROBE and index != self.next - 1)
        if is_stale or self.state is State.SNAPSHOT:
            return
        self.probe(min(index, agreed + 1))

    # -- changing state ------------------------------------------------------------------------------------

    def probe(self, next: int = 0) -> None:
        """Begins anew from what is certain (or from `next`, where that is better)."""
        self.state = State.PROBE
        self.next = max(self.match + 1, next)
        self.told_commit = 0
        self.waiting_since_ms = None
        self.in_flight.clear()
        self.in_flight_bytes = 0

    def await_snapshot(self) -> None:
        self.probe()
        self.state = State.SNAPSHOT

    def lost(self) -> None:
        self.probe()
        self.active = False
        self.reachable = False

    def retry_if_silent(self, now_ms: int, patience_ms: int) -> bool:
        """Messages get lost: what was not answered in so long is sent again."""
        is_silent = self.waiting_since_ms is not None and now_ms - self.waiting_since_ms >= patience_ms
        if is_silent:
            self.probe()
        return is_silent
