"""One connection, by TCP or by the `shortcut`: bytes in, frames to a handler; frames in, bytes out.

A connection is *open* once the handshake is over; from then on its handler gets every complete frame, and at
the end one call that says why it ended. The end that dials is `Dialled`, made by `connect`; the end that
accepts belongs to the transport. Whatever is wrong with the bytes ends this connection and nothing else.

With TLS, what the kernel sees passes through a `Channel` on its way in and out, and nothing else changes.

Nothing is queued here but what the kernel does not take yet, and that is bounded: above `CONGESTED_BYTES` the
connection is not `writable`, above `MAX_OUTGOING_BYTES` it takes nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from secrets import token_bytes
from typing import Protocol, cast

import msgspec

from hotspare.cluster import shortcut
from hotspare.cluster.authentication import NONCE_BYTES, Role, is_proof, proof
from hotspare.cluster.framing import Inbound, with_headers
from hotspare.cluster.security import NO_SECURITY, Security
from hotspare.cluster.tls import READ_BYTES, Channel, TlsFailure
from hotspare.cluster.wire import (
    MAX_FRAME_BYTES,
    PREAMBLE,
    Hello,
    Proof,
    Rejected,
    RejectionCode,
    Welcome,
    decode_answer,
    encode_body,
    encode_farewell,
    encode_greeting,
    is_passing,
)
from hotspare.errors import UNDECODABLE, ProtocolError, Refused, Unavailable, fault_of
from hotspare.settings import Address, is_loopback

CONGESTED_BYTES = 1024 * 1024
"""Unsent bytes above which bulk traffic (snapshots, the log of a node that lags) should hold back."""

MAX_OUTGOING_BYTES = 32 * 1024 * 1024
"""Unsent bytes above which nothing is taken: the other end does not read, and more would pile up."""

LINGER_MS = 500
"""How long a farewell may take to be read. Closing at once would reset the connection and could lose it."""

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""In seconds: a host that vanished without a word is noticed in 25 s, even when nothing is sent."""

THIS_MACHINE = Address("127.0.0.1", 0)

ONE_HAS_NO_KEY = Rejected(
    RejectionCode.AUTHENTICATION,
    "only one of the two ends has a cluster_key: all nodes and clients of a cluster need the same one",
)
ONE_HAS_NO_TLS = Rejected(
    RejectionCode.AUTHENTICATION,
    "only one of the two ends speaks TLS: all nodes and clients of a cluster need tls_cert, tls_key, tls_ca",
)
KEYS_DIFFER = Rejected(
    RejectionCode.AUTHENTICATION,
    "the two ends have different cluster_keys: all nodes and clients of a cluster need the same one",
)

logger = logging.getLogger("hotspare.cluster")


class Handler(Protocol):
    """What an open connection is connected to."""

    def frames_received(self, frames: list[bytes]) -> None:
        """All frames that arrived together, in order. A ProtocolError or a msgspec error closes it."""

    def closed(self, reason: str) -> None:
        """Once, after the last frame. `reason` is half a sentence for people."""


