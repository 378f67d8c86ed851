"""Reads of the copy in this process: on any thread, without the event loop, in about a microsecond.

What a reader must know stands in one object, which the event loop replaces as a whole: until when the copy
may be read (its lease, see `protocol.leases`), and what cluster time is. A reader takes the object first,
then the record, and looks at the clock last: however long it was held up in between, it never returns what
was read after the lease had run out, nor a record from before a pause in the name of a renewal after it.

A daemon has a lease page besides: what is published for its own readers is written there too, for those in
other processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from typing import Final, final

from hotspare.cluster.clocks import BOOT_CLOCK
from hotspare.cluster.lease import NEVER_MS, NOTHING_KNOWN, LeasePage, Limits
from hotspare.errors import HotspareError, NotReady
from hotspare.protocol.clock import UNKNOWN_OFFSET_MS, ClusterClock
from hotspare.record import unpack_expiry
from hotspare.replica import Now
from hotspare.store import Store

TIME_UNKNOWN: Final = "nobody has told it the time since it started, and the session may have expired since"

_clock_gettime = time.clock_gettime  # not Final: compiled, no test could put a clock of its own here
_BOOT_CLOCK: Final[int] = BOOT_CLOCK


@final
class _Bounds:
    """The limits as a reader compares them. Never changed: compiled, three floats in a row to look at."""

    __slots__ = ("floor_ms", "fresh_until_ms", "offset_ms")

    def __init__(self, limits: Limits) -> None:
        self.fresh_until_ms = float(limits.fresh_until_ms)
        self.offset_ms = float(limits.offset_ms)
        self.floor_ms = float(limits.floor_ms)


class LocalReads:
    """See the module's docstring. `not_fresh` makes the error for a copy whose lease ran out so many
    milliseconds ago (None: it has none)."""

    __slots__ = ("_bounds", "_limits", "_max_skew_ms", "_not_fresh", "_page", "_store")

    def __init__(
        self,
        store: Store,
        not_fresh: Callable[[int | None], HotspareError],
        max_clock_skew_ms: int,
        page: LeasePage | None = None,
    ) -> None:
        self._store = store
        self._not_fresh = not_fresh
        self._max_skew_ms = max_clock_skew_ms
        self._page = page
        known = page.limits if page is not None else NOTHING_KNOWN
        self._set(known._replace(fresh_until_ms=NEVER_MS))

    def _set(self, limits: Limits) -> None:
        self._limits = limits
        self._bounds = _Bounds(limits)

    def publish(self, fresh_until_ms: int, clock: ClusterClock, now_ms: int, server: str) -> None:
        """Called by the event loop whenever any of it may have changed, after what was applied is committed.
        Cluster time never goes back. `server` is the node's incarnation."""
        limits, offset_ms, cluster_ms = self._limits, clock.offset_ms, clock.read_ms(now_ms)
        if offset_ms == UNKNOWN_OFFSET_MS:  # what an earlier process was told holds for this boot
            offset_ms = limits.offset_ms
        is_ticking = cluster_ms == now_ms + offset_ms  # and not held up by a stamp that was later
        if is_ticking and fresh_until_ms == limits.fresh_until_ms and offset_ms == limits.offset_ms:
            return
        limits = Limits(fresh_until_ms, offset_ms, max(cluster_ms, self.cluster_ms(now_ms)))
        self._set(limits)
        if self._page is not None:
            self._page.write(server, limits, now_ms)

    def close(self) -> None:
        """From now on nothing is fresh here. Other processes go on reading until the lease ends."""
        self._set(self._limits._replace(fresh_until_ms=NEVER_MS))

    def cluster_ms(self, now_ms: int) -> int:
        """As readers see it."""
        return self._limits.cluster_ms(now_ms)

    def is_fresh(self, now_ms: int) -> bool:
        return now_ms <= self._limits.fresh_until_ms

    def check_fresh(self, now_ms: int) -> None:
        """Raises NotReady or StaleRead."""
        fresh_until_ms = self._limits.fresh_until_ms
        if now_ms > fresh_until_ms:
            raise self._complain(fresh_until_ms, now_ms)

    def _complain(self, fresh_until_ms: float, now_ms: float) -> HotspareError:
        return self._not_fresh(ceil(now_ms - fresh_until_ms) if fresh_until_ms >= 0 else None)

    def read(self, id: bytes, /) -> bytes | None:
        """The record of a live session. Raises NotReady or StaleRead."""
        bounds = self._bounds
        record = self._store.get(id)
        now_ms: float = _clock_gettime(_BOOT_CLOCK) * 1000.0
        if now_ms > bounds.fresh_until_ms:
            raise self._complain(bounds.fresh_until_ms, now_ms)
        if record is None:
            return None
        expires_at_ms = float(unpack_expiry(record)[0])
        if expires_at_ms <= bounds.floor_ms or expires_at_ms <= now_ms + bounds.offset_ms:
            return None
        return record

    def read_any_age(self, id: bytes, now: Now) -> bytes | None:
        """The same, however old the copy is. Raises NotReady if it cannot be told whether it has expired."""
        limits = self._limits
        record = self._store.get(id)
        if record is None:
            return None
        is_alive = limits.is_alive(unpack_expiry(record)[0], now, self._max_skew_ms)
        if is_alive is None:
            raise NotReady(TIME_UNKNOWN)
        return record if is_alive else None
