"""A whole copy, sent in parts, over connections that lose and repeat them."""

from __future__ import annotations

import random

import pytest

from hotspare.protocol.clock import ClusterClock
from hotspare.protocol.outbox import Now, Outbox
from hotspare.protocol.peers import Peer, Peers
from hotspare.protocol.snapshot import (
    WINDOW_CHUNKS,
    SnapshotReceiver,
    SnapshotSender,
    Transfers,
    pack_rows,
    unpack_rows,
)
from hotspare.raft.messages import SnapshotChunk, SnapshotMark, SnapshotReply
from hotspare.raft.node import Timing
from hotspare.store import Row
from tests.unit.raft_network import Network, configuration

MARK = SnapshotMark(2, 2, configuration("abc"))
ROWS: list[Row] = [("sessions", b"s%d" % n, b"record %d" % n) for n in range(30)]


class Reader:
    """Two rows at a time."""

    def __init__(self, rows: list[Row] = ROWS) -> None:
        self._rows = list(rows)
        self.is_closed = False

    def read(self, max_bytes: int) -> list[Row]:
        part, self._rows = self._rows[:2], self._rows[2:]
        return part

    def close(self) -> None:
        self.is_closed = True


PARTS = len(ROWS) // 2 + 1
"""The last one says only that it is the last."""


def new_sender(transfer: int = 9) -> SnapshotSender:
    return SnapshotSender("a", "b", 3, MARK, transfer, Reader(), 0)


def rows_of(chunks: list[SnapshotChunk]) -> list[Row]:
    rows: list[Row] = []
    for chunk in chunks:
        part = unpack_rows(chunk.data)
        assert part is not None
        rows += part
    return rows


# Parts


def test_a_part_comes_out_as_it_went_in():
    assert unpack_rows(pack_rows(ROWS)) == ROWS
    assert unpack_rows(pack_rows([])) == []


def test_a_damaged_part_is_as_good_as_lost():
    packed = pack_rows(ROWS[:2])
    for position in range(len(packed)):
        damaged = packed[:position] + bytes([packed[position] ^ 1]) + packed[position + 1 :]
        assert unpack_rows(damaged) is None
    assert unpack_rows(packed[:-1]) is None
    assert unpack_rows(b"") is None


# The sender


def test_a_few_parts_are_on_the_way_at_once_and_each_acknowledgement_lets_more_go():
    sender = new_sender()

    first = sender.chunks()
    assert [chunk.sequence for chunk in first] == list(range(WINDOW_CHUNKS))
    assert {(chunk.mark, chunk.transfer, chunk.term) for chunk in first} == {(MARK, 9, 3)}
    assert sender.chunks() == []

    sender.acknowledged(3, 0)
    assert [chunk.sequence for chunk in sender.chunks()] == [8, 9, 10]


def test_all_rows_are_sent_once_and_the_last_part_says_that_it_is():
    sender = new_sender()
    sent: list[SnapshotChunk] = []
    while chunks := sender.chunks():
        sent += chunks
        sender.acknowledged(sent[-1].sequence + 1, 0)

    assert rows_of(sent) == ROWS
    assert [chunk.sequence for chunk in sent] == list(range(PARTS))
    assert [chunk.last for chunk in sent] == [False] * (PARTS - 1) + [True]


def test_what_is_not_acknowledged_is_sent_again_as_it_was():
    sender = new_sender()
    first = sender.chunks()
    sender.acknowledged(2, 0)
    more = sender.chunks()

    sender.send_again(5)

    assert sender.chunks() == first[2:] + more
    assert sender.last_heard_ms == 5
    assert sender.chunks() == []


def test_a_receiver_that_wants_what_was_let_go_began_anew():
    sender = new_sender()
    sender.chunks()
    assert not sender.starts_over(0)
    sender.acknowledged(3, 0)

    assert not sender.starts_over(3)
    assert sender.starts_over(2)
    assert sender.starts_over(0)


# The receiver


def test_parts_are_taken_strictly_in_order():
    receiver = SnapshotReceiver()
    first, second, third, *_ = new_sender().chunks()

    assert not receiver.accepts(second)
    assert receiver.wanted_of(9) == 0
    assert receiver.accepts(first)
    assert not receiver.accepts(first)
    assert not receiver.accepts(third)
    assert receiver.accepts(second)
    assert receiver.wanted_of(9) == 0
    receiver.note_staged(first)
    assert receiver.wanted_of(9) == 1
    receiver.note_staged(second)
    assert receiver.wanted_of(9) == 2


def test_another_transfer_takes_the_place_of_the_first_and_their_parts_never_mix():
    receiver = SnapshotReceiver()
    old, new = new_sender(9).chunks(), new_sender(10).chunks()
    assert receiver.accepts(old[0])
    receiver.note_staged(old[0])

    assert not receiver.accepts(new[1])
    assert receiver.wanted_of(9) == 1
    assert receiver.accepts(new[0])
    assert not receiver.accepts(old[1])
    receiver.note_staged(old[0])  # what was under way when the new one came
    assert receiver.wanted_of(10) == 0
    receiver.note_staged(new[0])
    assert receiver.wanted_of(9) == 0
    assert receiver.wanted_of(10) == 1