class Rejection(Exception):
    """The other end said why it does not want this connection."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected)
        self.rejected = rejected

    def __str__(self) -> str:
        return self.rejected.reason


def describe(failure: BaseException) -> str:
    """Why a connection failed or ended, as half a sentence."""
    match failure:
        case ProtocolError() | Rejection():
            return str(failure)
        case TimeoutError():
            return "it does not answer"
        case ConnectionRefusedError():
            return "nothing listens there"
        case socket.gaierror():
            return f"its name does not resolve ({failure.strerror})"
        case OSError(errno=int(code)):
            return os.strerror(code)
    return str(failure)


class Connection(asyncio.BufferedProtocol):
    """What both ends of a connection have in common."""

    def __init__(self, security: Security, *, accepting: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._descriptor = -1
        """Of a socket that may be written to past the transport while that has nothing to write."""
        self._security = security
        self._channel = Channel(security.tls, accepting=accepting) if security.tls is not None else None
        self._sealed = memoryview(bytearray(READ_BYTES if self._channel is not None else 0))
        """What was read and not opened yet."""
        self._inbound = Inbound()
        self._knows_protocol = False
        self._handler: Handler | None = None
        self._cause: BaseException | None = None
        self._uncongested = asyncio.Event()
        self._uncongested.set()
        self._timer: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.remote: Address | None = None
        """The other end; of an accepted connection that is no address to dial, and where it took the short
        way the machine is all that can be said."""

    # For those who use it

    @property
    def is_ending(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._cause is not None

    @property
    def writable(self) -> bool:
        """Whether bulk traffic is welcome."""
        return self._cause is None and self._uncongested.is_set()

    async def drained(self) -> None:
        """Waits until the connection is writable, or has ended."""
        await self._uncongested.wait()

    def send(self, frames: list[bytes]) -> bool:
        """Whether it takes all these frames (else it takes none); none is then certain to arrive.

        While it is writable it takes any number: what may be unsent is `MAX_OUTGOING_BYTES` and one call.
        """
        transport = self._transport
        if self._cause is not None or transport is None or transport.is_closing():
            return False
        data = with_headers(frames)
        unsent = transport.get_write_buffer_size()
        if not self._uncongested.is_set() and unsent + len(data) > MAX_OUTGOING_BYTES:
            return False
        if self._channel is not None:
            try:
                data = self._channel.seal(data)
            except OSError as exc:  # SSLError is one
                self._fail(exc)
                return False
        if not unsent:
            data = self._send_now(data)
        if data:
            transport.write(data)
        return True

    def _send_now(self, data: bytes) -> bytes:
        """What the system does not take at once. An event loop may write only at the end of its turn: here,
        the other end begins to work while this one goes on."""
        if self._descriptor < 0:
            return data
        try:
            return data[os.write(self._descriptor, data) :]
        except BrokenPipeError:  # what the other end said last may still be there to be read, before its end
            return b"" if self._is_reading else data
        except OSError:
            return data  # not now, or never again: the transport will find out

    @property
    def _is_reading(self) -> bool:
        return self._transport is not None and cast(asyncio.ReadTransport, self._transport).is_reading()

    def close(self, reason: str = "this end closed it") -> None:
        """Ends the connection after what was sent; what still comes in is discarded."""
        if self._begin_to_end(ConnectionAbortedError(reason)) and self._transport is not None:
            self._transport.close()

    def abort(self, reason: str = "this end closed it") -> None:
        """Ends the connection at once, whether it is being closed already or not."""
        self._begin_to_end(ConnectionAbortedError(reason))
        if self._transport is not None:
            self._transport.abort()

    def part(self, rejected: Rejected) -> None:
        """Ends the connection after what was sent, and tells the other end why."""
        self._end_with(encode_farewell(rejected), ConnectionAbortedError(rejected.reason))

    def _end_with(self, last: bytes, cause: BaseException) -> None:
        """Ends the connection after what was sent and these last bytes, and sees that they can be read."""
        transport = self._transport
        if not self._begin_to_end(cause) or transport is None:
            return
        self._write(last)
        with contextlib.suppress(OSError):  # it may be gone already
            if transport.can_write_eof():
                transport.write_eof()
        self._call_later(LINGER_MS, transport.abort)

    # For those who derive from it

    def _greeting(self) -> bytes:
        """What is said behind the preamble, before the other end says anything."""
        return b""

    def _greeted(self, frame: bytes) -> None:
        """A frame is here before the connection is open. Opens it with `_open`, or answers, or ends it."""
        raise NotImplementedError

    def _never_opened(self, cause: BaseException) -> None:
        """The connection ended before it was open."""
        raise NotImplementedError

    def _open(self, handler: Handler, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self._handler = handler
        self._inbound.limit_bytes = limit_bytes
        if self._timer is not None:
            self._timer.cancel()

    def _write(self, data: bytes) -> None:
        """This, and what TLS itself has to say. Before its handshake is over, that alone can be said."""
        if self._channel is not None:
            data = self._channel.seal(data) if self._channel.is_open else self._channel.to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _fail(self, cause: BaseException) -> None:
        if self._begin_to_end(cause) and self._transport is not None:
            self._transport.abort()

    def _call_later(self, delay_ms: int, action: Callable[[], object]) -> None:
        """The one timer of a connection: first for the handshake, then for its end."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_ms / 1000, action)

    def _begin_to_end(self, cause: BaseException) -> bool:
        """Whether it had not begun to end before. The first cause is the one that counts."""
        first = self._cause is None
        if first:
            self._cause = cause
            self._uncongested.set()
        return first

    # For asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are like it, but no subclasses
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            self.remote = self.remote or THIS_MACHINE
        else:
            self.remote = _address_of(transport.get_extra_info("peername"))
            _tune(sock)
        if self._cause is not None:
            transport.abort()
            return
        if os.name == "posix":
            self._descriptor = sock.fileno()
        transport.set_write_buffer_limits(high=CONGESTED_BYTES)
        if self._channel is None:
            self._introduce_itself()
        else:
            self._open_channel(self._channel)

    def _introduce_itself(self) -> None:
        self._write(PREAMBLE + self._greeting())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbound.room() if self._channel is None else self._sealed

    def buffer_updated(self, nbytes: int) -> None:
        if self._cause is not None:
            return
        if self._channel is None:
            self._received(nbytes)
            return
        if not self._channel.is_open and self._sealed[0] == PREAMBLE[0]:  # as no record of TLS begins
            self._channel = None
            self._end_with(PREAMBLE + encode_farewell(ONE_HAS_NO_TLS), Rejection(ONE_HAS_NO_TLS))
            return
        self._channel.received(self._sealed[:nbytes])
        if not self._channel.is_open:
            self._open_channel(self._channel)
        if self._channel.is_open:
            self._unseal(self._channel)

    def _open_channel(self, channel: Channel) -> None:
        try:
            channel.shake_hands()
        except TlsFailure as exc:
            self._distrust(exc)
        if channel.is_open:
            self._introduce_itself()
        else:
            self._write(b"")

    def _unseal(self, channel: Channel) -> None:
        try:
            while self._cause is None and (count := channel.read_into(self._inbound.room())):
                self._received(count)
        except TlsFailure as exc:
            self._distrust(exc)
        self._write(b"")

    def _distrust(self, failure: TlsFailure) -> None:
        self._end_with(b"", Rejection(Rejected(RejectionCode.AUTHENTICATION, str(failure))))

    def _received(self, nbytes: int) -> None:
        """So many bytes are in the buffer for what comes in."""
        self._inbound.received(nbytes)
        try:
            if self._handler is None:
                self._shake_hands()
            if self._handler is not None and (frames := self._inbound.take_frames()):
                self._handler.frames_received(frames)
        except (ProtocolError, Rejection) as exc:
            self._fail(exc)
        except UNDECODABLE as exc:
            problem = f"it sent a malformed message ({fault_of(exc)})"
            self._fail(ProtocolError(problem, "a message of this protocol"))
        else:
            if self._inbound.farewell is not None:
                self._fail(Rejection(self._inbound.farewell))

    def _shake_hands(self) -> None:
        self._knows_protocol = self._knows_protocol or self._inbound.take_preamble()
        # What comes with the greeting may be longer than a stranger's frame: it is cut once that is read.
        while self._knows_protocol and self._handler is None and self._cause is None:
            frames = self._inbound.take_frames(at_most=1)
            if not frames:
                break
            self._greeted(frames[0])

    def pause_writing(self) -> None:
        self._uncongested.clear()

    def resume_writing(self) -> None:
        self._uncongested.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._descriptor = -1
        self._begin_to_end(exc or self._abrupt_end())
        cause = self._cause
        assert cause is not None
        if isinstance(cause, ProtocolError) and not cause.peer:
            cause.peer = str(self.remote)
        if self._timer is not None:
            self._timer.cancel()
        self.ended.set_result(None)
        if self._handler is None:
            self._never_opened(cause)
            return
        if isinstance(cause, ProtocolError):
            logger.warning("closed a connection: %s", cause)
        self._handler.closed(describe(cause))

    def _abrupt_end(self) -> ConnectionError:
        within = " in the middle of a frame" if self._inbound.pending_bytes else ""
        return ConnectionResetError(f"the other end closed it{within}")


