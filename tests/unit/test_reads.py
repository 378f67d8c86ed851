"""Linearizable reads from any copy, and how fresh a copy is."""

from __future__ import annotations

import pytest

from hotspare.protocol.reads import NEVER, Asker, Askers, Freshness, Reads

RETRY_MS = 100
STALENESS_MS = 1000
T_MS = 50_000
"""Some time."""


@pytest.fixture
def reads() -> Reads:
    return Reads(first_context=70, retry_ms=RETRY_MS)


@pytest.fixture
def freshness() -> Freshness:
    return Freshness(STALENESS_MS)


# Questions


def test_a_read_is_ripe_once_what_the_leader_named_is_applied(reads: Reads):
    context = reads.start(0)
    assert reads.ripe(10) == []

    reads.answered(context, 12)

    assert reads.ripe(11) == []
    assert reads.ripe(12) == [context]
    assert reads.ripe(12) == []


def test_a_read_of_what_is_applied_already_is_ripe_at_once(reads: Reads):
    context = reads.start(0)

    reads.answered(context, 3)

    assert reads.ripe(10) == [context]


def test_every_question_has_a_context_of_its_own_and_its_own_answer(reads: Reads):
    first, second, third = (reads.start(0) for _ in range(3))
    assert len({first, second, third}) == 3

    reads.answered(third, 1)
    reads.answered(first, 5)

    assert reads.ripe(4) == [third]
    assert reads.ripe(5) == [first]


def test_only_the_first_answer_to_a_question_of_ours_counts(reads: Reads):
    context = reads.start(0)

    reads.answered(context + 1, 0)  # never asked
    reads.answered(context, 5)
    reads.answered(context, 3)  # to the same question, asked again

    assert reads.ripe(4) == []
    assert reads.ripe(5) == [context]
    reads.answered(context, 3)
    assert reads.ripe(5) == []


def test_what_was_forgotten_is_never_ripe(reads: Reads):
    unanswered, answered = reads.start(0), reads.start(0)
    reads.answered(answered, 5)

    reads.forget(unanswered)
    reads.forget(answered)
    reads.answered(unanswered, 1)

    assert reads.ripe(10) == []
    assert reads.to_ask_again(10 * RETRY_MS) == []


def test_a_question_without_an_answer_is_asked_again_after_a_while(reads: Reads):
    context = reads.start(0)

    assert reads.to_ask_again(RETRY_MS - 1) == []
    assert reads.to_ask_again(RETRY_MS) == [context]
    assert reads.to_ask_again(2 * RETRY_MS - 1) == []
    assert reads.to_ask_again(2 * RETRY_MS) == [context]

    reads.answered(context, 5)
    assert reads.to_ask_again(9 * RETRY_MS) == []


def test_a_new_leader_is_asked_at_once(reads: Reads):
    context = reads.start(0)

    assert reads.to_ask_again(1, at_once=True) == [context]
    assert reads.to_ask_again(RETRY_MS) == []


# Freshness


def test_a_copy_is_not_fresh_before_it_has_learned_what_is_committed(freshness: Freshness, reads: Reads):
    assert freshness.fresh_as_of_ms == NEVER

    context = freshness.renew(T_MS, reads.start)

    assert context is not None
    assert freshness.fresh_as_of_ms == NEVER
    assert freshness.ripe(context)
    assert freshness.fresh_as_of_ms == T_MS


def test_a_copy_is_as_fresh_as_its_question_is_old_not_as_its_answer(freshness: Freshness, reads: Reads):
    context = freshness.renew(T_MS, reads.start)
    assert context is not None

    # The answer is late: what was committed since the question left may be missing.
    assert freshness.give_up(T_MS + 900) is None
    assert freshness.ripe(context)

    assert freshness.fresh_as_of_ms == T_MS


