"""The rules of Raft for one server: a state machine without a world around it.

Inputs are method calls: time passes (`tick`), a message arrives (`step`), something is proposed, a write
has become durable (`persisted`). They change the node's state and nothing else. What has to happen in the
world is collected, and `ready()` hands it out: what to write, what to send, what to apply. Whoever drives a
node calls `ready()` after its inputs, performs what it says, and reports back.

Durability. A vote, or the word that an entry is held, may only leave once it would survive a crash. Writes
are numbered by `Ready.number`, and messages that depend on a write are held back until it has been reported
by `persisted(number)`. Numbers, not (term, index): an entry that was truncated and appended again has the
same index, and may have the same term, as one whose write has just completed. A leader's own vote and its
own copy of the log count by the same rule: they are messages to itself. A leader sends entries while it
still writes them.

Patience. Whoever drives a node may wait a moment for company: what nobody needs at once is then postponed,
and leaves with what comes next. A commit index travels with the next entries; and entries go at once to the
*vanguard* alone, the quickest followers that make a majority (such leaders have been called thrifty: Moraru,
Andersen, Kaminsky, "There is more consensus in egalitarian parliaments", SOSP 2013), to the others in larger
Appends. A moment without patience, and everybody has everything.

Beyond the paper, from the dissertation: pre-vote (9.6), check-quorum (6.2), leadership transfer (3.10),
changes of one server at a time (chapter 4), reads by index (6.4). Two things are particular to this
implementation:

* Stickiness ends early. A server that has heard from a live leader refuses votes for an election timeout;
  but when the operating system reports that the leader is gone (`server_lost`), waiting would only be lost
  time. The voters then campaign in the order of their names, some milliseconds apart. A false report costs
  at most an election.
* Pauses are noticed. A process that was stopped finds its clock far ahead of its last input. It must take
  that for its own absence, not for the others' silence, so it asks before it acts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from .log import Log
from .messages import (
    NOBODY,
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    ServerId,
    SnapshotChunk,
    SnapshotMark,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from .progress import Progress, State
from .quorum import Outcome, committed_index, majority, tally

MAX_APPEND_BYTES = 1024 * 1024
"""Entries in one Append. A single entry is sent whatever its size."""

MAX_APPLY_BYTES = 1024 * 1024
"""Entries to apply from one Ready, so that catching up never keeps a heartbeat waiting for long."""

NEVER_MS: Final = -(2**62)
"""A time before all others."""


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Timing(NamedTuple):
    """All in milliseconds. An election timeout should span several heartbeats."""

    heartbeat_ms: int = 200
    election_timeout_ms: int = 1000
    rank_ms: int = 20
    retry_ms: tuple[int, int] = (50, 150)


class Parting(NamedTuple):
    """How a server came to follow its last leader no more."""

    why: str
    """"killed" (its connection is gone), "silent" (for an election timeout), or what the leader said itself;
    empty where only the others know."""
    since_ms: int
    """When it was there last."""


class NotLeader(Exception):
    """Only a leader that is not handing its leadership over takes proposals."""

    def __init__(self, leader: ServerId) -> None:
        super().__init__(f"not the leader; it is {leader or 'unknown'}")
        self.leader = leader


class ChangeRefused(Exception):
    """The configuration cannot be changed so, or not now."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StateLost(Exception):
    """This server holds less than it has acknowledged in this very term: its state is not what it was, and
    its votes may be forgotten too. It must not go on under its identity."""

    def __init__(self, acknowledged: int, held: int) -> None:
        super().__init__(f"entry {acknowledged} was acknowledged, and the log ends with {held}")
        self.acknowledged = acknowledged
        self.held = held


class ReadReady(NamedTuple):
    """A read may be answered from any copy that has applied everything up to `read_index`."""

    context: int
    read_index: int


class Ready:
    """What has to happen, in this order: write (all of it atomically), send, apply. Sending need not wait
    for the write, applying may share its transaction."""

    __slots__ = (
        "append",
        "chunk_replies",
        "chunks",
        "committed",
        "hard_state",
        "messages",
        "number",
        "reads",
        "snapshot",
        "snapshots_wanted",
    )

    number: int
    """Of the write, to be reported by `persisted`; 0 if there is nothing to write."""

    hard_state: HardState | None
    """To write, if it changed."""

    snapshot: SnapshotMark | None
    """To write: the staged snapshot is installed, and the log becomes this mark followed by `append`
    alone."""

    append: Sequence[Entry]
    """To write; everything in the log from the first of them on goes before."""

    messages: list[Message]
    """To send, in order."""

    committed: list[Entry]
    """To apply, in order; written by this Ready or earlier ones. Reported back by `applied_to`."""

    reads: Sequence[ReadReady]

    chunks: Sequence[SnapshotChunk]
    """Received from the leader of the current term: for whoever collects the snapshot."""

    chunk_replies: Sequence[SnapshotReply]
    """Received by the leader: for whoever sends the snapshot."""

    snapshots_wanted: Sequence[ServerId]
    """These followers need a snapshot; each is named once per need, until `snapshot_installed` or
    `_failed`."""

    def __init__(self) -> None:
        self.number = 0
        self.hard_state = None
        self.snapshot = None
        self.append = ()
        self.messages = []
        self.committed = []
        self.reads = ()
        self.chunks = ()
        self.chunk_replies = ()
        self.snapshots_wanted = ()

    @property
    def needs_work(self) -> bool:
        """Whether anything is to be done in the store; else there is only something to be told."""
        return bool(self.number or self.committed or self.snapshot is not None or self.snapshots_wanted)