class Dialled(Connection):
    """The end that dialled. `welcomed` is done when the connection is open, or has failed."""

    def __init__(self, hello: Hello, handler: Handler, security: Security = NO_SECURITY) -> None:
        super().__init__(security, accepting=False)
        if security.key:
            hello = msgspec.structs.replace(hello, authentication=token_bytes(NONCE_BYTES))
        self._hello = hello
        self._challenge = b""
        """The frame; empty as long as there was none."""
        self._handler_when_open = handler
        self.welcomed: asyncio.Future[Welcome] = self._loop.create_future()

    @property
    def welcome(self) -> Welcome:
        """Who answered. Of an open connection only."""
        return self.welcomed.result()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Where nothing listens, the socket's own port may be the one dialled, and TCP connects it to itself.
        own = transport.get_extra_info("sockname")
        if own and own == transport.get_extra_info("peername"):
            self._begin_to_end(ConnectionRefusedError())
        super().connection_made(transport)

    def _greeting(self) -> bytes:
        return encode_greeting(self._hello)

    def _greeted(self, frame: bytes) -> None:
        answer = decode_answer(frame)
        if isinstance(answer, Welcome):
            self._welcomed_with(answer)
        elif self._challenge or not self._security.key:
            raise ProtocolError("it sent a challenge that nobody asked for", "a Welcome")
        else:
            self._challenge = frame
            said = (encode_body(self._hello), frame)
            self._write(encode_greeting(Proof(proof(self._security.key, Role.DIALLER, *said))))

    def _check_proof(self, welcome: Welcome) -> None:
        key = self._security.key
        if not key and not welcome.authentication:
            return
        if not (key and self._challenge and welcome.authentication):
            raise Rejection(ONE_HAS_NO_KEY)
        unsigned = msgspec.structs.replace(welcome, authentication=b"")
        said = (encode_body(self._hello), self._challenge, encode_body(unsigned))
        if not is_proof(welcome.authentication, key, Role.ACCEPTOR, *said):
            raise Rejection(KEYS_DIFFER)

    def _welcomed_with(self, welcome: Welcome) -> None:
        self._check_proof(welcome)
        expected = self._hello.expected
        if expected and welcome.name != expected:
            reason = f"{expected} was dialled, and {welcome.name} answered: correct the address"
            raise Rejection(Rejected(RejectionCode.UNEXPECTED_NAME, reason))
        self._open(self._handler_when_open)
        if not self.welcomed.done():
            self.welcomed.set_result(welcome)

    def _never_opened(self, cause: BaseException) -> None:
        if not self.welcomed.done():
            self.welcomed.set_exception(cause)