def test_the_question_is_asked_again_well_before_the_copy_is_stale(freshness: Freshness, reads: Reads):
    context = freshness.renew(T_MS, reads.start)
    assert context is not None
    assert freshness.renew(T_MS + 10, reads.start) is None  # one at a time
    freshness.granted(context, STALENESS_MS)
    assert freshness.ripe(context)

    assert freshness.renew(T_MS + STALENESS_MS // 4 - 1, reads.start) is None
    assert freshness.renew(T_MS + STALENESS_MS // 4, reads.start) is not None


def test_other_peoples_reads_say_nothing_about_freshness(freshness: Freshness, reads: Reads):
    other = reads.start(0)
    assert not freshness.ripe(other)

    freshness.renew(T_MS, reads.start)

    assert not freshness.ripe(other)
    assert freshness.fresh_as_of_ms == NEVER


def test_a_question_whose_answer_would_be_worth_nothing_is_given_up(freshness: Freshness, reads: Reads):
    context = freshness.renew(T_MS, reads.start)
    assert context is not None
    assert freshness.give_up(T_MS + STALENESS_MS - 1) is None

    assert freshness.give_up(T_MS + STALENESS_MS) == context

    assert not freshness.ripe(context)
    assert freshness.fresh_as_of_ms == NEVER
    assert freshness.renew(T_MS + STALENESS_MS, reads.start) not in (None, context)


# Leases


def test_a_lease_counts_from_the_question_not_from_its_answer(freshness: Freshness, reads: Reads):
    context = freshness.renew(T_MS, reads.start)
    assert context is not None
    assert freshness.lease_end_ms == NEVER

    assert freshness.give_up(T_MS + 900) is None
    freshness.granted(context, STALENESS_MS)
    assert freshness.lease_end_ms == NEVER  # what was committed then is not applied yet
    assert freshness.ripe(context)

    assert freshness.lease_end_ms == T_MS + STALENESS_MS


def test_a_lease_is_as_long_as_the_leader_grants(freshness: Freshness, reads: Reads):
    context = freshness.renew(T_MS, reads.start)
    assert context is not None
    freshness.granted(context, STALENESS_MS // 2)
    freshness.ripe(context)

    assert freshness.lease_end_ms == T_MS + STALENESS_MS // 2
    assert freshness.renew(T_MS + STALENESS_MS // 8, reads.start) is not None


def test_an_answer_to_something_else_grants_nothing(freshness: Freshness, reads: Reads):
    context = freshness.renew(T_MS, reads.start)
    assert context is not None

    freshness.granted(reads.start(T_MS), STALENESS_MS)
    freshness.ripe(context)

    assert freshness.lease_end_ms == T_MS


def test_a_copy_that_gives_its_lease_up_names_all_it_has_asked_for_and_asks_no_more(
    freshness: Freshness, reads: Reads
):
    contexts = []
    for now_ms in range(T_MS, T_MS + 3 * STALENESS_MS, STALENESS_MS):
        context = freshness.renew(now_ms, reads.start)
        assert context is not None
        freshness.granted(context, STALENESS_MS)
        freshness.ripe(context)
        contexts.append(context)

    assert freshness.close() == (contexts[0], contexts[-1])

    assert freshness.lease_end_ms == NEVER
    assert freshness.renew(T_MS + 9 * STALENESS_MS, reads.start) is None


def test_a_copy_that_never_asked_has_nothing_to_give_up(freshness: Freshness):
    assert freshness.close() is None


# On the leader


def test_answers_find_back_to_who_asked():
    askers = Askers(first_number=9)
    ours, theirs = askers.add(Asker("", 4, 0)), askers.add(Asker("b", 4, 500))

    assert askers.pop(theirs) == Asker("b", 4, 500)
    assert askers.pop(theirs) is None
    assert askers.pop(ours) == Asker("", 4, 0)


def test_a_deposed_leader_answers_nobody():
    askers = Askers(first_number=9)
    number = askers.add(Asker("b", 4, 0))

    askers.clear()

    assert askers.pop(number) is None
    assert askers.add(Asker("b", 5, 0)) != number
