"""An origin by itself: what it sends, and when it registers."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest

from hotspare.commands import Delete, RawGroup
from hotspare.protocol.origin import (
    MAX_GROUP_BYTES,
    MAX_GROUPS_IN_FLIGHT,
    MAX_WAITING_BYTES,
    MAX_WAITING_COMMANDS,
    Lost,
    Origin,
    Parcel,
)
from hotspare.table import MAX_UNSEEN, ORIGIN_TTL_MS

SECOND_MS = 1000
BATCH_SIZE = 4
BATCH_TIMEOUT_MS = 20
GRACE_MS = 50
CLUSTER_MS = 1_700_000_000_000
"""Cluster time minus the local clock's."""


class Driver:
    """An origin whose clock the test moves, and whose registrations and groups are answered at once."""

    def __init__(self) -> None:
        nonces = count(1)
        self.origin = Origin(lambda: b"nonce %d" % next(nonces))
        self.answers: list[list[int] | Lost] = []
        self.registrations = 0
        self.now_ms = 0

    def write(self) -> int:
        """Under which registration it was sent."""
        give_up_ms = self.now_ms + 5 * SECOND_MS
        self.origin.submit(Parcel([Delete(b"s1", 0)], 10, give_up_ms, self.answers.append), self.now_ms)
        if nonce := self.origin.wants_registration():
            self.registrations += 1
            self.origin.registered(nonce, self.registrations)
        (group,) = self.origin.take_groups(self.now_ms, self.now_ms)
        self.origin.answered(group.origin, group.first, [1])
        return group.origin


def test_a_writer_that_was_idle_for_long_registers_anew_before_it_sends():
    driver = Driver()
    assert driver.write() == 1

    driver.now_ms += ORIGIN_TTL_MS
    assert driver.write() == 2
    assert driver.answers == [[1], [1]]


def test_a_writer_keeps_its_registration_while_it_writes_now_and_then():
    driver = Driver()
    driver.now_ms = 10 * ORIGIN_TTL_MS
    for _ in range(20):
        assert driver.write() == 1
        driver.now_ms += ORIGIN_TTL_MS // 4


# Numbering and batching


class Writer:
    """An unregistered origin with small groups; what it sends is answered by the test."""

    def __init__(self) -> None:
        nonces = count(1)
        self.origin = Origin(lambda: b"nonce %d" % next(nonces), BATCH_SIZE, BATCH_TIMEOUT_MS, GRACE_MS)
        self.answers: dict[str, list[int] | Lost] = {}
        self.now_ms = 5 * SECOND_MS

    def write(self, name: str, commands: int = 1, *, timeout_ms: int = SECOND_MS, size: int = 10) -> None:
        def answer(results: list[int] | Lost) -> None:
            assert name not in self.answers, f"{name} was told twice"
            self.answers[name] = results

        parcel = Parcel([Delete(name.encode(), 0)] * commands, size, self.now_ms + timeout_ms, answer)
        self.origin.submit(parcel, self.now_ms)

    def register(self, origin: int = 7) -> None:
        self.origin.registered(self.origin.wants_registration(), origin)

    def take(self) -> list[RawGroup]:
        return self.origin.take_groups(self.now_ms, CLUSTER_MS + self.now_ms)

    def answer(self, group: RawGroup) -> None:
        numbers = range(group.first, group.first + group.count)
        self.origin.answered(group.origin, group.first, [number * 10 for number in numbers])

    def expire(self, after_ms: int) -> None:
        self.now_ms += after_ms
        self.origin.expire(self.now_ms)

    def names_in(self, group: RawGroup) -> list[str]:
        return [command.id.decode() for command in decode(group)]


def decode(group: RawGroup) -> list[Delete]:
    return msgspec.msgpack.decode(group.commands, type=list[Delete])


@pytest.fixture
def writer() -> Writer:
    """Registered, with "zero" under way as number 1, so that the next ones wait for company."""
    writer = Writer()
    writer.write("zero")
    writer.register()
    (group,) = writer.take()
    assert (group.origin, group.first, group.count, group.seen) == (7, 1, 1, 0)
    return writer


def test_nothing_leaves_before_it_is_registered():
    writer = Writer()
    assert writer.origin.wants_registration() == b""
    writer.write("a")

    nonce = writer.origin.wants_registration()
    assert nonce
    assert writer.origin.wants_registration() == nonce
    assert writer.take() == []
    writer.origin.registered(b"somebody else's", 6)
    assert writer.take() == []

    writer.origin.registered(nonce, 7)
    assert [group.origin for group in writer.take()] == [7]
    assert writer.origin.wants_registration() == b""
    writer.origin.registered(nonce, 8)  # it was registered twice: the first one counts
    assert writer.origin.id == 7


