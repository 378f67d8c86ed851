"""Ids, data and a key that can be recognised, through daemons and errors: no log and no error tells them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster import calls
from hotspare.cluster.connection import Resolver, connect, connect_client
from hotspare.cluster.security import Security
from hotspare.cluster.wire import Hello
from hotspare.commands import Put, RawGroup, encode_commands
from hotspare.errors import HotspareError
from hotspare.protocol import messages
from hotspare.protocol.messages import Enrol, Envelope
from hotspare.record import data_checksum
from hotspare.settings import Address
from tests.processes.daemons import Daemons, client, eventually

# Made up here and nowhere written, so that no line of source in a traceback has them.
MARK = "".join(("zq", "7xk"))
KEY, ID, TEXT = f"{MARK}-the-cluster-key", f"{MARK}-id", f"{MARK}-data"
MINUTE_MS = 60_000


class Told:
    """Everything that an error says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def by(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            await call()
        except Exception as exc:
            self.texts += [str(exc), repr(exc), "".join(traceback.format_exception(exc))]
            if isinstance(exc, HotspareError):
                self.texts.append(json.dumps(exc.to_dict()))
        else:
            raise AssertionError("this was to fail")


class Handler:
    def __init__(self) -> None:
        self.failures: list[calls.Failure] = []
        self.end = ""

    def frames_received(self, frames: list[bytes]) -> None:
        answers = map(calls.decode_to_client, frames)
        self.failures += [each for each in answers if isinstance(each, calls.Failure)]

    def closed(self, reason: str) -> None:
        self.end = reason


@pytest.fixture
async def cluster(daemons: Daemons) -> Daemons:
    key_file = daemons.directory / "cluster.key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    daemons.security = Security.load(Settings(cluster_key=KEY))
    for daemon in daemons.add_cluster(3, cluster_key_file=key_file, max_memory_bytes=2**20):
        daemon.options += ["--log-level", "debug"]
    daemons.start()
    await daemons.settled()
    return daemons


async def test_no_log_and_no_error_tells_an_id_or_data_or_a_key(
    cluster: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = Told()
    async with client(cluster.addresses, security=cluster.security) as sessions:
        await use(sessions)
        await misuse(sessions, told)
        (await cluster.primary()).kill()
        await sessions.store_session(ID, {"text": TEXT}, MINUTE_MS)
    await fill_up(cluster, told)
    await lie(cluster, told)
    await come_with_another_key(cluster, told)
    told.texts += type_commands(cluster)

    logs = [daemon.log.read_text() for daemon in cluster]
    for daemon in cluster.running:
        said = daemon.log.read_text()
        assert "it sent a malformed message" in said
        assert "it sent commands that do not decode" in said
    assert any("different cluster_keys" in text for text in [*logs, *told.texts])
    assert len(told.texts) > 50
    for text in [*logs, *told.texts, *(record.getMessage() for record in caplog.records), caplog.text]:
        assert MARK not in text, text[max(0, text.index(MARK) - 500) : text.index(MARK) + 100]


async def use(sessions: AsyncSessionReplicator) -> None:
    await sessions.store_session(ID, {"text": TEXT, TEXT: [TEXT.encode()]}, timedelta(minutes=1))
    await sessions.update_session(ID, {"more": TEXT}, remove=[TEXT])
    assert await sessions.rotate_session(ID, f"{ID}-2")
    assert await sessions.touch_session(f"{ID}-2", MINUTE_MS)
    assert (await sessions.get_session(f"{ID}-2", read="primary")) == {"text": TEXT, "more": TEXT}
    assert await sessions.get_all_sessions() == [f"{ID}-2"]
    assert await sessions.delete_session(f"{ID}-2")
    assert (
        await sessions.store_sessions([(f"{ID}-{n}", {"text": TEXT}, MINUTE_MS) for n in range(500)]) == 500
    )


async def misuse(sessions: AsyncSessionReplicator, told: Told) -> None:
    def store(id: Any, data: Any, **options: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: sessions.store_session(id, data, MINUTE_MS, **options)

    await sessions.store_session(ID, {"text": TEXT}, MINUTE_MS)
    for call in (
        store(ID, {"text": TEXT}, if_absent=True),
        store(ID, {"text": TEXT}, if_version=5),
        store(f"{ID}-none", {"text": TEXT}, if_present=True),
        store(ID * 100, {"text": TEXT}),
        store(f"{ID}\ud800", {"text": TEXT}),
        store(ID.encode(), {"text": TEXT}),
        store(ID, {"text": {TEXT}}),
        store(ID, {"text": f"{TEXT}\ud800"}),
        store(ID, {"text": TEXT, "n": 1 << 70}),
        store(ID, {"text": TEXT * 10_000}),
        store(ID, [TEXT]),
        store(ID, {5: TEXT}),
        lambda: sessions.store_session(ID, {"text": TEXT}),
        lambda: sessions.update_session(ID, {"text": {TEXT}}),
        lambda: sessions.update_session(ID, {"text": TEXT}, remove=TEXT),
        lambda: sessions.update_session(ID, {"text": TEXT * 10_000}),
        lambda: sessions.delete_session(ID, if_version=5),
        lambda: sessions.rotate_session(ID, ID),
        lambda: sessions.rotate_session(ID, f"{ID}-1"),
        lambda: sessions.store_sessions([(ID, {"text": {TEXT}}, MINUTE_MS)]),
        lambda: sessions.store_sessions([(ID, TEXT, TEXT, TEXT)]),  # type: ignore[list-item]
    ):
        await told.by(call)


async def fill_up(cluster: Daemons, told: Told) -> None:
    async with client([each.address for each in cluster.running], security=cluster.security) as sessions:

        async def store_until_refused() -> None:
            for n in range(1000):
                await sessions.store_session(f"{ID}-large-{n}", {"text": TEXT * 1000}, MINUTE_MS)

        await told.by(store_until_refused)


async def lie(cluster: Daemons, told: Told) -> None:
    """As no client and no node of ours does."""
    id, garbage = f"{ID}-garbage".encode(), TEXT.encode()
    put = Put(id, garbage, 0, data_checksum(id, garbage, 0), MINUTE_MS, 1 << 50)
    damaged = Put(id, garbage, 0, 1, MINUTE_MS, 1 << 50)
    for daemon in cluster.running:
        for frame in (
            calls.encode(calls.Call(1, "get", {"id": ID, "how": TEXT}, 1000)),
            calls.encode(calls.Call(1, "get", {"id": id, "how": TEXT}, 1000)),
            calls.encode(calls.Call(1, "get", {ID: TEXT}, 1000)),
            calls.encode(calls.Call(1, "found", {"nodes": [5, TEXT]}, 1000)),
            calls.encode(calls.Call(1, "records", {"after": id, "limit": TEXT}, 1000)),
            msgspec.msgpack.encode([TEXT, ID]),
            msgspec.msgpack.encode(["submit", [TEXT], ID]),
            calls.encode(
                calls.Submit([RawGroup(7, 1, 1, 0, msgspec.Raw(msgspec.msgpack.encode([[TEXT, ID]])))])
            ),
            calls.encode(calls.Submit([RawGroup(7, 1, 1, 0, encode_commands([damaged]))])),
            calls.encode(calls.Submit([RawGroup(7, 1, 1, 0, encode_commands([put]))])),
            calls.encode(calls.EnrolClient(TEXT.encode() * 10)),
        ):
            handler = Handler()
            address = Address.parse(daemon.address)
            connection = await connect_client(address, handler, security=cluster.security)
            connection.send([frame])
            connection.close()
            await connection.ended
            told.texts += [handler.end, *(str(failure) for failure in handler.failures)]
        hello = Hello("node", "127.0.0.1:9", "an incarnation", address="127.0.0.1:9")
        as_node = await connect(
            address, hello, Handler(), resolver=Resolver(), timeout_ms=2000, security=cluster.security
        )
        envelope = Envelope("", "an incarnation", "", 0, 0, Enrol(TEXT.encode() * 10))
        as_node.send([messages.encode(envelope), msgspec.msgpack.encode([TEXT, ID]), TEXT.encode()])

        async def is_noticed(log: Any = daemon.log) -> bool:
            return "what is no message" in log.read_text()

        await eventually(is_noticed, "the node says that something was wrong")
        as_node.abort()
        await as_node.ended


async def come_with_another_key(cluster: Daemons, told: Told) -> None:
    async def connect_with(key: str) -> None:
        async with client([cluster.running[0].address], security=Security(key.encode())) as sessions:
            await sessions.get_session(ID)

    await told.by(lambda: connect_with(f"{KEY}-another"))
    await told.by(lambda: connect_with(""))


def type_commands(cluster: Daemons) -> list[str]:
    """What they say on stderr; on stdout they say what they were asked for."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HOTSPARE_")}
    environment["HOTSPARE_CLUSTER_KEY"] = KEY
    environment["HOTSPARE_NODE"] = ",".join(daemon.address for daemon in cluster.running)
    said = []
    for words in (
        ["get", f"{ID}-none"],
        ["get", ID * 100],
        ["delete", f"{ID}-none"],
        ["store", ID, TEXT, "--ttl-ms", "1000"],
        ["store", ID, f'["{TEXT}"]', "--ttl-ms", "1000"],
        ["store", ID, f'{{"text": "{TEXT}"', "--ttl-ms", "1000"],
        ["store", ID, f'{{"text": "{TEXT}"}}', "--ttl-ms", "0"],
        ["store", ID, f'{{"text": "{TEXT}"}}', "--ttl-ms", "1000", "--if-absent"],
        ["store", ID, f'{{"text": "{TEXT}"}}', "--ttl-ms", "1000", "--if-absent", "--json"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "hotspare", *words], env=environment, capture_output=True, text=True
        )
        assert ended.returncode in (1, 2), ended.stderr
        said.append(ended.stderr)
    return said
