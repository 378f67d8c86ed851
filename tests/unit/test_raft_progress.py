"""The states of a follower as its leader sees them."""

from __future__ import annotations

from hotspare.raft.messages import Entry
from hotspare.raft.progress import Progress, State


def entries(first: int, last: int) -> list[Entry]:
    return [Entry(index, 1, 0, b"x") for index in range(first, last + 1)]


def replicating(match: int = 5) -> Progress:
    progress = Progress("f", match + 1, 0, reachable=True)
    progress.acknowledged(match, 0)
    return progress


def test_a_probe_has_one_message_under_way() -> None:
    progress = Progress("f", 10, 0, reachable=True)
    assert progress.may_send(9)
    progress.sent([], 0, 0)
    assert not progress.may_send(9)
    assert not progress.may_send(20)


def test_an_answer_turns_a_probe_into_a_stream() -> None:
    progress = replicating(5)
    assert (progress.state, progress.match, progress.next) == (State.REPLICATE, 5, 6)
    progress.sent(entries(6, 8), 5, 0)
    assert (progress.next, progress.told_commit) == (9, 5)
    assert progress.may_send(9)
    assert not progress.may_send(8)


def test_a_rejection_moves_a_probe_back_but_never_below_what_matches() -> None:
    progress = Progress("f", 10, 0, reachable=True)
    progress.rejected(9, 4)
    assert progress.next == 5
    progress.acknowledged(3, 0)
    progress.rejected(3, 0)
    assert (progress.state, progress.next) == (State.REPLICATE, 4)


def test_a_hint_below_what_matches_is_not_followed() -> None:
    progress = replicating(5)
    progress.sent(entries(6, 8), 0, 0)
    progress.rejected(8, 2)
    assert (progress.state, progress.next) == (State.PROBE, 6)


def test_an_acknowledgement_alone_does_not_end_the_wait_for_a_snapshot() -> None:
    progress = replicating(5)
    progress.await_snapshot()
    progress.acknowledged(7, 0)
    assert (progress.state, progress.match) == (State.SNAPSHOT, 7)


def test_a_rejection_of_another_probe_is_stale() -> None:
    progress = Progress("f", 10, 0, reachable=True)
    progress.rejected(9, 4)
    progress.rejected(9, 1)
    assert progress.next == 5


def test_a_rejection_ends_a_stream() -> None:
    progress = replicating(5)
    progress.sent(entries(6, 8), 0, 0)
    progress.sent(entries(9, 9), 0, 0)
    progress.rejected(8, 5)
    assert (progress.state, progress.next, len(progress.in_flight)) == (State.PROBE, 6, 0)


def test_acknowledgements_are_cumulative_and_old_ones_change_nothing() -> None:
    progress = replicating(5)
    progress.sent(entries(6, 8), 0, 10)
    progress.sent(entries(9, 9), 0, 20)
    progress.acknowledged(8, 30)
    assert (progress.match, len(progress.in_flight), progress.waiting_since_ms) == (8, 1, 30)
    progress.acknowledged(9, 40)
    progress.acknowledged(7, 50)
    assert (progress.match, progress.next, progress.in_flight_bytes) == (9, 10, 0)
    assert progress.waiting_since_ms is None


def test_an_old_acknowledgement_does_not_end_a_probe() -> None:
    progress = replicating(5)
    progress.probe()
    progress.acknowledged(4, 0)
    assert progress.state is State.PROBE


def test_silence_with_something_under_way_ends_a_stream() -> None:
    progress = replicating(5)
    assert not progress.retry_if_silent(10_000, 400)
    progress.sent(entries(6, 8), 0, 10_000)
    progress.sent(entries(9, 9), 0, 10_300)
    assert not progress.retry_if_silent(10_399, 400)
    assert progress.retry_if_silent(10_400, 400)
    assert (progress.state, progress.next) == (State.PROBE, 6)


def test_nothing_is_sent_while_a_snapshot_is_on_its_way_or_the_follower_is_lost() -> None:
    progress = replicating(5)
    progress.await_snapshot()
    assert not progress.may_send(100)
    progress.rejected(50, 2)
    assert progress.state is State.SNAPSHOT
    progress.lost()
    assert (progress.state, progress.may_send(100)) == (State.PROBE, False)
    progress.heard(0)
    assert progress.may_send(100)
