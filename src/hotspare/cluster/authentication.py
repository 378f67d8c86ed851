"""How two ends of a connection prove to each other that they know the cluster's key, without saying it.

The problem: whoever can reach a port could claim to be a node or a client, repeat what it has overheard, or
send back to us what we have said ourselves. The idea is the oldest of its kind, challenge and response with
HMAC-SHA256 (RFC 2104), both ways:

    dialler   Hello      who I am and whom I want, with a nonce of mine
    acceptor  Challenge  a nonce of mine
    dialler   Proof      HMAC over "I dialled" and all of the above
    acceptor  Welcome    who I am, with an HMAC over "I answered" and all of the above and this

Both nonces are in both codes, so nothing that was overheard is worth anything in another handshake. The
roles differ, so nobody's own words prove anything to them. Names, incarnations, cluster and the dialled name
are in the codes because the whole greetings are, so none of them can be altered on the way. The dialler
proves first: a stranger learns nothing but a random number.

What a shared key cannot do: it says that both ends belong here, and nothing about who sits between them.
What follows the handshake is neither hidden nor protected from somebody who can alter packets: TLS is for
that.
"""

from __future__ import annotations

import hmac
from enum import Enum
from hashlib import sha256
from typing import Final

NONCE_BYTES: Final = 32
PROOF_BYTES: Final = sha256().digest_size


class Role(Enum):
    DIALLER = b"hotspare: I dialled"
    ACCEPTOR = b"hotspare: I answered"


def proof(key: bytes, role: Role, *said: bytes) -> bytes:
    """The code of that end over everything said so far, in order."""
    code = hmac.new(key, digestmod=sha256)
    for part in (role.value, *said):
        # With their lengths: no two sequences of parts look alike.
        code.update(len(part).to_bytes(8, "big"))
        code.update(part)
    return code.digest()


def is_proof(claimed: bytes, key: bytes, role: Role, *said: bytes) -> bool:
    """Takes equally long for every wrong answer."""
    return hmac.compare_digest(claimed, proof(key, role, *said))