def test_a_lone_write_waits_for_nothing(writer: Writer):
    (zero,) = writer.origin.unanswered()
    writer.answer(zero)
    writer.write("a")

    assert [writer.names_in(group) for group in writer.take()] == [["a"]]


def test_writes_that_come_while_one_is_under_way_leave_together_when_it_is_answered(writer: Writer):
    for name in "abc":
        writer.write(name)
    assert writer.take() == []

    (zero,) = writer.origin.unanswered()
    writer.answer(zero)

    (group,) = writer.take()
    assert writer.names_in(group) == ["a", "b", "c"]
    assert (group.first, group.seen) == (2, 1)


def test_they_leave_earlier_when_there_are_enough_of_them(writer: Writer):
    for name in "abcdefghi":
        writer.write(name)

    first, second = writer.take()

    assert writer.names_in(first) == ["a", "b", "c", "d"]
    assert writer.names_in(second) == ["e", "f", "g", "h"]
    assert (first.first, second.first) == (2, 6)
    assert writer.take() == []


def test_they_leave_earlier_when_the_first_of_them_has_waited_for_long_enough(writer: Writer):
    writer.write("a")
    assert writer.origin.next_flush_ms() == writer.now_ms + BATCH_TIMEOUT_MS
    writer.now_ms += BATCH_TIMEOUT_MS - 1
    assert writer.take() == []

    writer.now_ms += 1

    assert [writer.names_in(group) for group in writer.take()] == [["a"]]
    assert writer.origin.next_flush_ms() is None


def test_they_leave_earlier_when_they_are_large(writer: Writer):
    writer.write("large", size=MAX_GROUP_BYTES - 1)
    assert writer.take() == []
    writer.write("another", size=MAX_GROUP_BYTES - 1)

    (group,) = writer.take()

    assert writer.names_in(group) == ["large"]


def test_what_belongs_to_one_caller_is_never_parted(writer: Writer):
    writer.write("abc", 3)
    writer.write("de", 2)
    writer.write("f", 1)

    (group,) = writer.take()
    assert writer.names_in(group) == ["abc"] * 3
    writer.now_ms += BATCH_TIMEOUT_MS
    (group,) = writer.take()
    assert writer.names_in(group) == ["de", "de", "f"]


def test_no_more_is_under_way_than_the_state_machine_keeps_results_for():
    """A group beyond that would be refused, again and again, until a later one tells what was seen."""
    batch_size = 10_000
    origin = Origin(lambda: b"nonce", batch_size)
    for _ in range(20):
        origin.submit(Parcel([Delete(b"s1", 0)] * batch_size, 10, 5 * SECOND_MS, lambda results: None), 0)
    origin.registered(origin.wants_registration(), 1)

    groups = origin.take_groups(0, 0)

    assert sum(group.count for group in groups) <= MAX_UNSEEN
    assert origin.next_flush_ms() is None
    for group in groups:
        origin.answered(1, group.first, [1] * group.count)
    assert origin.take_groups(0, 0)


def test_only_so_many_groups_are_under_way(writer: Writer):
    for _ in range(2 * MAX_GROUPS_IN_FLIGHT):
        writer.write("abcd" + str(writer.origin.pending), BATCH_SIZE)

    groups = writer.take()
    assert len(groups) == MAX_GROUPS_IN_FLIGHT - 1
    assert writer.origin.next_flush_ms() is None

    writer.answer(groups[0])  # the one before is not answered: no room yet
    assert writer.take() == []
    (zero, *_) = writer.origin.unanswered()
    writer.answer(zero)
    assert len(writer.take()) == 2


def test_past_a_bound_there_is_no_room(writer: Writer):
    assert writer.origin.has_room
    writer.write("large", size=MAX_WAITING_BYTES)
    assert not writer.origin.has_room

    writer.now_ms += BATCH_TIMEOUT_MS
    writer.take()
    assert writer.origin.has_room
    writer.write("many", MAX_WAITING_COMMANDS)
    assert not writer.origin.has_room


def test_every_command_carries_its_callers_deadline_in_cluster_time(writer: Writer):
    writer.write("soon", timeout_ms=100)
    writer.write("later", timeout_ms=400)
    arrived_ms = writer.now_ms
    writer.now_ms += BATCH_TIMEOUT_MS

    (group,) = writer.take()

    deadlines = {command.id: command.deadline_ms - CLUSTER_MS for command in decode(group)}
    assert deadlines == {b"soon": arrived_ms + 100, b"later": arrived_ms + 400}


# Answers


