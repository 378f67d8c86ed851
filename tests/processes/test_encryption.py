"""Encrypted sessions on real daemons: what their files, their connections and their logs hold."""

from __future__ import annotations

import asyncio
import io
import json
from base64 import b64encode
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cli import main
from hotspare.cluster.remote import RemoteEngine
from hotspare.errors import Undecryptable
from tests.processes.daemons import Daemon, Daemons, free_addresses, parts_of
from tests.processes.proxy import Network

MINUTE_MS = 60_000
KEY, OTHER = (b64encode(bytes([number]) * 32).decode() for number in (1, 2))
SECRET, OPEN = b"correct horse battery staple", b"known to everybody"


def client(daemons: Daemons, *keys: str) -> AsyncSessionReplicator:
    """It talks to the nodes through the network, where it is overheard."""
    names = [daemon.name for daemon in daemons]
    return AsyncSessionReplicator(Settings(encryption_keys=keys), engine=RemoteEngine(names))


def everything_in(directory: Path) -> bytes:
    files = (path for path in directory.rglob("*") if path.is_file())
    return b"".join(data for file in files for _, data in parts_of(file))


async def test_stores_wires_and_logs_hold_only_ciphertext(daemons: Daemons) -> None:
    async with Network() as network:
        await network.add_cluster(daemons, 3)
        for daemon in daemons:
            daemon.options += ["--log-level", "debug"]
        overheard = network.overheard = bytearray()
        daemons.start()
        await daemons.settled()
        async with client(daemons, KEY) as sessions:
            await sessions.store_session("s1", {"secret": SECRET}, MINUTE_MS)
            await sessions.update_session("s1", {"more": SECRET * 2})
            await sessions.rotate_session("s1", "s2")
            assert await sessions.get_session("s2", read="primary") == {"secret": SECRET, "more": SECRET * 2}
            await (await daemons.primary()).stop()
            assert await sessions.get_session("s2", read="primary") == {"secret": SECRET, "more": SECRET * 2}
        async with client(daemons) as sessions:
            await sessions.store_session("s3", {"open": OPEN}, MINUTE_MS)
        await daemons.settled()
        for daemon in daemons.running:
            await daemon.stop()
        files = everything_in(daemons.directory)
        for place in (bytes(overheard), files):
            assert OPEN in place, "what is not encrypted would be found"
            assert SECRET not in place
            assert KEY.encode() not in place


def hotspare(*words: str, node: Daemon, **settings: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HOTSPARE_NODE", node.address)
        for name, value in settings.items():
            patch.setenv(name, value)
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def test_the_command_line_encrypts_and_decrypts_and_says_when_it_cannot(
    daemons: Daemons, tmp_path: Path
) -> None:
    (name,) = free_addresses(1)
    node = daemons.add(name)
    daemons.start()
    file = tmp_path / "keys"
    file.write_text(KEY)
    asyncio.run(node.listening())
    assert hotspare("start-cluster", node=node)[0] == 0

    written = hotspare(
        *("store", "s1", '{"user": 7}', "--ttl-ms", "60000"), node=node, HOTSPARE_ENCRYPTION_KEYS=KEY
    )
    assert written[0] == 0
    code, out, _ = hotspare("get", "s1", node=node, HOTSPARE_ENCRYPTION_KEYS_FILE=str(file))
    assert (code, json.loads(out)) == (0, {"user": 7})
    for keys in ({}, {"HOTSPARE_ENCRYPTION_KEYS": OTHER}):
        code, out, err = hotspare("get", "s1", node=node, **keys)
        assert (code, out) == (2, "")
        assert "the session is there" in err
        assert "encryption_keys" in err
    code, _, err = hotspare("get", "s1", node=node, HOTSPARE_ENCRYPTION_KEYS="nonsense")
    assert code == 2
    assert "HOTSPARE_ENCRYPTION_KEYS" in err
    assert "nonsense" not in err


async def test_attached_processes_decrypt_what_their_daemon_cannot(daemons: Daemons) -> None:
    (name,) = free_addresses(1)
    node = daemons.add(name)
    daemons.start()
    await node.listening()
    async with node.client() as operator:
        await operator.start_cluster()
    async with AsyncSessionReplicator(attach=name, encryption_keys=[KEY]) as sessions:
        await sessions.store_session("s1", {"user": 7}, MINUTE_MS)
        await sessions.update_session("s1", {"step": 1})
        assert await sessions.get_session("s1") == {"user": 7, "step": 1}
        assert await sessions.rotate_session("s1", "s2")
        assert await sessions.get_session("s1") is None
        assert await sessions.get_session("s2") == {"user": 7, "step": 1}
    async with AsyncSessionReplicator(attach=name) as sessions:
        with pytest.raises(Undecryptable, match="has no key"):
            await sessions.get_session("s2")
