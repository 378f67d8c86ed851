"""The home node's promise to its origins: what they handed over reaches whoever leads, until it is answered.

Messages and leaders get lost; groups of commands do not mind being sent twice (the state machine knows their
numbers). So a home node keeps every group until its outcome was applied here, and sends all of them again, in
order, whenever there is a new leader or a new connection to it, and now and then while nothing moves.
"""

from __future__ import annotations

from hotspare.commands import RawGroup

LONG_AGO_MS = -(1 << 62)


class _Pending:
    """The groups of one origin that have no outcome."""

    __slots__ = ("groups", "has_gap", "moved_ms", "sent_again_ms")

    moved_ms: int
    """When one of them was answered, or the first one came, or all were sent again."""

    def __init__(self, now_ms: int) -> None:
        self.moved_ms = now_ms
        self.groups: dict[int, RawGroup] = {}
        """By first number."""
        self.has_gap = False
        """One was refused because one before it is missing."""
        self.sent_again_ms = LONG_AGO_MS

    def is_due(self, now_ms: int, retry_ms: int) -> bool:
        if self.has_gap and now_ms - self.sent_again_ms >= retry_ms // 8:
            return True
        return now_ms - self.moved_ms >= retry_ms

    def take_all(self, now_ms: int) -> list[RawGroup]:
        self.moved_ms = self.sent_again_ms = now_ms
        self.has_gap = False
        return [self.groups[first] for first in sorted(self.groups)]


class Relay:
    """Groups and registrations without an outcome. Each origin is looked after by itself: what is lost of one
    must not wait until all others are quiet."""

    def __init__(self, retry_ms: int) -> None:
        self._retry_ms = retry_ms
        self._origins: dict[int, _Pending] = {}
        self._nonces: dict[bytes, int] = {}
        """Registrations asked for -> when they were passed on last (ms)."""

    def __bool__(self) -> bool:
        return bool(self._origins or self._nonces)

    @property
    def pending_commands(self) -> int:
        return sum(group.count for pending in self._origins.values() for group in pending.groups.values())

    @property
    def pending_groups(self) -> set[tuple[int, int]]:
        """(origin, first number) of each."""
        return {(origin, first) for origin, pending in self._origins.items() for first in pending.groups}

    def add(self, group: RawGroup, now_ms: int) -> None:
        pending = self._origins.get(group.origin)
        if pending is None:
            pending = self._origins[group.origin] = _Pending(now_ms)
        pending.groups[group.first] = group

    def enrol(self, nonce: bytes, now_ms: int) -> None:
        self._nonces[nonce] = now_ms

    def answered(self, origin: int, first: int, now_ms: int) -> bool:
        """An outcome was applied here; was the group one of ours?"""
        pending = self._origins.get(origin)
        if pending is None or pending.groups.pop(first, None) is None:
            return False
        pending.moved_ms = now_ms
        if not pending.groups:
            del self._origins[origin]
        return True

    def stumbled(self, origin: int) -> None:
        """A group was refused because one before it is missing: send all again soon, but only once."""
        pending = self._origins.get(origin)
        if pending is not None:
            pending.has_gap = True

    def enrolled(self, nonce: bytes) -> bool:
        return self._nonces.pop(nonce, None) is not None

    def forget(self, origin: int) -> bool:
        """The origin is gone, or its registration is; was it one of ours?"""
        return self._origins.pop(origin, None) is not None

    def forget_nonce(self, nonce: bytes) -> None:
        self._nonces.pop(nonce, None)

    def to_send_again(self, now_ms: int, at_once: bool = False) -> tuple[list[RawGroup], list[bytes]]:
        """All groups, in order, of each origin of which nothing has moved for a while (or of all `at_once`);
        and the nonces that nothing was heard of."""
        groups: list[RawGroup] = []
        for pending in self._origins.values():
            if at_once or pending.is_due(now_ms, self._retry_ms):
                groups += pending.take_all(now_ms)
        asked = self._nonces.items()
        nonces = [nonce for nonce, ms in asked if at_once or now_ms - ms >= self._retry_ms]
        self._nonces.update(dict.fromkeys(nonces, now_ms))
        return groups, nonces
