"""What the connections of a node or a client are protected with, loaded from where the settings say it is."""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

from hotspare.cluster.tls import Contexts
from hotspare.errors import ConfigError
from hotspare.settings import MIN_KEY_BYTES, Settings

MAX_KEY_FILE_BYTES = 4096
MAX_AUTHORITIES = 10
"""A few, for the time in which one takes the place of another. Hundreds are the public ones: those give a
certificate to everybody."""


@dataclass(frozen=True, slots=True)
class Security:
    """The secrets themselves: read once, when a node or a client starts."""

    key: bytes = field(default=b"", repr=False)
    """Which both ends of a connection must know; empty: none."""
    tls: Contexts | None = None
    """None: in the clear."""

    @classmethod
    def load(cls, settings: Settings) -> Security:
        """Raises ConfigError for files that cannot be used."""
        return cls(_load_key(settings), _load_contexts(settings))

    @property
    def loopback_only(self) -> bool:
        """Whether nobody proves anything: then nothing may leave the machine. A certificate of the cluster's
        own authority is proof as well as the key is, and for longer than the handshake."""
        return not self.key and self.tls is None


NO_SECURITY = Security()


def _load_key(settings: Settings) -> bytes:
    if settings.cluster_key is not None:
        return settings.cluster_key.encode()
    if settings.cluster_key_file is None:
        return b""
    path = settings.cluster_key_file
    key = _read_private("cluster_key_file", path).strip()
    if len(key) < MIN_KEY_BYTES:
        problem = f"the key in {path} has {len(key)} bytes"
        expected = f"at least {MIN_KEY_BYTES} random ones, as `hotspare new-key` makes them"
        raise ConfigError("cluster_key_file", problem, expected)
    return key


def _read_private(setting: str, path: str) -> bytes:
    """What is in a file that not everybody may read. Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_KEY_FILE_BYTES)
    except OSError as exc:
        raise ConfigError(setting, f"{path} cannot be read ({exc.strerror})", "a file with a key") from exc
    if mode & stat.S_IRWXO:
        problem = f"every user of this machine may use {path} (its mode is {mode:04o})"
        raise ConfigError(setting, problem, f"a file of its user or group alone: chmod o= {path}")
    return content


def _load_contexts(settings: Settings) -> Contexts | None:
    if settings.tls_cert is None or settings.tls_key is None or settings.tls_ca is None:
        return None
    _read_private("tls_key", settings.tls_key)
    contexts = Contexts(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in contexts:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_RENEGOTIATION
        _load_authorities(context, settings.tls_ca)
        _load_certificate(context, settings.tls_cert, settings.tls_key)
    contexts.accepting.num_tickets = 0  # nobody resumes a session
    return contexts


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    expected = (
        "the certificate of the cluster's own authority, in PEM: whoever has one of its certificates is in"
    )
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as exc:
        raise ConfigError("tls_ca", f"there is no certificate in {path}", expected) from exc
    except OSError as exc:
        raise ConfigError("tls_ca", f"{path} cannot be read ({exc.strerror})", expected) from exc
    count = context.cert_store_stats()["x509_ca"]
    if not 0 < count <= MAX_AUTHORITIES:
        raise ConfigError("tls_ca", f"{path} holds {count} certificate authorities", expected)


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    expected = "a certificate and its private key (tls_key), in PEM and without a password"
    try:
        # Asked for nothing, OpenSSL would ask for the password of a key on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            problem = f"{key} is not the key of the certificate in {certificate}"
            raise ConfigError("tls_key", problem, "the key that was made with it") from exc
        raise ConfigError("tls_cert", f"{certificate} and {key} cannot be used", expected) from exc
    except OSError as exc:
        raise ConfigError("tls_cert", f"{certificate} cannot be read ({exc.strerror})", expected) from exc
