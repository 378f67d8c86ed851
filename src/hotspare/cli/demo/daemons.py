"""Four real nodes, as an operator would start them, with everything they leave behind in one directory."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Daemon", "Daemons", "free_addresses"]

HOST = "127.0.0.1"
FIRST_PORT = 7401
LAST_PORT = 29_999
"""Higher ones are handed out for outgoing connections: one could be taken while its node is dead."""

SHARED_MEMORY = Path("/dev/shm")


class Daemon:
    """One `hotspare serve`. Killed and started again, it is the same node."""

    def __init__(self, node: str, others: list[str], directory: Path) -> None:
        self.node = node
        self.log = directory / f"{node.replace(':', '-')}.log"
        self._directory = directory
        self._command = [
            *(sys.executable, "-m", "hotspare", "serve"),
            *("--node", node, "--replicas", ",".join(others)),
            *("--data-dir", str(directory / node.replace(":", "-"))),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Neither the settings around us nor the Ctrl-C in our terminal are meant for it.
                cwd=self._directory,
                env={name: value for name, value in os.environ.items() if not name.startswith("HOTSPARE_")},
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL: it has no chance to do anything about it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Daemons:
    """Several of them that know each other. Nothing of them is left when the context ends."""

    def __init__(self, count: int) -> None:
        base = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
        self._directory = Path(tempfile.mkdtemp(prefix=f"hotspare-demo-{os.getpid()}-", dir=base))
        nodes = free_addresses(count)
        self.by_name = {
            node: Daemon(node, [other for other in nodes if other != node], self._directory) for node in nodes
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nobody will miss what they hold, so there is nothing to wait for.
        for daemon in self.by_name.values():
            daemon.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self) -> None:
        for daemon in self.by_name.values():
            daemon.start()


def free_addresses(count: int) -> list[str]:
    """Neighbouring ports that nobody listens on. Raises OSError if there are none."""
    for first in range(FIRST_PORT, LAST_PORT, 10):
        if _are_free(range(first, first + count)):
            return [f"{HOST}:{port}" for port in range(first, first + count)]
    raise OSError(f"no {count} neighbouring ports are free on {HOST}")


def _are_free(ports: range) -> bool:
    with ExitStack() as probes:
        for port in ports:
            probe = probes.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                probe.listen(1)
            except OSError:
                return False
    return True
