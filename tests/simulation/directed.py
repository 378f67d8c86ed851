"""Scenarios in which certain things happen often: each is a random one with some of it settled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TypeAlias

import hotspare.protocol.origin
import hotspare.protocol.snapshot
import hotspare.raft.node
import hotspare.replica
import hotspare.table
from hotspare.raft.node import Timing
from tests.simulation.faults import PRIMARY, Fault
from tests.simulation.network import CALM, Conditions
from tests.simulation.nodes import SimulatedNode
from tests.simulation.world import Scenario, World

Directed: TypeAlias = Callable[[int], Scenario]

BASE_TIMING = Timing(100, 500)


def _base(seed: int, nodes: int = 3) -> tuple[Scenario, Random]:
    """A well-founded, busy cluster of that size on a good network, and nothing that goes wrong."""
    random = Random(f"{seed}/directed")
    scenario = Scenario.draw(random)
    scenario.nodes, scenario.spares, scenario.observers = nodes, 0, 0
    scenario.chaos_ms = 4000
    scenario.conditions = CALM
    scenario.start_ms = [0] * nodes
    scenario.by_settings = False
    scenario.founders = [(20, 0)]
    scenario.untrusted = frozenset()
    scenario.local_clients = [0, 1 % nodes]
    scenario.remote_clients = [random.randrange(nodes)]
    scenario.replica_options |= {"replica_nodes": (), "timing": BASE_TIMING, "max_memory_bytes": 1 << 30}
    scenario.faults = []
    scenario.disk_ms = (0, 0)
    workload = scenario.workload
    workload.pause_ms, workload.at_once, workload.weights = 30, 2, [30, 10, 8, 18, 6, 28]
    return scenario, random


def _every(
    random: Random, gap_ms: int, kind: str, strike: Callable[[World], None], begin_ms: int = 500
) -> list[Fault]:
    """The same fault again and again until the faults stop."""
    faults = []
    at_ms = begin_ms
    while at_ms < 4000:
        faults.append(Fault(at_ms, kind, kind, strike))
        at_ms += random.randrange(gap_ms // 2, 2 * gap_ms)
    return faults


def _crash(which: int, *, keep_state: bool, down_ms: int) -> Callable[[World], None]:
    return lambda world: world.crash(world.victim(which), keep_state=keep_state, down_ms=down_ms)


def _isolate(node: SimulatedNode, world: World, for_ms: int, *, they_notice: bool) -> None:
    """Cuts a node off. `they_notice`: the others' connections to it close at once, its own do not."""
    others = [other for other in world.nodes if other is not node]
    directions = [(node.name, other.name) for other in others] + [(other.name, node.name) for other in others]
    world.network.cut(directions)
    world.scheduler.after(for_ms, lambda: world.network.mend(directions))
    if they_notice:
        for other in others:
            world.network.close(other.name, node.name)


def false_alarms(seed: int) -> Scenario:
    """One secondary keeps losing its connection to the primary; everybody else hears that very well. There
    is to be one primary from beginning to end."""
    scenario, random = _base(seed)

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        others = [node for node in world.nodes if node is not primary]
        world.network.close(others[0].name, primary.name)

    scenario.faults = _every(random, 300, "a false alarm", strike, begin_ms=1000)
    return dataclasses.replace(scenario, one_primary_from_ms=900)


def lost_states(seed: int) -> Scenario:
    """Secondaries lose their state and come back while everybody writes: snapshots, learners, changes."""
    scenario, random = _base(seed, nodes=random_size(seed))
    scenario.replica_options["log_keep_bytes"] = 800
    scenario.limits[hotspare.protocol.snapshot, "CHUNK_BYTES"] = 200
    scenario.conditions = Conditions(delay_ms=(0, 3), drop=0.05)
    for which in range(scenario.nodes):
        scenario.faults += _every(
            random, 900, "a lost state", _crash(which, keep_state=False, down_ms=random.choice([0, 50]))
        )
    scenario.faults += _every(random, 1500, "a crash", _crash(PRIMARY, keep_state=True, down_ms=100))
    return scenario


def random_size(seed: int) -> int:
    return 3 + seed % 3


