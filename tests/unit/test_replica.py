from __future__ import annotations

from itertools import count

from hotspare.protocol.messages import Envelope, Founding
from hotspare.raft.messages import NOBODY, Configuration, Member
from hotspare.replica import GIVE_UP_ELECTIONS, Now, Reborn, Replica, ReplicaConfig
from hotspare.store.plain import PlainStore

CLUSTER = "c" * 32


def new_replica(name: str) -> Replica:
    ids = (f"{name}{number}" for number in count())
    return Replica(ReplicaConfig(name, name), PlainStore(), lambda n: 0, lambda: next(ids), Now(0, 0))


def adopt_a_founding(replica: Replica, founder: str, now: Now) -> None:
    """As one of two voters, of whom the other is never heard of again."""
    members = (Member(founder, founder, f"{founder}0", True), Member("b", "b", replica.id, True))
    replica.peer_up(founder, f"{founder}0", founder, now)
    founding = Founding(Configuration(CLUSTER, members))
    replica.receive(founder, Envelope("", f"{founder}0", NOBODY, 0, 0, founding), now)


def tick_until(replica: Replica, end_ms: int) -> None:
    for boot_ms in range(0, end_ms, 50):
        now = Now(boot_ms, boot_ms)
        replica.tick(now)
        while work := replica.work(now):
            work.perform()
            replica.finish(work, now)


def test_a_node_that_gives_a_founding_up_asks_for_new_handshakes():
    replica = new_replica("b")
    adopt_a_founding(replica, "a", Now(0, 0))
    former = replica.id
    assert replica.cluster_id == CLUSTER
    replica.take_events()

    tick_until(replica, (GIVE_UP_ELECTIONS + 2) * replica.config.timing.election_timeout_ms)

    assert (replica.id != former, replica.cluster_id) == (True, "")
    assert Reborn() in replica.take_events()
