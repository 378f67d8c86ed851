"""An operator's words on their way to the leader, and until they have come true."""

from __future__ import annotations

import pytest

from hotspare.protocol.clock import ClusterClock
from hotspare.protocol.messages import OperationReply
from hotspare.protocol.operations import OperationDone, Operations, Route
from hotspare.protocol.outbox import Now, Outbox
from hotspare.protocol.peers import Peer, Peers
from hotspare.raft.messages import Append, AppendReply, Configuration, Message, TimeoutNow
from tests.unit.raft_network import Network, configuration

HERE = Route("", 71)
NOBODY_YET = Configuration("", ())


class Office:
    """The operations of server "a", which leads unless told otherwise."""

    def __init__(self, voters: str = "abc", learners: str = "") -> None:
        self.network = Network(voters, learners)
        self.node = self.network.elect("a")
        self.peers = Peers({name: Peer(name, name, up=True) for name in voters + learners})
        self.outbox = Outbox(self.peers, ClusterClock(), Now(self.network.now_ms, 0))
        self.operations = Operations("a", self.peers, self.outbox, 70)

    def ask(self, verb: str, argument: str) -> None:
        """As if it had been asked here, of this leader."""
        context = self.operations.start(verb, argument)
        assert self.operations.to_ask(("a", self.node.term), NOBODY_YET) == [(context, verb, argument)]
        self.operations.perform(self.node, Route("", context), verb, argument)

    def perform(self, verb: str, argument: str, route: Route = HERE) -> None:
        self.operations.perform(self.node, route, verb, argument)

    def kill(self, *ids: str) -> None:
        for id in ids:
            self.peers[id].up = False
            self.network.crash(id)
            self.node.server_lost(id, self.network.now_ms)
        self.network.settle()

    def lose(self, *kinds: type[Message]) -> None:
        self.network.lose(*kinds)

    def settle(self) -> list[tuple[str, str]]:
        """What has ended once the network is quiet: outcomes and texts."""
        self.network.settle()
        self.operations.settle(self.leader, self.node)
        return self.done()

    def done(self) -> list[tuple[str, str]]:
        return [(done.outcome, done.text) for done in self.operations.take_done()]

    @property
    def leader(self) -> str:
        return self.node.leader

    def replies(self) -> list[tuple[str, OperationReply]]:
        return [(name, envelope.message) for name, envelope in self.outbox.take()]  # type: ignore[misc]


# Asking


@pytest.fixture
def operations() -> Operations:
    peers = Peers()
    return Operations("a", peers, Outbox(peers, ClusterClock(), Now(0, 0)), 70)


def test_each_leader_is_asked_once(operations: Operations):
    assert operations.idle
    context = operations.start("promote", "a")
    assert not operations.idle

    assert operations.to_ask(("b", 2), NOBODY_YET) == [(context, "promote", "a")]
    assert operations.to_ask(("b", 2), NOBODY_YET) == []
    assert operations.to_ask(("b", 3), NOBODY_YET) == [(context, "promote", "a")]
    assert operations.to_ask(("c", 4), NOBODY_YET) == [(context, "promote", "a")]


def test_the_first_answer_ends_it(operations: Operations):
    context = operations.start("promote", "a")
    operations.to_ask(("b", 2), NOBODY_YET)

    operations.replied(OperationReply(context + 1, "refused", "to somebody else"))
    operations.replied(OperationReply(context, "done", "a is primary"))
    operations.replied(OperationReply(context, "refused", "too late"))

    assert operations.take_done() == [OperationDone(context, "done", "a is primary")]
    assert operations.take_done() == []
    assert operations.idle
    assert operations.to_ask(("c", 4), NOBODY_YET) == []


def test_what_nobody_waits_for_is_not_asked(operations: Operations):
    context = operations.start("failover", "b")

    operations.forget(context)

    assert operations.to_ask(("b", 2), NOBODY_YET) == []
    operations.replied(OperationReply(context, "done", ""))
    assert operations.take_done() == []


def test_a_failover_of_the_primary_is_done_when_another_leads_and_not_asked_twice(operations: Operations):
    """Asked again, the next primary would have to step aside as well."""
    context = operations.start("failover", "b")
    assert operations.to_ask(("b", 2), NOBODY_YET) == [(context, "failover", "b")]

    assert operations.to_ask(("c", 3), NOBODY_YET) == []

    assert operations.take_done() == [OperationDone(context, "done", "c is primary")]


def test_a_failover_of_a_secondary_is_asked_of_the_next_primary_too(operations: Operations):
    context = operations.start("failover", "d")
    operations.to_ask(("b", 2), NOBODY_YET)

    assert operations.to_ask(("c", 3), NOBODY_YET) == [(context, "failover", "d")]
    assert operations.take_done() == []


