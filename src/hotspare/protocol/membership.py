"""Which membership change a leader should make next, if any: one server at a time, never a swap.

A node that lost its state comes back under its old name as a new server (a new incarnation). The leader then
removes the old incarnation, adds the new one as a learner, and makes it a voter once it has caught up: three
configurations, each differing from the one before by one server, each committed before the next is proposed
(the dissertation, 4.1 and 4.2.1). A node that an operator adds comes in by the same steps, and one that is
removed goes the other way: the vote first, then the name. Taking the vote away from a dead secondary by an
operator's word and giving it back when it has returned are single changes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import msgspec

from hotspare.raft.messages import NOBODY, Configuration, Member, ServerId

MAX_MEMBERS = 7
"""More voters make every write slower and nothing safer."""


class Presence(NamedTuple):
    """What the leader knows about the process that answers under a name just now."""

    id: ServerId
    address: str
    may_join: bool
    """It has no state, or has adopted this very cluster."""


def next_change(
    configuration: Configuration,
    present: Mapping[str, Presence],
    has_caught_up: Callable[[ServerId], bool],
    leaving: Collection[str] = (),
) -> Configuration | None:
    """The next configuration, or None when all is as it should be. Decides; the caller proposes.

    Those who are `leaving` get no vote any more; what is to become of them is the operator's word."""
    for member in configuration.members:
        if member.name in leaving:
            continue
        changed = _next_for(member, present.get(member.name), has_caught_up)
        if changed is not None:
            return configuration.with_member(changed)
    return None


def _next_for(
    member: Member, presence: Presence | None, has_caught_up: Callable[[ServerId], bool]
) -> Member | None:
    if presence is None:
        return None
    if presence.id == member.id:
        return _settled(member, presence, has_caught_up)
    if not presence.may_join:
        return None
    if member.id != NOBODY:
        return vacated(member)
    return msgspec.structs.replace(member, id=presence.id, address=presence.address)


def _settled(member: Member, presence: Presence, has_caught_up: Callable[[ServerId], bool]) -> Member | None:
    if presence.address != member.address:
        return msgspec.structs.replace(member, address=presence.address)
    if not member.voter and has_caught_up(member.id):
        return msgspec.structs.replace(member, voter=True)
    return None


def newcomer(name: str, presence: Presence) -> Member:
    """It gets the log, and votes when it has caught up."""
    return Member(name, presence.address, presence.id, False)


def vacated(member: Member) -> Member:
    """The name stays, its incarnation goes, and with it the vote."""
    return msgspec.structs.replace(member, id=NOBODY, voter=False)


def without_vote(member: Member) -> Member:
    """It stays a server, gets the log when it is back, and votes again when it has caught up."""
    return msgspec.structs.replace(member, voter=False)
