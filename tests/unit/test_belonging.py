"""Whether a server is one of its cluster's, as others tell it."""

from __future__ import annotations

import pytest

from hotspare.protocol.belonging import is_removed, removal_of
from hotspare.protocol.messages import Introduction
from hotspare.raft.node import Node
from tests.unit.raft_network import Network

STRANGER = "z"


@pytest.fixture
def network() -> Network:
    return Network("abc")


def said(role: str = "member", cluster_id: str = "cluster") -> Introduction:
    return Introduction(STRANGER, STRANGER, cluster_id, empty=False, role=role)


def named_at(network: Network) -> tuple[Node, int, int]:
    node = network.servers["b"].node
    return node, *node.log.last_naming("b")


def test_who_is_not_in_the_committed_configuration_is_told_where_that_stands(network: Network):
    leader = network.elect("a")
    network.settle()
    told = removal_of(STRANGER, said(), leader, "cluster")
    assert told is not None
    assert (told.index, told.term) == (leader.log.configuration_index(), leader.term)


def test_members_observers_and_strangers_are_told_nothing(network: Network):
    leader = network.elect("a")
    network.settle()
    assert removal_of("b", said(), leader, "cluster") is None
    assert removal_of(STRANGER, said("observer"), leader, "cluster") is None
    assert removal_of(STRANGER, said(cluster_id="another"), leader, "cluster") is None


def test_a_member_that_lags_behind_turns_no_newcomer_away(network: Network):
    network.elect("a")
    network.settle()
    node, index, term = named_at(network)
    assert not is_removed("b", node, index - 1, 0)
    assert not is_removed("b", node, index, term)


def test_a_later_configuration_without_us_is_believed_of_anybody(network: Network):
    network.elect("a")
    network.settle()
    node, index, _ = named_at(network)
    assert is_removed("b", node, index + 1, 0)


def test_of_a_leader_of_a_later_term_an_earlier_configuration_is_believed_too(network: Network):
    """What names us was appended by a leader that never committed it."""
    network.elect("a")
    network.settle()
    node, index, term = named_at(network)
    assert is_removed("b", node, index - 1, term + 1)


def test_who_knows_no_configuration_that_names_it_believes_leaders_only(network: Network):
    node = network.elect("a")
    network.settle()
    assert not is_removed(STRANGER, node, 7, 0)
    assert is_removed(STRANGER, node, 7, 1)
