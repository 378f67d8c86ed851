"""The same verbs on an event loop: a cluster of one node, a thousand sessions, a login.

python examples/quickstart_async.py
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from secrets import token_urlsafe

from hotspare import AsyncSessionReplicator

NODE = "127.0.0.1:7411"


async def main() -> None:
    async with AsyncSessionReplicator(node=NODE, default_ttl_ms=3_600_000) as sessions:
        await sessions.start_cluster()
        stored = await sessions.store_sessions((f"visitor-{n}", {"visits": n}) for n in range(1000))
        print("stored", stored, "and there are", await sessions.session_count())

        await sessions.touch_session("visitor-1", timedelta(days=14))
        new_id = token_urlsafe()
        await sessions.rotate_session("visitor-1", new_id)  # at a login: the old id is worth nothing after
        print("under the old id:", await sessions.get_session("visitor-1"))
        print("under the new id:", await sessions.get_session(new_id))


if __name__ == "__main__":
    asyncio.run(main())
