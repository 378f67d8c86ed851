"""Replicated sessions: read from memory on every host, and safe when any of them dies."""

from __future__ import annotations

from hotspare import errors
from hotspare.settings import Settings

__version__ = "0.1.0"

__all__ = ["Settings", "__version__", "errors"]
