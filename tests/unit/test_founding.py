"""How a cluster begins."""

from __future__ import annotations

import itertools

import pytest

from hotspare.protocol.founding import (
    FOUNDING_STATE,
    Attempt,
    first_configuration,
    founder_of,
    founding_entry,
    obstacle,
    silent,
)
from hotspare.protocol.messages import FoundingReply, Introduction
from hotspare.raft.messages import Configuration, EntryKind, Member

NAMES = ("a", "b", "c")


def says(
    name: str, *, cluster_id: str = "", empty: bool = True, lists: tuple[str, ...] = NAMES
) -> Introduction:
    return Introduction(name, f"{name}:1", cluster_id, empty, lists)


def introduced(*sayings: Introduction) -> dict[str, tuple[str, Introduction]]:
    return {said.name: (f"{said.name}1", said) for said in sayings}


OTHERS = {name: introduced(*(says(other) for other in NAMES if other != name)) for name in NAMES}


# By settings


def test_the_lowest_name_founds_and_all_nodes_agree_on_that():
    assert {founder_of(says(name), OTHERS[name]) for name in NAMES} == {"a"}


@pytest.mark.parametrize("missing", ["b", "c"])
def test_nobody_founds_before_all_answer(missing: str):
    candidates = {name: said for name, said in OTHERS["a"].items() if name != missing}

    assert founder_of(says("a"), candidates) == ""


@pytest.mark.parametrize(
    "other",
    [
        says("c", empty=False, cluster_id="older"),
        says("c", lists=("a", "b", "c", "d")),
        says("c", lists=("a", "c")),
        says("c", lists=()),
    ],
)
def test_nobody_founds_with_a_node_that_has_a_cluster_or_lists_other_nodes(other: Introduction):
    candidates = introduced(says("b"), other)

    assert founder_of(says("a"), candidates) == ""
    assert founder_of(says("b"), introduced(says("a"), other)) == ""


def test_a_node_that_has_a_cluster_or_lists_nobody_founds_nothing():
    assert founder_of(says("a", empty=False, cluster_id="mine"), OTHERS["a"]) == ""
    assert founder_of(says("a", lists=()), OTHERS["a"]) == ""


# By word


def test_nothing_speaks_against_empty_nodes_whatever_they_list():
    assert obstacle(says("a", lists=()), NAMES, introduced(says("b", lists=("x",)), says("c"))) == ""


def test_an_obstacle_names_the_node_and_its_cluster():
    taken = says("b", empty=False, cluster_id="older")

    assert obstacle(says("a"), NAMES, introduced(taken)) == "b already belongs to cluster older"
    own = says("a", empty=False, cluster_id="mine")
    assert obstacle(own, NAMES, OTHERS["a"]) == "a already belongs to cluster mine"


def test_a_node_that_is_not_asked_for_is_no_obstacle():
    taken = says("d", empty=False, cluster_id="older")

    assert obstacle(says("a"), NAMES, OTHERS["a"] | introduced(taken)) == ""


def test_silent_are_all_others_that_have_not_answered():
    assert silent(says("a"), NAMES, {}) == ["b", "c"]
    assert silent(says("a"), NAMES, introduced(says("c"))) == ["b"]
    assert silent(says("a"), NAMES, OTHERS["a"]) == []


def test_the_first_configuration_has_all_of_them_as_voters_by_name():
    for names in itertools.permutations(NAMES):
        configuration = first_configuration("new", "b1", says("b"), names, OTHERS["b"])
        assert configuration == Configuration(
            "new", tuple(Member(name, f"{name}:1", f"{name}1", True) for name in NAMES)
        )


def test_every_log_begins_with_the_same_entry():
    configuration = first_configuration("new", "a1", says("a"), NAMES, OTHERS["a"])
    entry = founding_entry(configuration)

    assert (entry.index, entry.term, entry.kind) == (1, FOUNDING_STATE.term, EntryKind.CONFIGURATION)
    assert Configuration.decode(entry.payload) == configuration
    assert FOUNDING_STATE.vote == ""


# The founder's side


def test_a_founding_counts_those_who_adopted_it_and_needs_most_of_them():
    attempt = Attempt(("a", "b", "c", "d"), give_up_ms=0)
    attempt.note_reply("b", FoundingReply("new", True))  # to an earlier founding: none is handed out yet
    attempt.configuration, attempt.adopted = Configuration("new", ()), {"a"}
    assert not attempt.is_adopted_by_most

    attempt.note_reply("b", FoundingReply("new", True))
    attempt.note_reply("b", FoundingReply("new", True))
    attempt.note_reply("c", FoundingReply("new", False, "it belongs to another cluster"))
    attempt.note_reply("c", FoundingReply("older", True))
    assert attempt.adopted == {"a", "b"}
    assert not attempt.is_adopted_by_most

    attempt.note_reply("d", FoundingReply("new", True))
    assert attempt.is_adopted_by_most
