"""Replicated sessions: read from memory on every host, and safe when any of them dies."""

from __future__ import annotations

import logging

from hotspare import errors, events
from hotspare.blocking import SessionReplicator
from hotspare.replicator import AsyncSessionReplicator
from hotspare.session import Session
from hotspare.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "AsyncSessionReplicator",
    "Session",
    "SessionReplicator",
    "Settings",
    "__version__",
    "errors",
    "events",
]

# A library is silent unless its user wants to hear it.
logging.getLogger("hotspare").addHandler(logging.NullHandler())