class Resolver:
    """Looks names up, anew whenever asked, without ever holding up the loop or its end.

    A lookup can hang for half a minute. There is one at a time for each name, in a thread that a process need
    not wait for when it exits (as it would for an executor's).
    """

    def __init__(self) -> None:
        self._pending: dict[str, asyncio.Future[list[str]]] = {}

    async def lookup(self, host: str) -> list[str]:
        """Its IP addresses, best first. Raises OSError."""
        if _is_numeric(host):
            return [host]
        lookup = self._pending.get(host)
        if lookup is None:
            loop = asyncio.get_running_loop()
            lookup = self._pending[host] = loop.create_future()
            threading.Thread(
                target=self._look_up, args=(loop, host), name=f"lookup of {host}", daemon=True
            ).start()
        return await asyncio.shield(lookup)

    def _look_up(self, loop: asyncio.AbstractEventLoop, host: str) -> None:
        result: list[str] | OSError
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            result = list(dict.fromkeys(str(info[4][0]) for info in found))
        except OSError as exc:
            result = exc
        except UnicodeError as exc:
            result = OSError(f"its name is no host name ({exc})")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._looked_up, host, result)

    def _looked_up(self, host: str, result: list[str] | OSError) -> None:
        lookup = self._pending.pop(host)
        if isinstance(result, OSError):
            lookup.set_exception(result)
        else:
            lookup.set_result(result)


