"""How `hotspare` exits. Scripts rely on these numbers: they change with a major version only.

Only a "no" from the cluster is a 1. A cluster that cannot be reached, and a defect of ours, must never look
like "no such session", which logs people out; and Python's own exit code for a crash would be 1.
"""

from __future__ import annotations

from enum import IntEnum

from hotspare.errors import HotspareError, OutcomeUnknown, StoreError, VersionConflict

__all__ = ["Exit", "exit_for", "table"]


class Exit(IntEnum):
    DONE = 0
    NO = 1
    FAILED = 2
    UNKNOWN = 3
    DEFECT = 4
    STORE = 5
    INTERRUPTED = 130
    UNREAD = 141


MEANINGS = {
    Exit.DONE: "done",
    Exit.NO: "the answer is no: no such session, a condition that did not hold, a verification that failed",
    Exit.FAILED: "not done: nobody reachable, refused, or called wrongly",
    Exit.UNKNOWN: "a write was sent and not answered: whether it took effect is unknown",
    Exit.DEFECT: "a defect in hotspare itself; please report it",
    Exit.STORE: "a node's store is in use, foreign, full, damaged or outdated: first see to that",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.UNREAD: "whoever read the output went away",
}


def exit_for(error: HotspareError) -> Exit:
    match error:
        case VersionConflict():
            return Exit.NO
        case OutcomeUnknown():
            return Exit.UNKNOWN
        case StoreError():
            return Exit.STORE
    return Exit.FAILED


def table() -> str:
    """The codes and what they mean, a line each."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())
