"""A network that can be cut, for nodes on one machine.

Every node listens at one address and is known to the others under another, where a proxy of this network
forwards to it. A node says everything over the connections that it dialled itself, and says first who it is;
so the proxies know whose words they carry, and each direction between two nodes can be cut by itself.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from hotspare.cluster.wire import PREAMBLE, decode_hello
from hotspare.settings import Address
from tests.processes.daemons import Daemon, Daemons, free_addresses

CHUNK_BYTES = 64 * 1024
HEADER = struct.Struct(">I")


class Network:
    """The ways between nodes, by name. All are open at first."""

    def __init__(self) -> None:
        self.delay_seconds = 0.0
        """What every chunk takes, on all ways."""
        self.overheard: bytearray | None = None
        """All that passes, while this is one."""
        self._listen: dict[str, Address] = {}
        self._servers: list[asyncio.Server] = []
        self._cut: set[tuple[str, str]] = set()
        self._held: set[tuple[str, str]] = set()
        self._changed = asyncio.Event()
        self._links: set[_Link] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        self.heal()
        self.reset()
        await asyncio.gather(*(link.task for link in self._links))

    async def add_cluster(self, daemons: Daemons, count: int = 4) -> list[Daemon]:
        """Nodes that list each other as replicas, and reach each other through this network only."""
        addresses = free_addresses(2 * count)
        names = addresses[:count]
        for name, listen in zip(names, addresses[count:], strict=True):
            daemons.add(name, "--replicas", ",".join(names), listen=listen)
            await self._forward(name, listen)
        return list(daemons)

    async def _forward(self, name: str, listen: str) -> None:
        address = Address.parse(name)
        self._listen[name] = Address.parse(listen)
        server = await asyncio.start_server(
            lambda reader, writer: self._accept(name, reader, writer), address.host, address.port
        )
        self._servers.append(server)

    # --- faults -----------------------------------------------------------------------------------------

    def cut(self, some: Iterable[Daemon], others: Iterable[Daemon]) -> None:
        """Their connections break, and no new ones can be made."""
        others = list(others)
        for one in some:
            for other in others:
                self._cut |= {(one.name, other.name), (other.name, one.name)}
        self._apply()

    def hold(self, speakers: Iterable[Daemon], listeners: Iterable[Daemon]) -> None:
        """What those say to these gets stuck, without a word; the other direction stays as it is."""
        listeners = list(listeners)
        for speaker in speakers:
            self._held |= {(speaker.name, listener.name) for listener in listeners}
        self._apply()

    def reset(self) -> None:
        """Breaks all connections; new ones can be made at once."""
        for link in list(self._links):
            link.abort()

    def heal(self) -> None:
        """All ways are open again. What got stuck arrives now, late."""
        self._cut.clear()
        self._held.clear()
        self._apply()

    def _apply(self) -> None:
        for link in list(self._links):
            if link.way in self._cut:
                link.abort()
        self._changed.set()
        self._changed = asyncio.Event()

    # --- connections ------------------------------------------------------------------------------------

    async def pass_on(self, way: tuple[str, str]) -> None:
        """Returns when something may pass there."""
        while way in self._held:
            await self._changed.wait()
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)

    async def _accept(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = _Link(self, task, writer)
        self._links.add(link)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                greeting, speaker = await _read_greeting(reader)
                link.way = (speaker, name)
                if link.way not in self._cut:
                    await link.carry(greeting, reader, self._listen[name])
        finally:
            link.abort()
            self._links.discard(link)


class _Link:
    """One connection between two nodes, as two connections of the proxy between them."""

    def __init__(self, network: Network, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        self.task = task
        self.way = ("", "")
        """Who dialled, and whom."""
        self._network = network
        self._writers = [writer]

    async def carry(self, greeting: bytes, reader: asyncio.StreamReader, target: Address) -> None:
        """Returns when either side has closed."""
        await self._network.pass_on(self.way)
        target_reader, target_writer = await asyncio.open_connection(target.host, target.port)
        self._writers.append(target_writer)
        target_writer.write(greeting)
        ways = [
            asyncio.ensure_future(self._pump(reader, target_writer)),
            asyncio.ensure_future(self._pump(target_reader, self._writers[0])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            await self._network.pass_on(self.way)
            if self._network.overheard is not None:
                self._network.overheard += chunk
            writer.write(chunk)
            await writer.drain()
        # What was written last, such as a farewell, is still to arrive.
        writer.close()
        await writer.wait_closed()

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def _read_greeting(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """The first bytes of whoever dials, and its name."""
    start = await reader.readexactly(len(PREAMBLE) + HEADER.size)
    (size,) = HEADER.unpack_from(start, len(PREAMBLE))
    frame = await reader.readexactly(size)
    return start + frame, decode_hello(frame).name
