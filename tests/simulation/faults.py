"""What goes wrong in a run, and when: drawn from the seed before the run begins.

Each run draws which kinds of faults it has at all (swarm testing: Groce et al., 2012): a run with everything
in it would spend its time electing leaders, and never reach what only a quiet cluster reaches. A fault names
its victim loosely ("the primary", "the second node"), so the plan stays meaningful when a fault is left out,
and a failing run can be reduced to the faults that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.network import Conditions

if TYPE_CHECKING:
    from tests.simulation.world import World

PRIMARY = -1
"""As a victim: whoever leads then."""


@dataclass(frozen=True, slots=True)
class Fault:
    at_ms: int
    kind: str
    what: str
    """For people."""
    strike: Callable[[World], None]


def draw_plan(random: Random, nodes: int, begin_ms: int, end_ms: int) -> list[Fault]:
    kinds = [kind for kind in _KINDS if random.random() < 0.4]
    if not kinds:
        return []
    mean_gap_ms = random.choice([150, 400, 1000])
    plan: list[Fault] = []
    at_ms = begin_ms
    while True:
        at_ms += 1 + int(random.expovariate(1 / mean_gap_ms))
        if at_ms >= end_ms:
            return plan
        kind = random.choice(kinds)
        strike, what = _KINDS[kind](random, nodes)
        plan.append(Fault(at_ms, kind, what, strike))


Drawn = tuple[Callable[["World"], None], str]


def _victim(random: Random, nodes: int) -> int:
    return PRIMARY if random.random() < 0.4 else random.randrange(nodes)


def _name(victim: int) -> str:
    return "the primary" if victim == PRIMARY else f"node {victim + 1}"


def _crash(random: Random, nodes: int) -> Drawn:
    victim, down_ms = _victim(random, nodes), random.choice([0, 5, 60, 500, 2500])
    return (
        lambda world: world.crash(world.victim(victim), keep_state=True, down_ms=down_ms),
        f"{_name(victim)} crashes for {down_ms} ms",
    )


def _stop(random: Random, nodes: int) -> Drawn:
    victim, down_ms = _victim(random, nodes), random.choice([0, 5, 60, 500, 2500])
    return (
        lambda world: world.stop(world.victim(victim), down_ms=down_ms),
        f"{_name(victim)} stops in good order for {down_ms} ms",
    )


def _lose_state(random: Random, nodes: int) -> Drawn:
    victim, down_ms = _victim(random, nodes), random.choice([0, 5, 60, 500, 2500])
    return (
        lambda world: world.crash(world.victim(victim), keep_state=False, down_ms=down_ms),
        f"{_name(victim)} loses its state for {down_ms} ms",
    )


def _crash_at_commit(random: Random, nodes: int) -> Drawn:
    victim = _victim(random, nodes)
    return (
        lambda world: world.victim(victim).crash_at_next_commit(),
        f"{_name(victim)} will crash in its next transaction",
    )


def _restart_all(random: Random, nodes: int) -> Drawn:
    down_ms = [random.choice([0, 20, 300]) for _ in range(nodes)]

    def strike(world: World) -> None:
        for node, each_ms in zip(list(world.nodes), down_ms, strict=True):
            world.crash(node, keep_state=True, down_ms=each_ms)

    return strike, "all nodes crash"


def _pause(random: Random, nodes: int) -> Drawn:
    victim, for_ms = _victim(random, nodes), random.choice([30, 300, 800, 2500])

    def strike(world: World) -> None:
        node = world.victim(victim)
        node.pause()
        world.scheduler.after(for_ms, node.resume)

    return strike, f"{_name(victim)} is paused for {for_ms} ms"


def _partition(random: Random, nodes: int) -> Drawn:
    victim = _victim(random, nodes)
    others = random.randrange(1, max(2, nodes // 2 + 1))
    way = random.choice(["both ways", "both ways", "outward", "inward"])
    for_ms = random.choice([200, 700, 2500])
    closes = random.random() < 0.3

    def strike(world: World) -> None:
        inside = [world.victim(victim)]
        inside += [node for node in world.nodes if node not in inside][: others - 1]
        outside = [node for node in world.nodes if node not in inside]
        directions = []
        for one in inside:
            for other in outside:
                if way != "inward":
                    directions.append((one.name, other.name))
                if way != "outward":
                    directions.append((other.name, one.name))
                if closes:
                    world.network.close(one.name, other.name)
                    world.network.close(other.name, one.name)
        world.network.cut(directions)
        world.scheduler.after(for_ms, lambda: world.network.mend(directions))

    return strike, f"{others} node(s) with {_name(victim)} are cut off {way} for {for_ms} ms"


def _cut_connection(random: Random, nodes: int) -> Drawn:
    victim, sides = _victim(random, nodes), random.choice(["here", "there", "both"])
    peer = random.randrange(1, nodes) if nodes > 1 else 0

    def strike(world: World) -> None:
        node = world.victim(victim)
        other = world.nodes[(world.nodes.index(node) + peer) % len(world.nodes)]
        if sides != "there":
            world.network.close(node.name, other.name)
        if sides != "here":
            world.network.close(other.name, node.name)

    return strike, f"a connection of {_name(victim)} closes ({sides})"


def _clock(random: Random, nodes: int) -> Drawn:
    victim = _victim(random, nodes)
    by_ms = random.choice([-7_200_000, -30_000, -700, 300, 700, 30_000, 7_200_000])
    rate = random.choice([1.0, 1.0, 1.5, 0.5])

    def strike(world: World) -> None:
        node = world.untrusted(world.victim(victim))
        if node is not None:
            node.clock.jump(by_ms)
            node.clock.run_at(rate, world.scheduler.now_ms)

    return strike, f"the wall clock of {_name(victim)} jumps by {by_ms} ms and runs at {rate}"


def _slow_storage(random: Random, nodes: int) -> Drawn:
    victim, share = _victim(random, nodes), random.choice([0.1, 0.5, 1.0])
    slow_ms = random.choice([(1, 10), (5, 80), (100, 400)])
    for_ms = random.choice([500, 3000])

    def strike(world: World) -> None:
        storage = world.victim(victim).storage
        storage.slow, storage.slow_ms = share, slow_ms
        world.scheduler.after(for_ms, lambda: setattr(storage, "slow", 0.0))

    return strike, f"the storage of {_name(victim)} is slow ({share}, {slow_ms} ms) for {for_ms} ms"


def _weather(random: Random, nodes: int) -> Drawn:
    conditions = Conditions.draw(random)

    def strike(world: World) -> None:
        if not world.is_healed:
            world.network.conditions = conditions

    return strike, f"the network changes: {conditions}"


def _promote(random: Random, nodes: int) -> Drawn:
    victim = random.randrange(nodes)

    def strike(world: World) -> None:
        node = world.victim(victim)
        node.run(lambda: world.operate(node, "promote", ""))

    return strike, f"{_name(victim)} is to be promoted"


def _failover(random: Random, nodes: int) -> Drawn:
    asked, victim = random.randrange(nodes), _victim(random, nodes)

    def strike(world: World) -> None:
        node, target = world.victim(asked), world.victim(victim).name
        node.run(lambda: world.operate(node, "failover", target))

    return strike, f"{_name(asked)} is asked for a failover of {_name(victim)}"


def _remove_dead(random: Random, nodes: int) -> Drawn:
    """A secondary dies, an operator takes its vote away, and it comes back (with its state or without)."""
    victim, keep = random.randrange(nodes), random.random() < 0.6
    wait_ms, down_ms = random.choice([50, 400]), random.choice([800, 2500])

    def strike(world: World) -> None:
        node = world.victim(victim)
        world.crash(node, keep_state=keep, down_ms=down_ms)

        def ask() -> None:
            asked = world.victim(PRIMARY)
            asked.run(lambda: world.operate(asked, "failover", node.name))

        world.scheduler.after(wait_ms, ask)

    return strike, f"{_name(victim)} dies, and its vote is taken away"


def _add(random: Random, nodes: int) -> Drawn:
    asked, newcomer = random.randrange(nodes), random.randrange(nodes)

    def strike(world: World) -> None:
        node, target = world.victim(asked), world.victim(newcomer)
        node.run(lambda: world.operate(node, "add", target.name))

    return strike, f"{_name(asked)} is asked to add {_name(newcomer)}"


def _remove(random: Random, nodes: int) -> Drawn:
    asked, leaving = random.randrange(nodes), _victim(random, nodes)

    def strike(world: World) -> None:
        node, target = world.victim(asked), world.victim(leaving)
        node.run(lambda: world.operate(node, "remove", target.name))

    return strike, f"{_name(asked)} is asked to remove {_name(leaving)}"


def _replace(random: Random, nodes: int) -> Drawn:
    """One goes, another one comes, both at the same time; perhaps the one that goes is away."""
    leaving, newcomer = _victim(random, nodes), random.randrange(nodes)
    dies, down_ms = random.random() < 0.5, random.choice([300, 2500])

    def strike(world: World) -> None:
        old, new = world.victim(leaving), world.victim(newcomer)
        if dies:
            world.crash(old, keep_state=True, down_ms=down_ms)
        asked = world.victim(PRIMARY)
        asked.run(lambda: world.operate(asked, "add", new.name))
        asked.run(lambda: world.operate(asked, "remove", old.name))

    return strike, f"{_name(leaving)} is to be replaced by {_name(newcomer)}"


def _lose_majority(random: Random, nodes: int) -> Drawn:
    back_ms = random.choice([1500, 4000])

    def strike(world: World) -> None:
        if world.lose_majority() is not None:
            for node in world.nodes:
                world.scheduler.after(back_ms, node.start)

    return strike, f"all members but one lose their state, and it goes on alone ({back_ms} ms)"


def _move_clients(random: Random, nodes: int) -> Drawn:
    return lambda world: world.move_clients(), "all remote clients lose their connections"


def _crowd(random: Random, nodes: int) -> Drawn:
    count, ttl_ms = random.choice([20, 80]), random.choice([200, 900])
    return (
        lambda world: world.store_crowd(count, ttl_ms),
        f"{count} sessions are stored that expire together {ttl_ms} ms later",
    )


_KINDS: dict[str, Callable[[Random, int], Drawn]] = {
    "crash": _crash,
    "lose state": _lose_state,
    "stop": _stop,
    "crash at commit": _crash_at_commit,
    "restart all": _restart_all,
    "pause": _pause,
    "partition": _partition,
    "cut connection": _cut_connection,
    "clock": _clock,
    "slow storage": _slow_storage,
    "weather": _weather,
    "promote": _promote,
    "failover": _failover,
    "remove dead": _remove_dead,
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move clients": _move_clients,
    "crowd": _crowd,
}
