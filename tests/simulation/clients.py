"""The clients of a simulated cluster: each an origin, made of the code that runs in production.

A client either lives in a node's process, and dies with it, or is remote, and moves on to another node when
its home dies. It issues one operation after the other, sometimes several at once, on few sessions, so that
they contend; and everything it asks and is told goes into the history.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from hotspare.commands import (
    ABSENT,
    CONFLICT_ABSENT,
    EXPIRED,
    FULL,
    IF_ABSENT,
    IF_PRESENT,
    TAKEN,
    UNCONDITIONAL,
    Command,
    Delete,
    Patch,
    Put,
    RawGroup,
    Rotate,
    Touch,
    conflicting_version,
)
from hotspare.data import encode_data, encode_fields
from hotspare.protocol.clock import ClusterClock
from hotspare.protocol.origin import Lost, Origin, Parcel
from hotspare.record import data_checksum, decode_record, record_expires_at_ms, record_version
from tests.simulation.checkers import Violation
from tests.simulation.history import Condition, Fields, Operation, Verb, Verdict
from tests.simulation.nodes import SimulatedNode
from tests.simulation.scheduler import Timer

if TYPE_CHECKING:
    from tests.simulation.world import World

LIMIT_BYTES = 65536
EXPIRE_EVERY_MS = 50
GRACE_MS = 500
"""The clock skew allowed for: the default of `max_clock_skew_ms`."""
VERBS = (Verb.PUT, Verb.DELETE, Verb.TOUCH, Verb.PATCH, Verb.ROTATE, Verb.READ)
WEIGHTS = (30, 10, 8, 18, 6, 28)
FIELDS = ("cart", "name", "theme")
TTLS_MS = (400, 1500, 60_000, 3_600_000)


Reply: TypeAlias = Callable[[Callable[[], None]], None]
"""Takes what is to happen at the client when the answer is there."""


class Workload:
    """What the clients of one run do."""

    def __init__(self, random: Random) -> None:
        self.ids = [f"s{number}" for number in range(random.choice([1, 2, 3, 4]))]
        self.pause_ms = random.choice([10, 40, 120])
        self.at_once = random.choice([1, 1, 3])
        self.timeouts_ms = random.choice([(5000,), (300, 2000), (60, 300, 5000)])
        self.ttls_ms = random.choice([TTLS_MS, TTLS_MS[2:], TTLS_MS[:2]])
        self.batch_size = random.choice([1, 4, 100])
        self.weights = [weight if random.random() < 0.8 else 0 for weight in WEIGHTS]
        if not any(self.weights[:-1]):
            self.weights = list(WEIGHTS)


class Client:
    """Issues operations through `home`; see `LocalClient` and `RemoteClient` for how it is attached."""

    def __init__(self, world: World, name: str, home: SimulatedNode, workload: Workload) -> None:
        self.name = name
        self.home = home
        self.world = world
        self.scheduler = world.scheduler
        self.random = world.scheduler.stream(f"client {name}")
        self._acks = world.scheduler.stream(f"acks {name}")
        self.workload = workload
        self.under_way: dict[int, tuple[Operation, Command]] = {}
        """Writes, by number."""
        self.is_working = True
        self.known_versions: list[int] = []
        self.origin = self.new_origin()
        self._next: Timer | None = None

    def new_origin(self) -> Origin:
        return Origin(
            lambda: self.random.randbytes(16),
            self.workload.batch_size,
            batch_timeout_ms=20,
            grace_ms=GRACE_MS,
        )

    # --- how it is attached ---------------------------------------------------------------------------

    def local_ms(self) -> int:
        raise NotImplementedError

    def wake(self) -> None:
        """There may be something to send."""
        raise NotImplementedError

    @property
    def is_attached(self) -> bool:
        """Whether it has a home, and would notice its death."""
        return True

    def at_home(self, action: Callable[[SimulatedNode], None]) -> None:
        """Something is to happen in the home's process."""
        raise NotImplementedError

    def reply(self) -> Reply:
        """How what is asked now will be answered."""
        raise NotImplementedError

    # --- the work -------------------------------------------------------------------------------------

    def start(self) -> None:
        self._next = self.scheduler.after(self.random.randint(0, 2 * self.workload.pause_ms), self._think)
        self.scheduler.after(EXPIRE_EVERY_MS, self._expire)

    def _think(self) -> None:
        if not self.is_working:
            return
        if len(self.under_way) < self.workload.at_once:
            self.issue()
        pause_ms = self.random.randint(0, 2 * self.workload.pause_ms)
        self._next = self.scheduler.after(pause_ms, self._think)

    def _expire(self) -> None:
        self.origin.expire(self.local_ms())
        self.wake()
        if self.is_working or not self.origin.idle:
            self.scheduler.after(EXPIRE_EVERY_MS, self._expire)

    def issue(self) -> None:
        (verb,) = self.random.choices(VERBS, self.workload.weights)
        if verb is Verb.READ:
            if self.random.random() < 0.5:
                self.read_local()
            else:
                self.read_primary(self.random.choice(self.workload.ids), timeout_ms=2000)
        elif self.origin.has_room:
            self.write(verb, self.random.choice(self.workload.ids))

    # --- writing --------------------------------------------------------------------------------------

    def write(self, verb: Verb, id: str, timeout_ms: int = 0, *, for_all: bool = False) -> Operation:
        operation = self.world.begin(self, verb, id)
        self._draw_arguments(operation)
        command = _command(operation)
        for_all = for_all or self._acks.random() < self.world.scenario.for_all
        give_up_ms = self.local_ms() + (timeout_ms or self.random.choice(self.workload.timeouts_ms))
        self.under_way[operation.number] = (operation, command)
        self.origin.submit(
            Parcel([command], 64, give_up_ms, lambda told: self._told(operation, command, told, for_all)),
            self.local_ms(),
        )
        self.wake()
        return operation

    def _draw_arguments(self, operation: Operation) -> None:
        random, verb = self.random, operation.verb
        number = operation.number
        if verb in (Verb.PUT, Verb.TOUCH):
            operation.ttl_ms = random.choice(self.workload.ttls_ms)
        if verb is Verb.PUT:
            operation.data = frozenset({("by", f"put{number}"), (random.choice(FIELDS), f"p{number}")})
        elif verb is Verb.PATCH:
            operation.data = frozenset({(random.choice(FIELDS), f"u{number}")})
            if random.random() < 0.3:
                operation.remove = frozenset({random.choice(FIELDS)}) - {name for name, _ in operation.data}
        elif verb is Verb.ROTATE:
            operation.new_id = random.choice([id for id in (*self.workload.ids, "new") if id != operation.id])
        if verb in (Verb.PUT, Verb.PATCH, Verb.DELETE) and random.random() < 0.4:
            self._draw_condition(operation)

    def _draw_condition(self, operation: Operation) -> None:
        if operation.verb is Verb.PUT and self.random.random() < 0.6:
            operation.condition = self.random.choice([Condition.ABSENT, Condition.PRESENT])
        elif self.known_versions:
            operation.condition = Condition.VERSION
            operation.if_version = self.random.choice(self.known_versions[-4:])

    def _told(self, operation: Operation, command: Command, told: list[int] | Lost, for_all: bool) -> None:
        del self.under_way[operation.number]
        if isinstance(told, Lost):
            self._lost(operation, command, told.certain)
            return
        (result,) = told
        self.world.ledger.told(operation, result)
        judge(operation, result)
        if operation.version:
            self.known_versions.append(operation.version)
        self.world.end(operation, self.home)
        if for_all:
            self.at_home(lambda home: home.barrier(self.world.shown_everywhere))

    def store_crowd(self, count: int, ttl_ms: int) -> None:
        """Sessions that nobody looks at: they are there to expire."""
        commands: list[Command] = []
        for number in range(count):
            id, data = f"crowd{number}".encode(), encode_data({}, LIMIT_BYTES)
            commands.append(Put(id, data, 0, data_checksum(id, data, 0), ttl_ms, 0))
        for start in range(0, count, self.workload.batch_size):
            part = commands[start : start + self.workload.batch_size]
            parcel = Parcel(list(part), 64 * len(part), self.local_ms() + 1000, lambda told: None)
            self.origin.submit(parcel, self.local_ms())
        self.wake()

    def _lost(self, operation: Operation, command: Command, certain: bool) -> None:
        if certain:
            operation.verdict = Verdict.REFUSED
            self.world.ledger.refused(operation)
            self.world.end(operation, self.home)
        else:
            self.world.leave_unknown(operation, command.deadline_ms)

    def take_groups(self, cluster_ms: int) -> list[RawGroup]:
        groups = self.origin.take_groups(self.local_ms(), cluster_ms)
        if groups:
            self._note_numbers()
        return groups

    def _note_numbers(self) -> None:
        operations = {id(command): operation for operation, command in self.under_way.values()}
        for group in self.origin._sent:
            commands = [command for parcel in group.parcels for command in parcel.commands]
            for number, command in enumerate(commands, group.raw.first):
                if id(command) in operations:
                    self.world.ledger.numbered(self.origin.id, number, operations[id(command)])

    # --- reading --------------------------------------------------------------------------------------

    def read_local(self) -> None:
        """Of all sessions at once: what this node's copy shows."""
        self.at_home(self.world.read_local)

    def read_primary(self, id: str, timeout_ms: int) -> Operation:
        operation = self.world.begin(self, Verb.READ, id)
        reply = self.reply()

        def ask(home: SimulatedNode) -> None:
            context = home.read_primary(lambda _: answer(home))
            self.scheduler.after(timeout_ms, lambda: home.run(lambda: home.forget_read(context)))

        def answer(home: SimulatedNode) -> None:
            _note_record(operation, home.record(id.encode()))
            operation.earliest_ms = operation.latest_ms = home.cluster_ms()
            self.world.check_estimate(home)
            reply(lambda: end(home))

        def end(home: SimulatedNode) -> None:
            self.world.end(operation, home)
            if operation.version:
                self.known_versions.append(operation.version)

        self.at_home(ask)
        return operation

    def flush(self) -> None:
        """Sends what is to leave."""
        raise NotImplementedError

    def home_died(self) -> None:
        raise NotImplementedError


