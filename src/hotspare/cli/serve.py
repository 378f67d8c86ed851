"""`hotspare serve`: a node as a daemon, until a signal or its store ends it."""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import resource
import signal
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from hotspare.cli.arguments import security
from hotspare.cli.exits import Exit
from hotspare.cluster.lease import LeasePage
from hotspare.cluster.node import ClusterNode
from hotspare.cluster.transport import MAX_CLIENTS, MAX_HANDSHAKES, MAX_PEERS
from hotspare.cluster.verification import inspect_store, verify_store
from hotspare.errors import ConfigError, StoreError, StoreForeign
from hotspare.portal import new_event_loop
from hotspare.record import verify_record
from hotspare.settings import Settings
from hotspare.store.lmdb import LmdbStore, current_boot_id, default_directory, share

__all__ = ["serve"]

logger = logging.getLogger("hotspare.serve")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

MAP_SIZE_FACTOR = 4
"""Of `max_memory_bytes`: pages are not full, and an arriving snapshot lies beside what it replaces. It is
address space, not memory, nor room on a disk."""
MAP_SIZE_RESERVE_BYTES = 2**30
"""For the log."""
OPEN_FILES = 2 * (MAX_CLIENTS + MAX_PEERS + MAX_HANDSHAKES)
"""Connections take one each, and peers are dialled too."""


def serve(options: Namespace) -> int:
    """Raises ConfigError or StoreError when the node cannot start, or cannot go on."""
    settings = load_settings(options)
    _allow_connections()
    if options.discard:
        discard_store(settings)
    store = open_store(settings)
    try:
        log_to_stderr(options.log_level)
        if settings.encryption_keys or settings.encryption_keys_file is not None:
            logger.warning(
                "a node needs no encryption keys, and is safer without: keep them from its settings"
            )
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_run(settings, store))
    finally:
        store.close()
    return Exit.DONE


async def _run(settings: Settings, store: LmdbStore) -> None:
    node = new_node(settings, store)
    stopped = _stop_on_signals()
    await node.start()
    _announce(settings, store.path)
    await asyncio.wait([stopped, node.failed], return_when=asyncio.FIRST_COMPLETED)
    if node.failed.done():
        await node.failed
    logger.info("%s stops", settings.node)
    await node.stop()
    logger.info("%s stopped", settings.node)


def load_settings(options: Namespace) -> Settings:
    """Those of a daemon. Raises ConfigError."""
    settings = Settings.load(
        options.config,
        node=options.node,
        replica_nodes=options.replicas,
        role=options.role,
        storage_mode=options.storage,
        data_dir=options.data_dir,
        listen=options.listen,
        advertise=options.advertise,
        **security(options),
    )
    if not settings.enabled:
        raise ConfigError("enabled", "it is false, and a node without a network serves nobody", "true")
    return settings


def _directory(settings: Settings) -> Path:
    if settings.data_dir:
        return Path(settings.data_dir)
    if settings.storage_mode == "disk":
        raise ConfigError("data_dir", "disk mode needs a directory, and none is set", "a directory on a disk")
    return default_directory(settings.node)


def discard_store(settings: Settings) -> None:
    """At an operator's word: what this node has stored is given up."""
    directory = _directory(settings)
    if not directory.exists():
        return
    owner = inspect_store(directory).owner
    if owner not in ("", settings.node):
        raise StoreForeign(str(directory), f"it is the directory of node {owner}, which keeps its state")
    LmdbStore.discard(directory)


def open_store(settings: Settings) -> LmdbStore:
    directory = _directory(settings)
    durable = settings.storage_mode == "disk"
    return LmdbStore.open(
        directory,
        durable=durable,
        map_size_bytes=MAP_SIZE_FACTOR * settings.max_memory_bytes + MAP_SIZE_RESERVE_BYTES,
        # What is in memory was written under this boot, and is as good as what the process holds itself.
        inspect=verify_store if durable else None,
        verify=verify_record if durable else None,
    )


def _allow_connections() -> None:
    """As many as the transport lets in; where the system allows fewer, they are refused earlier."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def new_node(settings: Settings, store: LmdbStore) -> ClusterNode:
    """A node whose copy other processes of this host can read. Raises ConfigError or StoreError."""
    group = _group(settings.attach_group)
    try:
        page = LeasePage.open(store.path, store.id, current_boot_id())
    except OSError as exc:
        raise StoreError(str(store.path), exc.strerror or str(exc)) from exc
    share(store.path, group)
    return ClusterNode(settings, store, page)


def _group(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError("attach_group", f"there is no group {name!r:.40}", "one of this host") from None


def _stop_on_signals() -> asyncio.Future[None]:
    """Done at the first signal. The second one ends the process as if nobody had caught it."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        logger.info("received %s", number.name)
        for each in SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        if not stopped.done():
            stopped.set_result(None)

    for each in SIGNALS:
        loop.add_signal_handler(each, stop, each)
    return stopped


def _announce(settings: Settings, directory: Path) -> None:
    """For whoever started us: from now on clients can connect."""
    role = " as an observer" if settings.role == "observer" else ""
    others = f"replicas {', '.join(settings.replica_nodes)}" if settings.replica_nodes else "no replicas"
    where = f"{settings.storage_mode} store in {directory}"
    with suppress(BrokenPipeError):  # the node does not need its listeners
        print(f"hotspare {settings.node} listening{role}, {others}, {where}", flush=True)


def log_to_stderr(level: str) -> None:
    # journald and container runtimes add times of their own; only the first of them says so.
    time = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format=f"{time}%(levelname)-7s %(message)s", force=True
    )
