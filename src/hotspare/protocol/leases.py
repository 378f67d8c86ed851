"""Read leases, and the barrier behind `ack="all"`: when does every copy that may answer reads show a write?

A copy answers local reads under a lease only: the answer to a question to the leader (see `reads`) which says
up to where everything was committed. Once that is applied, the copy may answer until so many milliseconds
after it *asked*. So the leader, who remembers when each question arrived, knows a time on its own clock after
which the lease is over: counted from a later moment, and with one per cent added, because clocks are taken to
run within that of each other. (Leases: Gray and Cheriton, 1989.)

A barrier at an index is passed when each copy either has said that it shows the log up to there, or cannot
have a lease that began with less. A question that arrives when the index is committed here is answered with
that index or a greater one, so only older ones have to run out, and a copy that hangs holds a barrier up for
one lease at most. Once passed, a barrier stays so: whoever leads later has committed as much before it grants
anything. Hence the word that one is passed may be repeated, late, or from a deposed leader.

A new leader knows nothing of its predecessors' grants, and passes no barrier until they have run out: for
the length of a lease after its election. None can last longer. It was confirmed by a round of heartbeats that
began after the question had arrived; a majority answered that round in the old term, and a majority voted in
the new one. They share a voter, which answers nothing in the old term once it has voted in a later one; so
the question was asked before the election was won, and the lease counts from when it was asked. (Where the
members have changed in between, the same holds from each leader to the next.) The first leader after a
founding has no predecessor. All nodes must have the same `max_staleness_ms`: a leader grants no more than its
own, and waits as long.

A copy that is more than a lease behind gets none: it could not use it, and would delay everybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from hotspare.raft.messages import ServerId

EVERYTHING = 1 << 62
WATCH_MS = 1000
"""For so long after it was asked a copy says each time that it shows more; and for so long after a barrier
was asked for, the leader expects another one."""


def longest_ms(lease_ms: int) -> int:
    """How long a lease of that length may last on another machine's clock. Both are read in whole
    milliseconds."""
    return lease_ms + -(-lease_ms // 100) + 1


@dataclass(slots=True)
class _Copy:
    """A server that has asked for leases."""

    name: str
    """Under which it answers; empty for the leader itself."""
    applied: int = 0
    grants: deque[tuple[int, int, int]] = field(default_factory=deque)
    """(commit index when the question arrived, when the lease has certainly run out, the question's context),
    in order of arrival; perhaps granted, for all that matters here."""
    watched_ms: int = -EVERYTHING
    """When it was asked last to say what it shows."""

    def shows(self, now_ms: int) -> int:
        """No reader of this copy can see less than the log up to here; EVERYTHING if it has none."""
        while self.grants and self.grants[0][1] < now_ms:
            self.grants.popleft()
        return max(self.applied, self.grants[0][0]) if self.grants else EVERYTHING


class Leases:
    """Leader: who may answer reads until when, and which barriers wait for that."""

    def __init__(self, lease_ms: int, retry_ms: int) -> None:
        self._lease_ms = lease_ms
        self._retry_ms = retry_ms
        self._copies: dict[ServerId, _Copy] = {}
        self._targets: dict[str, set[int]] = {}
        """The barriers that wait: by who asked (empty: this node), the indexes."""
        self._silent_until_ms = 0
        """No barrier passes before: a predecessor's grants may last."""
        self._commits: deque[tuple[int, int]] = deque()
        """Samples of (when, commit index); the first is at least a lease old, once there is such a one."""
        self._asked_ms = -EVERYTHING
        """When a barrier was asked for last."""

    def begin(self, now_ms: int, *, has_predecessor: bool) -> None:
        """This node was elected just now."""
        self.end()
        self._silent_until_ms = now_ms + longest_ms(self._lease_ms) if has_predecessor else 0

    def end(self) -> None:
        """It does not lead any more. The barriers are asked for again, of its successor."""
        self._copies.clear()
        self._targets.clear()
        self._commits.clear()
        self._asked_ms = -EVERYTHING

    # --- leases ---------------------------------------------------------------------------------------

    def observe(self, commit: int, now_ms: int) -> None:
        """To be called now and then: tells who is far behind."""
        samples = self._commits
        if not samples or now_ms - samples[-1][0] >= self._lease_ms // 8:
            samples.append((now_ms, commit))
        while len(samples) > 1 and now_ms - samples[1][0] >= self._lease_ms:
            samples.popleft()

    def grant(
        self,
        server: ServerId,
        name: str,
        context: int,
        wanted_ms: int,
        applied: int,
        commit: int,
        now_ms: int,
    ) -> int:
        """The length of the lease to be answered to a question that arrived just now; 0: it gets none."""
        if self._is_far_behind(applied, now_ms):
            return 0
        lease_ms = min(wanted_ms, self._lease_ms)
        copy = self._copies.setdefault(server, _Copy(name))
        copy.applied = max(copy.applied, applied)
        copy.grants.append((commit, now_ms + longest_ms(lease_ms), context))
        return lease_ms

    def _is_far_behind(self, applied: int, now_ms: int) -> bool:
        if not self._commits:
            return False
        sampled_ms, commit = self._commits[0]
        return now_ms - sampled_ms >= self._lease_ms and applied < commit

    def given_up(self, server: ServerId, first: int, last: int) -> None:
        """That copy answers nothing any more under the leases of these contexts. (It names them, because its
        word may come late, and it may have others by then.)"""
        copy = self._copies.get(server)
        if copy is not None:
            copy.grants = deque(grant for grant in copy.grants if not first <= grant[2] <= last)

    def applied(self, server: ServerId, index: int) -> bool:
        """A copy has said up to where it shows the log; whether that is news."""
        copy = self._copies.get(server)
        if copy is None or index <= copy.applied:
            return False
        copy.applied = index
        return True

    # --- barriers -------------------------------------------------------------------------------------

    @property
    def has_barriers(self) -> bool:
        """Whether any wait."""
        return bool(self._targets)

    def expects_barriers(self, now_ms: int) -> bool:
        """Whether commits are to be told at once, because somebody waits for them to be shown everywhere or
        soon will."""
        return now_ms - self._asked_ms <= WATCH_MS

    def ask(self, home: str, index: int, now_ms: int) -> None:
        """That node wants to know when the barrier at this index is passed."""
        self._targets.setdefault(home, set()).add(index)
        self._asked_ms = now_ms

    def passed(self, commit: int, now_ms: int) -> Iterator[tuple[str, int]]:
        """(who asked, up to which index) for barriers that are passed now; they are done with."""
        if now_ms <= self._silent_until_ms:
            return
        shown = self._shown(commit, now_ms)
        for home, targets in list(self._targets.items()):
            waiting = {index for index in targets if index > shown}
            if len(waiting) < len(targets):
                yield home, shown
            if waiting:
                self._targets[home] = waiting
            else:
                del self._targets[home]

    def _shown(self, commit: int, now_ms: int) -> int:
        shown = commit
        for server, copy in list(self._copies.items()):
            shows = copy.shows(now_ms)
            shown = min(shown, shows)
            if shows == EVERYTHING:
                del self._copies[server]
        return shown

    def to_watch(self, now_ms: int) -> Iterator[str]:
        """The nodes that are to be asked (again) what they show: those that hold a barrier up, and, while
        barriers are expected, all whose word would end soon."""
        target = max((max(targets) for targets in self._targets.values()), default=0)
        for copy in self._copies.values():
            pause_ms = self._retry_ms if copy.applied < target else WATCH_MS // 2
            if copy.name and now_ms - copy.watched_ms >= min(pause_ms, WATCH_MS // 2):
                copy.watched_ms = now_ms
                yield copy.name


class Barriers:
    """The barriers that are asked for at one node, until they are passed."""

    def __init__(self, first_context: int, retry_ms: int) -> None:
        self._next_context = first_context
        self._retry_ms = retry_ms
        self._waiting: dict[int, int] = {}
        """context -> index."""
        self._asked: dict[int, int] = {}
        """index -> when the leader was asked last."""
        self._passed = 0
        """All barriers up to there are, for good."""

    def has_passed(self, index: int) -> bool:
        return index <= self._passed

    def start(self, index: int) -> int:
        """A new one, to be asked for by the caller (`to_ask`); its context."""
        self._next_context += 1
        self._waiting[self._next_context] = index
        return self._next_context

    def forget(self, context: int) -> None:
        self._waiting.pop(context, None)

    def to_ask(self, now_ms: int, at_once: bool = False) -> list[int]:
        """The indexes that the leader is to be asked for, once each, now and then again, or `at_once`. Many
        that wait for the same index are one question."""
        wanted = set(self._waiting.values())
        self._asked = {index: asked_ms for index, asked_ms in self._asked.items() if index in wanted}
        due = [
            index
            for index in sorted(wanted)
            if at_once or now_ms - self._asked.get(index, -EVERYTHING) >= self._retry_ms
        ]
        self._asked.update(dict.fromkeys(due, now_ms))
        return due

    def passed(self, index: int) -> list[int]:
        """The barriers up to there are passed: the contexts of those that waited."""
        self._passed = max(self._passed, index)
        done = [context for context, target in self._waiting.items() if target <= index]
        for context in done:
            del self._waiting[context]
        return done

    def reset(self) -> None:
        """Another history begins, with indexes of its own."""
        self._passed = 0


class WatchedCopy:
    """A copy that was asked what it shows: it says so, and for a while again whenever it shows more."""

    def __init__(self) -> None:
        self._watcher = ""
        self._until_ms = -EVERYTHING
        self._said = -1

    def begin(self, watcher: str, now_ms: int) -> None:
        self._watcher, self._until_ms, self._said = watcher, now_ms + WATCH_MS, -1

    def is_watched(self, now_ms: int) -> bool:
        return now_ms <= self._until_ms

    def to_tell(self, applied: int, now_ms: int) -> str:
        """Whom to tell what is applied; empty: nobody, or it was told."""
        if not self.is_watched(now_ms) or applied <= self._said:
            return ""
        self._said = applied
        return self._watcher
