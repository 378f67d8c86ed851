"""Which membership change comes next."""

from __future__ import annotations

import pytest

from hotspare.protocol.membership import Presence, next_change, vacated, without_vote
from hotspare.raft.messages import NOBODY, Configuration, Member
from hotspare.raft.node import refuse_unsafe_change


def member(name: str, id: str | None = None, *, voter: bool = True) -> Member:
    return Member(name, f"{name}:1", f"{name}1" if id is None else id, voter)


def configuration(*members: Member) -> Configuration:
    return Configuration("cluster", members)


def present(name: str, id: str, *, may_join: bool = True, address: str = "") -> dict[str, Presence]:
    return {name: Presence(id, address or f"{name}:1", may_join)}


def always(server: str) -> bool:
    return True


def never(server: str) -> bool:
    return False


THREE = configuration(member("a"), member("b"), member("c"))


def test_where_everybody_is_who_they_were_nothing_changes():
    everybody = present("a", "a1") | present("b", "b1") | present("c", "c1")

    assert next_change(THREE, everybody, always) is None


def test_who_does_not_answer_keeps_name_and_vote():
    assert next_change(THREE, present("a", "a1"), always) is None


def test_a_node_that_lost_its_state_comes_back_in_three_steps_that_are_each_safe():
    returned = present("a", "a1") | present("b", "b1") | present("c", "c2", address="c:2")
    now = THREE
    steps = []
    while (change := next_change(now, returned, always)) is not None:
        refuse_unsafe_change(now, change)
        steps.append(change.by_name("c"))
        now = change

    assert steps == [
        Member("c", "c:1", NOBODY, False),
        Member("c", "c:2", "c2", False),
        Member("c", "c:2", "c2", True),
    ]


def test_a_learner_does_not_vote_before_it_has_caught_up():
    learning = configuration(member("a"), member("b"), member("c", "c2", voter=False))
    returned = present("c", "c2")

    assert next_change(learning, returned, never) is None
    change = next_change(learning, returned, lambda server: server == "c2")
    assert change == configuration(member("a"), member("b"), member("c", "c2"))


def test_a_learner_that_is_away_stays_a_learner():
    learning = configuration(member("a"), member("b"), member("c", "c2", voter=False))

    assert next_change(learning, present("a", "a1"), always) is None


def test_only_one_server_changes_at_a_time():
    both_new = present("b", "b2") | present("c", "c2")

    change = next_change(THREE, both_new, always)

    assert change == configuration(member("a"), vacated(member("b")), member("c"))


@pytest.mark.parametrize("place", [member("c"), vacated(member("c"))])
def test_a_server_that_belongs_elsewhere_takes_nobodys_place(place: Member):
    now = configuration(member("a"), member("b"), place)

    assert next_change(now, present("c", "c2", may_join=False), always) is None


def test_a_server_whose_vote_was_taken_away_gets_it_back_when_it_has_caught_up():
    without = configuration(member("a"), member("b"), without_vote(member("c")))
    refuse_unsafe_change(THREE, without)

    assert without.voters == {"a1", "b1"}
    assert {each.id for each in without.servers} == {"a1", "b1", "c1"}
    assert next_change(without, present("c", "c1"), always) == THREE


def test_a_stranger_is_no_member():
    assert next_change(THREE, present("d", "d1"), always) is None
