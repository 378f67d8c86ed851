"""Messages that no node would send that keeps to the protocol: dropped before they change anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from hotspare.commands import Delete, Put, RawGroup, encode_commands
from hotspare.errors import ProtocolError
from hotspare.protocol import messages
from hotspare.protocol.messages import (
    Enrol,
    Envelope,
    Forward,
    Founding,
    FoundingReply,
    Introduction,
    OperationReply,
    OperationRequest,
)
from hotspare.protocol.validation import check_configuration
from hotspare.raft.messages import (
    NOBODY,
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Member,
    SnapshotChunk,
    SnapshotMark,
    SnapshotReply,
    VoteRequest,
)
from hotspare.replica import MAX_PEERS, Replica
from tests.unit.test_replica import NAMES, Net

LEADER, FOLLOWER = "n2", "n1"


@pytest.fixture
def net() -> Net:
    net = Net()
    net.settle()
    net.replicas[LEADER].found({name: name for name in NAMES}, 10_000, net.now)
    net.settle()
    assert net.replicas[LEADER].is_leader
    return net


def state(replica: Replica) -> tuple[Any, ...]:
    node = replica.node
    assert node is not None
    log = node.log
    progress = [(each.match, each.next) for each in node.progress.values()]
    kept = (node.term, node.vote, node.role, node.leader, log.last_index, log.commit, log.configuration)
    return (*kept, progress, len(replica.peers), replica.has_outputs)


def post(net: Net, receiver: str, message: Any, sender: str = "n3") -> None:
    to, by = net.replicas[receiver], net.replicas[sender]
    envelope = Envelope(to.cluster_id, by.id, to.id, net.now.wall_ms, 0, message)
    to.receive(sender, messages.decode(messages.encode(envelope)), net.now)


def entry(index: int, term: int, kind: int = EntryKind.NOOP, payload: bytes = b"") -> Entry:
    return Entry(index, term, kind, payload)


def member(number: int, **changes: Any) -> Member:
    return msgspec.structs.replace(Member(f"n{number}", f"n{number}", f"id{number}", True), **changes)


GOOD = Configuration("c", (member(1), member(2)))
BAD_CONFIGURATIONS = {
    "no cluster": Configuration("", GOOD.members),
    "no members": Configuration("c", ()),
    "no voters": Configuration("c", (member(1, voter=False),)),
    "a vote of nobody": Configuration("c", (member(1), member(2, id=NOBODY))),
    "one name twice": Configuration("c", (member(1), member(1, id="other"))),
    "one incarnation twice": Configuration("c", (member(1), member(2, id="id1"))),
    "a name that steers the terminal": Configuration("c", (member(1, name="\x1b[2J"),)),
    "an address without end": Configuration("c", (member(1, address="x" * 5000),)),
    "too many": Configuration("c", tuple(member(number) for number in range(65))),
}

Say = Callable[[Replica, Replica], Any]
"""Of the receiver and the sender: the message."""

TO_A_FOLLOWER: dict[str, Say] = {
    "a gap between entries": lambda to, by: append(to, by, entry(3, 2), entry(5, 2)),
    "an entry from before": lambda to, by: append(to, by, entry(2, 2)),
    "an entry of a later term": lambda to, by: append(to, by, entry(3, 9)),
    "terms that fall": lambda to, by: append(to, by, entry(3, 2), entry(4, 1)),
    "a kind of entry that nobody knows": lambda to, by: append(to, by, entry(3, 2, 77)),
    "a configuration that is none": lambda to, by: append(to, by, entry(3, 2, EntryKind.CONFIGURATION, b"x")),
    "a registration that is none": lambda to, by: append(to, by, entry(3, 2, EntryKind.REGISTRATION, b"x")),
    "a configuration without voters": lambda to, by: append(
        to, by, entry(3, 2, EntryKind.CONFIGURATION, BAD_CONFIGURATIONS["no voters"].encode())
    ),
    "a snapshot of nothing": lambda to, by: chunk(to, by, SnapshotMark(0, 1, GOOD)),
    "a snapshot of a later term": lambda to, by: chunk(to, by, SnapshotMark(9, 7, GOOD)),
    "a snapshot of no cluster": lambda to, by: chunk(
        to, by, SnapshotMark(9, 1, BAD_CONFIGURATIONS["no cluster"])
    ),
}

TO_THE_LEADER: dict[str, Say] = {
    "entries of another leader": lambda to, by: append(to, by),
    "a heartbeat of another leader": lambda to, by: Heartbeat(by.id, to.id, term(to), 1, 1),
    "a snapshot of another leader": lambda to, by: chunk(to, by, SnapshotMark(1, 1, GOOD)),
    "more than it has": lambda to, by: AppendReply(by.id, to.id, term(to), False, 1000),
    "a hint beyond its log": lambda to, by: AppendReply(by.id, to.id, term(to), True, 1, 1000, 1),
    "a round that has not begun": lambda to, by: HeartbeatReply(by.id, to.id, term(to), 1 << 40),
    "a snapshot that was never sent": lambda to, by: SnapshotReply(by.id, to.id, term(to), 1, 1000, 0, True),
    "garbage among commands": lambda to, by: Forward([RawGroup(1, 1, 1, 0, msgspec.Raw(b"\x91\x05"))]),
    "damaged data": lambda to, by: forward(Put(b"s", b"data", 0, 12345, 1, 1)),
    "a group too large": lambda to, by: forward(*[Delete(b"x" * 250, 1)] * 20_000),
    "no nonce": lambda to, by: Enrol(b""),
    "a nonce without end": lambda to, by: Enrol(bytes(65)),
    "a verb that steers the terminal": lambda to, by: OperationRequest(1, "\x1b[2J", "n1"),
}

TO_ANYBODY: dict[str, Say] = {
    "a text that steers the terminal": lambda to, by: OperationReply(1, "done", "\x1b[2J"),
    "a name that begins a line": lambda to, by: Introduction("n3\n", "n3", "", True),
    "a crowd of founders": lambda to, by: Introduction("n3", "n3", "", True, ("n",) * 65),
    "a founding without voters": lambda to, by: Founding(BAD_CONFIGURATIONS["no voters"]),
    "a reason without end": lambda to, by: FoundingReply("c", False, "x" * 5000),
}


def term(replica: Replica) -> int:
    assert replica.node is not None
    return replica.node.term


def append(to: Replica, by: Replica, *entries: Entry) -> Append:
    """After the last entry of a cluster that has just been founded."""
    assert to.node is not None
    last = to.node.log.last_index
    assert last == 2
    return Append(by.id, to.id, term(to), last, term(to), list(entries), 0)


def chunk(to: Replica, by: Replica, mark: SnapshotMark) -> SnapshotChunk:
    return SnapshotChunk(by.id, to.id, term(to), mark, 1, 0, True, b"")


def forward(*commands: Any) -> Forward:
    return Forward([RawGroup(1, 1, len(commands), 0, encode_commands(commands))])


CASES = [
    *((FOLLOWER, what, say) for what, say in (TO_A_FOLLOWER | TO_ANYBODY).items()),
    *((LEADER, what, say) for what, say in (TO_THE_LEADER | TO_ANYBODY).items()),
]


@pytest.mark.parametrize(("receiver", "what", "say"), CASES, ids=[f"{to}: {what}" for to, what, _ in CASES])
def test_what_cannot_be_meant_is_refused_and_changes_nothing(net: Net, receiver: str, what: str, say: Say):
    to = net.replicas[receiver]
    before = state(to)
    with pytest.raises(ProtocolError):
        post(net, receiver, say(to, net.replicas["n3"]))
    assert state(to) == before


def test_what_a_leader_says_ordinarily_is_taken(net: Net):
    to, by = net.replicas[FOLLOWER], net.replicas[LEADER]
    post(net, FOLLOWER, append(to, by, entry(3, term(to)), entry(4, term(to))), sender=LEADER)
    assert to.node is not None
    assert to.node.log.last_index == 4
    check_configuration(GOOD)


@pytest.mark.parametrize("what", BAD_CONFIGURATIONS)
def test_a_configuration_under_which_nothing_could_be_decided_is_refused(what: str):
    with pytest.raises(ProtocolError):
        check_configuration(BAD_CONFIGURATIONS[what])


@pytest.mark.parametrize("field", ["term", "last_index", "last_term"])
@pytest.mark.parametrize("value", [-1, 2**62 + 1, 2**63, 2**64 - 1])
def test_numbers_that_would_leave_their_field_one_day_do_not_decode(field: str, value: int):
    good = VoteRequest("a", "b", 1, 1, 1, pre=True)
    bad = msgspec.structs.replace(good, **{field: value})
    with pytest.raises(msgspec.ValidationError):
        messages.decode(messages.encode(Envelope("c", "a", "b", 0, 0, bad)))


@pytest.mark.parametrize("clocks", [(-1, 0), (0, -1), (0, 2**60), (2**60, 0)])
def test_a_clock_beyond_all_time_does_not_decode(clocks: tuple[int, int]):
    with pytest.raises(msgspec.ValidationError):
        messages.decode(messages.encode(Envelope("c", "a", "b", *clocks, Enrol(b"x"))))


def test_what_an_earlier_incarnation_said_is_dropped(net: Net):
    to, by = net.replicas[FOLLOWER], net.replicas[LEADER]
    message = append(to, by, entry(3, term(to)))
    to.peer_up(LEADER, "a new incarnation", LEADER, net.now)
    before = state(to)
    envelope = Envelope(to.cluster_id, by.id, to.id, net.now.wall_ms, 0, message)
    to.receive(LEADER, envelope, net.now)
    assert state(to) == before


def test_nodes_that_come_and_go_under_ever_new_names_are_forgotten(net: Net):
    to = net.replicas[FOLLOWER]

    def introduce(name: str) -> None:
        introduction = Introduction(name, "10.0.0.1:1", to.cluster_id, False)
        to.receive(name, Envelope("", f"{name} 1", NOBODY, 0, 0, introduction), net.now)

    for number in range(2 * MAX_PEERS):
        introduce(f"visitor {number}")
    assert len(to.peers) == MAX_PEERS
    assert {LEADER, "n3"} <= set(to.peers)
    for name, peer in to.peers.items():
        to.peer_up(name, peer.id, peer.address, net.now)
    with pytest.raises(ProtocolError, match="one node too many"):
        introduce("another visitor")
