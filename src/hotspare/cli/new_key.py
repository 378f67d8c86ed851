"""`hotspare new-key`: a key for `cluster_key_file`."""

from __future__ import annotations

import os
import secrets
import stat
import sys

from hotspare.cli.exits import Exit

__all__ = ["new_key"]

KEY_BYTES = 32


def new_key() -> int:
    _keep_private()
    print(secrets.token_urlsafe(KEY_BYTES))
    return Exit.DONE


def _keep_private() -> None:
    """A shell makes files that everybody may read, and a node refuses a key in such a file."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # a test took its place
        return
    if stat.S_ISREG(os.fstat(output).st_mode):
        os.fchmod(output, stat.S_IRUSR | stat.S_IWUSR)