class LocalClient(Client):
    """In the node's own process: an in-process replicator."""

    def __init__(self, world: World, name: str, home: SimulatedNode, workload: Workload) -> None:
        super().__init__(world, name, home, workload)
        self._enrolling = b""
        home.local_clients.append(self)

    def local_ms(self) -> int:
        return self.home.boot_ms

    def wake(self) -> None:
        self.home.run(lambda: None)

    def issue(self) -> None:
        if self.home.is_up and not self.home.is_paused:
            super().issue()

    def at_home(self, action: Callable[[SimulatedNode], None]) -> None:
        self.home.run(lambda: action(self.home))

    def reply(self) -> Reply:
        return self._at_once

    def _at_once(self, action: Callable[[], None]) -> None:
        action()
        self.wake()

    def registered(self, nonce: bytes, origin: int) -> None:
        self._at_once(lambda: self.origin.registered(nonce, origin))

    def answered(self, origin: int, first: int, results: list[int]) -> None:
        self._at_once(lambda: self.origin.answered(origin, first, results))

    def unknown(self, origin: int) -> None:
        self._at_once(lambda: self.origin.unknown(origin))

    def flush(self) -> None:
        nonce = self.origin.wants_registration()
        if nonce and nonce != self._enrolling:
            self._enrolling = nonce
            self.home.enrol(nonce, self)
        if not self.home.knows_primary:
            return
        for group in self.take_groups(self.home.cluster_ms()):
            self.home.submit(group, self)

    def home_died(self) -> None:
        """So this client did too: its callers are told nothing, and it starts anew with the process."""
        lost, self.under_way = self.under_way, {}
        for operation, command in lost.values():
            self._lost(operation, command, certain=not command.deadline_ms)
        self.origin = self.new_origin()
        self._enrolling = b""