def removed_votes(seed: int) -> Scenario:
    """Dead secondaries lose their votes and come back as learners, while others are cut off."""
    scenario, random = _base(seed, nodes=4)

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        others = [node for node in world.nodes if node is not primary]
        dead, *rest = world.random.sample(others, len(others))
        world.crash(dead, keep_state=True, down_ms=400)
        name = dead.name
        world.scheduler.after(60, lambda: primary.run(lambda: world.operate(primary, "failover", name)))
        directions = [(other.name, primary.name) for other in rest]
        world.scheduler.after(395, lambda: world.network.cut(directions))
        world.scheduler.after(700, lambda: world.network.mend(directions))

    scenario.faults = _every(random, 1400, "a vote is taken away", strike)
    return scenario


def deposed_leaders(seed: int) -> Scenario:
    """Primaries are cut off, the others notice at once, and clients of both sides go on."""
    scenario, random = _base(seed)
    scenario.local_clients = [0, 1, 2]
    scenario.workload.ids = ["s0"]
    scenario.faults = _every(
        random,
        800,
        "the primary is cut off",
        lambda world: _isolate(world.victim(PRIMARY), world, 450, they_notice=True),
    )
    return scenario


def changing_leaders(seed: int) -> Scenario:
    """Primaries die just after they have committed something, and its news has not spread."""
    scenario, random = _base(seed)
    scenario.local_clients = [0, 1, 2]
    scenario.workload.ids = ["s0"]
    scenario.conditions = Conditions(delay_ms=(1, 20))
    scenario.faults = _every(random, 250, "a crash", _crash(PRIMARY, keep_state=True, down_ms=30))
    return scenario


def restarting_voters(seed: int) -> Scenario:
    """Elections with several candidates, in which voters die just after voting and are back at once."""
    scenario, random = _base(seed, nodes=5)
    scenario.conditions = Conditions(delay_ms=(3, 25), reorder=0.3)
    scenario.faults = _every(random, 500, "a crash", _crash(PRIMARY, keep_state=True, down_ms=100))
    for node in range(scenario.nodes):
        scenario.faults.append(Fault(400, "slow storage", "slow storage", _slow_down(node)))
    return dataclasses.replace(scenario, voters_die=0.5)


def _slow_down(which: int, share: float = 0.5, slow_ms: tuple[int, int] = (1, 20)) -> Callable[[World], None]:
    def strike(world: World) -> None:
        storage = world.nodes[which].storage
        storage.slow, storage.slow_ms = share, slow_ms

    return strike


def candidates_behind(seed: int) -> Scenario:
    """A secondary is cut off for a while, and the primary dies the moment that one is back."""
    scenario, random = _base(seed)

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        behind = world.random.choice([node for node in world.nodes if node is not primary])
        _isolate(behind, world, 300, they_notice=False)
        world.scheduler.after(300, lambda: world.crash(primary, keep_state=True, down_ms=500))

    scenario.faults = _every(random, 1200, "one is behind", strike)
    return scenario


def inherited_entries(seed: int) -> Scenario:
    """The primary dies with entries that only one secondary has, and the other one gets piece by piece."""
    scenario, random = _base(seed)
    scenario.limits[hotspare.raft.node, "MAX_APPEND_BYTES"] = 100

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        heir, other = world.random.sample([node for node in world.nodes if node is not primary], 2)
        directions = [(heir.name, primary.name), (other.name, primary.name), (primary.name, other.name)]
        world.network.cut(directions)
        world.scheduler.after(200, lambda: world.crash(primary, keep_state=True, down_ms=600))
        world.scheduler.after(400, lambda: world.network.mend(directions))

    scenario.faults = _every(random, 1000, "an heir", strike)
    return scenario


def readers_cut_off(seed: int) -> Scenario:
    """Nodes are cut off for long, and nobody there notices."""
    scenario, random = _base(seed)
    scenario.local_clients = [0, 1, 2]

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        secondaries = [node for node in world.nodes if node is not primary]
        _isolate(world.random.choice(secondaries), world, 1700, they_notice=False)

    scenario.faults = _every(random, 1900, "a node is cut off", strike)
    return scenario


def changing_members(seed: int) -> Scenario:
    """A secondary loses its state, and the primary dies while the members are being changed for it."""
    scenario, random = _base(seed, nodes=5)
    scenario.conditions = Conditions(delay_ms=(1, 15))

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        lost = world.random.choice([node for node in world.nodes if node is not primary])
        world.crash(lost, keep_state=False, down_ms=0)
        at_ms = world.random.randrange(20, 150)
        world.scheduler.after(at_ms, lambda: world.crash(primary, keep_state=True, down_ms=200))

    scenario.faults = _every(random, 600, "changing members", strike)
    return scenario


