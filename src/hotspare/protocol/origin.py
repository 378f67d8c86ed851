"""An origin: whoever issues writes, and makes each of them happen once or never.

A write whose answer is lost must be sent again, and must not be applied again. So an origin registers through
the log (the dissertation, 6.3), numbers its commands from 1, and sends each number until it is answered; the
state machine applies them strictly in sequence and keeps each result until the origin has seen it. Every
command carries a deadline in cluster time: ordered later than that, it is refused and its number counts as
done. So when a caller has given up, its write took effect before the deadline or never will.

Pure: the caller brings the time and takes away what is to be sent and who is to be told what.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from hotspare.commands import Command, RawGroup, encode_commands
from hotspare.table import MAX_UNSEEN, ORIGIN_TTL_MS

MAX_GROUPS_IN_FLIGHT = 48
"""Enough to keep every copy busy while answers travel, and a disk while it syncs: what gathers meanwhile is
its next transaction. More would only lengthen the queue."""
MAX_GROUP_BYTES = 192 * 1024
"""Leaves a batch of the log room to stay under 256 KiB."""
MAX_WAITING_COMMANDS = 20_000
"""Past it the caller waits: a cluster that stalls must not fill the memory of those who write to it."""
MAX_WAITING_BYTES = 64 * 1024 * 1024
RENEW_AFTER_MS = ORIGIN_TTL_MS // 2
"""A registration that was not used for so long is not relied on: a write sent under an expired one would have
no known outcome."""
NEVER_MS = 1 << 62


class Lost(NamedTuple):
    """Stands in the place of results: the parcel has none.

    `certain`: it was never sent, so it was certainly not applied; otherwise the outcome is unknown.
    """

    certain: bool
    reason: str


class Parcel:
    """Commands that belong to one caller: they are sent together and answered together."""

    __slots__ = ("commands", "done", "give_up_ms", "size_bytes")

    give_up_ms: int
    """On the local monotonic clock."""
    done: Callable[[list[int] | Lost], None]
    """Called exactly once."""

    def __init__(
        self,
        commands: list[Command],
        size_bytes: int,
        give_up_ms: int,
        done: Callable[[list[int] | Lost], None],
    ) -> None:
        self.commands = commands
        self.size_bytes = size_bytes
        self.give_up_ms = give_up_ms
        self.done = done


class SentGroup:
    __slots__ = ("answered", "give_up_ms", "parcels", "raw")

    give_up_ms: int
    """The earliest among the parcels that have not been told anything yet."""

    def __init__(self, raw: RawGroup, parcels: list[Parcel]) -> None:
        self.raw = raw
        self.parcels = parcels
        self.give_up_ms = min([parcel.give_up_ms for parcel in parcels])
        self.answered = False


@dataclass(slots=True)
class Origin:
    """The numbering, batching and resending of one writer.

    A group leaves when nothing is in flight (a lone write waits for nothing), when it is full, or
    `batch_timeout_ms` after its first command came.
    """

    new_nonce: Callable[[], bytes]
    batch_size: int = 100
    batch_timeout_ms: int = 20
    grace_ms: int = 500
    """How much later than its deadline an unanswered write is called unknown: the clock skew allowed for."""

    id: int = 0
    """0 while not registered."""
    nonce: bytes = b""
    """Of the registration under way; empty when there is none."""
    proof: bytes = b""
    """The nonce of the registration that there is: that it is ours, a new home node believes for this."""
    _waiting: deque[tuple[int, Parcel]] = field(default_factory=deque)
    """(time of arrival, parcel)."""
    _waiting_commands: int = 0
    _waiting_bytes: int = 0
    _sent: deque[SentGroup] = field(default_factory=deque)
    """In order of their numbers; the first one is unanswered."""
    _next: int = 1
    _seen: int = 0
    """All numbers up to this one are answered: _seen < _next."""
    _used_ms: int = 0
    """When something was sent under this registration last."""

    # --- what the caller brings -----------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        return self._waiting_commands < MAX_WAITING_COMMANDS and self._waiting_bytes < MAX_WAITING_BYTES

    @property
    def has_waiting(self) -> bool:
        """Whether there is anything that was not sent yet."""
        return bool(self._waiting)

    @property
    def pending(self) -> int:
        """Commands that have no answer yet."""
        return self._waiting_commands + sum(group.raw.count for group in self._sent)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._sent

    def submit(self, parcel: Parcel, now_ms: int) -> None:
        """Takes at most `batch_size` commands; see `has_room`."""
        if self.id and self.idle and now_ms - self._used_ms >= RENEW_AFTER_MS:
            self.id = 0
        self._waiting.append((now_ms, parcel))
        self._waiting_commands += len(parcel.commands)
        self._waiting_bytes += parcel.size_bytes

    # --- what is to be sent ---------------------------------------------------------------------------

    def wants_registration(self) -> bytes:
        """The nonce of the registration to ask for, if there are writes and no registration; else empty."""
        if self.id or not self._waiting:
            return b""
        if not self.nonce:
            self.nonce = self.new_nonce()
        return self.nonce

    def take_groups(self, now_ms: int, cluster_ms: int) -> list[RawGroup]:
        """The groups that are to leave now."""
        groups = []
        while self.id and self._waiting and self._may_leave(now_ms):
            groups.append(self._make_group(now_ms, cluster_ms))
        return groups

    def unanswered(self) -> list[RawGroup]:
        """Everything sent and not answered, in order: for a new home node, which knows nothing of it."""
        return [group.raw for group in self._sent if not group.answered]

    def next_flush_ms(self) -> int | None:
        """When a part-filled group is to leave even if nothing comes back before."""
        if not self.id or not self._waiting or self._has_enough_in_flight:
            return None
        return self._waiting[0][0] + self.batch_timeout_ms

    def _may_leave(self, now_ms: int) -> bool:
        if not self._sent:
            return True
        if self._has_enough_in_flight:
            return False
        full = self._waiting_commands >= self.batch_size or self._waiting_bytes >= MAX_GROUP_BYTES
        return full or now_ms >= self._waiting[0][0] + self.batch_timeout_ms

    @property
    def _has_enough_in_flight(self) -> bool:
        """The state machine keeps only so many results that their origin has not seen."""
        unseen = self._next - 1 - self._seen
        return len(self._sent) >= MAX_GROUPS_IN_FLIGHT or unseen + self.batch_size > MAX_UNSEEN

    def _make_group(self, now_ms: int, cluster_ms: int) -> RawGroup:
        parcels = self._take_parcels()
        commands: list[Command] = []
        for parcel in parcels:
            deadline_ms = cluster_ms + parcel.give_up_ms - now_ms
            for command in parcel.commands:
                command.deadline_ms = deadline_ms
            commands += parcel.commands
        raw = RawGroup(self.id, self._next, len(commands), self._seen, encode_commands(commands))
        self._next += len(commands)
        self._used_ms = now_ms
        self._sent.append(SentGroup(raw, parcels))
        return raw

    def _take_parcels(self) -> list[Parcel]:
        parcels: list[Parcel] = []
        commands = size_bytes = 0
        while self._waiting:
            parcel = self._waiting[0][1]
            commands += len(parcel.commands)
            size_bytes += parcel.size_bytes
            fits = commands <= self.batch_size and size_bytes <= MAX_GROUP_BYTES
            if not fits and parcels:
                break
            parcels.append(self._drop_first_waiting())
        return parcels

    def _drop_first_waiting(self) -> Parcel:
        _, parcel = self._waiting.popleft()
        self._waiting_commands -= len(parcel.commands)
        self._waiting_bytes -= parcel.size_bytes
        return parcel

    # --- what came back -------------------------------------------------------------------------------

    def registered(self, nonce: bytes, origin: int) -> None:
        """A registration was applied; only the one that is under way counts."""
        if nonce == self.nonce and not self.id:
            self.id, self.proof, self.nonce = origin, nonce, b""
            self._next, self._seen = 1, 0

    def answered(self, origin: int, first: int, results: list[int]) -> None:
        """The results of the group that begins with number `first`; a repeated answer changes nothing."""
        if origin != self.id:
            return
        group = self._find(first)
        if group is None or group.answered:
            return
        assert len(results) == group.raw.count
        self._deliver(group, results)
        while self._sent and self._sent[0].answered:
            raw = self._sent.popleft().raw
            self._seen = raw.first + raw.count - 1

    def _find(self, first: int) -> SentGroup | None:
        for group in self._sent:
            if group.raw.first == first:
                return group
        return None

    def _deliver(self, group: SentGroup, results: list[int]) -> None:
        group.answered = True
        position = 0
        for parcel in group.parcels:
            end = position + len(parcel.commands)
            parcel.done(results[position:end])
            position = end

    def unknown(self, origin: int) -> None:
        """Our registration is gone. What was sent may have been applied or not; what was not goes on
        under a new registration."""
        if origin == self.id:
            self._abandon("this writer's registration expired while the write was under way")

    def refuse(self, reason: str) -> None:
        """Ends what was not sent: nobody would take it."""
        while self._waiting:
            self._drop_first_waiting().done(Lost(True, reason))

    def expire(self, now_ms: int) -> None:
        """Tells those whose time is up. Their numbers stay unanswered, and are sent until they are."""
        self._expire_waiting(now_ms)
        for group in self._sent:
            if not group.answered and group.give_up_ms + self.grace_ms <= now_ms:
                self._expire_sent(group, now_ms)

    def close(self, reason: str) -> None:
        """Ends everything: nothing can come back any more."""
        self.refuse(reason)
        self._abandon(reason)

    def _abandon(self, reason: str) -> None:
        lost, self._sent = self._sent, deque()
        self.id, self.nonce = 0, b""
        for group in lost:
            for parcel in () if group.answered else group.parcels:
                parcel.done(Lost(False, reason))

    def _expire_waiting(self, now_ms: int) -> None:
        if all(parcel.give_up_ms > now_ms for _, parcel in self._waiting):
            return
        arrived, self._waiting = self._waiting, deque()
        for came_ms, parcel in arrived:
            if parcel.give_up_ms > now_ms:
                self._waiting.append((came_ms, parcel))
                continue
            self._waiting_commands -= len(parcel.commands)
            self._waiting_bytes -= parcel.size_bytes
            parcel.done(Lost(True, "no primary took it in time"))

    def _expire_sent(self, group: SentGroup, now_ms: int) -> None:
        for parcel in group.parcels:
            if parcel.give_up_ms + self.grace_ms <= now_ms:
                parcel.done(Lost(False, "no answer came in time"))
                parcel.done, parcel.give_up_ms = _nobody, NEVER_MS
        group.give_up_ms = min(parcel.give_up_ms for parcel in group.parcels)


def _nobody(results: list[int] | Lost) -> None:
    """The caller of this parcel was told already."""
