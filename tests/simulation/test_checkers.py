from __future__ import annotations

from itertools import permutations
from random import Random
from typing import Any

import pytest

from tests.simulation import linearizability
from tests.simulation.checkers import ReadInvariants, Violation
from tests.simulation.clocks import NodeClock
from tests.simulation.history import FOREVER, Condition, Operation, Verb, Verdict
from tests.simulation.linearizability import check
from tests.simulation.scheduler import Scheduler

DONE, ABSENT, UNKNOWN, REFUSED = Verdict.DONE, Verdict.ABSENT, Verdict.UNKNOWN, Verdict.REFUSED
LONG_MS = 1_000_000


def operation(verb: Verb, interval: tuple[int, int], verdict: Verdict = DONE, **fields: Any) -> Operation:
    invoked, returned = interval
    values: dict[str, Any] = {"id": "a", "latest_ms": 0, "verdict": verdict, **fields}
    return Operation(invoked, "c", verb, invoked=invoked, returned=returned, **values)


def put(interval: tuple[int, int], value: str, version: int = 0, **fields: Any) -> Operation:
    values: dict[str, Any] = {"data": frozenset({("by", value)}), "version": version, "ttl_ms": LONG_MS}
    return operation(Verb.PUT, interval, **(values | fields))


def read(interval: tuple[int, int], value: str, version: int, **fields: Any) -> Operation:
    values: dict[str, Any] = {"data": frozenset({("by", value)}), "version": version}
    return operation(Verb.READ, interval, **({"expires_at_ms": LONG_MS} | values | fields))


def read_nothing(interval: tuple[int, int], **fields: Any) -> Operation:
    return operation(Verb.READ, interval, ABSENT, **fields)


def is_linearizable(*operations: Operation) -> bool:
    return check(operations) is None


# --- what must be accepted, and what must not ---------------------------------------------------------


def test_a_read_sees_the_last_write():
    assert is_linearizable(put((1, 2), "x", 1), put((3, 4), "y", 2), read((5, 6), "y", 2))
    assert not is_linearizable(put((1, 2), "x", 1), put((3, 4), "y", 2), read((5, 6), "x", 1))


def test_a_read_during_a_write_may_see_it_or_not():
    assert is_linearizable(put((1, 2), "x", 1), put((3, 8), "y", 2), read((4, 5), "x", 1))
    assert is_linearizable(put((1, 2), "x", 1), put((3, 8), "y", 2), read((4, 5), "y", 2))


def test_once_seen_a_write_stays_seen():
    writes = put((1, 2), "x", 1), put((3, 9), "y", 2)
    assert not is_linearizable(*writes, read((4, 5), "y", 2), read((6, 7), "x", 1))


def test_an_acknowledged_session_is_not_absent():
    assert not is_linearizable(put((1, 2), "x", 1), read_nothing((3, 4)))


def test_an_unknown_write_took_effect_or_not():
    unknown = put((3, FOREVER), "y", verdict=UNKNOWN)
    assert is_linearizable(put((1, 2), "x", 1), unknown, read((5, 6), "x", 1))
    assert is_linearizable(put((1, 2), "x", 1), unknown, read((5, 6), "x", 1), read((7, 8), "y", 2))


def test_an_unknown_write_takes_no_effect_after_its_time():
    unknown = put((1, 4), "x", verdict=UNKNOWN)
    assert is_linearizable(unknown, read_nothing((2, 3)), read((5, 6), "x", 1))
    assert not is_linearizable(unknown, read_nothing((5, 6)), read((7, 8), "x", 1))


def test_an_unknown_write_takes_effect_once():
    unknown = put((1, FOREVER), "x", verdict=UNKNOWN)
    delete = operation(Verb.DELETE, (4, 5), version=2)
    assert is_linearizable(unknown, read((2, 3), "x", 1), delete, read_nothing((6, 7)))
    assert not is_linearizable(unknown, read((2, 3), "x", 1), delete, read((6, 7), "x", 3))


