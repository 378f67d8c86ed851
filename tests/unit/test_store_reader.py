"""A daemon's store, read by another process: in each of these tests the node is a child, or the reader is."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hotspare.errors import StoreError, StoreInUse
from hotspare.record import pack_record
from hotspare.store.lmdb import LmdbStore, is_durable, share
from hotspare.store.reader import LmdbReader, open_reader

NODE = """
import sys
from hotspare.record import pack_record
from hotspare.store.lmdb import LmdbStore
store = LmdbStore.open(sys.argv[1], durable=False, map_size_bytes=int(sys.argv[2]), boot_id="this boot")
print("ready", flush=True)
for line in sys.stdin:
    verb, *ids = line.split()
    txn = store.begin()
    for id in ids:
        record = pack_record(1 << 16, 1_000, 0, 0, id.encode() * (100_000 if verb == "fill" else 1))
        if verb == "install":
            txn.stage([("sessions", id.encode(), record)])
        else:
            txn.sessions[id.encode()] = record
    if verb == "install":
        txn.install_staged()
    txn.commit()
    print("done", flush=True)
store.close()
"""


class Node:
    """Writes sessions, whose data is their id, in a process of its own."""

    def __init__(self, path: Path, map_size_bytes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODE, str(path), str(map_size_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("ready")

    def do(self, verb: str, *ids: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {' '.join(ids)}\n")
        self.process.stdin.flush()
        self._expect("done")

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()

    def _expect(self, answer: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{answer}\n"


@contextmanager
def running(path: Path, map_size_bytes: int = 1 << 26) -> Iterator[Node]:
    node = Node(path, map_size_bytes)
    try:
        yield node
    finally:
        node.stop()


@contextmanager
def reading(path: Path) -> Iterator[LmdbReader]:
    reader = open_reader(path)
    try:
        yield reader
    finally:
        reader.close()


def data(record: bytes | None) -> bytes | None:
    return None if record is None else record[-1:]


def in_a_child(work) -> int:
    """The exit code of a forked child that does it: 0 if it raises nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads is what is tested
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_the_node_committed_is_read_at_once(tmp_path):
    with running(tmp_path) as node, reading(tmp_path) as reader:
        assert reader.get(b"a") is None
        for id in "abc":
            node.do("put", id)
            assert data(reader.get(id.encode())) == id.encode()


def test_an_installed_snapshot_is_read_as_a_whole(tmp_path):
    with running(tmp_path) as node, reading(tmp_path) as reader:
        node.do("put", "a")
        for _ in range(3):
            node.do("install", "b", "c")
            assert reader.get(b"a") is None
            assert data(reader.get(b"c")) == b"c"
            node.do("install", "a")
            assert reader.get(b"c") is None
            assert data(reader.get(b"a")) == b"a"


def test_it_is_read_on_while_the_node_is_away_and_when_it_is_back(tmp_path):
    with running(tmp_path) as node:
        node.do("put", "a")
    with reading(tmp_path) as reader:
        assert data(reader.get(b"a")) == b"a"
        with running(tmp_path) as node:
            node.do("put", "b")
            assert data(reader.get(b"b")) == b"b"
        assert data(reader.get(b"b")) == b"b"


def test_a_node_that_came_back_with_a_larger_map_is_read_on(tmp_path):
    with running(tmp_path, 1 << 20) as node:
        node.do("put", "a")
        with reading(tmp_path) as reader:
            assert data(reader.get(b"a")) == b"a"
            node.stop()
            node.process = Node(tmp_path, 1 << 26).process
            for number in range(40):
                node.do("fill", f"b{number}")  # far beyond what the first map could hold
            assert data(reader.get(b"a")) == b"a"
            assert reader.get(b"b39") is not None


def test_all_readers_of_this_process_share_one(tmp_path):
    with running(tmp_path) as node:
        node.do("put", "a")
        with reading(tmp_path) as first:
            with reading(tmp_path) as second:
                assert second is first
            assert data(first.get(b"a")) == b"a"
        with pytest.raises(StoreError):
            first.get(b"a")
        with reading(tmp_path) as third:
            assert data(third.get(b"a")) == b"a"


def test_where_the_node_runs_in_this_very_process_it_says_so(tmp_path):
    store = LmdbStore.open(tmp_path, durable=False, map_size_bytes=1 << 24)
    with pytest.raises(StoreInUse):
        open_reader(tmp_path)
    store.close()