@pytest.mark.parametrize("seed", range(50))
def test_whatever_is_lost_repeated_or_late_the_copy_is_whole(seed: int):
    chance = random.Random(seed)
    sender, receiver = new_sender(), SnapshotReceiver()
    received: list[Row] = []
    chunks: list[SnapshotChunk] = []
    replies: list[int] = []
    to_stage: list[SnapshotChunk] = []
    while receiver.wanted_of(9) < PARTS:
        chunks += sender.chunks()
        if chance.random() < 0.2:
            sender.send_again(0)
        for _ in range(chance.randrange(4)):
            if chunks:
                chunk = chance.choice(chunks)
                if chance.random() < 0.7:
                    chunks.remove(chunk)
                if chance.random() < 0.8:
                    if receiver.accepts(chunk):
                        received += rows_of([chunk])
                        to_stage.append(chunk)
                    replies.append(receiver.wanted_of(9))
        if to_stage and chance.random() < 0.7:
            receiver.note_staged(to_stage.pop(0))
            replies.append(receiver.wanted_of(9))
        if replies and chance.random() < 0.7:
            wanted = replies.pop(0)
            if not sender.starts_over(wanted):
                sender.acknowledged(wanted, 0)

    assert received == ROWS


# All transfers of a leader


class Leading:
    """A leader that sends a snapshot to "b"."""

    def __init__(self) -> None:
        self.network = Network("abc")
        self.node = self.network.elect("a")
        self.peers = Peers({name: Peer(name, name, up=True) for name in "abc"})
        self.outbox = Outbox(self.peers, ClusterClock(), Now(0, 0))
        numbers = iter(range(100, 200))
        self.transfers = Transfers(self.outbox, lambda: next(numbers))
        self.reader = Reader()
        self.transfers.begin(self.node, "b", MARK, self.reader)

    def posted(self) -> list[SnapshotChunk]:
        return [envelope.message for _, envelope in self.outbox.take()]  # type: ignore[misc]

    def reply(self, wanted: int, *, transfer: int = 100, installed: bool = False) -> None:
        reply = SnapshotReply("b", "a", 3, transfer, MARK.index, wanted, installed)
        self.transfers.replied(self.node, reply)

    def pass_time(self, duration_ms: int, *, is_up: bool = True) -> None:
        now_ms = self.outbox.now.boot_ms + duration_ms
        self.outbox.now = Now(now_ms, now_ms)
        self.transfers.nudge(self.node, lambda server: is_up, Timing())


def test_a_transfer_goes_on_with_each_reply_until_it_is_installed():
    leading = Leading()
    assert leading.transfers.oldest_index() == MARK.index
    sent = leading.posted()
    while not sent[-1].last:
        leading.reply(sent[-1].sequence + 1)
        sent += leading.posted()

    leading.reply(PARTS, installed=True)

    assert rows_of(sent) == ROWS
    assert leading.reader.is_closed
    assert leading.transfers.oldest_index() is None


def test_lost_parts_are_sent_again_after_a_while_and_only_then():
    leading = Leading()
    first = leading.posted()
    quiet_ms = 2 * Timing().heartbeat_ms

    leading.pass_time(quiet_ms - 1)
    assert leading.posted() == []
    leading.pass_time(1)
    assert leading.posted() == first
    leading.pass_time(quiet_ms - 1)
    assert leading.posted() == []


def test_replies_to_another_transfer_count_for_nothing():
    leading = Leading()
    leading.posted()

    leading.reply(3, transfer=99)
    leading.reply(PARTS, transfer=99, installed=True)

    assert leading.posted() == []
    assert not leading.reader.is_closed


def test_a_new_transfer_to_the_same_follower_ends_the_one_before():
    leading = Leading()
    leading.posted()
    again = Reader()

    leading.transfers.begin(leading.node, "b", MARK, again)

    assert leading.reader.is_closed
    assert {chunk.transfer for chunk in leading.posted()} == {101}
    leading.transfers.end_all()
    assert again.is_closed


def test_a_transfer_to_who_began_anew_or_is_gone_ends():
    leading = Leading()
    leading.posted()
    leading.reply(3)
    leading.reply(0)
    assert leading.reader.is_closed

    leading = Leading()
    leading.pass_time(Timing().election_timeout_ms - 1, is_up=False)
    assert not leading.reader.is_closed
    leading.pass_time(1, is_up=False)
    assert leading.reader.is_closed

    leading = Leading()
    leading.network.change("a", configuration("ac"))
    leading.pass_time(1)
    assert leading.reader.is_closed