def wrong_clocks(seed: int) -> Scenario:
    """One clock is far ahead, and there are many elections."""
    scenario, random = _base(seed)
    scenario.untrusted = frozenset({random.randrange(scenario.nodes)})

    def jump(world: World) -> None:
        world.nodes[min(scenario.untrusted)].clock.jump(30_000)

    scenario.faults = _every(random, 500, "a crash", _crash(PRIMARY, keep_state=True, down_ms=100))
    scenario.faults.insert(0, Fault(400, "a jump", "a clock jumps", jump))
    return scenario


def competing_founders(seed: int) -> Scenario:
    scenario, random = _base(seed, nodes=random_size(seed))
    scenario.founders = [(random.randrange(20, 40), which) for which in range(scenario.nodes)]
    scenario.conditions = Conditions(delay_ms=(1, 10))
    return scenario


def abandoned_foundings(seed: int) -> Scenario:
    """A cluster just founded is cut to pieces for longer than a founding is waited for."""
    scenario, random = _base(seed)
    scenario.replica_options["timing"] = Timing(20, 60)
    scenario.conditions = Conditions(delay_ms=(1, 5))
    at_ms = random.randrange(40, 400)

    def strike(world: World) -> None:
        for node in world.nodes:
            _isolate(node, world, 1500, they_notice=True)

    scenario.faults = [Fault(at_ms, "pieces", "everybody is cut off", strike)]
    scenario.chaos_ms = 2500
    return scenario


def lost_groups(seed: int) -> Scenario:
    """Writers at secondaries, several groups on the way, some of which get lost."""
    scenario, _ = _base(seed)
    scenario.local_clients = [0, 1, 2]
    scenario.workload.batch_size, scenario.workload.at_once = 1, 4
    scenario.limits[hotspare.protocol.origin, "MAX_GROUPS_IN_FLIGHT"] = 16
    scenario.conditions = Conditions(delay_ms=(1, 5), drop=0.1, reorder=0.3)
    return scenario


def late_writes(seed: int) -> Scenario:
    """Writers with little patience in a cluster that has no primary now and then."""
    scenario, random = _base(seed)
    scenario.workload.timeouts_ms = (60, 120)
    scenario.conditions = Conditions(delay_ms=(1, 40), straggle=0.02)
    scenario.faults = _every(random, 700, "a crash", _crash(PRIMARY, keep_state=True, down_ms=1500))
    return scenario


def expiring_crowds(seed: int) -> Scenario:
    scenario, random = _base(seed)
    scenario.limits[hotspare.table, "PRUNE_PER_BATCH"] = 1
    scenario.workload.ttls_ms = (100, 400)
    scenario.faults = _every(random, 400, "a crowd", lambda world: world.store_crowd(60, 100))
    return scenario


def touched_late(seed: int) -> Scenario:
    """Sessions that are touched when they have expired and wait to be pruned, behind crowds."""
    scenario = expiring_crowds(seed)
    scenario.workload.ttls_ms, scenario.workload.ids = (100, 300), ["s0", "s1"]
    scenario.workload.weights = [20, 4, 30, 4, 4, 38]
    return scenario


def forgotten_origins(seed: int) -> Scenario:
    """Origins are forgotten soon, and their homes are cut off for longer than that."""
    scenario, random = _base(seed)
    scenario.limits[hotspare.table, "ORIGIN_TTL_MS"] = 300
    scenario.workload.timeouts_ms = (5000,)

    def strike(world: World) -> None:
        node = world.nodes[random.randrange(len(world.nodes))]
        _isolate(node, world, 700, they_notice=False)

    scenario.faults = _every(random, 900, "a node is cut off", strike)
    return scenario


def _for_all(scenario: Scenario) -> None:
    """Everybody writes for all copies, and often: a barrier passes as soon as the last lease has run out."""
    scenario.for_all = 1.0
    scenario.local_clients = list(range(scenario.nodes))
    scenario.workload.weights = [60, 10, 0, 20, 0, 10]
    scenario.workload.timeouts_ms = (5000,)


def leases_cut_off(seed: int) -> Scenario:
    """Copies are cut off from a primary whose answers reached them late; everybody waits for all copies."""
    scenario, random = _base(seed)
    _for_all(scenario)
    scenario.conditions = random.choice([CALM, Conditions(delay_ms=(1, 60)), Conditions(straggle=0.02)])

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        secondaries = [node for node in world.nodes if node is not primary]
        _isolate(world.random.choice(secondaries), world, 1700, they_notice=False)

    scenario.faults = _every(random, 1900, "a copy is cut off", strike)
    return scenario