def test_each_caller_gets_the_results_of_its_own_commands(writer: Writer):
    writer.write("two", 2)
    writer.write("one")
    writer.now_ms += BATCH_TIMEOUT_MS
    zero, group = [*writer.origin.unanswered(), *writer.take()]
    assert writer.origin.pending == 4

    writer.answer(group)
    assert writer.answers == {"two": [20, 30], "one": [40]}
    writer.answer(zero)

    assert writer.answers["zero"] == [10]
    assert writer.origin.idle
    assert writer.origin.pending == 0


def test_a_repeated_or_strange_answer_changes_nothing(writer: Writer):
    (zero,) = writer.origin.unanswered()
    writer.origin.answered(8, 1, [1])
    writer.origin.answered(7, 2, [1])
    assert writer.answers == {}

    writer.answer(zero)
    writer.origin.answered(7, 1, [77])

    assert writer.answers == {"zero": [10]}


def test_seen_are_the_numbers_below_which_everything_is_answered(writer: Writer):
    """The cluster forgets the results up to there, so it must not run ahead of a group that may be resent."""
    groups = writer.origin.unanswered()
    for name in ("a", "b"):
        writer.write(name, BATCH_SIZE)
        groups += writer.take()
    zero, a, b = groups

    def next_seen() -> int:
        writer.write(f"after {len(writer.answers)}", BATCH_SIZE)
        (group,) = writer.take()
        return group.seen

    writer.answer(b)
    assert next_seen() == 0
    writer.answer(zero)
    assert next_seen() == 1
    writer.answer(a)
    assert next_seen() == b.first + b.count - 1


def test_a_new_home_gets_all_that_is_not_answered_in_order_and_as_it_was(writer: Writer):
    groups = writer.origin.unanswered()
    for name in ("a", "b"):
        writer.write(name, BATCH_SIZE)
        groups += writer.take()
    assert writer.origin.unanswered() == groups

    writer.answer(groups[1])

    assert writer.origin.unanswered() == [groups[0], groups[2]]


# When time is up


def test_what_never_left_is_certainly_not_applied():
    writer = Writer()
    writer.write("short", timeout_ms=100)
    writer.write("long", timeout_ms=200)

    writer.expire(99)
    assert writer.answers == {}
    writer.expire(1)
    assert writer.answers == {"short": Lost(True, "no primary took it in time")}
    assert writer.origin.pending == 1

    writer.register()
    (group,) = writer.take()
    assert writer.names_in(group) == ["long"]


def test_what_left_is_unknown_only_when_all_clocks_agree_that_it_is_too_late(writer: Writer):
    writer.expire(SECOND_MS + GRACE_MS - 1)
    assert writer.answers == {}

    writer.expire(1)

    assert writer.answers == {"zero": Lost(False, "no answer came in time")}


def test_who_was_told_is_not_told_again_and_the_number_is_still_sent_until_it_is_answered(writer: Writer):
    writer.expire(SECOND_MS + GRACE_MS)
    writer.expire(SECOND_MS)
    (zero,) = writer.origin.unanswered()
    assert not writer.origin.idle

    writer.answer(zero)

    assert isinstance(writer.answers["zero"], Lost)
    assert writer.origin.unanswered() == []
    writer.write("a")
    assert [group.seen for group in writer.take()] == [1]


def test_of_one_group_only_those_are_told_whose_time_is_up(writer: Writer):
    writer.write("short", timeout_ms=100)
    writer.write("long", timeout_ms=900)
    writer.now_ms += BATCH_TIMEOUT_MS
    (group,) = writer.take()

    writer.expire(100 + GRACE_MS)
    assert writer.answers == {"short": Lost(False, "no answer came in time")}
    writer.answer(group)

    assert writer.answers["long"] == [30]


def test_when_the_registration_is_gone_what_was_sent_is_unknown_and_the_rest_goes_on(writer: Writer):
    writer.write("a")
    writer.origin.unknown(6)  # not ours
    assert writer.answers == {}

    writer.origin.unknown(7)

    assert isinstance(writer.answers["zero"], Lost)
    assert not writer.answers["zero"].certain
    writer.register(9)
    (group,) = writer.take()
    assert (group.origin, group.first, group.seen, writer.names_in(group)) == (9, 1, 0, ["a"])
    writer.origin.answered(7, 1, [1])
    assert "a" not in writer.answers


def test_a_refusal_ends_what_was_not_sent_and_nothing_else(writer: Writer):
    writer.write("a")

    writer.origin.refuse("this node belongs to no cluster")

    assert writer.answers == {"a": Lost(True, "this node belongs to no cluster")}
    assert [group.first for group in writer.origin.unanswered()] == [1]


def test_closing_tells_everybody(writer: Writer):
    writer.write("a")

    writer.origin.close("it was stopped")

    assert writer.answers == {"a": Lost(True, "it was stopped"), "zero": Lost(False, "it was stopped")}
    assert writer.origin.idle
    assert writer.origin.has_room
