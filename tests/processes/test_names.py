"""Names that come to stand for other addresses, as a DNS of pods does it: with an /etc/hosts of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hotspare import Settings
from hotspare.cluster.security import Security
from tests.processes.daemons import Daemon, Daemons, free_addresses

MINUTE_MS = 60_000
KEY = "k" * 43
"""A name may stand for an address of another machine: without a key, no node listens there."""
IN_A_NAMESPACE = (
    "unshare",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount --bind "$0" /etc/hosts && exec "$@"',
)


class Named(Daemon):
    """Looks names up in this file."""

    hosts: Path

    @property
    def command(self) -> list[str]:
        return [*IN_A_NAMESPACE, str(self.hosts), *super().command]


class Names:
    """Which name stands for which address."""

    def __init__(self, hosts: Path) -> None:
        self.hosts = hosts
        self._addresses: dict[str, str] = {}

    def point(self, node: Named, address: str) -> None:
        """All at once: whoever looks meanwhile finds the old line or the new one."""
        name, port = node.name.split(":")
        self._addresses[name] = address
        node.address = f"{address}:{port}"
        lines = "".join(f"{address} {name}\n" for name, address in self._addresses.items())
        with self.hosts.open("r+") as hosts:
            hosts.write(lines)
            hosts.truncate()


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.touch()
    try:
        tried = subprocess.run([*IN_A_NAMESPACE, str(path), "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if tried.returncode:
        pytest.skip("nothing can be mounted here")
    return path


async def test_members_are_found_where_their_names_point_to(daemons: Daemons, hosts: Path) -> None:
    names = Names(hosts)
    ports = [address.split(":")[1] for address in free_addresses(3)]
    listed = [f"node-{number}:{port}" for number, port in enumerate(ports)]
    nodes: list[Named] = []
    for number, name in enumerate(listed):
        node = Named(name, daemons.directory, "--replicas", ",".join(listed), cluster_key=KEY)
        node.hosts = hosts
        daemons.by_name[name] = node
        names.point(node, f"127.0.1.{number + 1}")
        nodes.append(node)
    daemons.security = Security.load(Settings(cluster_key=KEY))
    for node in nodes:
        node.start()
    for node in nodes:
        await node.ready()
    async with nodes[0].client() as sessions:
        await sessions.store_session("s1", {"n": 1}, MINUTE_MS)

    for number, node in enumerate(nodes):
        await node.stop()
        names.point(node, f"127.0.2.{number + 1}")
        node.start()
        await node.ready()

    await daemons.settled()
    for node in nodes:
        async with node.client() as sessions:
            assert await sessions.get_session("s1") == {"n": 1}