def test_where_there_is_nothing_it_says_so(tmp_path):
    with pytest.raises(StoreError):
        open_reader(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(StoreError):
        open_reader(tmp_path)


def test_on_a_read_only_mount_it_is_refused(tmp_path, monkeypatch):
    """LMDB would read there without a place in the table of readers, unknown to the node."""
    with running(tmp_path):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(StoreError, match="read-only"):
            open_reader(tmp_path)


def test_a_process_with_the_same_number_in_another_namespace_is_refused(tmp_path):
    """LMDB tells readers apart by the numbers of their processes."""
    with running(tmp_path):
        with (tmp_path / "lock.mdb").open("r+b") as lock_file:
            taken, release = os.pipe(), os.pipe()
            number = os.getpid()

            def take_the_number() -> None:
                place = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
                fcntl.fcntl(lock_file, fcntl.F_SETLK, place)
                os.write(taken[1], b"x")
                os.read(release[0], 1)

            holder = threading.Thread(target=in_a_child, args=(take_the_number,))
            holder.start()
            os.read(taken[0], 1)
            try:
                with pytest.raises(StoreError, match="process namespace"):
                    open_reader(tmp_path)
            finally:
                os.write(release[1], b"x")
                holder.join()
                for each in (*taken, *release):
                    os.close(each)
        with reading(tmp_path) as reader:
            assert reader.get(b"a") is None


# Forks


def test_a_forked_child_and_its_parent_both_read_on(tmp_path):
    with running(tmp_path) as node, reading(tmp_path) as reader:
        node.do("put", "a")
        assert data(reader.get(b"a")) == b"a"

        def read() -> None:
            for _ in range(100):
                assert data(reader.get(b"a")) == b"a"
            assert reader._opened is not None
            assert str(os.getpid()) in reader._opened.environment.readers(), "a place of its own"
            with reading(tmp_path) as another:
                assert data(another.get(b"a")) == b"a"

        for _ in range(3):
            assert in_a_child(read) == 0
            assert data(reader.get(b"a")) == b"a"
        node.do("put", "b")
        assert data(reader.get(b"b")) == b"b"


def test_threads_that_read_while_others_fork_read_on(tmp_path):
    with running(tmp_path) as node, reading(tmp_path) as reader:
        node.do("put", "a")
        ends = threading.Event()
        failures: list[BaseException] = []

        def read() -> None:
            try:
                while not ends.is_set():
                    assert data(reader.get(b"a")) == b"a"
            except BaseException as exc:
                failures.append(exc)

        def read_once() -> None:
            assert data(reader.get(b"a")) == b"a"

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        codes = [in_a_child(read_once) for _ in range(20)]
        ends.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert codes == [0] * 20


def test_a_reader_whose_copy_was_replaced_says_so_after_a_fork(tmp_path):
    with running(tmp_path) as node, reading(tmp_path) as reader:
        node.do("put", "a")
        assert data(reader.get(b"a")) == b"a"
        shutil.move(tmp_path / "data.mdb", tmp_path / "elsewhere")
        assert data(reader.get(b"a")) == b"a", "what is open stays open"

        def read() -> None:
            with pytest.raises(StoreError):
                reader.get(b"a")

        assert in_a_child(read) == 0


def test_places_of_killed_readers_are_taken_back(tmp_path):
    with running(tmp_path):
        with reading(tmp_path) as reader:

            def die() -> None:
                reader.get(b"a")
                os._exit(7)

            for _ in range(5):
                assert in_a_child(die) == 7
        with reading(tmp_path) as reader:
            opened = reader._opened
            assert opened is not None
            heading, *places = opened.environment.readers().splitlines()
            assert "pid" in heading
            assert len(places) <= 2, "the node's and its own"


# Who may


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_only_its_user_may_read_it_or_the_group_that_is_named(tmp_path):
    os.chmod(tmp_path, 0o711)
    directory = tmp_path / "store"
    group, user = 12345, 54321

    def read_as_somebody_else() -> None:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
        assert not is_durable(directory)
        with reading(directory) as reader:
            assert data(reader.get(b"a")) == b"a"

    for parent in [each for each in tmp_path.parents if each.name.startswith(("pytest-", "popen-"))]:
        os.chmod(parent, parent.stat().st_mode | 0o011)
    with running(directory) as node:
        node.do("put", "a")
        (directory / "lease").touch()
        share(directory, None)
        assert in_a_child(read_as_somebody_else) == 1
        share(directory, group)
        assert in_a_child(read_as_somebody_else) == 0
        share(directory, None)
        assert in_a_child(read_as_somebody_else) == 1


def test_the_record_it_gives_is_the_record_that_was_stored(tmp_path):
    with running(tmp_path) as node, reading(tmp_path) as reader:
        node.do("put", "a")
        assert reader.get(b"a") == pack_record(1 << 16, 1_000, 0, 0, b"a")
