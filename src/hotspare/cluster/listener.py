"""A socket that listens, and what becomes of the connections that it accepts.

asyncio's own server loses a connection that it accepts in the moment in which it is closed: nobody can hang
up on it any more. Here every accepted socket belongs to somebody at every moment.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

BACKLOG = 100
"""Connections that wait to be accepted, and how many are accepted in one turn of the event loop."""

RETRY_AFTER_S = 1.0
"""When the system has nothing left for another connection, a descriptor above all."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

logger = logging.getLogger("hotspare.cluster")


class Listener:
    """Makes a connection of `new_protocol()` from whatever arrives, until it is closed."""

    def __init__(self, listening: socket.socket, new_protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        self._socket = listening
        self._socket.setblocking(False)
        self._new_protocol = new_protocol
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        """Accepted, and not known to their protocols yet."""
        self._retry: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Accepts nothing more; the port is free."""
        if self._retry is not None:
            self._retry.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    async def closed(self) -> None:
        """After `close`: returns when all that was accepted is known to its protocol, or closed again."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                accepted, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno in _EXHAUSTED:
                    self._pause(exc)
                else:  # some systems report here what became of the connection that is next
                    logger.info("a connection was lost before it began: %s", exc.strerror)
                return
            task = self._loop.create_task(self._connect(accepted))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _pause(self, failure: OSError) -> None:
        logger.error("no connection can be accepted for a moment: %s", failure.strerror)
        self._loop.remove_reader(self._socket)
        self._retry = self._loop.call_later(RETRY_AFTER_S, self._loop.add_reader, self._socket, self._accept)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            accepted.setblocking(False)
            await self._loop.connect_accepted_socket(self._new_protocol, accepted)
        except OSError as exc:  # the other end has gone already
            logger.info("a connection was lost before it began: %s", exc.strerror)
            accepted.close()
        except BaseException:
            accepted.close()
            raise


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an IP address; port 0: any that is free. Raises OSError."""
    flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
    return socket.create_server(address, family=family, backlog=BACKLOG)
