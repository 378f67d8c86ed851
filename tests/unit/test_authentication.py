from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotspare.cluster.authentication import NONCE_BYTES, PROOF_BYTES, Role, is_proof, proof

KEY = b"0123456789abcdef"
SAID = (b"hello", b"challenge")


def test_who_knows_the_key_can_prove_it():
    code = proof(KEY, Role.DIALLER, *SAID)
    assert len(code) == PROOF_BYTES
    assert is_proof(code, KEY, Role.DIALLER, *SAID)


def test_the_codes_are_pinned_so_that_nodes_of_different_versions_agree():
    code = proof(KEY, Role.ACCEPTOR, *SAID, b"welcome")
    assert code.hex() == "09674f314d8ba39ca4d1a4f60a91f98959b65675d71220677367008eda5547f2"


@pytest.mark.parametrize(
    ("key", "role", "said"),
    [
        (b"0123456789abcdeg", Role.DIALLER, SAID),
        (b"", Role.DIALLER, SAID),
        (KEY, Role.ACCEPTOR, SAID),
        (KEY, Role.DIALLER, (b"hello", b"another")),
        (KEY, Role.DIALLER, (b"hell", b"ochallenge")),
        (KEY, Role.DIALLER, (b"hellochallenge",)),
        (KEY, Role.DIALLER, (b"challenge", b"hello")),
        (KEY, Role.DIALLER, (*SAID, b"")),
    ],
    ids=["key", "no key", "role", "words", "cut", "joined", "order", "more"],
)
def test_a_proof_of_anything_else_is_none(key: bytes, role: Role, said: tuple[bytes, ...]):
    assert not is_proof(proof(key, role, *said), KEY, Role.DIALLER, *SAID)


@given(claimed=st.binary(max_size=2 * PROOF_BYTES))
def test_a_guess_is_no_proof(claimed: bytes):
    assert not is_proof(claimed, KEY, Role.DIALLER, *SAID)


def test_a_nonce_is_too_long_to_come_twice():
    assert NONCE_BYTES >= 16
