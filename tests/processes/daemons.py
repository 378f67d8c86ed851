"""Real `hotspare serve` processes for tests, each with a directory and a log of its own; nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hotspare import AsyncSessionReplicator, Settings
from hotspare.cluster.remote import RemoteEngine
from hotspare.cluster.security import NO_SECURITY, Security
from hotspare.errors import HotspareError

HOST = "127.0.0.1"
PORTS = range(10_000, 32_000)
"""Higher ones are handed out for outgoing connections: one could be taken while its node is dead."""

PATIENCE_SECONDS = 40.0
"""For what must come true some time: far beyond what it takes, on any machine."""
POLL_SECONDS = 0.02


def free_addresses(count: int) -> list[str]:
    """Addresses where nobody listens, in the order of their names."""
    ports: list[int] = []
    probes: list[socket.socket] = []
    while len(ports) < count:
        probe = socket.socket()
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probes.append(probe)
        with suppress(OSError):
            probe.bind((HOST, random.SystemRandom().choice(PORTS)))
            probe.listen()  # two may be bound to one port
            ports.append(probe.getsockname()[1])
    for probe in probes:
        probe.close()
    return [f"{HOST}:{port}" for port in sorted(ports)]


def copy_store(source: Path, target: Path) -> None:
    """The directory of a node, holes and all: a store in memory is as long as it may become."""
    shutil.copytree(source, target, copy_function=_copy_with_holes)


def _copy_with_holes(source: str, target: str) -> None:
    with open(target, "wb") as new:
        for begin, data in parts_of(Path(source)):
            new.seek(begin)
            new.write(data)
        new.truncate(os.stat(source).st_size)
    shutil.copystat(source, target)


def parts_of(file: Path) -> Iterator[tuple[int, bytes]]:
    """What is between the holes of the file, and where it begins."""
    with file.open("rb") as reader:
        end, size_bytes = 0, os.fstat(reader.fileno()).st_size
        with suppress(OSError):  # nothing but a hole follows
            while end < size_bytes:
                begin = os.lseek(reader.fileno(), end, os.SEEK_DATA)
                end = os.lseek(reader.fileno(), begin, os.SEEK_HOLE)
                reader.seek(begin)
                yield begin, reader.read(end - begin)


async def eventually(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What the condition answers as soon as that is true. An error of hotspare's means "not yet"."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            answer: Any = await condition()
        except HotspareError as exc:
            answer, trouble = None, str(exc)
        else:
            trouble = repr(answer)
        if answer:
            return answer
        if time.monotonic() > give_up:
            raise AssertionError(f"never came true: {what} (last: {trouble})")
        await asyncio.sleep(POLL_SECONDS)


def client(
    addresses: Iterable[str], timeout_ms: int = 5000, security: Security = NO_SECURITY
) -> AsyncSessionReplicator:
    """A client of the nodes at these addresses, in order of preference; connects when it is entered."""
    settings = Settings(replication_rpc_timeout_ms=timeout_ms)
    engine = RemoteEngine(
        list(addresses),
        timeout_ms=timeout_ms,
        max_clock_skew_ms=settings.max_clock_skew_ms,
        security=security,
    )
    return AsyncSessionReplicator(settings, engine=engine)


class Daemon:
    """One node. Killed and started again, it is the same node."""

    def __init__(self, name: str, directory: Path, *options: str, listen: str = "", **settings: Any) -> None:
        """`options` go to `hotspare serve`, `settings` into its environment. It listens at its name unless
        `listen` says otherwise."""
        self.name = name
        self.address = listen or name
        """Where clients reach it."""
        self.data_dir = directory / f"{name.replace(':', '-')}"
        self.log = directory / f"{name.replace(':', '-')}.log"
        where = ("--listen", listen, "--advertise", name) if listen else ()
        self.options = ["--node", name, *where, "--data-dir", str(self.data_dir), *options]
        self.settings = {f"HOTSPARE_{key.upper()}": str(value) for key, value in settings.items()}
        self.security = NO_SECURITY
        """What its clients show."""
        self.process: subprocess.Popen[bytes] | None = None
        self._is_to_run = False

    # --- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns at once: see `listening`."""
        assert not self._is_to_run, f"{self.name} runs already"
        self._is_to_run = True
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HOTSPARE_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                env=inherited | self.settings,
                start_new_session=True,
            )

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "hotspare", "serve", *self.options]

    @property
    def is_running(self) -> bool:
        """Fails if it ended by itself, where nobody expected it to."""
        has_ended = self.process is None or self.process.poll() is not None
        assert not (self._is_to_run and has_ended), f"{self.name} ended: {self.last_words()}"
        return not has_ended

    def kill(self) -> None:
        """SIGKILL: it has no chance to do anything about it. Also when it is paused."""
        self._is_to_run = False
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> None:
        """SIGTERM: it hands over, and ends soon."""
        if self.is_running:
            self._is_to_run = False
            self._signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        self._is_to_run = False

        async def has_ended() -> bool:
            return not self.is_running

        await eventually(has_ended, f"the end of {self.name}")
        assert self.process is not None
        return self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.terminate()
        return await self.ended()

    def pause(self) -> None:
        """SIGSTOP: it does not run any more, and its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    # --- what it says -----------------------------------------------------------------------------------

    def client(self, timeout_ms: int = 5000) -> AsyncSessionReplicator:
        """Of this node and no other."""
        return client([self.address], timeout_ms, self.security)

    async def status(self) -> dict[str, Any]:
        """Raises Unavailable when it does not answer."""
        async with self.client(timeout_ms=2000) as sessions:
            return await sessions.get_replication_status()

    async def listening(self) -> dict[str, Any]:
        """Its first status."""

        async def answers() -> dict[str, Any]:
            assert self.is_running
            return await self.status()

        status: dict[str, Any] = await eventually(answers, f"{self.name} listens")
        return status

    async def ready(self) -> dict[str, Any]:
        """Its status once it serves reads and votes."""

        async def is_ready() -> dict[str, Any] | None:
            assert self.is_running
            status = await self.status()
            return status if status["ready"] else None

        status: dict[str, Any] = await eventually(is_ready, f"{self.name} is ready")
        return status

    def last_words(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log.exists():
            return "(it never said anything)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Daemons:
    """Nodes by name. Whatever was started here is gone when the context ends, and so are its files."""

    def __init__(self) -> None:
        shared_memory = Path("/dev/shm")
        base = shared_memory if os.access(shared_memory, os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="hotspare-test-", dir=base))
        self.by_name: dict[str, Daemon] = {}
        self._security = NO_SECURITY

    @property
    def security(self) -> Security:
        """What clients of all nodes show."""
        return self._security

    @security.setter
    def security(self, security: Security) -> None:
        self._security = security
        for daemon in self:
            daemon.security = security

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for daemon in self:
            daemon.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __iter__(self) -> Iterator[Daemon]:
        return iter(self.by_name.values())

    def __getitem__(self, position: int) -> Daemon:
        return list(self)[position]

    def add(self, name: str, *options: str, listen: str = "", **settings: Any) -> Daemon:
        """A node that is yet to be started."""
        daemon = self.by_name[name] = Daemon(name, self.directory, *options, listen=listen, **settings)
        daemon.security = self._security
        return daemon

    def add_cluster(self, count: int = 4, **settings: Any) -> list[Daemon]:
        """Nodes that list each other as replicas: they found a cluster by themselves."""
        names = free_addresses(count)
        return [self.add(name, "--replicas", ",".join(names), **settings) for name in names]

    @property
    def running(self) -> list[Daemon]:
        return [daemon for daemon in self if daemon.is_running]

    @property
    def addresses(self) -> list[str]:
        return [daemon.address for daemon in self]

    def start(self) -> None:
        for daemon in self:
            daemon.start()

    async def primary(self) -> Daemon:
        """The node that all running ones follow, once they do."""

        async def agreed() -> Daemon | None:
            leaders = {(await daemon.status())["primary"] for daemon in self.running}
            leader = self.by_name.get(leaders.pop()) if len(leaders) == 1 else None
            return leader if leader is not None and leader.is_running else None

        leader: Daemon = await eventually(agreed, "a primary that all running nodes follow")
        return leader

    async def secondaries(self) -> list[Daemon]:
        primary = await self.primary()
        return [daemon for daemon in self.running if daemon is not primary]

    async def settled(self) -> list[dict[str, Any]]:
        """The statuses of all running nodes, once they follow one primary, are ready and hold the same copy.

        Only without a load can that ever be seen.
        """
        seen: list[dict[str, Any]] = []

        async def is_settled() -> bool:
            seen[:] = [await daemon.status() for daemon in self.running]
            copies = {(each["primary"], each["applied_index"], each["digest"]) for each in seen}
            return len(copies) == 1 and all(each["ready"] for each in seen)

        try:
            await eventually(is_settled, "all nodes ready, with the same copy")
        except AssertionError as exc:
            raise AssertionError(f"{exc}: {seen}") from None
        return seen
