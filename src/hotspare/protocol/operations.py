"""An operator's words (`promote`, `failover`, `add`, `remove`) on their way to the leader, and until they
have come true.

The node that was asked keeps the question until it is answered. It asks again when the leader changes, and
now and then while it does not: questions get lost, and all operations may be performed twice without harm.
The leader keeps what it has begun until it can be seen to have happened: a transfer when somebody else leads,
a membership change when it is committed. What a leader had not finished when it was deposed, it forgets;
whoever asked asks the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hotspare.protocol.membership import MAX_MEMBERS, Presence, newcomer, without_vote
from hotspare.protocol.messages import OperationReply
from hotspare.protocol.outbox import Outbox
from hotspare.protocol.peers import Peers
from hotspare.raft.messages import NOBODY, Configuration, Member, ServerId
from hotspare.raft.node import ChangeRefused, Node, NotLeader

PATIENCE_ELECTIONS = 4
"""For those who have to answer before a member can come or go: so many election timeouts."""


class Route(NamedTuple):
    """Where the reply goes: a node's name (empty: here) and its context."""

    asker: str
    context: int


@dataclass(slots=True)
class _Asked:
    verb: str
    argument: str
    last_leader: tuple[str, int] = ("", 0)
    asked_ms: int = 0
    was_member: bool = False
    """Whether the node that is to be removed was a member when we asked."""

    def is_done_by(self, leader: str) -> bool:
        """Whether it has come true in that this node leads: the primary that was to go has gone."""
        was_to_go = self.verb in ("failover", "stop") and self.argument == self.last_leader[0]
        return was_to_go and leader != self.argument


class _Transfer(NamedTuple):
    route: Route
    target: str
    old_leader: str


@dataclass(slots=True)
class _Arrival:
    """A node that is to be added."""

    name: str
    route: Route
    give_up_ms: int


@dataclass(slots=True)
class _Departure:
    """A member that is to be removed."""

    name: str
    route: Route
    give_up_ms: int


class OperationDone(NamedTuple):
    """`outcome` and `text`: see OperationReply."""

    context: int
    outcome: str
    text: str


