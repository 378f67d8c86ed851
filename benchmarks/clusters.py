"""Our side: four nodes on this machine, each in a process of its own, all gone when the bench is.

In-process nodes: one lives in the bench's interpreter, the others in `benchmarks.node_process`. Daemons:
four times `hotspare serve`, written to from the bench's interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import hotspare
from hotspare.cluster.remote import RemoteEngine
from hotspare.cluster.security import NO_SECURITY, Security
from hotspare.portal import new_event_loop
from tests.certificates import Authority

NODES = 4
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
REPOSITORY = Path(__file__).parent.parent
SHARED_MEMORY = Path("/dev/shm")

Result = TypeVar("Result")
Settings = dict[str, Any]


class ClusterFailed(Exception):
    """Nodes did not start or did not agree in time: there is nothing to measure."""


def wait_until(what: str, condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterFailed(f"after {timeout_s:g} s still waiting until {what}")
        time.sleep(0.002)


def free_addresses(count: int) -> list[str]:
    """Loopback addresses nobody listens on; all are probed before any is let go, so that they differ."""
    with ExitStack() as probing:
        probes = [probing.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]


# -- in-process nodes --------------------------------------------------------------------------------------


class InProcessCluster:
    """Three nodes in processes of their own, and the settings of a fourth that the bench runs itself."""

    def __init__(self, resources: ExitStack, **settings: Any) -> None:
        *others, own = sorted(free_addresses(NODES))
        self._addresses = [*others, own]
        self._common = settings
        self.own_settings = self._settings(own)
        self.others = {address: self._start(resources, address) for address in others}

    @property
    def processes(self) -> list[int]:
        """Of the others."""
        return [other.process.pid for other in self.others.values()]

    def _settings(self, address: str) -> Settings:
        others = [other for other in self._addresses if other != address]
        return {"node": address, "replica_nodes": others, **self._common}

    def _start(self, resources: ExitStack, address: str) -> NodeProcess:
        process = NodeProcess(self._settings(address))
        resources.callback(process.stop)
        return process

    def replace(self, resources: ExitStack, address: str) -> NodeProcess:
        """Kill a node; what starts in its place knows nothing."""
        self.others[address].kill()
        self.others[address] = self._start(resources, address)
        return self.others[address]


def blocking_node(cluster: InProcessCluster, resources: ExitStack, *, leading: bool = True) -> Any:
    """The bench's own node, ready; the primary, or expressly not."""
    node = resources.enter_context(hotspare.SessionReplicator(**cluster.own_settings))
    name = cluster.own_settings["node"]
    wait_until(f"{name} is ready", lambda: bool(node.get_replication_status()["ready"]))
    if leading:
        node.promote_to_primary()
    elif node.get_replication_status()["primary"] == name:
        node.trigger_failover(name)
    others = cluster.others.values()
    wait_until("the others are ready", lambda: all(other.ask("status")["ready"] for other in others))
    return node


async def start_leading_node(cluster: InProcessCluster) -> Any:
    """The same with coroutines."""
    node = hotspare.AsyncSessionReplicator(**cluster.own_settings)
    await node.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (await node.get_replication_status())["ready"]:
        if time.monotonic() > deadline:
            raise ClusterFailed(f"{cluster.own_settings['node']} was not ready after {START_TIMEOUT_S:g} s")
        await asyncio.sleep(0.01)
    await node.promote_to_primary()
    return node


class LoopThread:
    """An event loop that goes on turning, heartbeats and all, while the bench measures something else."""

    def __init__(self) -> None:
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bench-loop", daemon=True)

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class Child:
    """A child process that Ctrl-C in the terminal does not reach: the bench ends its children in order."""

    def __init__(self, command: list[str], **pipes: Any) -> None:
        self.process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, **pipes)

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self.process.kill()
        self.process.wait()
        self._close_pipes()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Answering(Child):
    """A module of the bench in a process of its own, which answers lines of JSON.

    It ends when its input does: even if the bench is killed, nothing stays behind.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        super().__init__(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def begin_to_ask(self, question: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")

    def answer(self) -> Any:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            raise ClusterFailed("a process of the bench ended before it answered; its last words are above")
        return json.loads(answer)


class NodeProcess(Answering):
    """An in-process node; the questions are those of node_process.py."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("node_process", json.dumps(settings))

    def ask(self, question: str, argument: object = None) -> Any:
        self.begin_to_ask([question, argument])
        return self.answer()


def listens(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


# -- daemons -----------------------------------------------------------------------------------------------


class DaemonCluster:
    """Some `hotspare serve`, each with the others as its replicas and a directory in memory or on a disk.

    `secured`: with a cluster key, and TLS on every connection.
    """

    def __init__(
        self, resources: ExitStack, *, nodes: int = NODES, storage: str = "memory", secured: bool = False
    ) -> None:
        self.addresses = sorted(free_addresses(nodes))
        self._storage = storage
        where = SHARED_MEMORY if SHARED_MEMORY.is_dir() and storage == "memory" else None
        self._directory = resources.enter_context(
            tempfile.TemporaryDirectory(prefix="hotspare-bench-", dir=where)
        )
        self._options: list[str] = []
        self._security = NO_SECURITY
        if secured:
            self._secure()
        self._daemons: dict[str, Child] = {}
        resources.callback(self._stop_all)
        for address in self.addresses:
            self.start(address)

    def _secure(self) -> None:
        files = Authority(Path(self._directory, "authority")).issue("everybody")
        key_file = Path(self._directory, "cluster.key")
        key_file.touch(mode=0o600)
        key_file.write_text(secrets.token_urlsafe())
        given = {"cluster_key_file": str(key_file), **files._asdict()}
        self._options = [f"--{key.replace('_', '-')}={path}" for key, path in given.items()]
        self._security = Security.load(hotspare.Settings(**given))

    def start(self, address: str) -> None:
        others = ",".join(other for other in self.addresses if other != address)
        data_dir = Path(self._directory, address.replace(":", "-"))
        command = [sys.executable, "-m", "hotspare", "serve", "--node", address]
        command += ["--replicas", others] if others else []
        command += ["--storage", self._storage, "--data-dir", str(data_dir), *self._options]
        self._daemons[address] = Child(command, stdout=subprocess.DEVNULL)

    def observe(self, count: int) -> None:
        """Starts so many observers of these daemons."""
        for address in free_addresses(count):
            command = [sys.executable, "-m", "hotspare", "serve", "--node", address, "--role", "observer"]
            command += ["--replicas", ",".join(self.addresses)]
            command += ["--data-dir", str(Path(self._directory, address.replace(":", "-"))), *self._options]
            self._daemons[address] = Child(command, stdout=subprocess.DEVNULL)

    @property
    def processes(self) -> list[int]:
        return [daemon.process.pid for daemon in self._daemons.values()]

    def cpu_seconds(self, address: str) -> float:
        """What a daemon has used so far, in its own code and in the system's."""
        stat = Path("/proc", str(self._daemons[address].process.pid), "stat").read_text()
        fields = stat.rpartition(")")[2].split()  # the name before may hold anything
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self, address: str) -> None:
        self._daemons[address].kill()

    def _stop_all(self) -> None:
        for daemon in self._daemons.values():
            daemon.stop()

    def connect(self, resources: ExitStack, address: str) -> Any:
        """A client of one daemon, once that daemon can serve it."""
        wait_until(f"{address} listens", lambda: listens(address))
        engine = RemoteEngine([address], security=self._security)
        client = resources.enter_context(hotspare.SessionReplicator(engine=engine))
        wait_until(f"{address} is ready", lambda: bool(client.get_replication_status()["ready"]))
        return client
