"""All connections of a node: to its peers, from its peers, and from clients.

What a node says to a peer goes over the connection that the node dialled; what the peer says comes over the
one that the peer dialled. So there is never a question of which of two connections to keep, and each side
decides by itself when to dial. Nothing is promised about frames but their order within one connection: when a
connection is lost, some may be lost with it; who sent them hears `on_up` again, and sends what matters again.

**Failure detection.** The operating system closes the connections of a process that died. But a connection
can also be lost while both processes live. So when either of the two connections with a peer ends, the peer
is dialled anew at once. If the same incarnation answers, it lives, and the new connection takes the place of
the old one (`on_up` again). If nobody does within `REDIAL_TIMEOUT_MS`, or another incarnation does, the peer
is down. A new connection is made before the old one is closed, and the accepting end takes no alarm at the
end of one that has been replaced: else two healthy nodes would alarm each other for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import socket
from collections.abc import Callable, Iterable
from secrets import token_bytes

import msgspec

from hotspare.cluster import shortcut
from hotspare.cluster.authentication import NONCE_BYTES, Role, is_proof, proof
from hotspare.cluster.complaints import Complaints
from hotspare.cluster.connection import (
    KEYS_DIFFER,
    ONE_HAS_NO_KEY,
    Connection,
    Dialled,
    Handler,
    Rejection,
    Resolver,
    connect,
    describe,
)
from hotspare.cluster.listener import Listener, listen
from hotspare.cluster.security import NO_SECURITY, Security
from hotspare.cluster.wire import (
    MAX_CLIENT_FRAME_BYTES,
    MAX_FRAME_BYTES,
    Challenge,
    Hello,
    Rejected,
    RejectionCode,
    Welcome,
    decode_hello,
    decode_proof,
    encode_body,
    encode_greeting,
)
from hotspare.errors import ConfigError, ProtocolError
from hotspare.settings import Address, is_loopback

HANDSHAKE_TIMEOUT_MS = 2000
"""How long a stranger may take to say who it is."""

MAX_HANDSHAKES = 64
"""Strangers at once. One more, and the one who has been silent longest has to go."""

MAX_CLIENTS = 800
"""Each takes a file descriptor, and a process commonly has 1024 of them."""

MAX_PEERS = 128
"""Members are seven at most; the rest are observers."""

DIAL_TIMEOUT_MS = 2000
"""For a peer that is not up: a slow machine is still a machine."""

REDIAL_TIMEOUT_MS = 200
"""For a peer that was up a moment ago: this long a failover may wait for nothing."""

FIRST_PAUSE_MS = 20
LONGEST_PAUSE_MS = 1000
"""Between two attempts: doubled each time, with jitter, so that a peer is found soon and never flooded."""

LASTING_MS = 1000
"""A connection that lasted so long was a good one: when it is lost, the pauses begin anew."""

STOP_TIMEOUT_MS = 1000
"""How long the connections have, when the node stops, to send what is still to be sent."""

logger = logging.getLogger("hotspare.cluster")


class Transport:
    """Listens, dials, and keeps doing so.

    `hello` says who this node is now. `admit` decides about whoever dials, node or client; that an expected
    name is ours, that nobody else has our name, and how many there may be, is checked before.
    `on_frames(peer, incarnation, frames)` gets what a peer sends, up or not. `on_up(peer, incarnation,
    address)` is called whenever a new connection to a peer stands (frames sent before may be lost),
    `on_down(peer)` once when it is gone, `on_refused(peer, why)` whenever it would not have us. `on_client`
    gives each client that was admitted a handler; answers go through its connection.
    """

    def __init__(
        self,
        listen: Address,
        *,
        hello: Callable[[], Hello],
        admit: Callable[[Hello], Welcome | Rejected],
        on_frames: Callable[[str, str, list[bytes]], None],
        on_up: Callable[[str, str, str], None],
        on_down: Callable[[str], None],
        on_client: Callable[[Accepted], Handler],
        on_refused: Callable[[str, Rejected], None] = lambda peer, rejected: None,
        security: Security = NO_SECURITY,
    ) -> None:
        self._listen = self._address = listen
        self._hello = hello
        self._admit = admit
        self._on_frames = on_frames
        self._on_up = on_up
        self._on_down = on_down
        self._on_client = on_client
        self._on_refused = on_refused
        self._security = security
        self._resolver = Resolver()
        self._listeners: list[Listener] = []
        self._stopping = False
        self._peers: dict[str, _Peer] = {}
        self._strangers: dict[Accepted, None] = {}  # in order of arrival
        self._clients: set[Accepted] = set()
        self._incoming: dict[str, Accepted] = {}  # the newest from each peer
        self._complaints = Complaints()
        self.dropped_frames = 0
        """Frames for peers that were not connected, or did not read what was sent before."""

    # Listening

    async def start(self) -> None:
        """Raises ConfigError if it cannot listen there."""
        try:
            hosts = await self._resolver.lookup(self._listen.host)
        except OSError as exc:
            raise ConfigError(
                "listen", f"{self._listen}: {describe(exc)}", "an address of this machine"
            ) from exc
        if self._security.loopback_only:
            self._require_loopback(hosts)
        failures = [failure for host in hosts if (failure := self._bind(host)) is not None]
        if not self._listeners:
            raise self._cannot_listen(failures[0]) from failures[0]

    def _bind(self, host: str) -> OSError | None:
        """Why this machine has no such address, which one of several may well be. Raises ConfigError."""
        try:
            listening = listen(host, self._listen.port)
            self._listen_on(listening)
        except OSError as exc:
            if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return exc
            self._close_listeners()
            raise self._cannot_listen(exc) from exc
        port = listening.getsockname()[1]
        self._address = Address(self._listen.host, port)
        self._bind_shortcut(Address(host, port))
        return None

    def _bind_shortcut(self, address: Address) -> None:
        try:
            short = shortcut.listen(address)
        except OSError as exc:
            logger.warning("%s is reached by TCP alone: its Unix address: %s", self._address, exc.strerror)
            return
        if short is not None:
            self._listen_on(short)

    def _listen_on(self, listening: socket.socket) -> None:
        self._listeners.append(Listener(listening, lambda: Accepted(self, self._security)))

    def _require_loopback(self, hosts: list[str]) -> None:
        if not all(map(is_loopback, hosts)):
            raise ConfigError(
                "listen",
                f"{self._listen} can be reached from other machines, and without a cluster_key anyone there "
                "could read and write sessions",
                "a loopback address (127.0.0.0/8, ::1 or localhost), or a cluster_key",
            )

    def _cannot_listen(self, failure: OSError) -> ConfigError:
        match failure.errno:
            case errno.EADDRINUSE:
                problem = f"port {self._listen.port} of {self._listen.host} is in use"
                expected = "a free port: stop the process that has it, or choose another"
            case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
                problem = f"{self._listen.host} is no address of this machine"
                expected = "an address that this machine has (see advertise, if others reach it by another)"
            case errno.EACCES:
                problem = f"this user may not listen on port {self._listen.port}"
                expected = "a port from 1024 on"
            case _:
                problem = f"{self._listen}: {describe(failure)}"
                expected = "an address to listen on"
        return ConfigError("listen", problem, expected)

    @property
    def address(self) -> Address:
        """Where it listens, or did: with the real port, once it started, when 0 was asked for."""
        return self._address

    async def stop(self) -> None:
        """Stops listening, says why, and closes everything in bounded time. No peer is called down for it."""
        self._stopping = True
        self._close_listeners()
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            peer.stop()
        accepted = [*self._strangers, *self._clients, *self._incoming.values()]
        farewell = Rejected(RejectionCode.SHUTTING_DOWN, f"node {self._hello().name} is shutting down")
        for connection in accepted:
            connection.part(farewell)
        for listener in self._listeners:
            await listener.closed()
        dialled = [peer.connection for peer in peers.values() if peer.connection is not None]
        await _end([*accepted, *self._strangers, *dialled])
        await asyncio.gather(*(peer.task for peer in peers.values()), return_exceptions=True)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    # Peers

    def dial(self, name: str, address: Address) -> None:
        """From now on keeps a connection to the node of this name, until `undial`. The address may change."""
        peer = self._peers.get(name)
        if peer is None:
            self._peers[name] = _Peer(self, name, address)
        elif peer.address != address:
            peer.address = address
            peer.recheck()

    def undial(self, name: str) -> None:
        """Forgets the peer, without a call of `on_down`. What it sends is still received."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            peer.stop()

    @property
    def dialled(self) -> Iterable[str]:
        """The names of the peers that are kept connected."""
        return self._peers.keys()

    def send(self, name: str, frames: list[bytes]) -> bool:
        """Whether the frames are on their way; else all of them are dropped and counted. Never waits."""
        peer = self._peers.get(name)
        if peer is not None and peer.connection is not None and peer.connection.send(frames):
            return True
        self.dropped_frames += len(frames)
        return False

    def writable(self, name: str) -> bool:
        """Whether bulk traffic to this peer is welcome now."""
        peer = self._peers.get(name)
        return peer is not None and peer.connection is not None and peer.connection.writable

    def incarnation(self, name: str) -> str:
        """Of a peer that is up; empty otherwise."""
        peer = self._peers.get(name)
        return peer.incarnation if peer is not None else ""

    def trouble(self, name: str) -> str:
        """Why the peer cannot be reached, as half a sentence; empty when it is up or has not been tried."""
        peer = self._peers.get(name)
        return peer.trouble if peer is not None else ""

    def cut(self, name: str) -> None:
        """Breaks both connections with a peer, as a network would; new ones are made at once."""
        if (peer := self._peers.get(name)) is not None and peer.connection is not None:
            peer.connection.abort("cut")
        if (incoming := self._incoming.get(name)) is not None:
            incoming.abort("cut")

    def dismiss_clients(self, reason: str) -> None:
        """They are told why, and may come back."""
        for connection in list(self._clients):
            connection.part(Rejected(RejectionCode.SHUTTING_DOWN, reason))

    # What accepted connections ask for

    def _arrived(self, connection: Accepted) -> None:
        if self._stopping:
            self._strangers[connection] = None
            connection.abort()
            return
        if len(self._strangers) >= MAX_HANDSHAKES:
            oldest = next(iter(self._strangers))
            self._forget_stranger(oldest)
            oldest.abort("too many others came while it said nothing")
        self._strangers[connection] = None
        if self._security.loopback_only and not (connection.remote and is_loopback(connection.remote.host)):
            reason = "without a cluster_key this node accepts connections from its own machine only"
            self._reject(connection, Rejected(RejectionCode.NOT_LOOPBACK, reason))

    def _greeted(self, connection: Accepted, hello: Hello) -> Handler | None:
        """Answers the greeting of somebody who belongs here. None: rejected."""
        answer = self._answer(hello)
        if isinstance(answer, Rejected):
            self._reject(connection, answer)
            return None
        self._forget_stranger(connection)
        connection.welcome(answer)
        if hello.kind == "client":
            self._clients.add(connection)
            return self._on_client(connection)
        self._peer_dialled(connection, hello)
        return _Incoming(hello, self._on_frames)

    def _answer(self, hello: Hello) -> Welcome | Rejected:
        own = self._hello()
        if hello.expected and hello.expected != own.name:
            reason = f"{hello.expected} was dialled, and {own.name} answered: correct the address"
            return Rejected(RejectionCode.UNEXPECTED_NAME, reason)
        if hello.kind == "client":
            if len(self._clients) >= MAX_CLIENTS:
                return Rejected(RejectionCode.BUSY, f"{own.name} has {MAX_CLIENTS} clients already")
        elif hello.name == own.name:
            reason = f"{own.name} is this node's own name: give each node a name of its own"
            return Rejected(RejectionCode.PRESENT, reason)
        elif len(self._incoming) >= MAX_PEERS and hello.name not in self._incoming:
            return Rejected(RejectionCode.BUSY, f"{own.name} has {MAX_PEERS} peers already")
        return self._admit(hello)

    def _reject(self, connection: Accepted, rejected: Rejected) -> None:
        connection.part(rejected)
        self._complain(connection, rejected.reason)

    def _peer_dialled(self, connection: Accepted, hello: Hello) -> None:
        replaced = self._incoming.get(hello.name)
        self._incoming[hello.name] = connection
        if replaced is not None:
            replaced.abort("the peer dialled anew")
        peer = self._peers.get(hello.name)
        if peer is not None and peer.incarnation != hello.incarnation:
            peer.recheck()

    def _ended(self, connection: Accepted) -> None:
        self._forget_stranger(connection)
        self._clients.discard(connection)
        name = connection.hello.name
        if self._incoming.get(name) is not connection:
            return
        del self._incoming[name]
        peer = self._peers.get(name)
        if peer is not None:
            peer.recheck()

    def _forget_stranger(self, connection: Accepted) -> None:
        self._strangers.pop(connection, None)

    def _complain(self, connection: Connection, problem: str) -> None:
        """Says it once for each host and problem: health checks and scanners come back every second."""
        host = connection.remote.host if connection.remote else "somebody"
        level = self._complaints.level(f"{host}: {problem}")
        logger.log(level, "refused a connection from %s: %s", connection.remote, problem)


