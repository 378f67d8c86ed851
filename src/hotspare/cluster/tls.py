"""TLS without sockets: what a connection reads goes in, what it is to write comes out.

The connection keeps its one transport, with or without TLS: so a stranger is counted, timed and cut off from
its first byte on, in the middle of a TLS handshake too, and every way to end a connection is the same.

Both ends show a certificate, and each wants one of the same authority, which is the cluster's own. Names in
certificates are not compared with addresses: whoever has a certificate of this authority may be a node, so
a name in it would take no power away.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, cast

READ_BYTES = 64 * 1024
"""Sealed bytes read at a time."""


class Contexts(NamedTuple):
    accepting: ssl.SSLContext
    dialling: ssl.SSLContext


class TlsFailure(Exception):
    """Half a sentence about the other end."""


class Channel:
    """One end of a TLS connection."""

    def __init__(self, contexts: Contexts, *, accepting: bool) -> None:
        context = contexts.accepting if accepting else contexts.dialling
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=accepting)
        self.is_open = False
        """Whether the handshake is over, as far as this end can tell."""

    def received(self, sealed: memoryview) -> None:
        """These bytes have arrived."""
        self._incoming.write(sealed)

    def shake_hands(self) -> None:
        """Goes on as far as what has arrived allows. Raises TlsFailure; what is to be sent says so."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as exc:
            raise TlsFailure(describe(exc)) from exc
        self.is_open = True

    def read_into(self, room: memoryview) -> int:
        """Fills `room` with what has arrived, and says how far. Raises TlsFailure."""
        read_into: Callable[[int, memoryview], int] = cast(Any, self._tls).read
        count = 0
        try:
            while count < len(room) and (part := read_into(len(room) - count, room[count:])):
                count += part
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as exc:
            raise TlsFailure(describe(exc)) from exc
        return count

    def seal(self, data: bytes) -> bytes:
        """What to send so that `data` arrives, and whatever else is to be sent. Only while it is open."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        return self._outgoing.read()

    def to_send(self) -> bytes:
        """What TLS itself wants sent."""
        return self._outgoing.read()


def describe(failure: ssl.SSLError) -> str:
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted here ({failure.verify_message}): compare it with tls_ca"
    reason = failure.reason or ""
    words = reason.replace("_", " ").lower() or "no reason given"
    if reason in _NO_TLS:
        return "it does not speak TLS, and this end does"
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate: set tls_cert, tls_key and tls_ca there"
    if "PROTOCOL_VERSION" in reason or reason == "UNSUPPORTED_PROTOCOL":
        return f"it speaks another version of TLS ({words}): from 1.2 on is accepted"
    if "ALERT" in reason:
        return f"it does not accept this end's certificate ({words}): compare tls_ca there and tls_cert here"
    return f"TLS with it failed ({words})"


_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}
