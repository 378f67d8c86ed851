"""A home node keeps at what its origins handed over, until it is answered."""

from __future__ import annotations

import pytest

from hotspare.commands import Delete, RawGroup, encode_commands
from hotspare.protocol.relay import Relay

RETRY_MS = 400


def group(origin: int, first: int, count: int = 1) -> RawGroup:
    commands = [Delete(b"s1", 0) for _ in range(count)]
    return RawGroup(origin, first, count, 0, encode_commands(commands))


@pytest.fixture
def relay() -> Relay:
    return Relay(RETRY_MS)


def test_it_holds_what_has_no_outcome(relay: Relay):
    assert not relay
    relay.add(group(7, 1, count=3), 0)
    relay.add(group(7, 4), 0)
    relay.add(group(8, 1), 0)
    assert relay
    assert relay.pending_commands == 5
    assert relay.pending_groups == {(7, 1), (7, 4), (8, 1)}

    assert relay.answered(7, 1, 0)
    assert relay.answered(8, 1, 0)
    assert relay.answered(7, 4, 0)

    assert not relay
    assert relay.pending_commands == 0


def test_answers_to_others_and_repeated_answers_are_none_of_its_business(relay: Relay):
    relay.add(group(7, 1), 0)

    assert not relay.answered(7, 2, 0)
    assert not relay.answered(8, 1, 0)
    assert relay.answered(7, 1, 0)
    assert not relay.answered(7, 1, 0)


def test_a_group_that_comes_twice_is_held_once(relay: Relay):
    relay.add(group(7, 1), 0)
    relay.add(group(7, 1), 5)

    assert relay.pending_commands == 1
    assert relay.answered(7, 1, 5)
    assert not relay


def test_nothing_is_sent_again_while_answers_come(relay: Relay):
    for first in range(1, 11):
        relay.add(group(7, first), 0)
    for now_ms in range(100, 1100, 100):
        assert relay.to_send_again(now_ms) == ([], [])
        relay.answered(7, now_ms // 100, now_ms)


def test_what_nothing_is_heard_of_is_sent_again_in_order_now_and_then(relay: Relay):
    second, first = group(7, 2), group(7, 1)
    relay.add(second, 0)
    relay.add(first, 0)

    assert relay.to_send_again(RETRY_MS - 1) == ([], [])
    assert relay.to_send_again(RETRY_MS) == ([first, second], [])
    assert relay.to_send_again(2 * RETRY_MS - 1) == ([], [])
    assert relay.to_send_again(2 * RETRY_MS) == ([first, second], [])


def test_what_is_lost_of_one_origin_does_not_wait_for_the_others_to_be_quiet(relay: Relay):
    lost = group(7, 1)
    relay.add(lost, 0)
    relay.enrol(b"nonce", 0)
    for first in range(1, 10):
        relay.add(group(8, first), 0)
    for now_ms in range(100, RETRY_MS, 100):
        relay.answered(8, now_ms // 100, now_ms)

    assert relay.to_send_again(RETRY_MS) == ([lost], [b"nonce"])


def test_a_new_leader_gets_everything_at_once(relay: Relay):
    groups = [group(7, 1), group(7, 2), group(8, 5)]
    for each in groups:
        relay.add(each, 0)
    relay.enrol(b"nonce", 0)

    assert relay.to_send_again(1, at_once=True) == (groups, [b"nonce"])
    assert relay.to_send_again(2) == ([], [])


def test_after_a_gap_everything_is_sent_again_soon_but_once_for_all_of_them(relay: Relay):
    groups = [group(7, 1), group(7, 2), group(7, 3)]
    for each in groups:
        relay.add(each, 0)
    relay.add(group(8, 1), 0)

    relay.stumbled(7)
    relay.stumbled(7)
    assert relay.to_send_again(1) == (groups, [])
    assert relay.to_send_again(2) == ([], [])

    relay.stumbled(7)  # the answer to a group that was on its way before
    assert relay.to_send_again(3) == ([], [])
    assert relay.to_send_again(1 + RETRY_MS // 8) == (groups, [])


def test_a_gap_of_a_stranger_changes_nothing(relay: Relay):
    relay.add(group(7, 1), 0)

    relay.stumbled(8)

    assert relay.to_send_again(1) == ([], [])


def test_a_registration_is_asked_for_until_it_is_seen(relay: Relay):
    relay.enrol(b"nonce", 0)

    assert relay.to_send_again(RETRY_MS - 1) == ([], [])
    assert relay.to_send_again(RETRY_MS) == ([], [b"nonce"])
    assert not relay.enrolled(b"another")
    assert relay.enrolled(b"nonce")
    assert not relay.enrolled(b"nonce")
    assert not relay


def test_what_nobody_waits_for_is_forgotten(relay: Relay):
    relay.add(group(7, 1), 0)
    relay.add(group(8, 1), 0)
    relay.enrol(b"nonce", 0)

    assert relay.forget(7)
    assert not relay.forget(7)
    relay.forget_nonce(b"nonce")
    relay.forget_nonce(b"nonce")

    assert relay.pending_groups == {(8, 1)}
    assert relay.to_send_again(1, at_once=True) == ([group(8, 1)], [])
