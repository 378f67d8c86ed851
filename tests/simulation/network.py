"""The network between the nodes, and what may go wrong with it.

Frames travel over connections, one between each two nodes. Connections close late, or falsely, or on one side
only, and are made again after a while. Frames are delayed, dropped, duplicated and reordered, and a partition
(which may be one-way) swallows them silently: that is worse than TCP, and what the core must stand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from hotspare.raft.messages import NOBODY
from tests.simulation.scheduler import Scheduler, Timer, Trace


class Endpoint(Protocol):
    """A node, as the network sees it."""

    name: str

    @property
    def incarnation(self) -> str:
        """Who would answer a handshake now; empty while the process is down or paused."""

    @property
    def is_up(self) -> bool:
        """Whether the process runs, paused or not."""

    def admits(self, peer: str, incarnation: str) -> bool:
        """Whether it takes part in a handshake with that one."""

    def receive(self, sender: str, frame: bytes) -> None: ...

    def peer_up(self, peer: str, incarnation: str) -> None: ...

    def peer_down(self, peer: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Conditions:
    """The weather: what happens to every frame. Probabilities are 0..1."""

    delay_ms: tuple[int, int] = (0, 2)
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """How often a frame does not wait for those sent before it."""
    straggle: float = 0.0
    """How often a frame takes very long."""
    late_close: float = 0.0
    """How often the death of a process is noticed by silence only."""

    @staticmethod
    def draw(random: Random) -> Conditions:
        troubled = random.random() < 0.6
        return Conditions(
            delay_ms=random.choice([(0, 1), (0, 2), (1, 5), (2, 20), (5, 60)]),
            drop=random.choice([0.0, 0.01, 0.05, 0.15]) if troubled else 0.0,
            duplicate=random.choice([0.0, 0.01, 0.1]) if troubled else 0.0,
            reorder=random.choice([0.0, 0.05, 0.3]) if troubled else 0.0,
            straggle=random.choice([0.0, 0.005, 0.03]) if troubled else 0.0,
            late_close=random.choice([0.0, 0.2, 1.0]),
        )


CALM = Conditions()
STRAGGLE_MS = (100, 3000)
LATE_CLOSE_MS = (300, 4000)
RECONNECT_MS = (10, 150)


class Network:
    def __init__(self, scheduler: Scheduler, trace: Trace, conditions: Conditions) -> None:
        self.conditions = conditions
        self.frames = 0
        self._scheduler = scheduler
        self._trace = trace
        self._random = scheduler.stream("network")
        self._endpoints: dict[str, Endpoint] = {}
        self._swallowed: dict[tuple[str, str], int] = {}
        """Directions (sender, receiver) that are cut, with how many faults cut them."""
        self._up: dict[tuple[str, str], int] = {}
        """(side, peer) -> the number of the connection that this side believes in."""
        self._connections = 0
        self._attempts: dict[tuple[str, str], Timer] = {}
        self._last_arrival_ms: dict[tuple[str, str], int] = {}
        self._is_healed = False

    def add(self, endpoint: Endpoint) -> None:
        self._endpoints[endpoint.name] = endpoint

    # --- frames ---------------------------------------------------------------------------------------

    def send(self, sender: str, receiver: str, frame: bytes) -> None:
        """Over the connection that the sender believes in; without one the frame goes nowhere."""
        if (sender, receiver) not in self._up:
            return
        self.frames += 1
        conditions, random = self.conditions, self._random
        if (sender, receiver) in self._swallowed or random.random() < conditions.drop:
            return
        copies = 2 if random.random() < conditions.duplicate else 1
        for _ in range(copies):
            self._schedule_arrival(sender, receiver, frame)

    def _schedule_arrival(self, sender: str, receiver: str, frame: bytes) -> None:
        conditions, random = self.conditions, self._random
        arrival_ms = self._scheduler.now_ms + random.randint(*conditions.delay_ms)
        if random.random() < conditions.straggle:
            arrival_ms += random.randint(*STRAGGLE_MS)
        elif random.random() >= conditions.reorder:
            arrival_ms = max(arrival_ms, self._last_arrival_ms.get((sender, receiver), 0))
            self._last_arrival_ms[sender, receiver] = arrival_ms
        self._scheduler.at(arrival_ms, lambda: self._arrive(sender, receiver, frame))

    def _arrive(self, sender: str, receiver: str, frame: bytes) -> None:
        if (receiver, sender) in self._up and (sender, receiver) not in self._swallowed:
            self._endpoints[receiver].receive(sender, frame)

    # --- partitions -----------------------------------------------------------------------------------

    def cut(self, directions: Iterable[tuple[str, str]]) -> None:
        for direction in () if self._is_healed else directions:
            self._swallowed[direction] = self._swallowed.get(direction, 0) + 1

    def mend(self, directions: Iterable[tuple[str, str]]) -> None:
        for direction in directions:
            left = self._swallowed.get(direction, 0) - 1
            if left > 0:
                self._swallowed[direction] = left
            else:
                self._swallowed.pop(direction, None)

    def heal(self) -> None:
        """Nothing goes wrong from here on."""
        self._is_healed = True
        self._swallowed.clear()
        self.conditions = CALM

    # --- connections ----------------------------------------------------------------------------------

    def process_started(self, name: str) -> None:
        for peer in self._endpoints:
            if peer != name:
                self._attempt_after(name, peer, self._random.randint(0, 5))

    def process_died(self, name: str) -> None:
        """Its own connections are gone with it; the others hear of it sooner or later."""
        for peer in self._endpoints:
            self._up.pop((name, peer), None)
            self._attempts.pop((name, peer), _NEVER).cancel()
            number = self._up.get((peer, name))
            if number is not None:
                self._close_later(peer, name, number)

    def close(self, side: str, peer: str) -> None:
        """`side` believes that its connection to `peer` is gone, rightly or not."""
        if not self._is_healed:
            self._close(side, peer)

    def _close(self, side: str, peer: str) -> None:
        number = self._up.get((side, peer))
        if number is not None:
            self._lose(side, peer, number)

    def reconnect(self, name: str) -> None:
        """That node closes all its connections."""
        for peer in self._endpoints:
            self._close(name, peer)
            number = self._up.get((peer, name))
            if number is not None:
                self._close_later(peer, name, number)

    def _close_later(self, side: str, peer: str, number: int) -> None:
        late = self._random.random() < self.conditions.late_close
        delay_ms = self._random.randint(*(LATE_CLOSE_MS if late else (0, 3)))
        self._scheduler.after(delay_ms, lambda: self._lose(side, peer, number))

    def _lose(self, side: str, peer: str, number: int) -> None:
        if self._up.get((side, peer)) != number:
            return
        del self._up[side, peer]
        self._trace("network", f"{side} lost its connection to {peer}")
        self._endpoints[side].peer_down(peer)
        self._attempt_after(side, peer, self._random.randint(*RECONNECT_MS))

    def _attempt_after(self, side: str, peer: str, delay_ms: int) -> None:
        self._attempts.pop((side, peer), _NEVER).cancel()
        timer = self._scheduler.after(delay_ms, lambda: self._attempt(side, peer))
        self._attempts[side, peer] = timer

    def _attempt(self, side: str, peer: str) -> None:
        """A handshake: works if both answer, and both directions are open."""
        ours, theirs = self._endpoints[side].incarnation, self._endpoints[peer].incarnation
        if (side, peer) in self._up:
            return
        cut = (side, peer) in self._swallowed or (peer, side) in self._swallowed
        if not ours or not theirs or cut or not self._admit(side, peer):
            self._attempt_after(side, peer, self._random.randint(*RECONNECT_MS))
            return
        self._connections += 1
        number = self._connections
        self._schedule_up(side, peer, theirs, number)
        self._schedule_up(peer, side, ours, number)

    def _admit(self, side: str, peer: str) -> bool:
        one, other = self._endpoints[side], self._endpoints[peer]
        return one.admits(peer, other.incarnation) and other.admits(side, one.incarnation)

    def _schedule_up(self, side: str, peer: str, incarnation: str, number: int) -> None:
        delay_ms = self._random.randint(*self.conditions.delay_ms)
        self._scheduler.after(delay_ms, lambda: self._come_up(side, peer, incarnation, number))

    def _come_up(self, side: str, peer: str, incarnation: str, number: int) -> None:
        """A newer connection takes the place of an older one without a word about that one's end."""
        is_outdated = self._endpoints[peer].incarnation not in (NOBODY, incarnation)
        if not self._endpoints[side].incarnation or is_outdated or number < self._up.get((side, peer), 0):
            self._attempt_after(side, peer, self._random.randint(*RECONNECT_MS))
            return
        self._up[side, peer] = number
        self._trace("network", f"{side} is connected to {peer} ({incarnation[:4]})")
        self._endpoints[side].peer_up(peer, incarnation)
        if not self._endpoints[peer].is_up:
            self._close_later(side, peer, number)


_NEVER = Timer(0, lambda: None)