class Operations:
    """The operations of one node: those it asks for, and those it performs while it leads."""

    def __init__(
        self, own_name: str, peers: Peers, outbox: Outbox, first_context: int, retry_ms: int = 1000
    ) -> None:
        self._own_name = own_name
        self._peers = peers
        self._outbox = outbox
        self._next_context = first_context
        self._retry_ms = retry_ms
        self._done: list[OperationDone] = []
        self._asked: dict[int, _Asked] = {}
        self._early: list[tuple[Route, str, str]] = []
        """(who asked, verb, argument): to be performed when this leader has committed something."""
        self._transfers: list[_Transfer] = []
        self._changes: list[tuple[Route, int, int, str]] = []
        """(who asked, index and term of the change, what to say when it is committed)."""
        self._arrivals: dict[str, _Arrival] = {}
        self._departures: dict[str, _Departure] = {}

    @property
    def idle(self) -> bool:
        under_way = self._early or self._transfers or self._changes or self._arrivals or self._departures
        return not (self._asked or under_way)

    @property
    def invited(self) -> set[str]:
        """Leader: the names of the nodes that are to be added."""
        return set(self._arrivals)

    @property
    def leaving(self) -> set[str]:
        """Leader: the names of the members that are to be removed."""
        return set(self._departures)

    @property
    def has_done(self) -> bool:
        """Whether `take_done` has anything to give."""
        return bool(self._done)

    def new_context(self) -> int:
        self._next_context += 1
        return self._next_context

    def start(self, verb: str, argument: str) -> int:
        context = self.new_context()
        self._asked[context] = _Asked(verb, argument)
        return context

    def forget(self, context: int) -> None:
        self._asked.pop(context, None)

    def replied(self, reply: OperationReply) -> None:
        asked = self._asked.pop(reply.context, None)
        if asked is None:
            return
        if asked.verb == "remove" and asked.was_member and reply.outcome == "unknown":
            # The leader that removed it could not tell us any more.
            self._done.append(OperationDone(reply.context, "done", _removed(asked.argument)))
        else:
            self._done.append(OperationDone(reply.context, reply.outcome, reply.text))

    def take_done(self) -> list[OperationDone]:
        done, self._done = self._done, []
        return done

    def to_ask(self, leader: tuple[str, int], members: Configuration) -> list[tuple[int, str, str]]:
        """What this leader (a name and its term) is to be asked now: (context, verb, argument)."""
        now_ms = self._outbox.now.boot_ms
        fresh = []
        for context, asked in list(self._asked.items()):
            if asked.is_done_by(leader[0]):
                self.replied(OperationReply(context, "done", f"{leader[0]} is primary"))
            elif asked.last_leader != leader or now_ms - asked.asked_ms >= self._retry_ms:
                asked.last_leader, asked.asked_ms = leader, now_ms
                asked.was_member = asked.was_member or members.by_name(asked.argument) is not None
                fresh.append((context, asked.verb, asked.argument))
        return fresh

    def settle(self, leader: str, node: Node) -> None:
        """Tells whose operation has come true, or will not any more."""
        self._settle_transfers(leader, node)
        self._settle_changes(node)
        if node.is_leader:
            self._perform_early(node)
            self._settle_arrivals(node)
            self._settle_departures(node)
        else:
            self._early.clear()
            self._arrivals.clear()
            self._departures.clear()

    def _settle_transfers(self, leader: str, node: Node) -> None:
        for transfer in list(self._transfers):
            has_moved = leader not in ("", transfer.old_leader)
            if has_moved or (node.is_leader and node.transferee == NOBODY):
                self._transfers.remove(transfer)
                if has_moved:
                    self._reply(transfer.route, "done", f"{leader} is primary")
                else:
                    text = f"{transfer.target} could not take over in time"
                    self._reply(transfer.route, "refused", text)

    def _settle_changes(self, node: Node) -> None:
        for change in list(self._changes):
            route, index, term, text = change
            if node.term != term:
                self._changes.remove(change)
                text = "the primary changed while the membership was being changed: try again"
                self._reply(route, "refused", text)
            elif node.commit >= index:
                self._changes.remove(change)
                self._reply(route, "done", text)

    def _settle_arrivals(self, node: Node) -> None:
        for arrival in list(self._arrivals.values()):
            member = node.configuration.by_name(arrival.name)
            if member is not None and member.id:
                if node.configuration_is_committed:
                    self._arrived(arrival, "done", f"{arrival.name} is a member")
            elif stranger := self._peers.strangers.get(arrival.name, ""):
                self._arrived(arrival, "mismatch", stranger)
            elif self._outbox.now.boot_ms >= arrival.give_up_ms:
                self._arrived(arrival, "refused", self._why_it_cannot_join(arrival.name))

    def _why_it_cannot_join(self, name: str) -> str:
        peer = self._peers.get(name)
        if peer is None or not peer.up or peer.introduction is None:
            return f"{name} does not answer: start it, empty, and add it again"
        if peer.introduction.role == "observer":
            return f'{name} is an observer: start it with role = "member" first'
        return f"{name} did not become a member in time: try again"

    def _arrived(self, arrival: _Arrival, outcome: str, text: str) -> None:
        del self._arrivals[arrival.name]
        self._reply(arrival.route, outcome, text)

    def _settle_departures(self, node: Node) -> None:
        for departure in list(self._departures.values()):
            member = node.configuration.by_name(departure.name)
            if member is None and node.configuration_is_committed:
                self._departed(departure, "done", _removed(departure.name))
            elif member is not None and self._outbox.now.boot_ms >= departure.give_up_ms:
                self._departed(departure, "refused", _too_few(departure.name))

    def _departed(self, departure: _Departure, outcome: str, text: str) -> None:
        del self._departures[departure.name]
        self._reply(departure.route, outcome, text)

    # --- on the leader ----------------------------------------------------------------------------------

    def perform(self, node: Node, route: Route, verb: str, name: str) -> None:
        """Does what an operator asked for, or says why not."""
        if self._is_under_way(route):
            return
        if not node.has_committed_in_term:  # it does not know yet who follows
            self._early.append((route, verb, name))
            return
        member = node.configuration.by_name(name)
        if verb == "add":
            self._add(node, route, name, member)
        elif member is None:
            known = ", ".join(member.name for member in node.configuration.members)
            self._reply(route, "unknown", known)
        elif verb == "promote":
            self._promote(node, route, member)
        elif verb == "remove":
            self._remove(node, route, member)
        elif member.id == node.id:
            self._step_aside(node, route, "stopped" if verb == "stop" else "ordered")
        else:
            self._take_vote(node, route, member)

    def _perform_early(self, node: Node) -> None:
        if node.has_committed_in_term:
            early, self._early = self._early, []
            for route, verb, name in early:
                self.perform(node, route, verb, name)

    def _is_under_way(self, route: Route) -> bool:
        """It was asked again, because the answer takes a while."""
        waiting = [arrival.route for arrival in self._arrivals.values()]
        waiting += [departure.route for departure in self._departures.values()]
        waiting += [transfer.route for transfer in self._transfers]
        waiting += [asker for asker, *_ in self._early]
        return route in waiting or any(route == asker for asker, *_ in self._changes)

    def _promote(self, node: Node, route: Route, member: Member) -> None:
        if member.id == node.id:
            self._reply(route, "done", f"{member.name} is primary")
        elif not member.voter:
            self._reply(route, "refused", f"{member.name} does not vote (yet): it has to catch up first")
        elif not self._peers.is_up(member.id):
            self._reply(route, "refused", f"{member.name} does not answer")
        else:
            self._transfer(node, route, member.id, member.name)

    def _step_aside(self, node: Node, route: Route, reason: str) -> None:
        successor = node.configuration.by_id(node.best_successor())
        if successor is None:
            text = "no other member that votes answers, so nobody could take over"
            self._reply(route, "refused", text)
        else:
            self._transfer(node, route, successor.id, successor.name, reason)

    def _transfer(self, node: Node, route: Route, to: ServerId, name: str, reason: str = "ordered") -> None:
        node.transfer(to, self._outbox.now.boot_ms, reason)
        self._transfers.append(_Transfer(route, name, self._own_name))

    def _take_vote(self, node: Node, route: Route, member: Member) -> None:
        name = member.name
        if self._peers.is_up(member.id):
            self._reply(route, "nothing", f"{name} answers: there is nothing to do")
        elif not member.voter:
            self._reply(route, "nothing", f"{name} does not answer, and has no vote to take away")
        elif not self._would_be_majority(node, member.id):
            self._reply(route, "refused", _too_few(name))
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

    # --- growing and shrinking --------------------------------------------------------------------------

    def _add(self, node: Node, route: Route, name: str, member: Member | None) -> None:
        if member is not None and member.id:
            self._reply(route, "nothing", f"{name} is a member already")
        elif name in self._arrivals or name in self._departures:
            self._reply(route, "refused", f"{name} is being added or removed already: try again")
        elif member is None and len(node.configuration.members) + len(self._arrivals) >= MAX_MEMBERS:
            text = (
                f"a cluster has at most {MAX_MEMBERS} members: remove one first, or make {name} an observer"
            )
            self._reply(route, "refused", text)
        else:
            self._peers.meet(name, name, self._outbox.now.boot_ms)
            self._arrivals[name] = _Arrival(name, route, self._give_up_ms(node))

    def _remove(self, node: Node, route: Route, member: Member) -> None:
        name = member.name
        if node.configuration.voters == {member.id}:
            text = f"{name} is the only member that votes: without it there would be no cluster"
            self._reply(route, "refused", text)
        elif name in self._departures:
            self._reply(route, "refused", f"{name} is being removed already")
        else:
            self._departures[name] = _Departure(name, route, self._give_up_ms(node))

    def _give_up_ms(self, node: Node) -> int:
        return self._outbox.now.boot_ms + PATIENCE_ELECTIONS * node.timing.election_timeout_ms

    def wanted_change(self, node: Node, present: Mapping[str, Presence]) -> Configuration | None:
        """The next step of an arrival or a departure, for a leader that may change its configuration."""
        for departure in self._departures.values():
            member = node.configuration.by_name(departure.name)
            if member is None:
                continue
            if not member.voter:
                return node.configuration.without(member.name)
            if member.id != node.id and self._would_be_majority(node, member.id):
                return node.configuration.with_member(without_vote(member))
        if self._own_name in self._departures:
            self._step_aside_to_leave(node)
        for arrival in self._arrivals.values():
            member = node.configuration.by_name(arrival.name)
            presence = present.get(arrival.name)
            if presence is None or (member is not None and member.id):
                continue
            if presence.may_join:
                return node.configuration.with_member(newcomer(arrival.name, presence))
        return None

    def _step_aside_to_leave(self, node: Node) -> None:
        """Whoever asked will ask the next leader to remove this one. Not while that one could not do it: two
        who are both to go would hand the leadership to each other for ever."""
        successor = node.best_successor()
        if successor != NOBODY and self._would_be_majority(node, node.id):
            node.transfer(successor, self._outbox.now.boot_ms, "ordered")

    def _reply(self, route: Route, outcome: str, text: str) -> None:
        reply = OperationReply(route.context, outcome, text)
        if route.asker:
            self._outbox.send(route.asker, reply)
        else:
            self.replied(reply)


def _too_few(name: str) -> str:
    return f"without {name} too few of the remaining members answer to be a majority"


def _removed(name: str) -> str:
    return f"{name} is no member any more"
