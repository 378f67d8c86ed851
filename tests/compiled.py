"""Wheels for a platform are compiled, and the tests run against them too.

Some cannot: compiled code has the constants of its modules inlined, and its objects take no methods but their
own. Tests that change either need the source.
"""

from __future__ import annotations

import pytest

from hotspare.cli.version import build

needs_source = pytest.mark.skipif(
    build() == "compiled", reason="changes what cannot be changed in compiled code"
)
