"""What hotspare must reach, measured beside what it replaces: `python -m benchmarks`.

sessions.py     the sessions that both sides store
redis_peer.py   the peer: a real Redis with two replicas, driven in several ways
clusters.py     our side: four nodes, in processes of their own
rows.py         the rows of the table, each with its floor and its aim
runner.py       measures a row: the sides take turns, several times over
report.py       the table and the JSON file
"""

from __future__ import annotations
