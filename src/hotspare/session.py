"""A session as it is read."""

from __future__ import annotations

from typing import Any

import msgspec


class Session(msgspec.Struct, frozen=True):
    """A session as it was read. Changing `data` changes nothing until it is stored."""

    id: str
    data: dict[str, Any]
    version: int
    """Unique within a cluster, and only ever grows; otherwise opaque."""
    expires_at_ms: int
    """UNIX time in cluster time."""
