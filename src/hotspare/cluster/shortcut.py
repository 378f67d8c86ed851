"""The short way between two processes of one machine: the same bytes, without TCP.

Within a network namespace a loopback address means the same to every process, and so does an abstract Unix
address (unix(7), Linux only). So whoever listens on a loopback address listens on a Unix address made of it
as well, and whoever dials one tries that first. It costs a fraction of the system's work for each message.

Anybody here may take such a name before its owner does. So a connection counts only where the one who listens
is the same user, or root. Where that is not so, or a system forbids such sockets, TCP leads.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

from hotspare.cluster.listener import BACKLOG
from hotspare.settings import Address, is_loopback

NOBODY = 65534
"""What the kernel says of a user who has no number in this user namespace."""
_CREDENTIALS = struct.Struct("3i")
"""Of a peer: process, user and group."""


def listen(address: Address) -> socket.socket | None:
    """A listening socket for who dials that address within this machine; None where there is no short way.
    Raises OSError where the system does not allow it, or somebody else has the name."""
    name = _name(address.from_here)
    if name is None:
        return None
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(name)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def dial(address: Address) -> socket.socket | None:
    """A connected socket, which does not block; None where TCP has to do."""
    name = _name(address)
    if name is None:
        return None
    try:
        dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:  # the system does not allow it
        return None
    dialled.setblocking(False)
    try:
        dialled.connect(name)
        if _is_trusted(dialled):
            return dialled
    except OSError:  # nobody listens there, or too many wait already
        pass
    dialled.close()
    return None


def _is_trusted(dialled: socket.socket) -> bool:
    """Whether who listens is this process's own user, or root."""
    credentials = dialled.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return user in (os.geteuid(), 0) and user != NOBODY


def _name(address: Address) -> bytes | None:
    if sys.platform != "linux" or not is_loopback(address.host):
        return None
    return f"\0hotspare/{address}".encode()
