"""What users may rely on. A name that is added or removed here belongs into the changelog."""

from __future__ import annotations

import re

import hotspare


def test_the_package_offers_these_names_and_no_others():
    assert sorted(hotspare.__all__) == [
        "AsyncSessionReplicator",
        "Session",
        "SessionReplicator",
        "Settings",
        "__version__",
        "errors",
        "events",
    ]
    assert all(hasattr(hotspare, name) for name in hotspare.__all__)


def test_the_errors_are_these():
    assert sorted(hotspare.errors.__all__) == [
        "ClusterMismatch",
        "ConfigError",
        "ForkedProcess",
        "HotspareError",
        "InvalidSession",
        "NotReady",
        "OutcomeUnknown",
        "ProtocolError",
        "Refused",
        "SessionTooLarge",
        "StaleRead",
        "StoreCorrupt",
        "StoreError",
        "StoreForeign",
        "StoreFull",
        "StoreInUse",
        "StoreOutdated",
        "Unavailable",
        "Undecryptable",
        "UnknownNode",
        "VersionConflict",
        "from_dict",
    ]


def test_the_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", hotspare.__version__)