def leases_of_the_deposed(seed: int) -> Scenario:
    """Primaries are cut off, the others notice at once, and everybody waits for all copies."""
    scenario = deposed_leaders(seed)
    _for_all(scenario)
    return scenario


def leases_of_the_dead(seed: int) -> Scenario:
    """Secondaries die, with their state or without, or stop in good order; what they held may still be read
    by others on their hosts."""
    scenario, random = _base(seed, nodes=5)
    _for_all(scenario)
    scenario.is_volatile = False

    def strike(world: World) -> None:
        primary, choose = world.victim(PRIMARY), world.random.choice
        victim = choose([node for node in world.nodes if node is not primary])
        down_ms = choose([0, 30, 400, 1500])
        if choose([True, False]):
            world.stop(victim, down_ms=down_ms)
        else:
            world.crash(victim, keep_state=choose([True, True, False]), down_ms=down_ms)

    scenario.faults = _every(random, 600, "an end", strike, begin_ms=700)
    return scenario


def leases_of_the_leaving(seed: int) -> Scenario:
    """Secondaries whose state ends with them stop in good order."""
    scenario, random = _base(seed, nodes=5)
    _for_all(scenario)
    scenario.is_volatile = True
    scenario.workload.pause_ms = 10

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        victim = world.random.choice([node for node in world.nodes if node is not primary])
        world.stop(victim, down_ms=world.random.choice([0, 100]))

    scenario.faults = _every(random, 400, "a departure", strike, begin_ms=700)
    return scenario


def leases_of_learners(seed: int) -> Scenario:
    """Secondaries lose their state, come back as learners, stay so, and are cut off."""
    scenario, random = _base(seed, nodes=5)
    _for_all(scenario)
    scenario.limits[hotspare.replica, "CAUGHT_UP_ENTRIES"] = 64

    def let_vote(entries: int) -> None:
        hotspare.replica.CAUGHT_UP_ENTRIES = entries

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        learner = world.random.choice([node for node in world.nodes if node is not primary])
        let_vote(-1)
        world.crash(learner, keep_state=False, down_ms=0)
        world.scheduler.after(700, lambda: _isolate(learner, world, 1500, they_notice=False))
        world.scheduler.after(2400, lambda: let_vote(64))

    scenario.faults = [Fault(random.randrange(500, 900), "a learner", "a learner is cut off", strike)]
    return scenario


def leases_on_slow_disks(seed: int) -> Scenario:
    """Copies hear what is committed long before they show it."""
    scenario, random = _base(seed)
    _for_all(scenario)
    scenario.is_volatile = False
    for node in range(scenario.nodes):
        strike = _slow_down(node, 0.5, (1, 60))
        scenario.faults.append(Fault(random.randrange(400, 600), "slow storage", "slow storage", strike))
    hang = _slow_down(random.randrange(scenario.nodes), 0.1, (800, 2500))
    scenario.faults.append(Fault(700, "slow storage", "one hangs now and then", hang))
    return scenario


def power_losses(seed: int) -> Scenario:
    """Slow disks, and all nodes lose their power at once: each keeps what it has committed, and no more."""
    scenario, random = _base(seed)
    scenario.local_clients = [0, 1, 2]
    scenario.disk_ms, scenario.is_volatile = (1, 40), False
    scenario.workload.ttls_ms = (400, 60_000)

    def strike(world: World) -> None:
        for node in world.nodes:
            world.crash(node, keep_state=True, down_ms=random.choice([0, 30]))

    scenario.faults = _every(random, 350, "all lose their power", strike)
    return scenario


def slow_elections(seed: int) -> Scenario:
    """Several candidates, slow disks, and voters that lose their power just after they voted."""
    scenario = restarting_voters(seed)
    scenario.disk_ms, scenario.is_volatile = (5, 40), False
    return scenario


def rewritten_logs(seed: int) -> Scenario:
    """Primaries are cut off with entries of their own, which others replace while disks are slow."""
    scenario, random = _base(seed)
    scenario.local_clients = [0, 1, 2]
    scenario.disk_ms, scenario.is_volatile = (20, 120), False

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        _isolate(primary, world, 350, they_notice=True)
        for node in world.nodes:
            world.scheduler.after(
                world.random.randrange(350, 600), partial(world.crash, node, keep_state=True, down_ms=0)
            )

    scenario.faults = _every(random, 900, "the primary is cut off, then all lose their power", strike)
    return scenario


