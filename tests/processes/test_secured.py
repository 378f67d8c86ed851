"""Daemons with a cluster key and certificates: they live like any other, and let nobody else in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotspare.cluster.security import Security
from hotspare.errors import Refused
from hotspare.settings import Settings
from tests.certificates import Authority, Files
from tests.processes.daemons import Daemons, client, eventually, free_addresses

KEY = "a key that can be recognised: bfc5"
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Authority(tmp_path_factory.mktemp("tls") / "ours").issue("everybody")


@pytest.fixture
def secured(daemons: Daemons, files: Files) -> Daemons:
    """Three nodes that were just started."""
    key_file = daemons.directory / "cluster.key"
    key_file.write_text(f"{KEY}\n")
    key_file.chmod(0o600)
    daemons.security = Security.load(Settings(cluster_key=KEY, **files._asdict()))
    daemons.add_cluster(3, cluster_key_file=key_file, **files._asdict())
    daemons.start()
    return daemons


def hotspare(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HOTSPARE_")}
    return subprocess.run(
        [sys.executable, "-m", "hotspare", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=inherited | environment,
    )


async def test_a_secured_cluster_lives_like_any_other(secured: Daemons) -> None:
    await secured.settled()
    async with client(secured.addresses, security=secured.security) as sessions:
        version = await sessions.store_session("alice", {"user": 7}, 60_000)
        primary = await secured.primary()
        primary.kill()
        assert await sessions.store_session("alice", {"user": 8}, 60_000) > version
        primary.start()
        await secured.settled()
        assert await sessions.get_session("alice", read="primary") == {"user": 8}
    for daemon in secured:
        assert await daemon.stop() == 0


async def test_commands_show_what_they_are_given(secured: Daemons, files: Files) -> None:
    await secured.settled()
    key_file = secured.directory / "cluster.key"
    where = ("--node", ",".join(secured.addresses), "--json")
    given = [f"--{key.replace('_', '-')}={path}" for key, path in files._asdict().items()]
    stored = hotspare(
        *("store", "alice", '{"user": 7}', "--ttl-ms", "60000", *where, *given),
        f"--cluster-key-file={key_file}",
    )
    assert stored.returncode == 0, stored.stderr
    environment = {f"HOTSPARE_{key.upper()}": path for key, path in files._asdict().items()}
    status = hotspare("status", *where, HOTSPARE_CLUSTER_KEY=KEY, **environment)
    assert status.returncode == 0, status.stderr
    assert all(each["reachable"] for each in json.loads(status.stdout)["nodes"])
    for refused in (
        hotspare("get", "alice", *where),
        hotspare("get", "alice", *where, HOTSPARE_CLUSTER_KEY=KEY),
        hotspare("get", "alice", *where, HOTSPARE_CLUSTER_KEY="k" * 16, **environment),
    ):
        assert refused.returncode == 2
        assert json.loads(refused.stderr)["error"] == "Refused"


async def test_a_node_with_another_key_takes_no_part_and_both_sides_say_why(
    secured: Daemons, files: Files
) -> None:
    await secured.settled()
    one = (await secured.secondaries())[0]
    one.kill()
    one.settings |= {"HOTSPARE_CLUSTER_KEY": "the key of another cluster"}
    del one.settings["HOTSPARE_CLUSTER_KEY_FILE"]
    one.start()
    reason = "the two ends have different cluster_keys"

    async def all_say_so() -> bool:
        return all(reason in daemon.last_words(10_000) for daemon in secured)

    await eventually(all_say_so, "every node says that the keys differ")
    with pytest.raises(Refused, match=reason):
        await one.status()
    one.kill()
    one.settings["HOTSPARE_CLUSTER_KEY"] = KEY
    one.start()
    await secured.settled()


@pytest.mark.parametrize("mode", [0o644, 0o604])
def test_a_node_does_not_start_with_a_key_that_everybody_may_read(tmp_path: Path, mode: int) -> None:
    key_file = tmp_path / "cluster.key"
    key_file.write_text(KEY)
    key_file.chmod(mode)
    ended = hotspare(
        "serve", "--cluster-key-file", str(key_file), "--data-dir", str(tmp_path / "data"), cwd=tmp_path
    )
    assert ended.returncode == 2
    assert f"chmod o= {key_file}" in ended.stderr
    assert KEY not in ended.stderr


def commands() -> Iterator[str]:
    """The blocks of shell in the guide's section, in order."""
    section = GUIDE.read_text().partition("## Securing a cluster\n")[2].partition("\n## ")[0]
    yield from re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-ec", script], cwd=cwd, env=environment, capture_output=True, text=True)


async def test_the_commands_in_the_guide_secure_a_cluster(daemons: Daemons) -> None:
    make, serve, ask = commands()
    here = daemons.directory
    names = free_addresses(3)
    made = shell(make, here)
    assert made.returncode == 0, made.stderr
    assert (here / "cluster.key").stat().st_mode & 0o777 == 0o600
    for letter, name in zip("abc", names, strict=True):
        words = serve.replace("\\\n", " ").replace("node-a", f"node-{letter}").split()
        options = words[words.index("--cluster-key-file") :]
        daemons.add(name, "--replicas", ",".join(names), *options)
    daemons.start()
    settings = Settings.load(
        environ={},
        cluster_key_file=str(here / "cluster.key"),
        tls_cert=str(here / "clients.crt"),
        tls_key=str(here / "clients.key"),
        tls_ca=str(here / "ca.crt"),
    )
    daemons.security = Security.load(settings)
    await daemons.settled()
    asked = shell(ask.replace("10.0.0.1:7401", names[0]), here)
    assert asked.returncode == 0, asked.stderr
    assert "all 3 copies are equal" in asked.stdout
