"""`hotspare run`: a node as the agent of a command, with real commands."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from hotspare import Settings
from hotspare.cluster.security import Security
from hotspare.errors import HotspareError
from tests.processes.daemons import Daemon, Daemons, eventually, free_addresses

MINUTE_MS = 60_000

ATTACHING = """
from hotspare import SessionReplicator
with SessionReplicator() as sessions:
    sessions.store_session("s1", {"n": 1}, 60_000)
    print("read", sessions.get_session("s1"), flush=True)
"""

SAY_AND_STAY = "echo runs; while :; do sleep 0.01; done"

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets us")


class Agent(Daemon):
    """A node with a command beside it. Killed, it is killed alone."""

    arguments: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return [sys.executable, *self.prefix, "-m", "hotspare", "run", *self.options, "--", *self.arguments]

    async def said(self, words: str) -> str:
        """The line of its log, which the command shares, that begins so."""

        async def found() -> str | None:
            lines = self.log.read_text(errors="replace").splitlines()
            return next((line for line in lines if line.startswith(words)), None)

        line: str = await eventually(found, f"{self.name} says {words!r}")
        return line


def add_agent(daemons: Daemons, *arguments: str, options: tuple[str, ...] = (), alone: bool = True) -> Agent:
    """Not started; a cluster of its own if `alone`, else the last of four."""
    names = free_addresses(1 if alone else 4)
    for name in names[:-1]:
        daemons.add(name, "--replicas", ",".join(names))
    agent = Agent(names[-1], daemons.directory, "--replicas", ",".join(names), *options)
    agent.arguments = arguments
    daemons.by_name[agent.name] = agent
    return agent


async def found(agent: Agent) -> None:
    """A node without replicas waits for that."""

    async def is_founded() -> bool:
        async with agent.client() as sessions:
            await sessions.start_cluster()
        return True

    await eventually(is_founded, f"{agent.name} has founded its cluster")


async def test_the_command_attaches_to_the_node_and_the_node_leaves_when_it_ends(daemons: Daemons) -> None:
    agent = add_agent(daemons, sys.executable, "-c", ATTACHING)
    agent.start()
    await found(agent)
    assert await agent.ended() == 0
    assert await agent.said("read") == "read {'n': 1}"
    with pytest.raises(HotspareError):
        await agent.status()


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)])
async def test_its_exit_code_is_the_commands(daemons: Daemons, script: str, code: int) -> None:
    agent = add_agent(daemons, "sh", "-c", script)
    agent.start()
    await found(agent)
    assert await agent.ended() == code


async def test_signals_reach_the_command_which_decides(daemons: Daemons) -> None:
    traps = "trap 'echo heard HUP' HUP; trap 'echo heard TERM; exit 5' TERM"
    agent = add_agent(daemons, "sh", "-c", f"{traps}; {SAY_AND_STAY}")
    agent.start()
    await found(agent)
    await agent.said("runs")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    await agent.said("heard HUP")
    assert (await agent.status())["ready"]
    agent.process.send_signal(signal.SIGTERM)
    assert await agent.ended() == 5
    await agent.said("heard TERM")


async def test_a_signal_before_the_node_is_ready_ends_it_and_the_command_never_runs(daemons: Daemons) -> None:
    agent = add_agent(daemons, "echo", "ran")
    agent.start()
    await agent.listening()
    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    assert await agent.ended() == 128 + signal.SIGTERM
    assert "ran" not in agent.log.read_text().splitlines()


async def test_it_may_give_up_when_the_node_does_not_get_ready(daemons: Daemons) -> None:
    agent = add_agent(daemons, "echo", "ran", options=("--ready-timeout-ms", "200"))
    agent.start()
    assert await agent.ended() == 2
    assert "was not ready within 200 ms" in agent.last_words()
    assert "ran" not in agent.log.read_text().splitlines()


async def test_a_command_that_does_not_exist_is_said_and_the_node_leaves(daemons: Daemons) -> None:
    agent = add_agent(daemons, "no-such-program")
    agent.start()
    await found(agent)
    assert await agent.ended() == 2
    assert "no-such-program cannot be started" in agent.last_words()


@pytest.mark.parametrize("how", ["as an option", "in a settings file"])
async def test_the_command_gets_the_key_that_the_node_was_given(daemons: Daemons, how: str) -> None:
    key_file = daemons.directory / "cluster.key"
    key_file.write_text("a key of thirty-two bytes, or more\n")
    key_file.chmod(0o600)
    settings_file = daemons.directory / "settings.toml"
    settings_file.write_text(f'[session_replication]\ncluster_key_file = "{key_file}"\n')
    given = {"as an option": ("--cluster-key-file", "cluster.key")}
    options = given.get(how, ("--config", "settings.toml"))
    agent = add_agent(daemons, sys.executable, "-c", ATTACHING, options=options)
    daemons.security = Security.load(Settings(cluster_key_file=str(key_file)))
    agent.security = daemons.security
    agent.start()
    await found(agent)
    assert await agent.ended() == 0, agent.last_words()
    assert await agent.said("read") == "read {'n': 1}"


async def test_as_the_primary_it_hands_over_when_the_command_ends(daemons: Daemons) -> None:
    agent = add_agent(daemons, "sh", "-c", f"trap 'exit 0' TERM; {SAY_AND_STAY}", alone=False)
    daemons.start()
    await agent.said("runs")
    async with agent.client() as sessions:
        await sessions.promote_to_primary()
        await sessions.store_session("s1", {"n": 1}, MINUTE_MS)
    term = (await agent.status())["term"]
    assert await agent.stop() == 0
    successor = await daemons.primary()
    assert (await successor.status())["term"] == term + 1, "one election, and no failed one"
    async with successor.client() as sessions:
        assert await sessions.get_session("s1") == {"n": 1}


async def test_when_the_node_cannot_go_on_the_command_is_ended(daemons: Daemons) -> None:
    command = ("sh", "-c", f"trap 'echo told; exit 0' TERM; {SAY_AND_STAY}")
    agent = add_agent(daemons, *command, options=("--storage", "disk"))
    agent.start()
    await found(agent)
    await agent.said("runs")
    assert agent.process is not None
    size_bytes = (agent.data_dir / "data.mdb").stat().st_size
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    async def is_full() -> bool:
        try:
            async with agent.client(timeout_ms=500) as sessions:
                await sessions.store_sessions((f"s{n}", {"blob": bytes(5000)}, MINUTE_MS) for n in range(500))
        except HotspareError:
            return True
        return False

    await eventually(is_full, "its store is full")
    assert await agent.ended() == 5
    await agent.said("told")
    assert "there is no room left" in agent.last_words()


@needs_linux
async def test_orphans_of_the_command_are_buried(daemons: Daemons, tmp_path: Path) -> None:
    """As the first process of a container it inherits them."""
    agent = add_agent(daemons, "sh", "-c", "sh -c 'sleep 0.05 & echo orphan $!'; sleep 60")
    inheriting = tmp_path / "inheriting.py"
    inheriting.write_text(
        "import os, sys, ctypes\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    assert hasattr(ctypes.CDLL(None), "prctl")
    agent.prefix = (str(inheriting),)
    agent.start()
    await found(agent)
    orphan = int((await agent.said("orphan")).split()[1])

    async def is_buried() -> bool:
        try:
            os.kill(orphan, 0)
        except ProcessLookupError:
            return True
        return False

    await eventually(is_buried, "it is gone, and no zombie")
    assert await agent.stop() == 128 + signal.SIGTERM