def test_a_refused_write_has_no_effect():
    assert not is_linearizable(put((1, 2), "x", verdict=REFUSED), read((3, 4), "x", 1))


def test_versions_only_grow():
    assert not is_linearizable(put((1, 2), "x", 2), put((3, 4), "y", 1))


def test_a_condition_that_failed_says_what_was_there():
    conflict = put((3, 4), "y", 1, verdict=Verdict.CONFLICT, condition=Condition.ABSENT)
    assert is_linearizable(put((1, 2), "x", 1), conflict)
    assert not is_linearizable(put((1, 2), "x", 2), conflict)
    assert not is_linearizable(conflict)


def test_a_condition_that_held_held():
    assert not is_linearizable(put((1, 2), "x", 1), put((3, 4), "y", 2, condition=Condition.ABSENT))
    assert not is_linearizable(
        put((1, 2), "x", 1),
        put((3, 4), "y", 2),
        put((5, 6), "z", 3, condition=Condition.VERSION, if_version=1),
    )


def test_a_patch_keeps_the_other_fields():
    patch = operation(Verb.PATCH, (3, 4), version=2, data=frozenset({("cart", "full")}))
    found = read((5, 6), "x", 2)
    assert not is_linearizable(put((1, 2), "x", 1), patch, found)
    found.data |= patch.data
    assert is_linearizable(put((1, 2), "x", 1), patch, found)


def test_a_touch_moves_the_expiry_and_nothing_else():
    touch = operation(Verb.TOUCH, (3, 4), version=2, ttl_ms=2 * LONG_MS)
    assert is_linearizable(
        put((1, 2), "x", 1), touch, read((5, 6), "x", 1, expires_at_ms=2 * LONG_MS, earliest_ms=0)
    )
    assert not is_linearizable(put((1, 2), "x", 1), touch, read((5, 6), "x", 1))


def test_a_rotation_moves_the_session_at_a_stroke():
    rotate = operation(Verb.ROTATE, (3, 8), version=2, new_id="b")
    assert is_linearizable(put((1, 2), "x", 1), rotate, read_nothing((9, 10)), read((9, 10), "x", 2, id="b"))
    seen_already = read((4, 5), "x", 2, id="b")
    assert not is_linearizable(put((1, 2), "x", 1), rotate, seen_already, read((6, 7), "x", 1))


def test_a_session_is_gone_after_its_expiry_and_not_before():
    short = put((1, 2), "x", 1, ttl_ms=100, latest_ms=10)
    assert is_linearizable(short, read_nothing((3, 4), earliest_ms=105, latest_ms=105))
    assert is_linearizable(short, read((3, 4), "x", 1, expires_at_ms=110, earliest_ms=105, latest_ms=105))
    assert not is_linearizable(short, read_nothing((3, 4), earliest_ms=90, latest_ms=99))
    assert not is_linearizable(short, read((3, 4), "x", 1, expires_at_ms=110, earliest_ms=110, latest_ms=110))


def test_two_sessions_do_not_mix():
    assert is_linearizable(put((1, 2), "x", 1), read_nothing((3, 4), id="b"))


def test_a_search_that_would_take_for_ever_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linearizability, "MAX_STEPS", 3)
    with pytest.raises(linearizability.SearchTooLong):
        check([put((number, 20 + number), f"x{number}") for number in range(10)] + [read_nothing((50, 51))])


def test_the_failure_shows_how_far_an_order_gets():
    failure = check([put((1, 2), "x", 1), read((3, 4), "y", 2)])
    assert failure is not None
    assert "#3 c read a {'by': 'y'}: done 2" in str(failure).splitlines()[-1]


# --- against all orders, one by one -------------------------------------------------------------------


def random_history(random: Random) -> list[Operation]:
    """Few operations on one register, told whatever comes to mind."""
    history = []
    for number in range(random.randint(2, 6)):
        invoked = random.randrange(12)
        interval = (invoked, invoked + random.randrange(1, 8))
        if random.random() < 0.5:
            verdict = random.choice([DONE, DONE, UNKNOWN])
            returned = interval[1] if verdict is DONE or random.random() < 0.5 else FOREVER
            history.append(put((invoked, returned), f"x{number}", verdict=verdict))
        elif random.random() < 0.8:
            history.append(read(interval, f"x{random.randrange(4)}", 0))
        else:
            history.append(read_nothing(interval))
    return history