@dataclass(frozen=True, slots=True)
class _Round:
    number: int
    started_ms: int
    index: int
    contexts: list[int]


class Node:
    def __init__(
        self,
        id: ServerId,
        name: str,
        log: Log,
        hard_state: HardState,
        applied: int,
        timing: Timing,
        randrange: Callable[[int], int],
        now_ms: int,
        *,
        volatile: bool = False,
    ) -> None:
        """A server as it starts, or comes back, with what it had written; `randrange(n)` yields 0 … n-1.

        A `volatile` one never comes back: whatever it promised ends with its process, so there is nothing to
        write, and nothing waits for writes.
        """
        self.id = id
        self.name = name
        self.log = log
        self.timing = timing
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.FOLLOWER
        self.leader: ServerId = NOBODY
        self._randrange = randrange
        self._is_volatile = volatile
        self._now_ms = now_ms
        self._heard_ms = NEVER_MS
        self._lost: set[ServerId] = set()  # only ever asked for membership
        self._observers: tuple[ServerId, ...] = ()
        self.abstains = False
        """Whether it stands in no election and votes in none: see `abstain`."""
        self.parting = Parting("", now_ms)

        log.commit_to(applied)
        log.delivered = applied
        log.applied_to(applied)

        self._written_state = hard_state
        self._write_number = 0  # of the last write handed out
        self._persisted = 0  # of the last write known to be durable: never above _write_number
        self._snapshot: SnapshotMark | None = None
        self._held: deque[tuple[int, Message]] = deque()  # (write it waits for, message): numbers never fall
        self._messages: list[Message] = []
        self._reads: list[ReadReady] = []
        self._chunks: list[SnapshotChunk] = []
        self._chunk_replies: list[SnapshotReply] = []

        self._votes: dict[ServerId, bool] = {}
        self._campaigned_ms = now_ms
        self._patience_ms = 0
        self._election_deadline_ms = 0
        self._arm_election()
        if log.voters == (id,):  # there is nobody to wait for
            self._election_deadline_ms = now_ms
        self._forget_leading()

    def _forget_leading(self) -> None:
        """Whatever only a leader has, empty. `progress` has all servers of the configuration but this one,
        and the observers."""
        self.is_leader = False
        self.progress: dict[ServerId, Progress] = {}
        self._own_match = 0
        self._term_start = 0
        self._confirmed_ms = NEVER_MS
        self._next_heartbeat_ms = 0
        self._round = 0
        self._rounds: deque[_Round] = deque()  # unanswered by a majority as yet
        self._waiting_reads: list[int] = []
        self._transfer_to: ServerId = NOBODY
        self._transfer_reason = ""
        self._transfer_deadline_ms = 0
        self._snapshots_wanted: list[ServerId] = []
        self._replication_due = False
        self._vanguard: list[Progress] = []
        self._has_left_out = False

    # -- what others may know ------------------------------------------------------------------------------

    @property
    def is_voter(self) -> bool:
        return self.id in self.log.voters

    @property
    def commit(self) -> int:
        return self.log.commit

    @property
    def applied(self) -> int:
        return self.log.applied

    @property
    def configuration(self) -> Configuration:
        """The latest in the log, committed or not: it acts from the moment it is appended."""
        return self.log.configuration

    @property
    def has_committed_in_term(self) -> bool:
        """Whether this leader knows all that its predecessors committed (the paper, section 8)."""
        return self.is_leader and self.log.commit >= self._term_start

    @property
    def accepts_proposals(self) -> bool:
        return self.is_leader and self._transfer_to == NOBODY

    @property
    def may_change_configuration(self) -> bool:
        """Whether the previous change is over, and so another one may be proposed now."""
        return self.accepts_proposals and self.has_committed_in_term and self.configuration_is_committed

    @property
    def configuration_is_committed(self) -> bool:
        return self.log.configuration_index() <= self.log.commit

    @property
    def transferee(self) -> ServerId:
        """To whom this leader is handing its leadership over just now, if it is."""
        return self._transfer_to

    @property
    def round(self) -> int:
        """The last heartbeat round that this leader has begun."""
        return self._round

    @property
    def confirmed_ms(self) -> int:
        """When the last heartbeat round that a majority answered began (at first: the campaign it won). There
        was no other leader then. `NEVER_MS` on all but a leader."""
        return self._confirmed_ms

    @property
    def heard_ms(self) -> int:
        """When this server last heard from a current leader; a leader hears itself while a majority does."""
        return self._confirmed_ms if self.is_leader else self._heard_ms

    @property
    def next_deadline_ms(self) -> int:
        """When `tick` is needed next. Never far away: how late it comes tells a pause."""
        deadline_ms = self._next_heartbeat_ms if self.is_leader else self._election_deadline_ms
        soon_ms = self._now_ms + self.timing.heartbeat_ms
        return deadline_ms if deadline_ms < soon_ms else soon_ms

    def best_successor(self) -> ServerId:
        """The most up-to-date voter that this leader hears from, other than itself."""
        candidates = [self.progress[voter] for voter in self.log.voters if voter in self.progress]
        active = [progress for progress in candidates if progress.active]
        return max(active, key=lambda progress: progress.match).id if active else NOBODY

    # -- time ----------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        self._observe(now_ms)
        if self.is_leader:
            self._tick_leader()
        elif now_ms >= self._election_deadline_ms:
            self._campaign()

    def _observe(self, now_ms: int) -> None:
        absence_ms = now_ms - self._now_ms
        if absence_ms > 0:
            self._now_ms = now_ms
            if 2 * absence_ms > self.timing.election_timeout_ms:
                self._notice_pause()

    def _notice_pause(self) -> None:
        if self.role is not Role.LEADER:
            self._arm_election()
            return
        for progress in self.progress.values():
            progress.active = False
            progress.heard_ms = self._now_ms
        self._begin_round()

    def _tick_leader(self) -> None:
        if self._transfer_to and self._now_ms >= self._transfer_deadline_ms:
            self._transfer_to = NOBODY
        for progress in self.progress.values():
            if progress.retry_if_silent(self._now_ms, 2 * self.timing.heartbeat_ms):
                self._replication_due = True
        if self._now_ms >= self._next_heartbeat_ms:
            self._next_heartbeat_ms = self._now_ms + self.timing.heartbeat_ms
            self._begin_round()
        self._check_quorum()

    def _check_quorum(self) -> None:
        """A leader that a majority has not answered for an election timeout may have been replaced: it steps
        down, so that nobody waits for it."""
        oldest_ms = self._now_ms - self.timing.election_timeout_ms
        present = 0
        for voter in self.log.voters:
            progress = self.progress.get(voter)
            present += progress is None or (progress.reachable and progress.heard_ms > oldest_ms)
        for progress in self.progress.values():
            progress.active = progress.active and progress.heard_ms > oldest_ms
        if present < majority(len(self.log.voters)):
            self._become_follower(self.term)

    # -- what the connections tell -------------------------------------------------------------------------

    def server_lost(self, id: ServerId, now_ms: int) -> None:
        """Its connection closed and could not be made again."""
        self._observe(now_ms)
        self._lost = {each for each in self._lost if self._may_be_back(each)} | {id}
        if id in self.progress:
            self._lose_follower(id)
        elif id == self.leader and self.role is Role.FOLLOWER:
            self.parting = Parting("killed", self._now_ms)
            self.leader = NOBODY
            delay_ms = self._rank(id) * self.timing.rank_ms + self._randrange(self.timing.rank_ms)
            self._election_deadline_ms = self._now_ms + delay_ms
        elif self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
            self._count_votes()

    def _may_be_back(self, id: ServerId) -> bool:
        """Of all others it need not be remembered that they are lost: incarnations come and go for ever."""
        configurations = self.log.configurations.values()
        return id in self._observers or any(each.by_id(id) is not None for each in configurations)

    def server_back(self, id: ServerId, now_ms: int) -> None:
        """Connected, for the first time or again."""
        self._observe(now_ms)
        self._find_again(id)

    def _find_again(self, id: ServerId) -> None:
        self._lost.discard(id)
        progress = self.progress.get(id)
        if progress is not None:
            progress.reachable = True
            self._replication_due = True

    def _lose_follower(self, id: ServerId) -> None:
        self.progress[id].lost()
        self._choose_vanguard()
        if self._transfer_to == id:
            self._transfer_to = NOBODY
        self._check_quorum()

    def _rank(self, lost: ServerId) -> int:
        """The place of this server among the voters that remain, by name."""
        remaining = [voter for voter in self.log.voters if voter != lost]
        return remaining.index(self.id) if self.id in remaining else len(remaining)

    # -- messages ------------------------------------------------------------------------------------------

    def step(self, message: Message, now_ms: int) -> None:
        if now_ms > self._now_ms:
            self._observe(now_ms)
        if message.receiver != self.id:
            return
        if message.sender in self._lost:
            self._find_again(message.sender)
        if message.term == self.term or self._settle_term(message):
            _HANDLERS[type(message)](self, message)

    def _settle_term(self, message: Message) -> bool:
        """Whether a message of another term is to be handled, this server having moved to that term if it is
        later. Votes have rules of their own: asking whether one would be given must not move anybody."""
        if isinstance(message, VoteRequest | VoteReply):
            return True
        if message.term > self.term:
            self._become_follower(message.term)
            return True
        if isinstance(message, Append | Heartbeat | SnapshotChunk | TimeoutNow):
            self._send(HeartbeatReply(self.id, message.sender, self.term, 0))
        return False

    def _send(self, message: Message) -> None:
        self._messages.append(message)

    def _send_when_durable(self, message: Message) -> None:
        """Holds a message back until all that this server has promised so far is written."""
        number = self._write_number + self._has_unwritten()
        if number > self._persisted:
            self._held.append((number, message))
        else:
            self._release(message)

    def _release(self, message: Message) -> None:
        if message.receiver != self.id:
            self._messages.append(message)
        elif message.term == self.term:
            _HANDLERS[type(message)](self, message)

    # -- elections -----------------------------------------------------------------------------------------

    def campaign(self, now_ms: int) -> None:
        """Asks for votes now instead of waiting for a timeout."""
        self._observe(now_ms)
        if self.role is not Role.LEADER:
            self._campaign()

    def _may_campaign(self) -> bool:
        """Voters may; and a server whose removal may be uncommitted yet: if it alone has that entry, the
        others cannot win against its longer log, and need it to lead once more (the dissertation,
        4.2.2)."""
        log = self.log
        acting = log.configurations_from(log.commit)
        return not self.abstains and any(self.id in configuration.voters for configuration in acting)

    def _arm_election(self) -> None:
        timeout_ms = self.timing.election_timeout_ms
        self._patience_ms = timeout_ms + self._randrange(timeout_ms)
        self._election_deadline_ms = self._now_ms + self._patience_ms

    def _retry_soon(self) -> None:
        shortest_ms, longest_ms = self.timing.retry_ms
        self._election_deadline_ms = self._now_ms + shortest_ms + self._randrange(longest_ms - shortest_ms)

    def _campaign(self) -> None:
        """Asks whether an election could be won. No term grows by asking, so it may be asked again soon."""
        if self.leader != NOBODY:
            self.parting = Parting("silent", self._heard_ms)
            self.leader = NOBODY
        if not self._may_campaign():
            self._arm_election()
            return
        self.role = Role.PRE_CANDIDATE
        self._campaigned_ms = self._now_ms
        self._retry_soon()
        for voter in self._other_voters():
            self._send(self._vote_request(voter, self.term + 1, pre=True))
        self._votes = {self.id: True}
        self._count_votes()

    def _stand(self, *, transfer: bool = False) -> None:
        """Becomes a candidate in a new term. The requests leave, and its own vote counts, once it is
        written."""
        self.role = Role.CANDIDATE
        self.term += 1
        self.vote = self.id
        self.leader = NOBODY
        self._votes = {}
        self._campaigned_ms = self._now_ms
        half_ms = self.timing.election_timeout_ms // 2
        self._election_deadline_ms = self._now_ms + half_ms + self._randrange(half_ms)
        for voter in self._other_voters():
            self._send_when_durable(self._vote_request(voter, self.term, pre=False, transfer=transfer))
        self._send_when_durable(VoteReply(self.id, self.id, self.term, pre=False, granted=True))

    def _other_voters(self) -> list[ServerId]:
        return [voter for voter in self.log.voters if voter != self.id]

    def _vote_request(self, voter: ServerId, term: int, *, pre: bool, transfer: bool = False) -> VoteRequest:
        return VoteRequest(
            self.id, voter, term, self.log.last_index, self.log.last_term, pre=pre, transfer=transfer
        )

    def _hears_leader(self) -> bool:
        if self.is_leader:
            return True
        return self.leader != NOBODY and self._now_ms - self._heard_ms < self.timing.election_timeout_ms

    def _on_vote_request(self, message: VoteRequest) -> None:
        if self.abstains or (self._hears_leader() and not message.transfer):
            return
        is_up_to_date = self.log.is_up_to_date(message.last_term, message.last_index)
        if message.pre:
            granted = message.term > self.term and is_up_to_date
            term = message.term if granted else self.term
            self._send(VoteReply(self.id, message.sender, term, pre=True, granted=granted))
            return
        if message.term > self.term:
            self._become_follower(message.term)
        is_free = self.vote in (NOBODY, message.sender)
        if message.term == self.term and is_free and is_up_to_date:
            self.vote = message.sender
            self._arm_election()
            self._send_when_durable(VoteReply(self.id, message.sender, self.term, pre=False, granted=True))
        else:
            self._send(VoteReply(self.id, message.sender, self.term, pre=False, granted=False))

    def _on_vote_reply(self, message: VoteReply) -> None:
        asked = Role.PRE_CANDIDATE if message.pre else Role.CANDIDATE
        term = self.term + 1 if message.pre and message.granted else self.term
        if self.role is asked and message.term == term:
            self._votes[message.sender] = message.granted
            self._count_votes()
        elif message.term > self.term and not (message.pre and message.granted):
            self._become_follower(message.term)

    def _count_votes(self) -> None:
        # A server that is gone will not vote: without this, a split vote with one dead voter stays pending.
        absent = {voter: False for voter in self.log.voters if voter in self._lost}
        outcome = tally(self.log.voters, absent | self._votes)
        if outcome is Outcome.LOST:
            self._become_follower(self.term)
            self._retry_soon()
        elif outcome is Outcome.WON and self.role is Role.PRE_CANDIDATE:
            self._stand()
        elif outcome is Outcome.WON:
            self._become_leader()

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        if self.role is Role.FOLLOWER and self._may_campaign():
            self.parting = Parting(message.reason, self._now_ms)
            self._stand(transfer=True)

    # -- roles ---------------------------------------------------------------------------------------------

    def abstain(self, *, abstains: bool) -> None:
        """For a server that is an observer, or known to have been removed: it leads nobody and keeps out of
        all elections, whatever its log says. It follows whoever sends it entries."""
        if abstains and not self.abstains:
            self._become_follower(self.term)
        self.abstains = abstains

    def _become_follower(self, term: int) -> None:
        """Of nobody as yet: the leader makes itself known by its first message."""
        assert term >= self.term, "terms only grow"
        if term > self.term:
            self.term = term
            self.vote = NOBODY
        if self.leader != NOBODY:
            self.parting = Parting("", self._now_ms)
        if self.role is Role.LEADER:
            self._heard_ms = max(self._heard_ms, self._confirmed_ms)
            self._forget_leading()
            self._arm_election()
        self.role = Role.FOLLOWER
        self.leader = NOBODY

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE
        self.role = Role.LEADER
        self.leader = self.id
        self._forget_leading()
        self.is_leader = True
        self._confirmed_ms = self._campaigned_ms
        self._term_start = self.log.last_index + 1
        self._follow_configuration()
        self._append_own(EntryKind.NOOP, b"")
        self._next_heartbeat_ms = self._now_ms + self.timing.heartbeat_ms
        self._begin_round()

    def _follow_configuration(self) -> None:
        """Keeps `progress` to the servers of the acting configuration and the observers; what is known of
        them stays."""
        servers = [member.id for member in self.log.configuration.servers]
        others = [id for id in (*servers, *self._observers) if id != self.id]
        self.progress = {id: self.progress.get(id) or self._new_progress(id) for id in others}
        self._choose_vanguard()

    def observe_by(self, observers: Iterable[ServerId], now_ms: int) -> None:
        """From now on, whenever this server leads, these get the log too. Nothing that is decided by counting
        counts them: they are servers outside every configuration."""
        self._observe(now_ms)
        chosen = tuple(sorted(observers))
        if chosen != self._observers:
            self._observers = chosen
            if self.role is Role.LEADER:
                self._follow_configuration()
                self._replication_due = True

    def _new_progress(self, id: ServerId) -> Progress:
        return Progress(id, self.log.last_index + 1, self._now_ms, reachable=id not in self._lost)

    # -- following -----------------------------------------------------------------------------------------

    def _follow(self, leader: ServerId) -> None:
        assert self.role is not Role.LEADER, "a term has one leader"
        self.role = Role.FOLLOWER
        self.leader = leader
        self._heard_ms = self._now_ms
        self._election_deadline_ms = self._now_ms + self._patience_ms

    def _on_append(self, message: Append) -> None:
        self._follow(message.sender)
        log = self.log
        previous, entries = message.previous_index, message.entries
        if previous < log.commit:  # what is committed matches, here as everywhere
            entries = entries[log.commit - previous :]
            previous = log.commit
        elif log.term_at(previous) != message.previous_term:
            self._reject(message)
            return
        log.merge(previous, entries)
        matched = previous + len(entries)
        self._learn_commit(message.commit if message.commit < matched else matched)
        self._send_when_durable(AppendReply(self.id, message.sender, self.term, False, matched))

    def _reject(self, message: Append) -> None:
        last = min(message.previous_index, self.log.last_index)
        hint = self.log.last_with_term_at_most(message.previous_term, last)
        hint_term = self.log.term_at(hint) or 0
        self._send(
            AppendReply(self.id, message.sender, self.term, True, message.previous_index, hint, hint_term)
        )

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.sender)
        if message.commit > self.log.last_index:  # a leader tells nobody of more than it acknowledged
            raise StateLost(message.commit, self.log.last_index)
        self._learn_commit(message.commit)
        if message.round:
            self._send(HeartbeatReply(self.id, message.sender, self.term, message.round))

    def _learn_commit(self, index: int) -> None:
        if index > self.log.commit:
            self.log.commit_to(index)

    def _on_snapshot_chunk(self, message: SnapshotChunk) -> None:
        self._follow(message.sender)
        self._chunks.append(message)

    def restore(self, mark: SnapshotMark, now_ms: int) -> bool:
        """A complete snapshot is staged: takes it, unless the log is committed up to there already. The next
        Ready has it to write; only once that is durable may the leader be told."""
        self._observe(now_ms)
        if self.role is Role.LEADER or mark.index <= self.log.commit:
            return False
        self.log.restore(mark)
        self._snapshot = mark
        return True

    # -- leading: entries ----------------------------------------------------------------------------------

    def propose(self, kind: EntryKind, payload: bytes) -> int:
        """Appends an entry and returns its index. It is committed if the entry that comes out of
        `committed` with that index has this leader's term; raises NotLeader."""
        if not self.accepts_proposals:
            raise NotLeader(self._transfer_to or self.leader)
        return self._append_own(kind, payload)

    def _append_own(self, kind: EntryKind, payload: bytes) -> int:
        index = self.log.last_index + 1
        self.log.append([Entry(index, self.term, kind, payload)])
        self._replication_due = True
        return index

    def _replicate(self, progress: Progress) -> None:
        """Sends what the follower may be sent now."""
        log = self.log
        while progress.may_send(log.last_index):
            if progress.next <= log.mark.index:
                self._want_snapshot(progress)
                return
            previous = progress.next - 1
            previous_term = log.term_at(previous)
            assert previous_term is not None
            entries = log.entries(progress.next, MAX_APPEND_BYTES)
            self._send(Append(self.id, progress.id, self.term, previous, previous_term, entries, log.commit))
            progress.sent(entries, log.commit, self._now_ms)

    def _tell_commit(self, progress: Progress) -> None:
        """Tells the follower what it holds that is committed, unless an Append or a heartbeat did."""
        if progress.is_behind_commit(self.log.commit):
            held = progress.told_commit = min(self.log.commit, progress.match)
            self._send(Heartbeat(self.id, progress.id, self.term, held, round=0))

    def _hear(self, sender: ServerId) -> Progress | None:
        """The progress of a follower that has just been heard from, if this server leads and it follows."""
        progress = self.progress.get(sender)
        if progress is not None:
            progress.heard(self._now_ms)
        return progress

    def _on_append_reply(self, message: AppendReply) -> None:
        if self.role is not Role.LEADER:
            return
        if message.sender == self.id:
            self._own_match = message.index
            self._advance_commit(message.index)
            return
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.heard(self._now_ms)
        if message.rejected:
            agreed = self.log.last_with_term_at_most(message.hint_term, message.hint_index)
            progress.rejected(message.index, agreed)
        else:
            self._acknowledge(progress, message.index)
        is_behind = progress.may_send(self.log.last_index) or progress.is_behind_commit(self.log.commit)
        if is_behind and self.is_leader:  # its own removal may just have been committed
            self._replication_due = True

    def _acknowledge(self, progress: Progress, index: int) -> None:
        assert index <= self.log.last_index, "a follower holds more than its leader"
        progress.acknowledged(index, self._now_ms)
        if progress.state is State.SNAPSHOT and progress.match >= self.log.mark.index:
            progress.probe()
        self._advance_commit(index)
        if progress.id == self._transfer_to:
            self._hand_over()

    def _advance_commit(self, matched: int) -> None:
        """Counts copies, after a match has grown to `matched`. Only entries of the own term are committed so,
        and the earlier ones with them (the paper, 5.4.2 and figure 8)."""
        log = self.log
        if matched <= log.commit:
            return
        progress, own = self.progress, self.id
        index = committed_index(
            [self._own_match if voter == own else progress[voter].match for voter in log.voters]
        )
        if index > log.commit and index >= self._term_start:
            assert log.term_at(index) == self.term
            log.commit_to(index)
            self._replication_due = True
            if not self.is_voter and log.configuration_index() <= index:
                self._leave()

    def _leave(self) -> None:
        """The configuration without this server is committed: its work is done (the dissertation, 4.2.2)."""
        for progress in self.progress.values():
            self._replicate(progress)
            self._tell_commit(progress)
        successor = self.best_successor()
        if successor and self.progress[successor].match == self.log.last_index:
            self._send(TimeoutNow(self.id, successor, self.term, "ordered"))
        self._become_follower(self.term)

    # -- leading: heartbeats and reads ---------------------------------------------------------------------

    def _begin_round(self) -> None:
        """A heartbeat to everyone. A majority that answers it proves that there was no other leader when it
        began, so reads that were waiting then may be answered."""
        self._choose_vanguard()
        contexts: list[int] = []
        if self.has_committed_in_term:
            contexts, self._waiting_reads = self._waiting_reads, contexts
        self._round += 1
        self._rounds.append(_Round(self._round, self._now_ms, self.log.commit, contexts))
        for id, progress in self.progress.items():
            held = min(self.log.commit, progress.match)
            progress.told_commit = max(progress.told_commit, held)
            self._send(Heartbeat(self.id, id, self.term, held, self._round))
        self._confirm_rounds()

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        progress = self._hear(message.sender)
        if progress is None:
            return
        if message.round > progress.round:
            progress.round = message.round
            self._confirm_rounds()
        if progress.match < self.log.last_index:
            self._replication_due = True
            if progress.state is State.PROBE:
                progress.waiting_since_ms = None
        elif progress.is_behind_commit(self.log.commit):
            self._replication_due = True
        if progress.id == self._transfer_to:
            self._hand_over()

    def _confirm_rounds(self) -> None:
        answered = committed_index([self._round_of(voter) for voter in self.log.voters])
        while self._rounds and self._rounds[0].number <= answered:
            confirmed = self._rounds.popleft()
            self._confirmed_ms = confirmed.started_ms
            self._reads += [ReadReady(context, confirmed.index) for context in confirmed.contexts]

    def _round_of(self, voter: ServerId) -> int:
        return self._round if voter == self.id else self.progress[voter].round

    def request_read(self, context: int, now_ms: int) -> None:
        """Answered by a ReadReady once a majority has confirmed that this server led when the read was
        asked for; never, if it did not or stops leading. Raises NotLeader."""
        self._observe(now_ms)
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        self._waiting_reads.append(context)

    def _read_round_due(self) -> bool:
        """Reads share rounds: while one with reads is under way, the next ones gather."""
        if not self._waiting_reads or not self.has_committed_in_term:
            return False
        return not any(begun.contexts for begun in self._rounds)

    # -- leading: snapshots --------------------------------------------------------------------------------

    def _on_snapshot_reply(self, message: SnapshotReply) -> None:
        if self._hear(message.sender) is not None:
            self._chunk_replies.append(message)

    def _want_snapshot(self, progress: Progress) -> None:
        if progress.active:  # a silent follower would only pin the log
            progress.await_snapshot()
            self._snapshots_wanted.append(progress.id)

    def snapshot_installed(self, follower: ServerId, index: int, now_ms: int) -> None:
        """The follower has said that it holds everything up to `index`."""
        self._observe(now_ms)
        progress = self.progress.get(follower)
        if progress is None:
            return
        if progress.state is State.SNAPSHOT:
            progress.probe()
        self._replication_due = True
        self._acknowledge(progress, index)

    def snapshot_failed(self, follower: ServerId, now_ms: int) -> None:
        """It is asked for again once the follower answers a heartbeat, if it is still needed then."""
        self._observe(now_ms)
        progress = self.progress.get(follower)
        if progress is not None and progress.state is State.SNAPSHOT:
            progress.probe()
            progress.waiting_since_ms = self._now_ms

    # -- leading: changes of membership and of leadership --------------------------------------------------

    def change_configuration(self, configuration: Configuration, now_ms: int) -> int:
        """Appends a configuration, which acts at once, and returns its index. Raises NotLeader or
        ChangeRefused."""
        self._observe(now_ms)
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        if self._transfer_to:
            raise ChangeRefused("the leadership is being handed over")
        if not self.has_committed_in_term:
            raise ChangeRefused("the leader has not committed an entry of its own term yet")
        if self.log.configuration_index() > self.log.commit:
            raise ChangeRefused("the previous change is not committed yet")
        refuse_unsafe_change(self.log.configuration, configuration)
        index = self._append_own(EntryKind.CONFIGURATION, configuration.encode())
        self._follow_configuration()
        self._advance_commit(index)
        return index

    def transfer(self, to: ServerId, now_ms: int, reason: str = "") -> None:
        """Lets that voter lead as soon as it has the whole log; no proposals until then. Given up after an
        election timeout. It is told the reason. Raises NotLeader or ChangeRefused."""
        self._observe(now_ms)
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        if to == self.id or to not in self.log.voters:
            raise ChangeRefused("the leadership goes to another voter or stays")
        self._transfer_to = to
        self._transfer_reason = reason
        self._transfer_deadline_ms = self._now_ms + self.timing.election_timeout_ms
        self._replication_due = True
        self._hand_over()

    def _hand_over(self) -> None:
        if self.progress[self._transfer_to].match == self.log.last_index:
            self._send(TimeoutNow(self.id, self._transfer_to, self.term, self._transfer_reason))

    # -- outputs -------------------------------------------------------------------------------------------

    def persisted(self, number: int) -> None:
        """The write of that number, and all before it, would survive a crash."""
        assert number <= self._write_number, "persisted what was never handed out"
        self._persisted = max(self._persisted, number)
        while self._held and self._held[0][0] <= self._persisted:
            self._release(self._held.popleft()[1])

    def applied_to(self, index: int) -> None:
        """The state machine has applied everything up to `index`."""
        self.log.applied_to(index)

    def compact(self, index: int) -> None:
        """Forgets the entries up to `index`, which are applied; who needs them gets a snapshot."""
        self.log.compact(index)

    def _has_unwritten(self) -> bool:
        log, written = self.log, self._written_state
        return (
            log.unwritten <= log.last_index
            or self._snapshot is not None
            or self.term != written.term
            or self.vote != written.vote
        )

    def has_ready(self, *, patience: bool = False, apply: bool = True) -> bool:
        log = self.log
        return bool(
            self._messages
            or self._replication_due
            or (apply and log.delivered < log.commit)
            or self._has_unwritten()
            or self._reads
            or self._chunks
            or self._chunk_replies
            or (self._waiting_reads and self._read_round_due())
            or (not patience and self.has_postponed)
        )

    @property
    def has_postponed(self) -> bool:
        """Whether some follower was not sent all that it could have: entries, or what is committed."""
        if self._has_left_out:
            return True
        commit = self.log.commit
        return any(progress.is_behind_commit(commit) for progress in self.progress.values())

    def ready(self, *, patience: bool = False, apply: bool = True) -> Ready:
        """Hands out what has to happen; the same thing never twice. For `patience`, see the module; with
        `apply` false, nothing committed is handed out now."""
        ready = Ready()
        if self._has_unwritten():
            self._hand_out_write(ready)
        if self.is_leader:
            if self._waiting_reads and self._read_round_due():
                self._begin_round()
            self._send_entries(patience)
        ready.messages, self._messages = self._messages, ready.messages
        if self._reads:
            ready.reads, self._reads = self._reads, []
        if self._chunks:
            ready.chunks, self._chunks = self._chunks, []
        if self._chunk_replies:
            ready.chunk_replies, self._chunk_replies = self._chunk_replies, []
        if self._snapshots_wanted:
            ready.snapshots_wanted, self._snapshots_wanted = self._snapshots_wanted, []
        if apply and self.log.delivered < self.log.commit:
            ready.committed = self.log.take_committed(MAX_APPLY_BYTES)
        return ready

    def _send_entries(self, patience: bool) -> None:
        if self._replication_due:
            self._replication_due = False
            self._has_left_out = True
            for progress in self._vanguard:
                self._replicate(progress)
        if patience:
            return
        if self._has_left_out:
            self._has_left_out = False
            for progress in self.progress.values():
                self._replicate(progress)
        for progress in self.progress.values():
            self._tell_commit(progress)

    def _choose_vanguard(self) -> None:
        """As many as make a majority with this leader; all, if so many cannot be relied on."""
        voters = self.log.voters
        needed = majority(len(voters)) - (self.id in voters)
        followers = [self.progress[voter] for voter in voters if voter in self.progress]
        quick = [each for each in followers if each.active and each.state is State.REPLICATE]
        quick.sort(key=lambda progress: progress.match, reverse=True)
        if len(quick) >= needed:
            self._vanguard = [each for each in followers if each in quick[:needed]]
        else:
            self._vanguard = list(self.progress.values())

    def _hand_out_write(self, ready: Ready) -> None:
        self._write_number += 1
        if self.term != self._written_state.term or self.vote != self._written_state.vote:
            self._written_state = ready.hard_state = HardState(self.term, self.vote)
        ready.snapshot, self._snapshot = self._snapshot, None
        append = self.log.take_unwritten()
        if append and self.is_leader:
            own = AppendReply(self.id, self.id, self.term, False, self.log.last_index)
            self._held.append((self._write_number, own))
        if self._is_volatile:
            ready.hard_state = None
            self.persisted(self._write_number)
        else:
            ready.number, ready.append = self._write_number, append


