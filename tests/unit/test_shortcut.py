"""The short way between processes of one machine, which is there on Linux only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from hotspare.cluster import shortcut
from hotspare.settings import Address

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no short way here")

LISTEN = """
import os, socket, sys
os.setuid(65534)
listening = socket.socket(socket.AF_UNIX)
listening.bind(b"\\0" + sys.argv[1].encode())
listening.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def port() -> Iterator[int]:
    """One that nobody else has."""
    with socket.create_server(("127.0.0.1", 0)) as owner:
        yield owner.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "dialled"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")]
)
def test_who_listens_on_this_machine_is_reached_the_short_way(host: str, dialled: str, port: int):
    listening = shortcut.listen(Address(host, port))
    assert listening is not None
    with listening:
        short = shortcut.dial(Address(dialled, port))
        assert short is not None
        with short, closing(listening.accept()[0]) as accepted:
            short.send(b"hello")
            assert accepted.recv(100) == b"hello"


def test_where_nobody_listens_there_is_no_short_way(port: int):
    assert shortcut.dial(Address("127.0.0.1", port)) is None


def test_neither_is_there_one_to_other_machines(port: int):
    assert shortcut.listen(Address("192.0.2.1", port)) is None
    assert shortcut.dial(Address("192.0.2.1", port)) is None


def test_a_name_belongs_to_one_listener_until_it_is_closed(port: int):
    first = shortcut.listen(Address("127.0.0.1", port))
    assert first is not None
    with first, pytest.raises(OSError, match="in use"):
        shortcut.listen(Address("127.0.0.1", port))

    second = shortcut.listen(Address("127.0.0.1", port))
    assert second is not None
    second.close()


def test_where_too_many_wait_already_there_is_no_short_way(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shortcut, "BACKLOG", 0)
    listening = shortcut.listen(Address("127.0.0.1", port))
    assert listening is not None
    waiting = []
    with listening:
        while (short := shortcut.dial(Address("127.0.0.1", port))) is not None:
            waiting.append(short)
            assert len(waiting) < 10
    assert waiting
    for each in waiting:
        each.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, too")
def test_who_listens_as_another_user_is_not_trusted(port: int):
    name = f"hotspare/127.0.0.1:{port}"
    command = [sys.executable, "-c", LISTEN, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"listening\n"
        with closing(socket.socket(socket.AF_UNIX)) as anybody:
            anybody.connect(b"\0" + name.encode())  # the way is there

        assert shortcut.dial(Address("127.0.0.1", port)) is None

        other.stdin.close()


def test_whose_listener_is_trusted(monkeypatch: pytest.MonkeyPatch):
    listener = os.geteuid()

    def is_trusted_by(user: int) -> bool:
        monkeypatch.setattr(os, "geteuid", lambda: user)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return shortcut._is_trusted(ours)

    assert is_trusted_by(listener)
    assert is_trusted_by(listener + 1) == (listener == 0)
