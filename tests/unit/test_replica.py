"""What only a whole replica shows, over a network in which every message arrives at once."""

from __future__ import annotations

import random

import msgspec
import pytest

from hotspare.errors import StoreOutdated
from hotspare.protocol.messages import Envelope, Founding, FoundingReply
from hotspare.raft.messages import Append, VoteRequest
from hotspare.replica import PATIENCE_MS, Now, Replica, ReplicaConfig
from hotspare.store.plain import PlainStore

NAMES = ("n1", "n2", "n3")


class Net:
    """Replicas by name. `settle` delivers what is sent until nobody sends any more."""

    def __init__(self) -> None:
        self.now = Now(1_000, 1_700_000_000_000)
        self.delivered: list[Envelope] = []
        rng = random.Random(1)
        self.replicas = {
            name: Replica(
                ReplicaConfig(name, name),
                PlainStore(),
                rng.randrange,
                lambda: f"{rng.getrandbits(64):016x}",
                self.now,
            )
            for name in NAMES
        }
        for name, replica in self.replicas.items():
            for other, peer in self.replicas.items():
                if other != name:
                    replica.peer_up(other, peer.id, other, self.now)

    def settle(self, limit: int = 10_000) -> None:
        for _ in range(limit):
            sent = [(name, *each) for name, r in self.replicas.items() for each in self.turn(r)]
            if not sent:
                return
            for sender, receiver, envelope in sent:
                self.delivered.append(envelope)
                self.replicas[receiver].receive(sender, envelope, self.now)
        raise AssertionError("they never stop talking")

    def turn(self, replica: Replica) -> list[tuple[str, Envelope]]:
        while (work := replica.work(self.now)) is not None:
            work.perform()
            replica.finish(work, self.now)
        return replica.take_outbox()

    def count(self, kind: type) -> int:
        return sum(isinstance(envelope.message, kind) for envelope in self.delivered)


def test_two_founders_do_not_keep_each_other_busy_at_network_speed():
    net = Net()
    net.settle()
    for founder in ("n1", "n2"):
        net.replicas[founder].found({name: name for name in NAMES}, 10_000, net.now)
    net.settle(limit=1_000)
    assert 0 < net.count(Founding) <= 8
    assert net.count(FoundingReply) == net.count(Founding)


def test_a_copy_whose_lease_was_renewed_has_something_to_show():
    """Nothing else may follow from the answer; and readers must hear of it before the next tick."""
    net = Net()
    net.settle()
    net.replicas["n2"].found({name: name for name in NAMES}, 10_000, net.now)
    net.settle()
    copy = net.replicas["n1"]
    for _ in range(20):
        net.now = Now(net.now.boot_ms + 50, net.now.wall_ms + 50)
        for replica in net.replicas.values():
            replica.tick(net.now)
        copy_shown = 0
        while sent := [(name, *each) for name, r in net.replicas.items() for each in net.turn(r)]:
            copy.take_events()
            for sender, receiver, envelope in sent:
                before = copy.lease_end_ms
                net.replicas[receiver].receive(sender, envelope, net.now)
                if copy.lease_end_ms != before:
                    copy_shown += 1
                    assert copy.has_outputs
                    copy.take_events()
        if copy_shown and copy.lease_end_ms > net.now.boot_ms:
            break
    assert copy_shown


def copy_of(store: PlainStore) -> PlainStore:
    """As a backup has it."""
    copy = PlainStore()
    there, here = store.begin(), copy.begin()
    for name in ("node", "log", "table", "sessions"):
        for key, value in getattr(there, name).scan():
            getattr(here, name)[key] = value
    there.commit()
    here.commit()
    return copy


def restore(net: Net, name: str, store: PlainStore) -> Replica:
    """The node is started with another store, and its connections are made again."""
    rng = random.Random(2)
    replica = Replica(ReplicaConfig(name, name), store, rng.randrange, lambda: f"{rng.random()}", net.now)
    net.replicas[name] = replica
    for other, peer in net.replicas.items():
        if other != name:
            peer.peer_down(name, net.now)
            peer.peer_up(name, replica.id, name, net.now)
            replica.peer_up(other, peer.id, other, net.now)
    return replica


def test_a_node_that_was_given_an_old_copy_of_its_state_is_told_and_its_word_does_not_count():
    net = Net()
    net.settle()
    net.replicas["n2"].found({name: name for name in NAMES}, 10_000, net.now)
    net.settle()
    store = net.replicas["n1"].store
    assert isinstance(store, PlainStore)
    backup = copy_of(store)
    net.replicas["n2"].enrol(b"nonce", net.now)
    net.settle()
    same = copy_of(store)

    restore(net, "n1", same)
    net.settle()
    restored = restore(net, "n1", backup)
    with pytest.raises(StoreOutdated, match="--discard"):
        net.settle()

    other = net.replicas["n3"]
    request = VoteRequest(restored.id, other.id, 99, 99, 99, pre=False, transfer=True)
    envelope = Envelope(other.cluster_id, restored.id, other.id, 0, 0, request, restored.table.applied_index)
    assert other.node is not None
    other.receive("n1", envelope, net.now)
    assert other.node.term < 99
    other.receive("n1", envelope_of_now(envelope, net), net.now)
    assert other.node.term == 99


def envelope_of_now(envelope: Envelope, net: Net) -> Envelope:
    """The same from a server that kept its state."""
    return msgspec.structs.replace(envelope, applied=net.replicas["n3"].table.applied_index)


def test_a_founding_ends_with_a_primary_that_all_follow():
    net = Net()
    net.settle()
    net.replicas["n2"].found({name: name for name in NAMES}, 10_000, net.now)
    net.settle()
    assert {replica.leader for replica in net.replicas.values()} == {"n2"}
    assert len({replica.cluster_id for replica in net.replicas.values()}) == 1


def test_what_was_postponed_goes_along_with_a_later_write():
    net = Net()
    net.settle()
    net.replicas["n2"].found({name: name for name in NAMES}, 10_000, net.now)
    net.settle()
    (leader,) = [replica for replica in net.replicas.values() if replica.is_leader]
    net.now = Now(net.now.boot_ms + 300, net.now.wall_ms + 300)
    leader.tick(net.now)  # a heartbeat, and so the vanguard is chosen
    net.settle()

    def told_of_a_write(nonce: bytes) -> int:
        leader.enrol(nonce, net.now)
        while (work := leader.work(net.now, patience=True)) is not None:
            work.perform()
            leader.finish(work, net.now)
        return sum(isinstance(envelope.message, Append) for _, envelope in leader.take_outbox())

    assert told_of_a_write(b"first") == 1  # a majority with the leader
    assert told_of_a_write(b"second") == 1
    net.now = Now(net.now.boot_ms + PATIENCE_MS, net.now.wall_ms + PATIENCE_MS)
    assert told_of_a_write(b"third") == 2
    assert leader.postponed_ms == 0
