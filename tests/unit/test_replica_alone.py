"""One replica, whose peers the test plays."""

from __future__ import annotations

from itertools import count

from hotspare.commands import RawGroup, encode_commands
from hotspare.protocol.messages import Envelope, Founding, Introduction
from hotspare.protocol.snapshot import pack_rows
from hotspare.raft.messages import (
    NOBODY,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Member,
    SnapshotChunk,
    SnapshotMark,
)
from hotspare.record import pack_record
from hotspare.replica import GIVE_UP_ELECTIONS, Now, Reborn, Replica, ReplicaConfig
from hotspare.store import Row, Store, journal
from hotspare.store.plain import PlainStore
from hotspare.table import Table

CLUSTER = "c" * 32


def new_replica(name: str, store: Store | None = None) -> Replica:
    ids = (f"{name}{number}" for number in count())
    store = PlainStore() if store is None else store
    return Replica(ReplicaConfig(name, name), store, lambda n: 0, lambda: next(ids), Now(0, 0))


def adopt_a_founding(replica: Replica, founder: str, now: Now) -> None:
    """As one of two voters."""
    members = (Member(founder, founder, f"{founder}0", True), Member("b", "b", replica.id, True))
    replica.peer_up(founder, f"{founder}0", founder, now)
    founding = Founding(Configuration(CLUSTER, members))
    replica.receive(founder, Envelope("", f"{founder}0", NOBODY, 0, 0, founding), now)


def come_back_without_state(replica: Replica, name: str, now: Now) -> None:
    replica.peer_down(name, now)
    replica.peer_up(name, f"{name}1", name, now)
    introduction = Introduction(name, name, "", True)
    replica.receive(name, Envelope("", f"{name}1", NOBODY, 0, 0, introduction), now)


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
    come_back_without_state(replica, "a", Now(0, 0))
    replica.take_events()

    tick_until(replica, (GIVE_UP_ELECTIONS + 2) * replica.config.timing.election_timeout_ms)

    assert (replica.id != former, replica.cluster_id) == (True, "")
    assert any(isinstance(event, Reborn) for event in replica.take_events())


def test_a_founding_is_kept_while_a_majority_of_its_servers_may_be_left():
    """The founder is silent: it may have committed something with others, and need us to lead again."""
    replica = new_replica("b")
    adopt_a_founding(replica, "a", Now(0, 0))
    replica.peer_down("a", Now(0, 0))

    tick_until(replica, (GIVE_UP_ELECTIONS + 2) * replica.config.timing.election_timeout_ms)

    assert (replica.id, replica.cluster_id) == ("b0", CLUSTER)


# Snapshots


def rows_of_a_copy(sessions: int, applied_index: int) -> list[Row]:
    store = PlainStore()
    transaction = store.begin()
    for n in range(sessions):
        transaction.sessions[b"s%d" % n] = pack_record(1, 1 << 40, 0, 0, b"data")
    table = Table(transaction)
    table.applied_index = applied_index
    table.save(transaction)
    transaction.commit()
    return store.snapshot().read(1 << 20)


def send_chunk(
    replica: Replica, transfer: int, index: int, sequence: int, last: bool, rows: list[Row]
) -> None:
    members = (Member("a", "a", "a0", True), Member("b", "b", replica.id, False))
    mark = SnapshotMark(index, 1, Configuration(CLUSTER, members))
    chunk = SnapshotChunk("a0", replica.id, 1, mark, transfer, sequence, last, pack_rows(rows))
    replica.receive("a", Envelope(CLUSTER, "a0", replica.id, 0, 0, chunk), Now(0, 0))


def test_a_part_of_the_next_snapshot_does_not_mix_with_one_that_is_being_installed():
    replica = new_replica("b")
    replica.peer_up("a", "a0", "a", Now(0, 0))
    whole = rows_of_a_copy(sessions=100, applied_index=10)
    next_one = rows_of_a_copy(sessions=200, applied_index=20)

    send_chunk(replica, 1, 10, 0, True, whole)
    send_chunk(replica, 2, 20, 0, False, next_one[:50])
    while work := replica.work(Now(0, 0)):
        work.perform()
        replica.finish(work, Now(0, 0))

    assert len(replica.store.ids()) == 100
    assert replica.table.applied_index == 10


# What others say


def a_leader_with_a_vacant_member() -> Replica:
    store = PlainStore()
    members = (Member("b", "b", "b7", True), Member("c", "c", NOBODY, False))
    founding = Entry(1, 1, EntryKind.CONFIGURATION, Configuration(CLUSTER, members).encode())
    transaction = store.begin()
    journal.save_identity(transaction, journal.Identity("b7", "b", CLUSTER))
    journal.save_ready(transaction, HardState(1), [founding])
    transaction.commit()
    replica = new_replica("b", store)
    tick_until(replica, 3000)
    assert replica.is_leader
    return replica


def test_a_node_that_claims_another_ones_incarnation_does_not_join_and_stops_nobody():
    replica = a_leader_with_a_vacant_member()
    now = Now(3000, 3000)
    replica.peer_up("c", replica.id, "c", now)
    introduction = Introduction("c", "c", "", True)
    replica.receive("c", Envelope("", replica.id, NOBODY, 0, 0, introduction), now)

    for boot_ms in range(3050, 4000, 50):
        replica.tick(Now(boot_ms, boot_ms))
        while work := replica.work(Now(boot_ms, boot_ms)):
            work.perform()
            replica.finish(work, Now(boot_ms, boot_ms))

    assert replica.is_leader
    vacant = replica.configuration.by_name("c")
    assert vacant is not None
    assert vacant.id == NOBODY


def test_any_number_of_groups_without_commands_fits_into_batches():
    replica = a_leader_with_a_vacant_member()
    now = Now(3000, 3000)
    applied = replica.table.applied_index
    for first in range(1, 70_000):
        replica.submit(RawGroup(99, first, 0, 0, encode_commands([])), now)
    for _ in range(3):
        while work := replica.work(now):
            work.perform()
            replica.finish(work, now)

    assert replica.is_leader
    assert replica.table.applied_index > applied + 1
