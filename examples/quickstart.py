"""Three nodes in one process: store on one, read on another, lose one of them.

python examples/quickstart.py
"""

from __future__ import annotations

import time

from hotspare import SessionReplicator
from hotspare.errors import VersionConflict

NODES = ("127.0.0.1:7411", "127.0.0.1:7412", "127.0.0.1:7413")
HOUR_MS = 3_600_000


def main() -> None:
    nodes = [SessionReplicator(node=name) for name in NODES]
    for node in nodes:
        node.start()
    try:
        first, second, _ = nodes
        first.start_cluster(NODES[1:])

        version = first.store_session("alice", {"user": 7, "cart": []}, ttl_ms=HOUR_MS)
        print("stored, version", version)
        print("read elsewhere:", second.get_session("alice", read="primary"))

        second.update_session("alice", {"cart": ["tea"]})
        try:
            first.store_session("alice", {"user": 7}, ttl_ms=HOUR_MS, if_version=version)
        except VersionConflict as conflict:
            print("somebody was faster:", conflict)

        first.stop()  # the primary: it hands over before it goes
        started = time.monotonic()
        second.store_session("bob", {"user": 8}, ttl_ms=HOUR_MS)
        print(f"the others went on; that write took {(time.monotonic() - started) * 1000:.0f} ms")
        print("all sessions:", sorted(second.get_all_sessions()))
        print("the primary is", second.get_replication_status()["primary"])
    finally:
        for node in nodes:
            node.stop()


if __name__ == "__main__":
    main()
