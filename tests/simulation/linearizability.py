"""Whether one order of all operations explains what every client was told.

The search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with the memory of Lowe
("Testing for linearizability", 2017): take an operation that may come first, apply it to a model of the
sessions, go on; step back where nothing fits, and never try a set of taken operations with the same model
twice. Sessions are independent of each other unless a rotation links them, so each group of linked ids is
searched by itself.

The model is as simple as can be: an id has a session or none. What is not known exactly is a choice of the
search:

* A write with an unknown outcome happens at some point before its deadline, or never.
* The observer knows the cluster's clock within bounds. A session may be gone once its earliest possible
  expiry may be past, and must be gone once its latest possible one is certainly past.
* Versions are opaque but for growing, across all sessions. The version of an unknown write is learned from
  whoever meets it first.

What was refused must not have happened at all, so it simply takes no part: if somebody saw its effect,
nothing explains it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from tests.simulation.history import FOREVER, Condition, Fields, Operation, Verb, Verdict

MAX_STEPS = 20_000
"""A search that takes longer says so instead of going on for ever."""


class Session(NamedTuple):
    version: int
    """0: written by an operation whose outcome was unknown, and not seen since."""
    data: Fields
    expires_from_ms: int
    expires_until_ms: int


State: TypeAlias = tuple[Session | None, ...]
"""By the position of each id."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The furthest that any order got, and what could not come next."""

    explained: list[Operation]
    stuck: list[Operation]
    state: dict[str, Session | None]

    def __str__(self) -> str:
        lines = ["no order of these operations explains what clients were told; the longest one:"]
        lines += [f"    {operation}" for operation in self.explained[-12:]]
        lines += ["  leads to:", *(f"    {id}: {session}" for id, session in self.state.items())]
        lines += ["  after which none of these can come:", *(f"    {operation}" for operation in self.stuck)]
        return "\n".join(lines)


class SearchTooLong(Exception):
    """The history has too many overlapping operations to be judged."""


def check(operations: Sequence[Operation]) -> Failure | None:
    """None if the history is linearizable. Raises SearchTooLong."""
    taking_part = [operation for operation in operations if operation.verdict is not Verdict.REFUSED]
    for group in _linked(taking_part):
        failure = _Search(group).run()
        if failure is not None:
            return failure
    return None