def is_linearizable_by_trying(history: list[Operation]) -> bool:
    unknown = [each for each in history if each.verdict is UNKNOWN]
    known = [each for each in history if each.verdict is not UNKNOWN]
    for chosen in range(1 << len(unknown)):
        some = [each for bit, each in enumerate(unknown) if chosen >> bit & 1]
        if any(is_explained(order) for order in permutations(known + some)):
            return True
    return False


def is_explained(order: tuple[Operation, ...]) -> bool:
    value: object = frozenset()
    for position, each in enumerate(order):
        if any(later.returned < each.invoked for later in order[position + 1 :]):
            return False
        if each.verb is Verb.PUT:
            value = each.data
        elif value != each.data:
            return False
    return True


def test_the_search_finds_what_trying_all_orders_finds():
    random = Random(0)
    verdicts = []
    for _ in range(400):
        history = random_history(random)
        expected = is_linearizable_by_trying(history)
        assert is_linearizable(*history) == expected, "\n".join(map(str, history))
        verdicts.append(expected)
    assert 40 < sum(verdicts) < 360


# --- local reads --------------------------------------------------------------------------------------


def test_reads_of_a_node_never_go_back():
    reads = ReadInvariants(1000)
    reads.answers("n1", 7, 10)
    reads.answers("n2", 5, 20)
    with pytest.raises(Violation, match="n1 showed entry 7, and now reads as of entry 6"):
        reads.answers("n1", 6, 30)


def test_a_node_shows_what_its_clients_were_told():
    reads = ReadInvariants(1000)
    reads.write_told("n1", 9 << 16, 10)
    reads.answers("n2", 8, 20)
    with pytest.raises(Violation, match="n1 told a client of entry 9"):
        reads.answers("n1", 8, 20)


def test_a_copy_that_is_too_old_does_not_answer():
    reads = ReadInvariants(1000)
    reads.write_told("n1", 9 << 16, 100)
    reads.answers("n2", 8, 1050)
    with pytest.raises(Violation, match="more than 1000 ms ago"):
        reads.answers("n2", 8, 1200)


# --- the stage itself ---------------------------------------------------------------------------------


def test_events_happen_in_order_of_their_time_and_then_of_their_making():
    scheduler = Scheduler(0)
    happened: list[str] = []
    scheduler.at(5, lambda: happened.append("late"))
    scheduler.at(2, lambda: happened.append("first"))
    scheduler.at(2, lambda: happened.append("second"))
    scheduler.at(3, lambda: happened.append("never")).cancel()
    scheduler.at(9, lambda: happened.append("not yet"))

    scheduler.run_until(5)

    assert happened == ["first", "second", "late"]
    assert scheduler.now_ms == 5


def test_streams_of_randomness_are_told_apart_by_their_names():
    assert Scheduler(1).stream("a").random() == Scheduler(1).stream("a").random()
    assert Scheduler(1).stream("a").random() != Scheduler(1).stream("b").random()
    assert Scheduler(1).stream("a").random() != Scheduler(2).stream("a").random()


def test_a_wall_clock_may_jump_while_the_boot_clock_goes_on():
    clock = NodeClock(boot_offset_ms=1000, boot_rate=1.005)
    before = clock.boot_ms(5000), clock.wall_ms(5000)
    clock.jump(-60_000)
    assert (clock.boot_ms(5000), clock.wall_ms(5000)) == (before[0], before[1] - 60_000)
    clock.run_at(1.5, 5000)
    assert clock.wall_ms(5000) == before[1] - 60_000
    assert clock.wall_ms(7000) == before[1] - 57_000
    assert clock.boot_ms(clock.when(9000)) >= 9000 > clock.boot_ms(clock.when(9000) - 1)