class Line:
    """A remote client's connection to its home: void once the client has another one."""

    LINK_MS = 3

    def __init__(self, client: RemoteClient, home: SimulatedNode) -> None:
        self._client = client
        self._home = home

    def forth(self, action: Callable[[SimulatedNode], None]) -> None:
        delay_ms = self._client.random.randint(0, self.LINK_MS)
        self._client.scheduler.after(delay_ms, lambda: self._arrive(action))

    def _arrive(self, action: Callable[[SimulatedNode], None]) -> None:
        if self._client.line is self:
            self._home.run(lambda: action(self._home))

    def back(self, action: Callable[[], None]) -> None:
        cluster_ms = self._home.cluster_ms()
        self._client.scheduler.after(self.LINK_MS, lambda: self._return(action, cluster_ms))

    def _return(self, action: Callable[[], None], cluster_ms: int) -> None:
        if self._client.line is self:
            self._client.heard(cluster_ms)
            action()
            self._client.flush()

    def registered(self, nonce: bytes, origin: int) -> None:
        self.back(lambda: self._client.origin.registered(nonce, origin))

    def answered(self, origin: int, first: int, results: list[int]) -> None:
        self.back(lambda: self._client.origin.answered(origin, first, results))

    def unknown(self, origin: int) -> None:
        self.back(lambda: self._client.origin.unknown(origin))