def _linked(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Groups that have no session id in common."""
    leader: dict[str, str] = {}

    def find(id: str) -> str:
        while leader.setdefault(id, id) != id:
            id = leader[id]
        return id

    for operation in operations:
        if operation.new_id:
            leader[find(operation.id)] = find(operation.new_id)
    groups: dict[str, list[Operation]] = {}
    for operation in operations:
        groups.setdefault(find(operation.id), []).append(operation)
    return list(groups.values())


class _Point(NamedTuple):
    """A place in the search: which operations were taken, and where that leads."""

    taken: int
    """A set of positions, as bits."""
    state: State
    last_version: int
    latest_invoked: int
    """Of what was taken. Nothing that had returned before may follow."""


class _Search:
    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = sorted(operations, key=lambda operation: operation.invoked)
        ids = {id for operation in operations for id in (operation.id, operation.new_id) if id}
        self._ids = sorted(ids)
        self._place = {id: place for place, id in enumerate(self._ids)}
        self._versions = sorted(
            (operation.version, position)
            for position, operation in enumerate(self._operations)
            if _gives_version(operation)
        )
        self._needed = 0
        for position, operation in enumerate(self._operations):
            if operation.verdict is not Verdict.UNKNOWN:
                self._needed |= 1 << position

    def run(self) -> Failure | None:
        start = _Point(0, (None,) * len(self._ids), 0, -1)
        stack = [(start, self._successors(start))]
        seen = {start}
        furthest, longest = 0, [start]
        steps = 0
        while stack:
            point, successors = stack[-1]
            if point.taken & self._needed == self._needed:
                return None
            following = next((each for each in successors if each not in seen), None)
            if following is None:
                stack.pop()
                continue
            steps += 1
            if steps > MAX_STEPS:
                raise SearchTooLong(f"{MAX_STEPS} steps: {self._failure(longest)}")
            seen.add(following)
            stack.append((following, self._successors(following)))
            explained = (following.taken & self._needed).bit_count()
            if explained > furthest:
                furthest, longest = explained, [point for point, _ in stack]
        return self._failure(longest)

    def _successors(self, point: _Point) -> Iterator[_Point]:
        candidates = self._candidates(point)
        harmless = self._harmless(point, candidates)
        if harmless is not None:
            yield harmless
            return
        next_version = self._next_version(point)
        candidates.sort(key=lambda candidate: _preference(candidate[1]))
        for position, operation in candidates:
            version_given = operation.version if _gives_version(operation) else 0
            if next_version <= point.last_version or version_given not in (0, next_version):
                continue
            for state, met in self._step(operation, point.state):
                yield _Point(
                    point.taken | 1 << position,
                    state,
                    max(point.last_version, version_given, met),
                    max(point.latest_invoked, operation.invoked),
                )

    def _harmless(self, point: _Point, candidates: list[tuple[int, Operation]]) -> _Point | None:
        """An operation that fits now, changes nothing and shuts nobody out: if any order works, one that
        takes it now does too, so the search need not branch."""
        first_shut_out = min(
            [each.returned for _, each in candidates if each.verdict is Verdict.UNKNOWN], default=FOREVER
        )
        for position, operation in candidates:
            if operation.verdict in (Verdict.DONE, Verdict.UNKNOWN) and operation.verb is not Verb.READ:
                continue
            if first_shut_out < operation.invoked:
                continue
            if any(state == point.state for state, _ in self._step(operation, point.state)):
                return point._replace(
                    taken=point.taken | 1 << position,
                    latest_invoked=max(point.latest_invoked, operation.invoked),
                )
        return None

    def _next_version(self, point: _Point) -> int:
        """Writes that were given versions can only come in their order."""
        for version, position in self._versions:
            if not point.taken >> position & 1:
                return version
        return FOREVER

    def _candidates(self, point: _Point) -> list[tuple[int, Operation]]:
        """What may come next: not taken, and begun before anything else not taken had ended."""
        candidates: list[tuple[int, Operation]] = []
        horizon = FOREVER
        taken = point.taken
        # The first positions are all taken as the search proceeds: they are skipped at a stroke.
        first = (~taken & (taken + 1)).bit_length() - 1
        for position in range(first, len(self._operations)):
            operation = self._operations[position]
            if operation.invoked > horizon:
                break
            if taken >> position & 1:
                continue
            if operation.verdict is not Verdict.UNKNOWN:
                horizon = min(horizon, operation.returned)
            elif operation.returned < point.latest_invoked:
                continue
            candidates.append((position, operation))
        return [(position, each) for position, each in candidates if each.invoked <= horizon]

    # --- the model ------------------------------------------------------------------------------------

    def _step(self, operation: Operation, state: State) -> Iterator[tuple[State, int]]:
        """The states that the operation may lead to if it ends as it did, each with the version that was
        learned on the way (0: none)."""
        place = self._place[operation.id]
        for found in _alternatives(state[place], operation):
            yield from self._apply(operation, state, place, found)

    def _apply(
        self, operation: Operation, state: State, place: int, found: Session | None
    ) -> Iterator[tuple[State, int]]:
        verb, verdict = operation.verb, operation.verdict
        if verb is Verb.READ:
            yield from _read(operation, state, place, found)
        elif verdict is Verdict.ABSENT:
            if found is None:
                yield _with(state, place, None), 0
        elif verdict is Verdict.CONFLICT:
            yield from _conflict(operation, state, place, found)
        elif verdict is Verdict.TAKEN:
            new = state[self._place[operation.new_id]]
            if found is not None and new is not None and _may_be_alive(new, operation):
                yield _with(state, place, found), 0
        else:
            yield from self._change(operation, state, place, found)

    def _change(
        self, operation: Operation, state: State, place: int, found: Session | None
    ) -> Iterator[tuple[State, int]]:
        met = 0
        if operation.condition is Condition.VERSION:
            found = _pinned(found, operation.if_version)
            met = operation.if_version
        if not _holds(operation.condition, found):
            return
        if operation.verb is Verb.PUT:
            yield _with(state, place, _stored(operation)), met
        elif found is None:
            return
        elif operation.verb is Verb.DELETE:
            yield _with(state, place, None), met
        elif operation.verb is Verb.TOUCH:
            yield _with(state, place, _touched(found, operation)), met
        elif operation.verb is Verb.PATCH:
            data = _patched(found.data, operation)
            yield _with(state, place, found._replace(version=operation.version, data=data)), met
        else:
            yield from self._rotate(operation, state, place, found)

    def _rotate(
        self, operation: Operation, state: State, place: int, found: Session
    ) -> Iterator[tuple[State, int]]:
        new_place = self._place[operation.new_id]
        if any(new is None for new in _alternatives(state[new_place], operation)):
            moved = _with(_with(state, place, None), new_place, found._replace(version=operation.version))
            yield moved, 0

    def _failure(self, longest: list[_Point]) -> Failure:
        explained = []
        for before, after in pairwise(longest):
            position = (before.taken ^ after.taken).bit_length() - 1
            explained.append(self._operations[position])
        stuck = [operation for _, operation in self._candidates(longest[-1])]
        return Failure(explained, stuck, dict(zip(self._ids, longest[-1].state, strict=True)))


def _preference(operation: Operation) -> tuple[bool, int]:
    """Which one to try first: usually operations happen in the order in which they ended, and unknown ones
    not before somebody needs them."""
    return operation.verdict is Verdict.UNKNOWN, operation.returned


def _gives_version(operation: Operation) -> bool:
    return operation.verdict is Verdict.DONE and operation.verb is not Verb.READ and operation.version > 0


def _alternatives(session: Session | None, operation: Operation) -> list[Session | None]:
    """The session as the operation may meet it: alive, gone, or either."""
    if session is None:
        return [None]
    alternatives: list[Session | None] = []
    if _may_be_alive(session, operation):
        alternatives.append(session)
    if session.expires_from_ms <= operation.latest_ms:
        alternatives.append(None)
    return alternatives


def _may_be_alive(session: Session, operation: Operation) -> bool:
    return session.expires_until_ms > operation.earliest_ms


def _read(
    operation: Operation, state: State, place: int, found: Session | None
) -> Iterator[tuple[State, int]]:
    if operation.verdict is Verdict.ABSENT:
        if found is None:  # perhaps early: to a later write the session may be alive
            yield state, 0
        return
    pinned = _pinned(found, operation.version)
    if pinned is None or pinned.data != operation.data:
        return
    expires_ms = operation.expires_at_ms
    if pinned.expires_from_ms <= expires_ms <= pinned.expires_until_ms:
        pinned = pinned._replace(expires_from_ms=expires_ms, expires_until_ms=expires_ms)
        yield _with(state, place, pinned), operation.version


def _conflict(
    operation: Operation, state: State, place: int, found: Session | None
) -> Iterator[tuple[State, int]]:
    if not operation.version:
        if found is None and operation.condition is not Condition.ABSENT:
            yield _with(state, place, None), 0
        return
    pinned = _pinned(found, operation.version)
    if pinned is None or operation.condition is Condition.PRESENT:
        return
    if operation.condition is Condition.ABSENT or operation.version != operation.if_version:
        yield _with(state, place, pinned), operation.version


def _pinned(session: Session | None, version: int) -> Session | None:
    """The session if it has (or may have) that version."""
    if session is None or session.version not in (0, version):
        return None
    return session if session.version else session._replace(version=version)


def _holds(condition: Condition, found: Session | None) -> bool:
    if condition is Condition.NONE:
        return True
    return (found is None) == (condition is Condition.ABSENT)


def _stored(operation: Operation) -> Session:
    version = operation.version if operation.verdict is Verdict.DONE else 0
    return _touched(Session(version, operation.data, 0, 0), operation)


def _touched(session: Session, operation: Operation) -> Session:
    return session._replace(
        expires_from_ms=operation.earliest_ms + operation.ttl_ms,
        expires_until_ms=operation.latest_ms + operation.ttl_ms,
    )


def _patched(data: Fields, operation: Operation) -> Fields:
    changed = operation.remove | {name for name, _ in operation.data}
    return frozenset((name, value) for name, value in data if name not in changed) | operation.data


def _with(state: State, place: int, session: Session | None) -> State:
    return state if state[place] is session else (*state[:place], session, *state[place + 1 :])