async def connect(
    address: Address,
    hello: Hello,
    handler: Handler,
    *,
    resolver: Resolver,
    timeout_ms: int,
    security: Security,
) -> Dialled:
    """An open connection, both ends authenticated. Raises OSError (TimeoutError is one), ProtocolError,
    Rejection.

    A name may have several addresses: the first that is reached counts, and each has its share of the time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_ms / 1000
    try:
        async with asyncio.timeout_at(deadline):
            hosts = await resolver.lookup(address.host)
    except TimeoutError as exc:
        raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from exc
    if security.loopback_only:
        hosts = [host for host in hosts if is_loopback(host)]
    failure: OSError = _not_loopback(address)
    for tried, host in enumerate(hosts):
        share = (deadline - loop.time()) / (len(hosts) - tried)
        try:
            async with asyncio.timeout(share):
                return await _connect_to(Address(host, address.port), hello, handler, security)
        except OSError as exc:
            failure = exc
    raise failure


def _not_loopback(address: Address) -> OSError:
    return ConnectionAbortedError(
        f"{address} is not on this machine, and without a cluster_key nothing is sent to other machines"
    )


async def _connect_to(address: Address, hello: Hello, handler: Handler, security: Security) -> Dialled:
    connection = Dialled(hello, handler, security)
    try:
        await _reach(address, connection)
        await connection.welcomed
        if connection.is_ending:
            raise ConnectionResetError("the other end closed it at once")
    except Rejection:
        await connection.ended  # the other end may have to hear why
        raise
    except BaseException:
        connection.welcomed.cancel()
        connection.abort()
        raise
    return connection


async def _reach(address: Address, connection: Dialled) -> None:
    loop = asyncio.get_running_loop()
    short = shortcut.dial(address)
    if short is None:
        await loop.create_connection(lambda: connection, address.host, address.port)
    else:
        # The call for accepted sockets: there every event loop owns the socket before anything else happens.
        # uvloop's `create_unix_connection` owns it only in the end, and if the connection is lost meanwhile,
        # its descriptor is closed twice: the second time it may be another's.
        connection.remote = address
        await loop.connect_accepted_socket(lambda: connection, short)


async def connect_client(
    address: Address,
    handler: Handler,
    *,
    timeout_ms: int = 2000,
    expected: str = "",
    cluster_id: str = "",
    security: Security = NO_SECURITY,
) -> Dialled:
    """A client's connection to the node at this address.

    `expected` and `cluster_id` refuse any other node or cluster. Raises Unavailable where another node (or a
    little patience) may help, Refused where the node does not want this client, ProtocolError if it is not
    hotspare.
    """
    hello = Hello("client", cluster_id=cluster_id, expected=expected)
    resolver = Resolver()
    try:
        return await connect(
            address, hello, handler, resolver=resolver, timeout_ms=timeout_ms, security=security
        )
    except Rejection as rejection:  # two names, because a compiled coroutine gives each name one type
        if is_passing(rejection.rejected):
            raise Unavailable(f"{address} refused the connection: {rejection}") from rejection
        raise Refused(f"the connection to {address}", str(rejection)) from rejection
    except OSError as failure:
        raise Unavailable(f"{address} cannot be reached: {describe(failure)}") from failure


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _address_of(peername: object) -> Address | None:
    match peername:
        case (str(host), int(port), *_):
            return Address(host, port)
    return None


def _tune(sock: socket.socket) -> None:
    # The other end may be gone already, which some systems answer with an error here; reading will tell.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in KEEPALIVE.items():
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
