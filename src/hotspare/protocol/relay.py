"""The home node's promise to its origins: what they handed over reaches whoever leads, until it is answered.

Messages and leaders get lost; groups of commands do not mind being sent twice (the state machine knows their
numbers). So a home node keeps every group until its outcome was applied here, and sends all of them again, in
order, whenever there is a new leader or a new connection to it, and now and then while nothing moves.
"""

from __future__ import annotations

from hotspare.table import RawGroup


class Relay:
    """Groups and registrations without an outcome, in the order in which they came."""

    def __init__(self, retry_ms: int) -> None:
        self._retry_ms = retry_ms
        self._groups: dict[int, dict[int, RawGroup]] = {}
        self._nonces: dict[bytes, None] = {}
        self._quiet_since_ms = 0
        self._sent_again_ms = 0
        self._gap = False

    def __bool__(self) -> bool:
        return bool(self._groups or self._nonces)

    @property
    def pending_commands(self) -> int:
        return sum(group.count for groups in self._groups.values() for group in groups.values())

    @property
    def pending_groups(self) -> set[tuple[int, int]]:
        """(origin, first number) of each."""
        return {(origin, first) for origin, groups in self._groups.items() for first in groups}

    def add(self, group: RawGroup, now_ms: int) -> None:
        if not self:
            self._quiet_since_ms = now_ms
        self._groups.setdefault(group.origin, {})[group.first] = group

    def enrol(self, nonce: bytes, now_ms: int) -> None:
        if not self:
            self._quiet_since_ms = now_ms
        self._nonces[nonce] = None

    def answered(self, origin: int, first: int, now_ms: int) -> bool:
        """An outcome was applied here; was the group one of ours?"""
        groups = self._groups.get(origin)
        if groups is None or groups.pop(first, None) is None:
            return False
        if not groups:
            del self._groups[origin]
        self._quiet_since_ms = now_ms
        return True

    def stumbled(self) -> None:
        """A group was refused because one before it is missing: send again soon, but once for all of them."""
        self._gap = True

    def enrolled(self, nonce: bytes) -> bool:
        found = nonce in self._nonces
        self._nonces.pop(nonce, None)
        return found

    def forget(self, origin: int) -> bool:
        """The origin is gone, or its registration is; was it one of ours?"""
        return self._groups.pop(origin, None) is not None

    def forget_nonce(self, nonce: bytes) -> None:
        self._nonces.pop(nonce, None)

    def to_send_again(self, now_ms: int, at_once: bool = False) -> tuple[list[RawGroup], list[bytes]]:
        """Everything, if nothing has moved for a while (or `at_once`); else nothing."""
        if not self or not (at_once or self._is_due(now_ms)):
            return [], []
        self._quiet_since_ms = self._sent_again_ms = now_ms
        self._gap = False
        groups = [by_first[first] for by_first in self._groups.values() for first in sorted(by_first)]
        return groups, list(self._nonces)

    def _is_due(self, now_ms: int) -> bool:
        if self._gap and now_ms - self._sent_again_ms >= self._retry_ms // 8:
            return True
        return now_ms - self._quiet_since_ms >= self._retry_ms