def _with(scenario: Scenario, *, spares: int = 0, observers: int = 0) -> None:
    scenario.spares, scenario.observers = spares, observers
    scenario.start_ms = [0] * scenario.everybody


def coming_and_going(seed: int) -> Scenario:
    """Members are added and removed all the time, several at once, while nodes crash."""
    scenario, random = _base(seed)
    _with(scenario, spares=2)
    scenario.conditions = Conditions(delay_ms=(1, 5))

    def strike(world: World) -> None:
        asked = world.victim(PRIMARY)
        for verb in ("add", "remove", "add"):
            name = world.random.choice(world.nodes).name
            asked.run(partial(world.operate, asked, verb, name))

    scenario.faults = _every(random, 250, "coming and going", strike)
    scenario.faults += _every(random, 1500, "a crash", _crash(PRIMARY, keep_state=True, down_ms=100))
    return scenario


def removed_while_away(seed: int) -> Scenario:
    """A secondary is away while it is removed, and comes back to a cluster that elects a primary then."""
    scenario, _ = _base(seed, nodes=4)
    scenario.is_volatile = False

    def strike(world: World) -> None:
        asked = world.victim(PRIMARY)
        others = [node for node in world.nodes if node is not asked]
        gone = world.random.choice(others)
        world.crash(gone, keep_state=True, down_ms=500)
        world.scheduler.after(100, lambda: asked.run(partial(world.operate, asked, "remove", gone.name)))
        world.scheduler.after(650, lambda: world.crash(world.victim(PRIMARY), keep_state=True, down_ms=300))

    scenario.faults = [Fault(800, "a removal", "one is removed while it is away", strike)]
    scenario.faults += [Fault(2500, "a removal", "one is removed while it is away", strike)]
    return scenario


def looking_on(seed: int) -> Scenario:
    """Observers stay with a primary that is cut off from the other members."""
    scenario, random = _base(seed)
    _with(scenario, observers=2)
    scenario.local_clients = [0, 1, 2]

    def strike(world: World) -> None:
        primary = world.victim(PRIMARY)
        others = [node for node in world.nodes if node is not primary and not node.is_observer]
        directions = [(node.name, primary.name) for node in others]
        directions += [(primary.name, node.name) for node in others]
        world.network.cut(directions)
        world.scheduler.after(450, lambda: world.network.mend(directions))
        for other in others:
            world.network.close(other.name, primary.name)

    scenario.faults = _every(random, 800, "the primary is left to observers", strike)
    return scenario


def lost_majorities(seed: int) -> Scenario:
    """All members but one lose their state, and that one goes on alone; perhaps another one kept its own."""
    scenario, random = _base(seed, nodes=random_size(seed))
    scenario.is_volatile = False
    _with(scenario, observers=seed % 2)
    scenario.conditions = Conditions(delay_ms=(1, 20))
    at_ms = random.randrange(1500, 2500)

    def strike(world: World) -> None:
        members = [node for node in world.nodes if not node.is_observer]
        kept = world.random.choice([None, *members]) if len(members) > 3 else None
        if world.lose_majority(keeps_state=kept) is None:
            return
        for node in members:
            world.scheduler.after(1600, node.start)

    for delay_ms in (0, 90, 230):  # until there is somebody with everything
        scenario.faults.append(Fault(at_ms + delay_ms, "a lost majority", "a majority is lost", strike))
    return scenario


def forced_for_no_reason(seed: int) -> Scenario:
    """An operator forces a promotion although the cluster is well."""
    scenario, random = _base(seed)

    def strike(world: World) -> None:
        node = world.random.choice(world.nodes)
        node.run(node.fork)

    scenario.faults = _every(random, 1500, "force", strike)
    return scenario


ALL: tuple[Directed, ...] = (
    false_alarms,
    lost_states,
    removed_votes,
    deposed_leaders,
    changing_members,
    wrong_clocks,
    restarting_voters,
    inherited_entries,
    candidates_behind,
    readers_cut_off,
    changing_leaders,
    competing_founders,
    abandoned_foundings,
    lost_groups,
    late_writes,
    expiring_crowds,
    touched_late,
    forgotten_origins,
    leases_cut_off,
    leases_of_the_deposed,
    leases_of_the_dead,
    leases_of_the_leaving,
    leases_of_learners,
    leases_on_slow_disks,
    power_losses,
    slow_elections,
    rewritten_logs,
    coming_and_going,
    removed_while_away,
    looking_on,
    lost_majorities,
    forced_for_no_reason,
)