async def _end(connections: list[Connection]) -> None:
    """Waits for connections that are being closed, and aborts those which take too long."""
    for _ in range(2):
        ends = [connection.ended for connection in connections if not connection.ended.done()]
        if ends:
            await asyncio.wait(ends, timeout=STOP_TIMEOUT_MS / 1000)
        for connection in connections:
            if not connection.ended.done():
                connection.abort()


class Accepted(Connection):
    """The end that was dialled: by a stranger first, then by a peer or a client."""

    def __init__(self, owner: Transport, security: Security) -> None:
        super().__init__(security, accepting=True)
        self._owner = owner
        self.hello = Hello("client")
        """Who is at the other end. Of an open connection only."""
        self._said: tuple[bytes, bytes] | None = None
        """The greeting of one who is to prove that it belongs here, and our challenge."""

    def send(self, frames: list[bytes]) -> bool:
        """As on every connection; but a client that would miss an answer has to go."""
        taken = super().send(frames)
        if not taken:
            self._fail(ConnectionAbortedError("it does not read its answers"))
        return taken

    def welcome(self, welcome: Welcome) -> None:
        if self._said is not None:
            code = proof(self._security.key, Role.ACCEPTOR, *self._said, encode_body(welcome))
            welcome = msgspec.structs.replace(welcome, authentication=code)
        self._write(encode_greeting(welcome))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._call_later(HANDSHAKE_TIMEOUT_MS, self._too_late)
        self._owner._arrived(self)

    def _too_late(self) -> None:
        self._fail(
            ProtocolError(f"it has not introduced itself in {HANDSHAKE_TIMEOUT_MS} ms", "a greeting at once")
        )

    def _greeted(self, frame: bytes) -> None:
        if self._said is not None:
            self._prove(frame, self._said)
            return
        self.hello = decode_hello(frame)
        if bool(self.hello.authentication) != bool(self._security.key):
            self._owner._reject(self, ONE_HAS_NO_KEY)
        elif self._security.key:
            challenge = Challenge(token_bytes(NONCE_BYTES))
            self._said = (frame, encode_body(challenge))
            self._write(encode_greeting(challenge))
        else:
            self._admit()

    def _prove(self, frame: bytes, said: tuple[bytes, bytes]) -> None:
        if is_proof(decode_proof(frame).code, self._security.key, Role.DIALLER, *said):
            self._admit()
        else:
            self._owner._reject(self, KEYS_DIFFER)

    def _admit(self) -> None:
        handler = self._owner._greeted(self, self.hello)
        if handler is not None:
            is_client = self.hello.kind == "client"
            self._open(handler, MAX_CLIENT_FRAME_BYTES if is_client else MAX_FRAME_BYTES)

    def _never_opened(self, cause: BaseException) -> None:
        if isinstance(cause, ProtocolError):
            self._owner._complain(self, f"{cause.problem}; expected {cause.expected}")
        elif isinstance(cause, Rejection) and self._inbound.farewell is None:  # it is this end that rejects
            self._owner._complain(self, cause.rejected.reason)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._owner._ended(self)

    def pause_writing(self) -> None:
        """Who does not read the answers gets no more questions in."""
        super().pause_writing()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._transport is not None:
            self._transport.resume_reading()


