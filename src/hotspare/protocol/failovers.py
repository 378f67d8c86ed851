"""The record of failovers: when, why, from whom to whom, and how long there was no primary.

Only the new leader knows why it took over: it was asked to, its connection to the old one broke, or the old
one was silent. So it tells the others; until then, and where its word is lost, each node goes by what it
saw itself.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import msgspec

from hotspare.raft.messages import Natural
from hotspare.raft.node import Parting

MAX_RECORDS = 100
"""The latest ones are kept."""
REASONS = ("killed", "silent", "ordered", "stopped")


class Failover(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="failover"):
    """One change of primary."""

    at_ms: Natural
    """UNIX time, by the clock of whoever tells it."""
    term: Natural
    old: str
    new: str
    """Names of nodes."""
    why: str
    """"killed" (its connections broke), "silent", "ordered" (by an operator), "stopped" (in good order)."""
    without_primary_ms: Natural

    def to_dict(self) -> dict[str, Any]:
        return {
            "at_ms": self.at_ms,
            "term": self.term,
            "from": self.old,
            "to": self.new,
            "why": self.why,
            "without_primary_ms": self.without_primary_ms,
        }


class Failovers:
    """Of one node, since it started."""

    def __init__(self) -> None:
        self.records: deque[Failover] = deque(maxlen=MAX_RECORDS)
        self.counts = Counter(dict.fromkeys(REASONS, 0))
        self._followed = ""
        self._told: Failover | None = None

    def follow(self, leader: str, term: int, parting: Parting, boot_ms: int, wall_ms: int) -> Failover | None:
        """A leader is known, by name: the record, if it is another one than before."""
        old, self._followed = self._followed, leader
        if not old or old == leader:
            return None
        why = parting.why or "silent"
        record = Failover(wall_ms, term, old, leader, why, max(0, boot_ms - parting.since_ms))
        if self._told is not None and self._told.term == term:
            record, self._told = self._told, None
        self._add(record)
        return record

    def told(self, record: Failover) -> None:
        """By the new leader, before or after we saw it lead."""
        if record.why not in REASONS:
            return
        if self.records and self.records[-1].term == record.term:
            self.counts[self.records.pop().why] -= 1
            self._add(record)
        elif not self.records or record.term > self.records[-1].term:
            self._told = record

    def _add(self, record: Failover) -> None:
        self.records.append(record)
        self.counts[record.why] += 1