# Performing


def test_an_unknown_node_is_answered_with_the_known_ones():
    for verb in ("promote", "failover"):
        office = Office()
        office.ask(verb, "x")
        assert office.done() == [("unknown", "a, b, c")]


def test_an_answer_goes_back_to_the_node_that_asked():
    office = Office()

    office.perform("promote", "x", Route("b", 5))

    assert office.replies() == [("b", OperationReply(5, "unknown", "a, b, c"))]
    assert office.done() == []


def test_a_promotion_is_done_when_that_node_leads():
    office = Office()
    office.ask("promote", "b")
    assert office.done() == []

    assert office.settle() == [("done", "b is primary")]
    assert office.network.leaders == ["b"]


def test_to_promote_the_primary_is_done_already():
    office = Office()

    office.ask("promote", "a")

    assert office.done() == [("done", "a is primary")]
    assert office.node.transferee == ""


def test_who_does_not_vote_or_does_not_answer_is_not_promoted():
    office = Office("abc", learners="d")
    office.ask("promote", "d")
    ((outcome, text),) = office.done()
    assert (outcome, "does not vote" in text) == ("refused", True)

    office.kill("b")
    office.ask("promote", "b")
    assert office.done() == [("refused", "b does not answer")]


def test_a_promotion_that_does_not_come_about_is_refused_and_the_primary_stays():
    office = Office()
    office.lose(TimeoutNow)
    office.ask("promote", "b")
    assert office.settle() == []

    office.network.advance(office.node.timing.election_timeout_ms)

    assert office.settle() == [("refused", "b could not take over in time")]
    assert office.network.leaders == ["a"]
    assert office.operations.idle


def test_a_failover_of_the_primary_hands_over_to_the_most_up_to_date():
    office = Office()
    office.network.filter = lambda message: not (message.receiver == "b" and isinstance(message, Append))
    office.network.propose("a")
    office.network.settle()
    office.network.heal()

    office.ask("failover", "a")

    assert office.settle() == [("done", "c is primary")]
    assert office.network.leaders == ["c"]


def test_a_primary_without_a_successor_stays():
    office = Office("a", learners="b")

    office.ask("failover", "a")

    ((outcome, text),) = office.done()
    assert (outcome, "nobody could take over" in text) == ("refused", True)


def test_a_healthy_secondary_needs_no_failover():
    office = Office()

    office.ask("failover", "b")

    assert office.done() == [("nothing", "b answers: there is nothing to do")]
    assert office.node.configuration == configuration("abc")


def test_a_dead_secondary_loses_its_vote_once_that_is_committed():
    office = Office("abcd")
    office.kill("d")
    office.lose(AppendReply)
    office.ask("failover", "d")
    assert office.settle() == []

    office.network.heal()
    office.network.advance(1000)

    assert office.settle() == [("done", "d does not vote until it is back")]
    assert office.node.configuration == configuration("abc", learners="d")
    office.ask("failover", "d")
    ((outcome, text),) = office.done()
    assert (outcome, "no vote to take away" in text) == ("nothing", True)


def test_a_vote_is_not_taken_where_too_few_answer():
    office = Office("abc")
    office.kill("b")
    office.peers["c"].up = False  # its connection has just closed

    office.ask("failover", "c")

    ((outcome, text),) = office.done()
    assert (outcome, "too few" in text) == ("refused", True)
    assert office.node.configuration == configuration("abc")


def test_who_is_connected_but_does_not_follow_does_not_count_towards_the_remaining_majority():
    """Such a node adopted another founding: {a, c} without its vote would never commit anything again."""
    office = Office()
    office.kill("b")
    office.node.progress["c"].active = False

    office.ask("failover", "b")

    assert office.settle() == [
        ("refused", "without b too few of the remaining members answer to be a majority")
    ]
    assert office.node.configuration == configuration("abc")


def test_two_changes_at_once_are_refused():
    office = Office("abcde")
    office.kill("d", "e")
    office.lose(AppendReply)

    office.ask("failover", "d")
    office.ask("failover", "e")

    ((outcome, text),) = office.done()
    assert (outcome, "under way" in text) == ("refused", True)


def test_a_change_whose_leader_was_deposed_is_told_as_refused():
    office = Office("abcd")
    office.kill("d")
    office.lose(Append)
    office.ask("failover", "d")
    office.network.settle()
    office.network.split("a", "bc")
    office.network.node("b").server_lost("a", office.network.now_ms)
    office.network.node("c").server_lost("a", office.network.now_ms)
    office.network.advance(5000)
    office.network.heal()
    office.network.advance(3000)

    ((outcome, text),) = office.settle()
    assert (outcome, "the primary changed" in text) == ("refused", True)
