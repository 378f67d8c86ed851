"""What a node has in place of a transport when it is to stay by itself."""

from __future__ import annotations

from collections.abc import Iterable

from hotspare.settings import Address


class NoTransport:
    """Listens nowhere and dials nobody: the part of `Transport` that a node uses, without a network."""

    dialled: Iterable[str] = ()

    def __init__(self, address: Address) -> None:
        self.address = address

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def dial(self, name: str, address: Address) -> None: ...

    def undial(self, name: str) -> None: ...

    def cut(self, name: str) -> None: ...

    def dismiss_clients(self, reason: str) -> None: ...

    def send(self, name: str, frames: list[bytes]) -> bool:
        return False
