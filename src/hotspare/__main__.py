"""`python -m hotspare` is `hotspare`."""

from __future__ import annotations

import sys

from hotspare.cli import main

if __name__ == "__main__":
    sys.exit(main())
