"""`hotspare run`: a node as the agent of one command, which attaches to it.

The command starts when the node is ready, and the node leaves when the command has ended. In between it is as
if the command ran by itself: signals are passed on to it, its exit code is this program's. As the first
process of a container it also buries the orphans that the command leaves behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from hotspare.cli.arguments import security
from hotspare.cli.serve import load_settings, log_to_stderr, new_node, open_store
from hotspare.cluster.node import ClusterNode
from hotspare.errors import Refused, Unavailable
from hotspare.portal import new_event_loop
from hotspare.settings import FILE_VARIABLE, Address, Settings
from hotspare.store.lmdb import LmdbStore

__all__ = ["run"]

logger = logging.getLogger("hotspare.run")

ATTACH_VARIABLE = "HOTSPARE_ATTACH"

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Before the command has been started, these end the program."""
PASSED_ON = (*ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH)
FROM_TERMINALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH)
"""A terminal sends them to the command by itself."""

GRACE_S = 10.0
"""How long the command may take to end when its node could not go on."""

SIGNALLED = 128
"""What shells add to the number of the signal that ended a process."""


def run(options: Namespace) -> int:
    """Raises ConfigError, StoreError, Unavailable or Refused when the node cannot start, or cannot go on."""
    settings = load_settings(options)
    store = open_store(settings)
    try:
        log_to_stderr(options.log_level)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_run(settings, store, options))
    finally:
        store.close()


async def _run(settings: Settings, store: LmdbStore, options: Namespace) -> int:
    node = new_node(settings, store)
    command = _Command([options.program, *options.arguments])
    await node.start()
    ready = asyncio.create_task(_until_ready(node, options.ready_timeout_ms))
    try:
        await _first_of(ready, command.ended, node.failed)
        if not (command.ended.done() or node.failed.done()):
            ready.result()
            command.start(_environment(options, node.listening.from_here))
            await _first_of(command.ended, node.failed)
        if node.failed.done():
            await command.end()
            await node.failed
        return command.ended.result()
    finally:
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)
        command.let_go()
        await node.stop()


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _until_ready(node: ClusterNode, timeout_ms: int | None) -> None:
    try:
        async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
            await node.until_ready()
    except TimeoutError:
        raise Unavailable(f"{node.name} was not ready within {timeout_ms} ms") from None


def _environment(options: Namespace, attach: Address) -> dict[str, str]:
    """Ours, and what the command needs to attach as we were told to run: it may have been said in options."""
    files = {f"HOTSPARE_{key.upper()}": path for key, path in security(options).items()}
    files[FILE_VARIABLE] = options.config
    given = {name: str(Path(path).resolve()) for name, path in files.items() if path is not None}
    return os.environ | given | {ATTACH_VARIABLE: str(attach)}


class _Command:
    """The command, from before its start until after its end."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._pid: int | None = None
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        """Its exit code, as a shell would have it. Also when a signal came before it was started."""
        for each in PASSED_ON:
            self._loop.add_signal_handler(each, self._pass_on, each)

    def start(self, environment: dict[str, str]) -> None:
        """Raises Refused if there is no such program."""
        try:
            # Python ignores these two, and what is ignored stays ignored in a new program.
            ignored = (signal.SIGPIPE, signal.SIGXFSZ)
            self._pid = os.posix_spawnp(self._argv[0], self._argv, environment, setsigdef=ignored)
        except OSError as exc:
            raise Refused("run", f"{self._argv[0]} cannot be started ({exc.strerror})") from exc
        threading.Thread(target=self._bury, args=(self._pid,), name="children", daemon=True).start()
        logger.info("%s runs as process %d", self._argv[0], self._pid)

    async def end(self) -> None:
        """Its node is gone: it shall go, too."""
        if self._pid is None or self.ended.done():
            return
        self._send(signal.SIGTERM)
        _, late = await asyncio.wait([self.ended], timeout=GRACE_S)
        if late:
            self._send(signal.SIGKILL)
            await asyncio.wait([self.ended])

    def let_go(self) -> None:
        """From now on the next signal ends this program as if nobody had caught it."""
        for each in PASSED_ON:
            self._loop.remove_signal_handler(each)

    def _pass_on(self, number: signal.Signals) -> None:
        if self.ended.done():
            return
        if self._pid is None:
            if number in ENDING:
                self.ended.set_result(SIGNALLED + number)
        elif number not in FROM_TERMINALS or not _has_terminal():
            self._send(number)

    def _send(self, number: signal.Signals) -> None:
        assert self._pid is not None
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(self._pid, number)

    def _bury(self, command: int) -> None:
        """On a thread: whoever of our children ends, until it is the command."""
        pid = 0
        while pid != command:
            pid, status = os.waitpid(-1, 0)
        code = os.waitstatus_to_exitcode(status)
        self._loop.call_soon_threadsafe(self.ended.set_result, code if code >= 0 else SIGNALLED - code)


def _has_terminal() -> bool:
    """Whether there is one whose keys reach the command without us."""
    return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
