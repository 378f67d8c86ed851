"""What does not belong here: noise, other programs, other versions, other nodes' files. Nobody suffers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from random import Random

import msgspec
import pytest

from hotspare.cluster import calls
from hotspare.cluster.framing import with_headers
from hotspare.cluster.wire import MAX_FRAME_BYTES, PREAMBLE, Hello, encode_greeting
from hotspare.commands import RawGroup
from hotspare.errors import Unavailable
from hotspare.settings import Address
from tests.processes.daemons import Daemon, Daemons, client, copy_store, eventually, free_addresses
from tests.processes.load import Load

PATIENCE_SECONDS = 30.0


def framed(frame: bytes) -> bytes:
    return with_headers([frame])


def length(size: int) -> bytes:
    return struct.pack(">I", size)


def submitted(origin: int, count: int, commands: bytes) -> bytes:
    return framed(calls.encode(calls.Submit([RawGroup(origin, 1, count, 0, msgspec.Raw(commands))])))


def called(verb: str, timeout_ms: int = 1000, **arguments: object) -> bytes:
    return framed(calls.encode(calls.Call(1, verb, arguments, timeout_ms)))


HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
MAGIC = PREAMBLE[:-2]
AS_CLIENT = PREAMBLE + encode_greeting(Hello("client"))
AS_NODE = PREAMBLE + encode_greeting(
    Hello("node", "127.0.0.1:9", "an incarnation", "", "127.0.0.1:9", "member")
)

NOISE = {
    "noise": Random(1).randbytes(50_000),
    "a web browser": HTTP,
    "another protocol version": MAGIC + struct.pack(">H", 9),
    "a frame longer than any": AS_CLIENT + length(MAX_FRAME_BYTES + 1),
    "a long frame before the greeting": PREAMBLE + length(MAX_FRAME_BYTES) + bytes(5000),
    "an empty frame": AS_CLIENT + length(0),
    "a greeting that is none": PREAMBLE + framed(b"\xc1\xc1"),
    "a greeting of the wrong shape": PREAMBLE + framed(b"\x93\x01\x02\x03"),
    "a client's nonsense": AS_CLIENT + framed(Random(2).randbytes(1000)),
    "a farewell that is none": AS_CLIENT + length(1 << 31 | 3) + b"\xc1\xc1\xc1",
    "commands that are none": AS_CLIENT + submitted(1, 3, b"\x93\x01\x02\x03"),
    "more commands than there are": AS_CLIENT + submitted(1, 1 << 40, b"\x90"),
}
"""Whoever says this is cut off."""

HARMLESS = {
    "a node that nobody knows, with nonsense": AS_NODE + framed(Random(3).randbytes(1000)),
    "writes of a writer that nobody registered": AS_CLIENT + submitted(77, 0, b"\x90"),
    "a call of a verb that does not exist": AS_CLIENT + called("explode"),
    "a call with arguments that do not fit": AS_CLIENT + called("get", id=5, when=None),
    "a call with arguments of other types": AS_CLIENT + called("get", id="text", how=3),
    "a negative time limit": AS_CLIENT + called("flush", timeout_ms=-5),
}
"""May be answered or not."""


async def say(daemon: Daemon, words: bytes, *, until_closed: bool) -> None:
    """Raises TimeoutError if the node keeps listening to what it should not listen to."""
    address = Address.parse(daemon.address)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            writer.write(words)
            await writer.drain()
            while until_closed and await reader.read(65536):
                pass
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


async def test_noise_at_the_port_hurts_nobody_else(cluster: Daemons, rounds: int) -> None:
    await cluster.settled()
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        await load.progress(20)
        for _ in range(rounds):
            for daemon in cluster:
                strangers = [say(daemon, words, until_closed=True) for words in NOISE.values()]
                strangers += [say(daemon, words, until_closed=False) for words in HARMLESS.values()]
                outcomes = await asyncio.gather(*strangers, return_exceptions=True)
                heard = [kind for kind, outcome in zip(NOISE, outcomes, strict=False) if outcome is not None]
                assert heard == [], f"{daemon.name} did not hang up on {heard}"
                await load.progress(20)
    await load.verify()
    assert load.errors == []
    for daemon in cluster:
        assert "Traceback" not in daemon.last_words(10_000)


async def test_strangers_who_say_nothing_hold_nobody_up(cluster: Daemons) -> None:
    await cluster.settled()
    primary = await cluster.primary()
    address = Address.parse(primary.address)
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        silent = [await asyncio.open_connection(address.host, address.port) for _ in range(150)]
        await load.progress(20)
        async with primary.client() as sessions:
            assert (await sessions.get_replication_status())["role"] == "primary"
        async with asyncio.timeout(PATIENCE_SECONDS):
            for reader, writer in silent:
                await hung_up(reader)
                writer.transport.abort()
    await load.verify()
    assert load.errors == []


async def hung_up(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(65536):
            pass
    except ConnectionError:
        pass


async def test_a_client_that_never_reads_its_answers_holds_nobody_up(cluster: Daemons) -> None:
    await cluster.settled()
    primary = await cluster.primary()
    address = Address.parse(primary.address)
    async with Load(cluster, timeouts_ms=(5000,)) as load:
        await load.progress()
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(AS_CLIENT)
        question = called("ids")
        try:
            async with asyncio.timeout(2):
                while True:
                    writer.write(question * 100)
                    await writer.drain()
        except (TimeoutError, ConnectionError):
            pass
        await load.progress()
        writer.transport.abort()
    await load.verify()
    assert load.errors == []


def mute(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
    """A server that says one thing to everybody and hangs up."""

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    return accept


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it is not hotspare"),
        (MAGIC + struct.pack(">H", 9), "it speaks protocol 9"),
    ],
    ids=["another program", "another version"],
)
async def test_something_else_at_the_address_of_a_node_is_called_by_its_name(
    cluster: Daemons, answer: bytes, complaint: str
) -> None:
    await cluster.settled()
    gone = (await cluster.secondaries())[0]
    gone.kill()
    address = Address.parse(gone.name)
    others = cluster.running
    server = await asyncio.start_server(mute(answer), address.host, address.port)
    async with server:

        async def all_complain() -> bool:
            return all(complaint in daemon.last_words() for daemon in others)

        await eventually(all_complain, f"all logs say {complaint!r}")
        async with client([daemon.address for daemon in others]) as sessions:
            await sessions.store_session("undisturbed", {"n": 1}, 60_000)
    gone.start()
    await gone.ready()
    await cluster.settled()


async def test_a_second_node_of_the_same_name_is_turned_away(cluster: Daemons) -> None:
    before = {status["node"]: status["incarnation"] for status in await cluster.settled()}
    original = (await cluster.secondaries())[0]
    with Daemons() as elsewhere:
        twin = elsewhere.add(original.name, *original.options[-2:], listen=free_addresses(1)[0])
        async with Load(cluster, timeouts_ms=(5000,)) as load:
            twin.start()
            await twin.listening()

            async def is_turned_away() -> bool:
                return "another node answers as" in twin.last_words()

            await eventually(is_turned_away, "the second one is told why it cannot take part")
            await load.progress()
            assert (await twin.status())["role"] == "unfounded"
    await load.verify()
    assert load.errors == []
    assert {status["node"]: status["incarnation"] for status in await cluster.settled()} == before


async def test_a_node_does_not_start_in_the_directory_of_another_one(cluster: Daemons) -> None:
    """The votes that a server gave are in there: two nodes must never share them."""
    await cluster.settled()
    one = (await cluster.secondaries())[0]
    one.kill()
    copy = cluster.directory / "copy"
    copy_store(one.data_dir, copy)
    one.start()
    with Daemons() as elsewhere:
        intruder = elsewhere.add(free_addresses(1)[0], *one.options[-2:])
        intruder.options[intruder.options.index("--data-dir") + 1] = str(copy)
        intruder.start()
        assert await intruder.ended() == 5
        assert one.name in intruder.last_words()
        assert "directory of its own" in intruder.last_words()
    await cluster.settled()


async def test_when_memory_is_full_writes_are_refused_and_deletes_go_on(daemons: Daemons) -> None:
    daemons.add_cluster(max_memory_bytes=2**20)
    daemons.start()
    await daemons.settled()
    large = {"text": "x" * 8000}
    async with client(daemons.addresses) as sessions:
        stored: list[str] = []

        async def store_until_refused() -> None:
            while len(stored) < 1000:
                await sessions.store_session(f"large{len(stored)}", large, 600_000)
                stored.append(f"large{len(stored)}")

        with pytest.raises(Unavailable, match="max_memory_bytes"):
            await store_until_refused()
        with pytest.raises(Unavailable, match="max_memory_bytes"):
            await sessions.update_session(stored[0], {"more": 1})
        assert await sessions.touch_session(stored[0], 900_000)
        assert await sessions.get_session(stored[-1], read="primary") == large
        for id in stored[:40]:
            assert await sessions.delete_session(id)
        await sessions.store_session("small", {"n": 1}, 600_000)
    await daemons.settled()
