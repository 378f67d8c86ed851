"""An operator's words (`promote`, `failover`) on their way to the leader, and until they have come true.

The node that was asked keeps the question until it is answered, and asks again when the leader changes: both
operations may be performed twice without harm. The leader keeps what it has begun until it can be seen to have
happened: a transfer when somebody else leads, a membership change when it is committed.
"""

from __future__ import annotations

from typing import NamedTuple

from hotspare.raft.messages import NOBODY
from hotspare.raft.node import Node


class Route(NamedTuple):
    """Where the reply goes: a node's name (empty: here) and its context."""

    asker: str
    context: int


class _Asked(NamedTuple):
    verb: str
    argument: str
    last_leader: tuple[str, int]


class _Transfer(NamedTuple):
    route: Route
    target: str
    old_leader: str


class Operations:
    """The operations of one node: those it asks for, and those it performs while it leads."""

    def __init__(self, first_context: int) -> None:
        self._next_context = first_context
        self._asked: dict[int, _Asked] = {}
        self._transfers: list[_Transfer] = []
        self._changes: list[tuple[Route, int, int, str]] = []
        """(who asked, index and term of the change, what to say when it is committed)."""

    @property
    def idle(self) -> bool:
        return not (self._asked or self._transfers or self._changes)

    def new_context(self) -> int:
        self._next_context += 1
        return self._next_context

    def start(self, verb: str, argument: str) -> int:
        context = self.new_context()
        self._asked[context] = _Asked(verb, argument, ("", 0))
        return context

    def forget(self, context: int) -> None:
        self._asked.pop(context, None)

    def replied(self, context: int) -> bool:
        """Whether somebody here waits for that reply; nobody does any longer."""
        return self._asked.pop(context, None) is not None

    def to_ask(self, leader: tuple[str, int]) -> list[tuple[int, str, str]]:
        """What this leader (a name and its term) has not been asked yet: (context, verb, argument)."""
        fresh = []
        for context, asked in self._asked.items():
            if asked.last_leader != leader:
                self._asked[context] = asked._replace(last_leader=leader)
                fresh.append((context, asked.verb, asked.argument))
        return fresh

    def transferring(self, route: Route, target: str, old_leader: str) -> None:
        self._transfers.append(_Transfer(route, target, old_leader))

    def changing(self, route: Route, index: int, term: int, text: str) -> None:
        self._changes.append((route, index, term, text))

    def settled(self, leader: str, node: Node) -> list[tuple[Route, str]]:
        """What has come true: (whom to tell, what to say)."""
        settled = []
        for transfer in list(self._transfers):
            if leader and leader != transfer.old_leader:
                self._transfers.remove(transfer)
                settled.append((transfer.route, f"{leader} is primary"))
        for change in list(self._changes):
            route, index, term, text = change
            if node.term == term and node.commit >= index:
                self._changes.remove(change)
                settled.append((route, text))
        return settled

    def failed(self, node: Node) -> list[tuple[Route, str]]:
        """What will not come true: (whom to tell, why)."""
        failed = []
        for transfer in list(self._transfers):
            if node.is_leader and node.transferee == NOBODY:
                self._transfers.remove(transfer)
                failed.append((transfer.route, f"{transfer.target} could not take over in time"))
        for change in list(self._changes):
            route, _, term, _ = change
            if node.term != term:
                self._changes.remove(change)
                failed.append((route, "the primary changed while the membership was being changed: try again"))
        return failed
