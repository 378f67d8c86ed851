"""Raft's safety properties (the paper, figure 3) over random histories: lost, repeated and reordered
messages, crashes that keep what was written and lose what was not, late disks, pauses, compaction,
snapshots, transfers and changes of membership. At the end the faults stop, and all servers must agree and
go on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from hotspare.raft.messages import Configuration, Entry, EntryKind, Member, Message, ServerId
from hotspare.raft.node import ChangeRefused, NotLeader
from tests.unit.raft_network import Network, Server

VOTERS = "abcd"
STEPS = 2500


class History:
    """A network under faults, and what was seen so far."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.net = Network(VOTERS, seed=seed)
        self.leader_of: dict[int, ServerId] = {}
        self.committed: list[Entry] = []
        self.proposed = 0
        self.incarnations = 0
        for server in self.net.servers.values():
            server.slow_disk = True
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (300, self.deliver_some),
            (200, self.collect),
            (150, self.write_some),
            (80, self.pass_time),
            (60, self.propose),
            (10, self.lose_one),
            (10, self.repeat_one),
            (4, self.crash),
            (20, self.restart),
            (12, self.lose_connection),
            (8, self.compact),
            (20, self.send_snapshot),
            (8, self.transfer),
            (20, self.change),
            (1, self.pause),
        ]

    # -- what may happen -----------------------------------------------------------------------------------

    def step(self) -> None:
        weights = [weight for weight, _ in self.actions]
        (_, action), *_ = self.random.choices(self.actions, weights)
        action()
        self.check()

    def pick(self) -> Server:
        return self.random.choice(list(self.net.servers.values()))

    def leaders(self) -> list[Server]:
        return [self.net.servers[id] for id in self.net.leaders]

    def take_one(self) -> Message | None:
        queue = self.net.queue
        if not queue:
            return None
        in_order = self.random.random() < 0.9
        return queue.pop(0 if in_order else self.random.randrange(len(queue)))

    def deliver_some(self) -> None:
        for _ in range(self.random.randrange(10)):
            message = self.take_one()
            if message is not None:
                self.net.deliver(message)

    def lose_one(self) -> None:
        self.take_one()

    def repeat_one(self) -> None:
        if self.net.queue:
            self.net.queue.append(self.random.choice(self.net.queue))

    def collect(self) -> None:
        self.net.collect()
        del self.net.queue[:-200]

    def write_some(self) -> None:
        for server in self.net.servers.values():
            if server.running and server.writes and self.random.random() < 0.6:
                server.persist(self.random.randint(1, len(server.writes)))

    def pass_time(self) -> None:
        self.net.now_ms += self.random.choice([1, 5, 20, 100])
        for server in self.net.servers.values():
            if server.running:
                server.node.tick(self.net.now_ms)

    def pause(self) -> None:
        self.net.now_ms += 3000

    def propose(self) -> None:
        for server in self.leaders():
            if server.node.accepts_proposals:
                self.proposed += 1
                self.net.propose(server.id, b"%d" % self.proposed)

    def crash(self) -> None:
        self.net.crash(self.pick().id)

    def restart(self) -> None:
        server = self.pick()
        if not server.running:
            self.net.restart(server.id)

    def lose_connection(self) -> None:
        one, other = self.pick(), self.pick()
        if one.running and one is not other:
            one.node.server_lost(other.id, self.net.now_ms)

    def compact(self) -> None:
        server = self.pick()
        if server.running and not server.writes and not server.node.has_ready():
            server.node.compact(server.node.applied)
            mark = server.node.log.mark
            server.disk.entries = [entry for entry in server.disk.entries if entry.index > mark.index]
            server.disk.mark = mark

    def send_snapshot(self) -> None:
        """At once: the parts of a transfer are the business of the layer above."""
        for source in self.leaders():
            for follower in source.snapshots_wanted:
                target = self.net.servers.get(follower)
                if target is None or not target.running or self.random.random() < 0.2:
                    source.node.snapshot_failed(follower, self.net.now_ms)
                    continue
                applied = [entry for entry in source.disk.applied if entry.index <= source.node.applied]
                mark = source.node.log.mark_at(source.node.applied)
                self.settle_writes(target)
                if target.node.restore(mark, self.net.now_ms):
                    target.disk.applied = applied
                    self.settle_writes(target)
                if target.node.commit >= mark.index:
                    source.node.snapshot_installed(follower, mark.index, self.net.now_ms)
            source.snapshots_wanted = []

    def settle_writes(self, server: Server) -> None:
        while server.node.has_ready():
            self.net.queue += server.take()
        server.persist()

    def transfer(self) -> None:
        for server in self.leaders():
            successor = server.node.best_successor()
            if successor:
                server.node.transfer(successor, self.net.now_ms)

    def change(self) -> None:
        for server in self.leaders():
            try:
                server.node.change_configuration(self.some_change(server.node.configuration), self.net.now_ms)
            except (ChangeRefused, NotLeader):
                continue

    def some_change(self, old: Configuration) -> Configuration:
        """Takes a vote, gives one, vacates a name, or lets a new incarnation in under a vacant one."""
        member = self.random.choice(old.members)
        if not member.id:
            self.incarnations += 1
            newcomer = f"{member.name}{self.incarnations}"
            self.net.add(newcomer).slow_disk = True
            return old.with_member(Member(member.name, member.address, newcomer, False))
        if not member.voter and self.random.random() < 0.3:
            return old.with_member(Member(member.name, member.address, "", False))
        return old.with_member(Member(member.name, member.address, member.id, not member.voter))

    # -- what must hold ------------------------------------------------------------------------------------

    def check(self) -> None:
        for server in self.net.servers.values():
            if server.running:
                self.check_election_safety(server)
                self.check_leader_completeness(server)
            self.check_state_machine_safety(server)
        self.check_log_matching()

    def check_election_safety(self, server: Server) -> None:
        if server.node.is_leader:
            assert self.leader_of.setdefault(server.node.term, server.id) == server.id

    def check_leader_completeness(self, server: Server) -> None:
        if server.node.is_leader and server.node.term == max(self.leader_of):
            log = server.node.log
            for entry in self.committed[log.mark.index :]:
                assert log.term_at(entry.index) == entry.term

    def check_state_machine_safety(self, server: Server) -> None:
        applied = server.disk.applied
        assert [entry.index for entry in applied] == list(range(1, len(applied) + 1))
        common = min(len(applied), len(self.committed))
        assert applied[:common] == self.committed[:common]
        self.committed += applied[common:]

    def check_log_matching(self) -> None:
        """An entry of the same index and term is the same everywhere, and so is all before it."""
        logs = [server.node.log for server in self.net.servers.values() if server.running]
        for one, other in pairwise(logs):
            agrees = False
            first = max(one.first_index, other.first_index)
            for index in range(min(one.last_index, other.last_index), first - 1, -1):
                agrees = agrees or one.term_at(index) == other.term_at(index)
                assert not agrees or one.entry(index) == other.entry(index)

    def stop_faults(self) -> None:
        net = self.net
        for server in net.servers.values():
            if not server.running:
                net.restart(server.id)
            server.slow_disk = False
            server.persist()
            for other in net.servers:
                server.node.server_back(other, net.now_ms)
        for _ in range(40):
            net.advance(250)
            self.send_snapshot()
        self.check()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_no_two_servers_ever_disagree(seed: int) -> None:
    history = History(seed)
    for _ in range(STEPS):
        history.step()
    history.stop_faults()
    (leader,) = [server for server in history.leaders() if server.node.term == max(history.leader_of)]
    leader.node.propose(EntryKind.BATCH, b"at last")
    history.net.settle()
    history.check()
    for member in leader.node.configuration.servers:
        assert history.net.servers[member.id].disk.applied == leader.disk.applied
    assert leader.disk.applied[-1].payload == b"at last"


def test_the_random_histories_do_exercise_what_they_claim_to() -> None:
    seen = {"terms": 0, "entries": 0, "snapshots": 0, "changes": 0}
    for seed in range(10):
        history = History(seed)
        for _ in range(STEPS):
            history.step()
        seen["terms"] += len(history.leader_of)
        seen["entries"] += sum(entry.kind == EntryKind.BATCH for entry in history.committed)
        seen["changes"] += sum(entry.kind == EntryKind.CONFIGURATION for entry in history.committed) - 1
        seen["snapshots"] += sum(server.disk.mark.index > 0 for server in history.net.servers.values())
    assert min(seen.values()) >= 20, seen
