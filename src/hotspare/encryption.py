"""Encryption at the origin: who writes a session encrypts its data, and who reads it decrypts it.

Nodes, their disks and the wires between them hold only ciphertext, and a node needs no key. The cipher is
AES-256-GCM. What is encrypted for one id decrypts for no other (the id and the record's flags are associated
data), and whoever has no key can neither make a session nor alter one.

    0   key id   8 bytes   which of the keys it was
    8   nonce   12 bytes   at random
    20  ciphertext, and its tag of 16 bytes

**Nonces.** GCM breaks where a key meets the same nonce twice, and nonces of 96 random bits allow for 2**32
messages under one key (NIST SP 800-38D, 8.3): busy services write as many in weeks, and writers that share
nothing cannot count together instead. So the key of a session is derived from the one that was set and from
its id, and the bound is 2**32 writes of *one id*.

**Changing keys.** The first key in `encryption_keys` encrypts, and all of them decrypt. The word "plain" in
place of a key stands for no encryption: with it a running service begins to encrypt. Where it is not in the
list, a session that is not encrypted is refused: or else whoever can write to a node could slip in forged
ones.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hotspare.errors import ConfigError, Undecryptable
from hotspare.record import ENCRYPTED
from hotspare.settings import PLAIN, Settings, read_encryption_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["Keyring"]

KEY_ID_BYTES: Final = 8
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = KEY_ID_BYTES + NONCE_BYTES + TAG_BYTES

DERIVED_KEYS: Final = 1024
"""Kept at hand: of sessions that are read again and again."""

# What a key is used for, so that no two uses ever meet.
_FOR_ITS_ID: Final = b"\x00"
_FOR_A_SESSION: Final = b"\x01"


class Keyring:
    """The cipher of one process. Safe from any thread."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Keys as in the setting `encryption_keys`. Raises ConfigError."""
        parsed = [read_encryption_key(text) for text in keys]
        self._keys = {_key_id(key): key for key in parsed if key is not None}
        self._first = _key_id(parsed[0]) if parsed[0] is not None else None
        self._accepts_plain = PLAIN in keys
        self._new_cipher = _aes_gcm()
        self._cipher = lru_cache(maxsize=DERIVED_KEYS)(self._derive)

    @staticmethod
    def of(settings: Settings) -> Keyring | None:
        """The keys of these settings; None if there are none. Raises ConfigError."""
        keys = settings.encryption_keys
        if settings.encryption_keys_file is not None:
            keys = _read_file(settings.encryption_keys_file)
        return Keyring(keys) if keys else None

    @property
    def encrypts(self) -> bool:
        """Whether new sessions are encrypted."""
        return self._first is not None

    def encrypt(self, id: bytes, flags: int, data: bytes) -> tuple[int, bytes]:
        key_id = self._first
        if key_id is None:
            return flags, data
        flags |= ENCRYPTED
        nonce = os.urandom(NONCE_BYTES)
        return flags, key_id + nonce + self._cipher(key_id, id).encrypt(nonce, data, _context(id, flags))

    def decrypt(self, id: bytes, flags: int, data: bytes) -> tuple[int, bytes]:
        """Raises Undecryptable."""
        if not flags & ENCRYPTED:
            if not self._accepts_plain:
                raise Undecryptable(
                    "it is not encrypted, and this process trusts encrypted sessions only; until all of them "
                    f'are, put "{PLAIN}" behind the keys in encryption_keys'
                )
            return flags, data
        key_id = data[:KEY_ID_BYTES]
        if key_id not in self._keys:
            raise Undecryptable("this process has other keys: add that one to encryption_keys", key_id.hex())
        nonce, ciphertext = (
            data[KEY_ID_BYTES : KEY_ID_BYTES + NONCE_BYTES],
            data[KEY_ID_BYTES + NONCE_BYTES :],
        )
        try:
            decrypted = self._cipher(key_id, id).decrypt(nonce, ciphertext, _context(id, flags))
        except Exception:  # InvalidTag, or ValueError for what is too short
            raise Undecryptable(
                "its data is not what was encrypted for this id; somebody or something has changed it: "
                "delete the session, and find out who can write to the nodes",
                key_id.hex(),
            ) from None
        return flags & ~ENCRYPTED, decrypted

    def _derive(self, key_id: bytes, id: bytes) -> AESGCM:
        key: AESGCM = self._new_cipher(hmac.digest(self._keys[key_id], _FOR_A_SESSION + id, "sha256"))
        return key


def _key_id(key: bytes) -> bytes:
    return hmac.digest(key, _FOR_ITS_ID, "sha256")[:KEY_ID_BYTES]


def _context(id: bytes, flags: int) -> bytes:
    return bytes([flags]) + id


def _read_file(path: str) -> tuple[str, ...]:
    try:
        lines = tuple(Path(path).read_text(encoding="ascii").split())
    except (OSError, ValueError) as exc:
        problem = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConfigError(
            "encryption_keys_file", f"{path} cannot be read ({problem})", "a file of keys"
        ) from None
    if not lines:
        raise ConfigError("encryption_keys_file", f"{path} is empty", "one key a line")
    try:
        for line in lines:
            read_encryption_key(line)
    except ConfigError as exc:
        raise ConfigError("encryption_keys_file", f"{path}: {exc.problem}", exc.expected) from None
    return lines


def _aes_gcm() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError(
            "encryption_keys",
            "the package cryptography is missing",
            "pip install 'hotspare[encryption]' wherever sessions are written or read",
        ) from None
    return AESGCM
