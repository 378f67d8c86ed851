"""The asyncio shell: sockets, timers and threads around the pure layers, which decide everything."""

from __future__ import annotations
