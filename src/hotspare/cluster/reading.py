"""Reads of the copy in this process: on any thread, without the event loop, in about a microsecond.

What a reader must know stands in one tuple, which the event loop replaces as a whole: until when the copy
counts as fresh, and what cluster time is. A reader takes the tuple first, then the record, and looks at
the clock last: however long it was held up in between, it never returns what was read after the copy had
ceased to be fresh, nor a record from before a pause in the name of a renewal after it.

A daemon has a lease page besides: what is published for its own readers is written there too, for those in
other processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hotspare.cluster.clocks import BOOT_CLOCK
from hotspare.cluster.lease import NEVER_MS, NOTHING_KNOWN, LeasePage, Limits
from hotspare.errors import HotspareError
from hotspare.protocol.clock import ClusterClock
from hotspare.session import unpack_expiry
from hotspare.store import Store

_clock_gettime = time.clock_gettime


class LocalReads:
    """See the module's docstring. `complain` makes the error for a copy that is not fresh at a local time."""

    __slots__ = ("_complain", "_limits", "_page", "_store")

    def __init__(
        self, store: Store, complain: Callable[[int], HotspareError], page: LeasePage | None = None
    ) -> None:
        self._store = store
        self._complain = complain
        self._page = page
        known = page.limits if page is not None else NOTHING_KNOWN
        self._limits = known._replace(fresh_until_ms=NEVER_MS)

    def publish(self, fresh_until_ms: int, clock: ClusterClock, now_ms: int, server: str) -> None:
        """Called by the event loop whenever any of it may have changed, after what was applied is committed.
        Cluster time never goes back. `server` is the node's incarnation."""
        limits, offset_ms, cluster_ms = self._limits, clock.offset_ms, clock.read_ms(now_ms)
        is_ticking = cluster_ms == now_ms + offset_ms  # and not held up by a stamp that was later
        if is_ticking and fresh_until_ms == limits.fresh_until_ms and offset_ms == limits.offset_ms:
            return
        self._limits = limits = Limits(fresh_until_ms, offset_ms, max(cluster_ms, self.cluster_ms(now_ms)))
        if self._page is not None:
            self._page.write(server, limits, now_ms)

    def close(self) -> None:
        """From now on nothing is fresh here. Other processes go on reading until the lease ends."""
        self._limits = self._limits._replace(fresh_until_ms=NEVER_MS)

    def cluster_ms(self, now_ms: int) -> int:
        """As readers see it."""
        return self._limits.cluster_ms(now_ms)

    def is_fresh(self, now_ms: int) -> bool:
        return now_ms <= self._limits.fresh_until_ms

    def read(self, id: bytes, /) -> bytes | None:
        """The record of a live session. Raises NotReady or StaleRead."""
        fresh_until_ms, offset_ms, floor_ms = self._limits
        record = self._store.get(id)
        now_ms = _clock_gettime(BOOT_CLOCK) * 1000.0
        if now_ms > fresh_until_ms:
            raise self._complain(int(now_ms))
        if record is None:
            return None
        (expires_at_ms,) = unpack_expiry(record)
        if expires_at_ms <= floor_ms or expires_at_ms <= now_ms + offset_ms:
            return None
        return record

    def read_any_age(self, id: bytes, now_ms: int) -> bytes | None:
        """The same, however old the copy is."""
        record = self._store.get(id)
        if record is None or unpack_expiry(record)[0] <= self.cluster_ms(now_ms):
            return None
        return record
