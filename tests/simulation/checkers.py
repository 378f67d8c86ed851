"""What must hold at every moment of a run, whatever goes wrong: checked after every step.

`RaftInvariants` watches the servers: the safety properties of the paper (figure 3), the rules of votes,
founding and membership, and that all copies that have applied the same entries are the same.
`ReadInvariants` watches what nodes answer from their own copies. What clients are told is judged at the end,
by `linearizability`.

Everything here looks from outside: at logs, messages and copies, never at what a server has in mind.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple, TypeAlias

from hotspare.commands import EXPIRED, FORGOTTEN, Results
from hotspare.protocol.messages import Envelope
from hotspare.raft.messages import (
    NOBODY,
    Configuration,
    Entry,
    EntryKind,
    ServerId,
    VoteReply,
    VoteRequest,
)
from hotspare.raft.node import Node
from hotspare.replica import Replica
from tests.simulation.history import FOREVER, Operation, Verdict

ClusterId: TypeAlias = str


class Violation(AssertionError):
    """Something happened that must never happen."""


class _Known(NamedTuple):
    """An entry as it was first seen, and the term of the one before it."""

    entry: Entry
    previous_term: int


class RaftInvariants:
    def __init__(self) -> None:
        self._leaders: dict[tuple[ClusterId, int], ServerId] = {}
        self._votes: dict[tuple[ClusterId, ServerId, int], ServerId] = {}
        self._entries: dict[tuple[ClusterId, int, int], _Known] = {}
        """By cluster, index and term. As each is always preceded by the same term, whole logs match."""
        self.committed: dict[ClusterId, list[tuple[int, int]]] = {}
        """By index, from the first one of the history on: the entry's term, and the term in which it was
        first seen committed."""
        self._begun_at: dict[ClusterId, int] = {}
        """The index before the first one: 0, or where the history was forked."""
        self._mirrors: dict[ServerId, dict[int, Entry]] = {}
        self._clusters: dict[ServerId, ClusterId] = {}
        self._commits: dict[ServerId, int] = {}
        self._applied: dict[ServerId, int] = {}
        self._nodes: dict[ServerId, Node] = {}
        """As they were last seen: of a server that died, what it had then."""
        self._copies: dict[tuple[ClusterId, int], tuple[object, ...]] = {}
        """By cluster and applied index: everything countable about a copy."""

    @property
    def elections(self) -> int:
        """How many were won."""
        return len(self._leaders)

    @property
    def servers(self) -> int:
        """How many have been part of a cluster."""
        return len(self._nodes)

    # --- messages -------------------------------------------------------------------------------------

    def sent(self, envelope: Envelope) -> None:
        """A vote that left is a promise: to one candidate a term, also across crashes."""
        message = envelope.message
        if isinstance(message, VoteReply) and message.granted and not message.pre:
            self._vote(envelope.cluster_id, message.sender, message.term, message.receiver)
        elif isinstance(message, VoteRequest) and not message.pre:
            self._vote(envelope.cluster_id, message.sender, message.term, message.sender)

    def _vote(self, cluster: ClusterId, voter: ServerId, term: int, candidate: ServerId) -> None:
        given = self._votes.setdefault((cluster, voter, term), candidate)
        if given != candidate:
            raise Violation(f"{voter[:4]} voted for {given[:4]} and for {candidate[:4]} in term {term}")

    # --- servers --------------------------------------------------------------------------------------

    def process_died(self, server: ServerId) -> None:
        """The commit index is not kept; it is learned anew."""
        self._commits.pop(server, None)

    def after_step(self, replica: Replica) -> None:
        server, cluster = replica.id, replica.cluster_id
        self._check_founding(server, cluster)
        node = replica.node
        if node is None:
            return
        self._nodes[server] = node
        if cluster not in self._begun_at:
            self._check_beginning(cluster, server, node)
        self._check_log(cluster, server, node)
        self._check_commit(cluster, server, node)
        if node.is_leader:
            self._check_leader(cluster, server, node)
        self._check_copy(cluster, server, replica, node)

    def _check_founding(self, server: ServerId, cluster: ClusterId) -> None:
        if cluster:
            adopted = self._clusters.setdefault(server, cluster)
            if adopted != cluster:
                raise Violation(f"{server[:4]} adopted two clusters: {adopted[:4]} and {cluster[:4]}")
        elif server in self._clusters:
            raise Violation(
                f"{server[:4]} left cluster {self._clusters[server][:4]} and kept its incarnation"
            )

    def _check_beginning(self, cluster: ClusterId, server: ServerId, node: Node) -> None:
        """A forked history has everything that was committed before, and nothing in common with what its
        parent may still bring forth."""
        forks = node.configuration.forks
        self._begun_at[cluster] = node.log.mark.index if forks else 0
        if not forks:
            return
        parent, begun_at = forks[-1], node.log.mark.index
        if parent.parent not in self._begun_at:
            raise Violation(f"{server[:4]} forked a history that nobody knows: {parent.parent[:4]}")
        committed_to = self._begun_at[parent.parent] + len(self.committed.get(parent.parent, ()))
        if parent.index < committed_to:
            raise Violation(f"{server[:4]} forked at entry {parent.index}; {committed_to} was committed")
        if begun_at < 2 * parent.index + 1_000_000:
            raise Violation(f"{server[:4]} goes on with entry {begun_at}, which its parent may reach")

    def _check_log(self, cluster: ClusterId, server: ServerId, node: Node) -> None:
        """Log matching; and of configurations, that each follows from the one before."""
        log = node.log
        mirror = self._mirrors.setdefault(server, {})
        index = log.last_index
        while index >= log.first_index and mirror.get(index) is not (entry := log.entry(index)):
            previous_term = log.term_at(index - 1) or 0
            known = self._entries.setdefault((cluster, index, entry.term), _Known(entry, previous_term))
            if known.entry != entry or known.previous_term != previous_term:
                raise Violation(
                    f"two logs differ at index {index}, term {entry.term}: {known} and "
                    f"{_Known(entry, previous_term)} on {server[:4]}"
                )
            if entry.kind == EntryKind.CONFIGURATION:
                self._check_change(server, node, entry, is_new=mirror.get(index) != entry)
            mirror[index] = entry
            index -= 1

    def _check_change(self, server: ServerId, node: Node, entry: Entry, *, is_new: bool) -> None:
        earlier = [index for index in node.log.configurations if index < entry.index]
        before = node.log.configurations[max(earlier)] if earlier else Configuration("", ())
        after = Configuration.decode(entry.payload)
        if after.cluster_id in {fork.parent for fork in after.forks}:
            raise Violation(f"{server[:4]} forked cluster {after.cluster_id[:4]} and kept its id")
        if before.members:
            if len(set(before.members) ^ set(after.members)) > 2:
                raise Violation(f"entry {entry.index} changes more than one member: {before} to {after}")
            if len(before.voters ^ after.voters) > 1:
                raise Violation(f"entry {entry.index} changes more than one voter: {before} to {after}")
            for member in after.members:
                former = before.by_name(member.name)
                if former is not None and NOBODY != former.id != member.id != NOBODY:
                    raise Violation(f"entry {entry.index} swaps the incarnations of {member.name}")
        if is_new and node.is_leader and entry.term == node.term:
            if node.log.term_at(node.commit) != node.term:
                raise Violation(
                    f"{server[:4]} changed the configuration (entry {entry.index}) before it had committed "
                    f"anything in term {node.term}"
                )
            if earlier and max(earlier) > node.commit:
                raise Violation(f"{server[:4]} began a change while another was uncommitted")

    def _check_commit(self, cluster: ClusterId, server: ServerId, node: Node) -> None:
        """State machine safety: what was committed at an index stays the only thing ever committed there."""
        commit, before = node.commit, self._commits.get(server, 0)
        if commit < before:
            raise Violation(f"the commit index of {server[:4]} went back from {before} to {commit}")
        if commit == before:
            return
        has_led = self._leaders.get((cluster, node.term)) == server and node.is_leader
        if has_led and node.log.term_at(commit) != node.term:
            raise Violation(f"{server[:4]} counted copies of an older term's entry {commit} to commit it")
        self._commits[server] = commit
        committed, begun_at = self.committed.setdefault(cluster, []), self._begun_at[cluster]
        for index in range(max(before, begun_at) + 1, commit + 1):
            term = node.log.term_at(index)
            if index - begun_at <= len(committed):
                known = committed[index - begun_at - 1][0]
                if term is not None and term != known:
                    raise Violation(
                        f"{server[:4]} has committed term {term} at index {index}, others term {known}"
                    )
            elif term is None:
                raise Violation(f"{server[:4]} has committed index {index}, which nobody has seen committed")
            else:
                self._check_majority(index, term, node)
                committed.append((term, node.term))
        led = [
            each for each, entries in self.committed.items() if len(entries) > 1 and not self._begun_at[each]
        ]
        if len(led) > 1:
            raise Violation(f"two clusters were founded from the same nodes: {', '.join(led)}")

    def _check_majority(self, index: int, term: int, node: Node) -> None:
        """A committed entry is on a majority of the voters."""
        log = node.log
        acting = [log.configuration]
        if not node.is_leader:  # its leader may have counted under any of these
            acting += [
                log.configuration_at(index),
                *[log.configurations[at] for at in log.configurations if at > index],
            ]
        for voters in [configuration.voters for configuration in acting]:
            holders = [voter for voter in sorted(voters) if self._holds(voter, index, term)]
            if 2 * len(holders) > len(voters):
                return
        raise Violation(f"entry {index} was committed by {len(holders)} of {len(voters)} voters")

    def _holds(self, server: ServerId, index: int, term: int) -> bool:
        node = self._nodes.get(server)
        return node is not None and (index <= node.log.mark.index or node.log.term_at(index) == term)

    def _check_leader(self, cluster: ClusterId, server: ServerId, node: Node) -> None:
        """Election safety, and leader completeness."""
        leader = self._leaders.get((cluster, node.term))
        if leader == server:
            return
        if leader is not None:
            raise Violation(f"{leader[:4]} and {server[:4]} both lead in term {node.term}")
        self._leaders[cluster, node.term] = server
        first = self._begun_at[cluster] + 1
        for index, (term, committed_in) in enumerate(self.committed.get(cluster, ()), first):
            if index <= node.log.mark.index or committed_in >= node.term:
                continue
            if node.log.term_at(index) != term:
                raise Violation(
                    f"{server[:4]} leads in term {node.term} without entry {index}, which was committed in "
                    f"term {committed_in}"
                )

    def _check_copy(self, cluster: ClusterId, server: ServerId, replica: Replica, node: Node) -> None:
        table = replica.table
        applied, before = table.applied_index, self._applied.get(server, 0)
        if applied == before:
            return
        if applied < before:
            raise Violation(f"the copy of {server[:4]} went back from entry {before} to {applied}")
        if applied > node.commit:
            raise Violation(f"{server[:4]} applied entry {applied}, and {node.commit} is its commit index")
        self._applied[server] = applied
        copy = (table.applied_term, table.stamp_ms, *table.totals, table.origins_count)
        known = self._copies.setdefault((cluster, applied), copy)
        if known != copy:
            raise Violation(f"after entry {applied} the copy of {server[:4]} is {copy}, another one {known}")


class Ledger:
    """What the log did with every command: the same everywhere, once, and what its client was told.

    It also tells, in the end, what became of writes whose clients never learned it. (The search of
    `linearizability` could find that out by trying, but not in the time that a run may take.)
    """

    def __init__(self) -> None:
        self._operations: dict[tuple[int, int], Operation] = {}
        self._numbers: dict[int, tuple[int, int]] = {}
        self._results: dict[tuple[int, int], int] = {}
        """Origin and number -> result."""

    def numbered(self, origin: int, number: int, operation: Operation) -> None:
        """A client has sent that operation under that number."""
        self._operations[origin, number] = operation
        self._numbers[operation.number] = (origin, number)

    def applied(self, results: Results) -> None:
        for number, result in enumerate(results.results, results.first):
            place = (results.origin, number)
            if place not in self._results and result not in (EXPIRED, FORGOTTEN):
                self._check_in_time(place)
            known = self._results.setdefault(place, result)
            if result == FORGOTTEN or known == result:
                continue
            if known == FORGOTTEN:
                self._results[place] = result
                continue
            raise Violation(f"command {number} of origin {results.origin} ended as {known}, and as {result}")

    def _check_in_time(self, place: tuple[int, int]) -> None:
        operation = self._operations.get(place)
        if operation is not None and operation.verdict is Verdict.UNKNOWN and operation.returned < FOREVER:
            raise Violation(f"this took effect after its deadline: {operation}")

    def told(self, operation: Operation, result: int) -> None:
        known = self.result_of(operation)
        if known != result:
            raise Violation(f"a client was told {result}, and the log says {known}: {operation}")

    def refused(self, operation: Operation) -> None:
        if operation.number in self._numbers:
            raise Violation(f"a client was told that it was never sent, and it was: {operation}")

    def result_of(self, operation: Operation) -> int | None:
        """None if it never took its place in the log."""
        return self._results.get(self._numbers.get(operation.number, (0, 0)))


class ReadInvariants:
    """What a node answers from its own copy: never older than what it answered before, than what its clients
    were told, than what was to be shown everywhere, or than it promises to be at most.

    All copies that have applied the same entries are the same (`RaftInvariants`), so to show an index is to
    show every write up to there: none of them can look absent.
    """

    MAX_SKEW_MS = 500

    def __init__(self, max_staleness_ms: int) -> None:
        self._max_staleness_ms = max_staleness_ms
        self._shown: dict[str, int] = {}
        """Node name -> the greatest index that its answers have shown, through all its lives."""
        self._told: dict[str, int] = {}
        """Node name -> the greatest index of a write that its clients were told of."""
        self._told_at_ms: list[int] = [-(1 << 60)]
        self._told_anywhere: list[int] = [0]
        """Times, and the greatest index of a write that anybody was told of by then."""
        self._everywhere = 0
        """The greatest index that every answer of any node must show."""
        self._ahead_ms = 0
        """How far the clock of the furthest leader has ever been ahead of true time."""

    def write_told(self, node: str, version: int, now_ms: int) -> None:
        index = version >> 16
        self._told[node] = max(self._told.get(node, 0), index)
        if index > self._told_anywhere[-1]:
            self._told_at_ms.append(now_ms)
            self._told_anywhere.append(index)

    def leader_clock(self, ahead_ms: int) -> None:
        self._ahead_ms = max(self._ahead_ms, ahead_ms)

    def shown_everywhere(self, index: int) -> None:
        """A writer was told that no copy answers reads without showing that much."""
        self._everywhere = max(self._everywhere, index)

    def may_show(self, node: str, applied: int) -> None:
        """If somebody read at this moment, this node's copy would answer."""
        if applied < self._everywhere:
            raise Violation(
                f"{node} may answer reads as of entry {applied}, and entry {self._everywhere} was told to be "
                "shown everywhere"
            )

    def answers(self, node: str, applied: int, now_ms: int) -> None:
        """The node answers a local read from a copy with that index."""
        self.may_show(node, applied)
        shown, told = self._shown.get(node, 0), self._told.get(node, 0)
        if applied < shown:
            raise Violation(f"{node} showed entry {shown}, and now reads as of entry {applied}")
        if applied < told:
            raise Violation(f"{node} told a client of entry {told}, and reads as of entry {applied}")
        # Clocks may run 1 % apart.
        since_ms = now_ms - self._max_staleness_ms * 1.02 - 1
        known = self._told_anywhere[bisect_right(self._told_at_ms, since_ms) - 1]
        if applied < known:
            raise Violation(
                f"{node} reads as of entry {applied}; entry {known} was acknowledged more than "
                f"{self._max_staleness_ms} ms ago"
            )
        self._shown[node] = applied

    def estimates(self, node: str, ahead_ms: int) -> None:
        """The node decides by this estimate of cluster time what has expired."""
        if ahead_ms > self._ahead_ms + self.MAX_SKEW_MS:
            raise Violation(
                f"{node} takes cluster time to be {ahead_ms - self._ahead_ms} ms further than any leader has"
            )