class RemoteClient(Client):
    """Connected to a node; moves to the next one when that dies, and sends everything unanswered again."""

    MOVE_MS = (1, 80)

    def __init__(self, world: World, name: str, home: SimulatedNode, workload: Workload) -> None:
        super().__init__(world, name, home, workload)
        self.line: Line | None = Line(self, home)
        self._clock = ClusterClock()
        self._enrolling = b""

    def local_ms(self) -> int:
        return self.scheduler.now_ms

    @property
    def is_attached(self) -> bool:
        return self.line is not None

    def heard(self, cluster_ms: int) -> None:
        self._clock.heard(cluster_ms, self.local_ms())

    def wake(self) -> None:
        self.flush()

    def at_home(self, action: Callable[[SimulatedNode], None]) -> None:
        if self.line is not None:
            self.line.forth(action)

    def reply(self) -> Reply:
        return self.line.back if self.line is not None else _nowhere

    def flush(self) -> None:
        line = self.line
        if line is None:
            return
        nonce = self.origin.wants_registration()
        if nonce and nonce != self._enrolling:
            self._enrolling = nonce
            line.forth(lambda home: home.enrol(nonce, line))
        self._submit(line, self.take_groups(self._clock.read_ms(self.local_ms())))

    def _submit(self, line: Line, groups: list[RawGroup]) -> None:
        def submit(home: SimulatedNode) -> None:
            for group in groups:
                home.submit(group, line)

        if groups:
            line.forth(submit)

    def home_died(self) -> None:
        self.line = None
        self.scheduler.after(self.random.randint(*self.MOVE_MS), self._move)

    def move(self) -> None:
        """Its connection was cut: the node it leaves knows that."""
        home, line = self.home, self.line
        if line is not None:
            home.run(lambda: home.leave(line))
            self.home_died()

    def _move(self) -> None:
        others = [node for node in self.world.nodes if node.is_up]
        if not others:
            self.home_died()
            return
        self.home = self.random.choice(others)
        self.line = Line(self, self.home)
        self.world.trace(self.name, f"moves to {self.home.name}")
        self._enrolling = b""
        self._submit(self.line, self.origin.unanswered())
        self.flush()


def _nowhere(action: Callable[[], None]) -> None:
    """Nobody is connected: the question got lost, and so does any answer."""


def _command(operation: Operation) -> Command:
    id = operation.id.encode()
    condition = {
        Condition.NONE: UNCONDITIONAL,
        Condition.ABSENT: IF_ABSENT,
        Condition.PRESENT: IF_PRESENT,
        Condition.VERSION: operation.if_version,
    }[operation.condition]
    if operation.verb is Verb.PUT:
        data = encode_data(dict(sorted(operation.data)), LIMIT_BYTES)
        return Put(id, data, 0, data_checksum(id, data, 0), operation.ttl_ms, 0, condition)
    if operation.verb is Verb.DELETE:
        return Delete(id, 0, condition)
    if operation.verb is Verb.TOUCH:
        return Touch(id, operation.ttl_ms, 0)
    if operation.verb is Verb.PATCH:
        fields = encode_fields(dict(sorted(operation.data)), LIMIT_BYTES)
        return Patch(id, fields, sorted(operation.remove), 0, condition, LIMIT_BYTES)
    return Rotate(id, operation.new_id.encode(), 0)


def judge(operation: Operation, result: int) -> None:
    """What the public verbs would make of it."""
    current = conflicting_version(result)
    if result > 0:
        operation.verdict, operation.version = Verdict.DONE, result
    elif result == ABSENT:
        operation.verdict = Verdict.ABSENT
    elif result == CONFLICT_ABSENT:
        operation.verdict = Verdict.CONFLICT
    elif current is not None:
        operation.verdict, operation.version = Verdict.CONFLICT, current
    elif result == TAKEN:
        operation.verdict = Verdict.TAKEN
    elif result in (EXPIRED, FULL):
        operation.verdict = Verdict.REFUSED
    else:
        raise Violation(f"{operation} ended with result {result}")


def _note_record(operation: Operation, record: bytes | None) -> None:
    if record is None:
        operation.verdict = Verdict.ABSENT
        return
    operation.verdict = Verdict.DONE
    operation.version = record_version(record)
    operation.expires_at_ms = record_expires_at_ms(record)
    operation.data = fields_of(decode_record(record))


def fields_of(data: dict[str, Any]) -> Fields:
    return frozenset(data.items())