class _Incoming:
    """What a peer's connection to us is connected to."""

    def __init__(self, hello: Hello, on_frames: Callable[[str, str, list[bytes]], None]) -> None:
        self._name, self._incarnation = hello.name, hello.incarnation
        self._on_frames = on_frames

    def frames_received(self, frames: list[bytes]) -> None:
        self._on_frames(self._name, self._incarnation, frames)

    def closed(self, reason: str) -> None:
        """The transport was told by the connection itself."""


class _Outgoing:
    """What our connection to a peer is connected to."""

    def __init__(self, peer: _Peer) -> None:
        self._peer = peer

    def frames_received(self, frames: list[bytes]) -> None:
        raise ProtocolError("it sent frames over a connection that carries only ours", "silence there")

    def closed(self, reason: str) -> None:
        self._peer.disconnected(self)


class _Peer:
    """Keeps a connection to one peer, and knows whether it is up."""

    def __init__(self, owner: Transport, name: str, address: Address) -> None:
        self.name = name
        self.address = address
        self.connection: Dialled | None = None
        self.incarnation = ""
        """Who answered last; empty while the peer is down."""
        self.trouble = ""
        self._owner = owner
        self._line: _Outgoing | None = None
        self._reached_at = 0.0
        self._pause_ms = 0
        self._recheck = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._keep(), name=f"connection to {name}")
        self.task.add_done_callback(self._stopped)

    def recheck(self) -> None:
        """Something happened that says: dial now."""
        self._recheck.set()

    def stop(self) -> None:
        self.task.cancel()
        self._line = None
        if self.connection is not None:
            self.connection.close()

    def disconnected(self, line: _Outgoing) -> None:
        if line is self._line:
            self.connection = self._line = None
            self._recheck.set()

    async def _keep(self) -> None:
        while True:
            lasted = False
            if await self._dial():
                await self._recheck.wait()
                self._recheck.clear()
                lasted = self._loop.time() - self._reached_at > LASTING_MS / 1000
            if lasted:
                self._pause_ms = 0
            else:
                await self._pause()

    async def _pause(self) -> None:
        """Longer each time. Cut short when something happens."""
        self._pause_ms = min(max(FIRST_PAUSE_MS, 2 * self._pause_ms), LONGEST_PAUSE_MS)
        if self.connection is None and self._pause_ms > REDIAL_TIMEOUT_MS:
            self._lost(ConnectionResetError("its connections do not last"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0.5, 1) * self._pause_ms / 1000):
                await self._recheck.wait()
        self._recheck.clear()

    async def _dial(self) -> bool:
        line = _Outgoing(self)
        try:
            connection = await connect(
                self.address,
                msgspec.structs.replace(self._owner._hello(), expected=self.name),
                line,
                resolver=self._owner._resolver,
                timeout_ms=REDIAL_TIMEOUT_MS if self.incarnation else DIAL_TIMEOUT_MS,
                security=self._owner._security,
            )
        except (OSError, ProtocolError, Rejection) as exc:
            self._lost(exc)
            return False
        self._reached(connection, line)
        return True

    def _reached(self, connection: Dialled, line: _Outgoing) -> None:
        # What alarmed us while we dialled had happened to the connections before this one.
        self._recheck.clear()
        replaced, self.connection, self._line = self.connection, connection, line
        if replaced is not None:
            replaced.abort("this end dialled anew")
        welcome = connection.welcome
        if self.incarnation != welcome.incarnation:
            self._down()
        if not self.incarnation:
            logger.info("node %s is up", self.name)
        self.incarnation = welcome.incarnation
        self.trouble = ""
        self._reached_at = self._loop.time()
        self._owner._on_up(self.name, welcome.incarnation, welcome.address)

    def _lost(self, failure: Exception) -> None:
        lost, self.connection, self._line = self.connection, None, None
        if lost is not None:
            lost.abort("this end dialled anew")
        reason = describe(failure)
        unheard = isinstance(failure, OSError)
        if not self.trouble or (reason != self.trouble and not unheard):
            level = logging.WARNING if self.incarnation or not unheard else logging.INFO
            logger.log(level, "node %s cannot be reached, trying on: %s", self.name, reason)
        self.trouble = reason
        self._down()
        if isinstance(failure, Rejection):
            self._owner._on_refused(self.name, failure.rejected)

    def _down(self) -> None:
        if self.incarnation:
            self.incarnation = ""
            self._owner._on_down(self.name)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        # It only ends by itself if one of the owner's callbacks fails, which must not go unnoticed.
        if not task.cancelled() and (failure := task.exception()) is not None:
            context = {"message": f"the connection to {self.name} is given up", "exception": failure}
            self._loop.call_exception_handler(context)
