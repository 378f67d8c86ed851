"""An operator's words (`promote`, `failover`) on their way to the leader, and until they have come true.

The node that was asked keeps the question until it is answered, and asks again when the leader changes: both
operations may be performed twice without harm. The leader keeps what it has begun until it can be seen to
have happened: a transfer when somebody else leads, a membership change when it is committed.
"""

from __future__ import annotations

from typing import NamedTuple

from hotspare.protocol.membership import without_vote
from hotspare.protocol.messages import OperationReply
from hotspare.protocol.outbox import Outbox
from hotspare.protocol.peers import Peers
from hotspare.raft.messages import NOBODY, Member, ServerId
from hotspare.raft.node import ChangeRefused, Node, NotLeader


class Route(NamedTuple):
    """Where the reply goes: a node's name (empty: here) and its context."""

    asker: str
    context: int


class _Asked(NamedTuple):
    verb: str
    argument: str
    last_leader: tuple[str, int]

    def is_done_by(self, leader: str) -> bool:
        """Whether it has come true in that this node leads: the primary that was to go has gone."""
        was_to_go = self.verb == "failover" and self.argument == self.last_leader[0]
        return was_to_go and leader != self.argument


class _Transfer(NamedTuple):
    route: Route
    target: str
    old_leader: str


class OperationDone(NamedTuple):
    """`outcome` and `text`: see OperationReply."""

    context: int
    outcome: str
    text: str


class Operations:
    """The operations of one node: those it asks for, and those it performs while it leads."""

    def __init__(self, own_name: str, peers: Peers, outbox: Outbox, first_context: int) -> None:
        self._own_name = own_name
        self._peers = peers
        self._outbox = outbox
        self._next_context = first_context
        self._done: list[OperationDone] = []
        self._asked: dict[int, _Asked] = {}
        self._transfers: list[_Transfer] = []
        self._changes: list[tuple[Route, int, int, str]] = []
        """(who asked, index and term of the change, what to say when it is committed)."""

    @property
    def idle(self) -> bool:
        return not (self._asked or self._transfers or self._changes)

    @property
    def has_done(self) -> bool:
        """Whether `take_done` has anything to give."""
        return bool(self._done)

    def new_context(self) -> int:
        self._next_context += 1
        return self._next_context

    def start(self, verb: str, argument: str) -> int:
        context = self.new_context()
        self._asked[context] = _Asked(verb, argument, ("", 0))
        return context

    def forget(self, context: int) -> None:
        self._asked.pop(context, None)

    def replied(self, reply: OperationReply) -> None:
        if self._asked.pop(reply.context, None) is not None:
            self._done.append(OperationDone(reply.context, reply.outcome, reply.text))

    def take_done(self) -> list[OperationDone]:
        done, self._done = self._done, []
        return done

    def to_ask(self, leader: tuple[str, int]) -> list[tuple[int, str, str]]:
        """What this leader (a name and its term) has not been asked yet: (context, verb, argument)."""
        fresh = []
        for context, asked in list(self._asked.items()):
            if asked.is_done_by(leader[0]):
                self.replied(OperationReply(context, "done", f"{leader[0]} is primary"))
            elif asked.last_leader != leader:
                self._asked[context] = asked._replace(last_leader=leader)
                fresh.append((context, asked.verb, asked.argument))
        return fresh

    def settle(self, leader: str, node: Node) -> None:
        """Tells whose operation has come true, or will not any more."""
        for transfer in list(self._transfers):
            has_moved = leader not in ("", transfer.old_leader)
            if has_moved or (node.is_leader and node.transferee == NOBODY):
                self._transfers.remove(transfer)
                if has_moved:
                    self._reply(transfer.route, "done", f"{leader} is primary")
                else:
                    text = f"{transfer.target} could not take over in time"
                    self._reply(transfer.route, "refused", text)
        for change in list(self._changes):
            route, index, term, text = change
            if node.term != term:
                self._changes.remove(change)
                text = "the primary changed while the membership was being changed: try again"
                self._reply(route, "refused", text)
            elif node.commit >= index:
                self._changes.remove(change)
                self._reply(route, "done", text)

    # --- on the leader ----------------------------------------------------------------------------------

    def perform(self, node: Node, route: Route, verb: str, name: str) -> None:
        """Does what an operator asked for, or says why not."""
        member = node.configuration.by_name(name)
        if member is None:
            known = ", ".join(member.name for member in node.configuration.members)
            self._reply(route, "unknown", known)
        elif verb == "promote":
            self._promote(node, route, member)
        elif member.id == node.id:
            self._step_aside(node, route)
        else:
            self._take_vote(node, route, member)

    def _promote(self, node: Node, route: Route, member: Member) -> None:
        if member.id == node.id:
            self._reply(route, "done", f"{member.name} is primary")
        elif not member.voter:
            self._reply(route, "refused", f"{member.name} does not vote (yet): it has to catch up first")
        elif not self._peers.is_up(member.id):
            self._reply(route, "refused", f"{member.name} does not answer")
        else:
            self._transfer(node, route, member.id, member.name)

    def _step_aside(self, node: Node, route: Route) -> None:
        successor = node.configuration.by_id(node.best_successor())
        if successor is None:
            text = "no other member that votes answers, so nobody could take over"
            self._reply(route, "refused", text)
        else:
            self._transfer(node, route, successor.id, successor.name)

    def _transfer(self, node: Node, route: Route, to: ServerId, name: str) -> None:
        node.transfer(to, self._outbox.now.boot_ms)
        self._transfers.append(_Transfer(route, name, self._own_name))

    def _take_vote(self, node: Node, route: Route, member: Member) -> None:
        name = member.name
        if self._peers.is_up(member.id):
            self._reply(route, "nothing", f"{name} answers: there is nothing to do")
        elif not member.voter:
            self._reply(route, "nothing", f"{name} does not answer, and has no vote to take away")
        elif not self._would_be_majority(node, member.id):
            text = f"without {name} too few of the remaining members answer to be a majority"
            self._reply(route, "refused", text)
        else:
            self._change_vote(node, route, member)

    def _change_vote(self, node: Node, route: Route, member: Member) -> None:
        change = node.configuration.with_member(without_vote(member))
        try:
            index = node.change_configuration(change, self._outbox.now.boot_ms)
        except (ChangeRefused, NotLeader):
            self._reply(route, "refused", "another change of members or primary is under way: try again")
        else:
            text = f"{member.name} does not vote until it is back"
            self._changes.append((route, index, node.term, text))

    def _would_be_majority(self, node: Node, without: ServerId) -> bool:
        """Whether enough of the others follow this leader. A connection is not enough: at its other end may
        be a node that never took part in this cluster, and the change could neither be committed nor
        undone."""
        remaining = node.configuration.voters - {without}
        following = [voter for voter in remaining if voter == node.id or node.progress[voter].active]
        return 2 * len(following) > len(remaining)

    def _reply(self, route: Route, outcome: str, text: str) -> None:
        reply = OperationReply(route.context, outcome, text)
        if route.asker:
            self._outbox.send(route.asker, reply)
        else:
            self.replied(reply)