def refuse_unsafe_change(old: Configuration, new: Configuration) -> None:
    """Raises ChangeRefused unless any majority of the old configuration's voters shares a server with any
    majority of the new one's: which holds as long as they differ by one (the dissertation, 4.1)."""
    if (new.cluster_id, new.forks) != (old.cluster_id, old.forks):
        raise ChangeRefused("a cluster keeps its id and its past")
    if not new.voters:
        raise ChangeRefused("without voters nothing would ever be committed again")
    if NOBODY in new.voters:
        raise ChangeRefused("a member without an incarnation cannot vote")
    servers = [member.id for member in new.servers]
    if len(set(servers)) < len(servers) or len({m.name for m in new.members}) < len(new.members):
        raise ChangeRefused("two members share a name or an incarnation")
    if len(old.voters ^ new.voters) > 1:
        raise ChangeRefused("more than one voter would change at a time")
    for member in new.members:
        before = old.by_name(member.name)
        if before is not None and before.id and member.id and before.id != member.id:
            raise ChangeRefused(f"{member.name} must be vacated before another server takes its place")


_HANDLERS: Final[Mapping[type[Message], Callable[[Node, Any], None]]] = {
    VoteRequest: Node._on_vote_request,
    VoteReply: Node._on_vote_reply,
    Append: Node._on_append,
    AppendReply: Node._on_append_reply,
    Heartbeat: Node._on_heartbeat,
    HeartbeatReply: Node._on_heartbeat_reply,
    TimeoutNow: Node._on_timeout_now,
    SnapshotChunk: Node._on_snapshot_chunk,
    SnapshotReply: Node._on_snapshot_reply,
}
