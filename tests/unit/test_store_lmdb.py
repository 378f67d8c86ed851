from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_bytes

import lmdb
import pytest

from hotspare.errors import ForkedProcess, StoreCorrupt, StoreError, StoreForeign, StoreFull, StoreInUse
from hotspare.record import pack_record
from hotspare.store import lmdb as lmdb_store
from hotspare.store.lmdb import FORMAT, LmdbStore, current_boot_id, default_directory

MAP_SIZE_BYTES = 1 << 24


def opened(path: Path, *, durable: bool = False, boot_id: str = "this boot") -> LmdbStore:
    return LmdbStore.open(path, durable=durable, map_size_bytes=MAP_SIZE_BYTES, boot_id=boot_id)


def record(data: bytes = b"\x80") -> bytes:
    return pack_record(1 << 16, 1_000, 0, 0, data)


def fill(store: LmdbStore, *ids: bytes, data: bytes = b"\x80") -> None:
    txn = store.begin()
    for id in ids:
        txn.sessions[id] = record(data)
        txn.expiry.add(1_000, id)
    txn.commit()


def run(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


def opened_and_filled(durable: bool = False) -> str:
    return f"""
import sys
from hotspare.store.lmdb import LmdbStore
store = LmdbStore.open(sys.argv[1], durable={durable}, map_size_bytes=1 << 24, boot_id="this boot")
txn = store.begin()
txn.sessions[b"a"] = bytes(25)
txn.expiry.add(0, b"a")
txn.commit()
"""


# What survives


@pytest.mark.parametrize("durable", [False, True])
def test_a_store_opened_again_holds_what_was_committed(tmp_path, durable):
    store = opened(tmp_path, durable=durable)
    fill(store, b"a", b"b")
    txn = store.begin()
    txn.node[b"identity"] = b"me"
    txn.log[b"1"] = b"entry"
    txn.commit()
    store.begin().sessions[b"not committed"] = b"x"
    store.close()

    store = opened(tmp_path, durable=durable)
    assert store.ids() == [b"a", b"b"]
    txn = store.begin()
    assert (txn.node.get(b"identity"), txn.log.get(b"1")) == (b"me", b"entry")
    assert txn.expiry.due(1_000, 9) == [(1_000, b"a"), (1_000, b"b")]
    txn.abort()
    store.close()


def test_an_installed_snapshot_is_still_there_after_reopening_and_a_staged_one_is_not(tmp_path):
    store = opened(tmp_path)
    fill(store, b"old")
    txn = store.begin()
    txn.stage([("sessions", b"installed", record())])
    txn.install_staged()
    txn.commit()
    txn = store.begin()
    txn.stage([("sessions", b"staged", record())])
    txn.commit()
    store.close()
    store = opened(tmp_path)
    assert store.ids() == [b"installed"]
    txn = store.begin()
    txn.install_staged()
    assert list(txn.sessions.scan()) == []
    txn.abort()
    assert store.ids() == [b"installed"]
    store.close()


def test_a_killed_process_leaves_what_it_committed_and_no_lock(tmp_path):
    program = opened_and_filled() + "\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    assert run(program, tmp_path).returncode == -signal.SIGKILL
    store = opened(tmp_path)
    assert store.ids() == [b"a"]
    fill(store, b"b")
    store.close()


def test_in_memory_mode_another_boot_finds_an_empty_store(tmp_path):
    store = opened(tmp_path, boot_id="one boot")
    fill(store, b"a")
    store.close()
    store = opened(tmp_path, boot_id="another boot")
    assert store.ids() == []
    fill(store, b"b")
    store.close()
    store = opened(tmp_path, boot_id="another boot")
    assert store.ids() == [b"b"]
    store.close()


def test_in_disk_mode_another_boot_changes_nothing(tmp_path):
    store = opened(tmp_path, durable=True, boot_id="one boot")
    fill(store, b"a")
    store.close()
    store = opened(tmp_path, durable=True, boot_id="another boot")
    assert store.ids() == [b"a"]
    store.close()


def test_the_boot_id_stays_the_same_while_the_host_runs():
    assert current_boot_id() == current_boot_id() != ""


def test_on_disk_every_commit_is_synced_and_in_memory_none(tmp_path):
    for durable in (True, False):
        store = opened(tmp_path / str(durable), durable=durable)
        flags = store._environment.flags()
        assert (flags["sync"], flags["metasync"], flags["writemap"]) == (durable, durable, False)
        store.close()


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    if not lmdb_store._is_on_tmpfs(Path("/dev/shm")):
        pytest.skip("there is no shared memory here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def test_in_shared_memory_pages_are_written_in_place(shared_memory):
    store = opened(shared_memory)
    assert store._environment.flags()["writemap"]
    store.close()
    assert not lmdb_store._is_on_tmpfs(Path("/proc"))


# Reading while a snapshot is installed


def stage(store: LmdbStore, *ids: bytes) -> None:
    txn = store.begin()
    txn.stage([("sessions", id, record()) for id in ids])
    txn.commit()


def install(store: LmdbStore, *ids: bytes) -> None:
    stage(store, *ids)
    txn = store.begin()
    txn.install_staged()
    txn.commit()


READS: list[Callable[[LmdbStore], bool]] = [
    lambda store: store.get(b"always") is not None,
    lambda store: b"always" in store.ids(),
]


@pytest.mark.parametrize("found", READS, ids=["get", "ids"])
def test_a_read_that_was_overtaken_by_an_installation_begins_again(tmp_path, found):
    store = opened(tmp_path)
    fill(store, b"always")
    begin = store._begin

    def begin_late(*arguments: lmdb._Database) -> lmdb.Transaction[bytes]:
        store._begin = begin
        install(store, b"always")
        stage(store, b"something else where it is about to look")
        return begin(*arguments)

    store._begin = begin_late
    assert found(store)
    store.close()


@pytest.mark.parametrize("found", READS, ids=["get", "ids"])
def test_a_read_that_was_overtaken_by_two_installations_begins_again(tmp_path, found):
    store = opened(tmp_path)
    fill(store, b"always")
    begin = store._begin

    def begin_halfway(*arguments: lmdb._Database) -> lmdb.Transaction[bytes]:
        store._begin = begin
        install(store, b"always")
        stage(store, b"something else where it is about to look")
        early = begin(*arguments)
        install(store, b"always")
        return early

    store._begin = begin_halfway
    assert found(store)
    store.close()


def test_the_copy_that_was_replaced_is_thrown_away_with_the_next_transaction(tmp_path):
    store = opened(tmp_path)
    fill(store, b"old")
    replaced = store._current
    install(store, b"new")
    store.begin().commit()
    with store._environment.begin() as txn:
        assert [txn.stat(database)["entries"] for database in (replaced.sessions, replaced.expiry)] == [0, 0]
    store.close()


# Whose it is


def test_only_its_user_may_enter_the_directory(tmp_path):
    umask = os.umask(0)
    try:
        store = opened(tmp_path / "store")
        fill(store, b"a")
        assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()}
        assert set(modes.values()) == {0o600}
        assert set(modes) == {"data.mdb", "lock.mdb", "hotspare.json", "owner.lock"}
        store.close()
    finally:
        os.umask(umask)


def test_a_store_in_use_is_refused_to_another_process(tmp_path):
    store = opened(tmp_path)
    found = run(opened_and_filled(), tmp_path)
    assert found.returncode == 1
    assert "StoreInUse" in found.stderr
    assert f"the process {os.getpid()} has it open" in found.stderr
    store.close()
    assert run(opened_and_filled(), tmp_path).returncode == 0


def test_a_store_in_use_is_refused_within_the_process_too(tmp_path):
    store = opened(tmp_path)
    with pytest.raises(StoreInUse):
        opened(tmp_path)
    fill(store, b"a")
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.get(b"a")
    opened(tmp_path).close()


def in_a_fork(action: Callable[[], None]) -> int:
    """Runs it in a forked child; returns the child's id. Exit status 0: it raised nothing."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def test_a_forked_child_is_told_to_leave_the_store_alone(tmp_path):
    store = opened(tmp_path)
    fill(store, b"a")

    def use() -> None:
        uses: list[Callable[[], object]] = [store.begin, store.ids, store.snapshot, lambda: store.get(b"a")]
        for each in uses:
            with pytest.raises(ForkedProcess):
                each()
        store.close()

    assert os.waitpid(in_a_fork(use), 0)[1] == 0
    fill(store, b"b")
    assert store.ids() == [b"a", b"b"]
    store.close()


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    program = opened_and_filled() + (
        "import os, signal\n"
        "if os.fork():\n"
        "    sys.stdin.read(1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "print('forked', flush=True)\n"
        "sys.stdin.read(1)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"forked\n"
        with pytest.raises(StoreInUse):
            opened(tmp_path)
        parent.kill()
        assert parent.wait(timeout=60) == -signal.SIGKILL
        store = opened(tmp_path)
        assert store.ids() == [b"a"]
        store.close()
        # The child lives until here, where its input ends.
        parent.stdin.close()


def test_closing_gives_the_lock_up_even_if_a_child_was_forked_this_moment(tmp_path):
    store = opened(tmp_path)
    assert store._owner is not None
    inherited = os.dup(store._owner)
    store.close()
    opened(tmp_path).close()
    os.close(inherited)


def test_an_environment_of_another_program_is_refused_and_left_alone(tmp_path):
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as txn:
        txn.put(b"theirs", b"x")
    with pytest.raises(StoreForeign, match="hotspare did not write"):
        opened(tmp_path)
    with lmdb.open(str(tmp_path)) as environment, environment.begin() as txn:
        assert txn.get(b"theirs") == b"x"


@pytest.mark.parametrize("durable", [False, True])
def test_a_store_of_the_other_mode_is_refused(tmp_path, durable):
    opened(tmp_path, durable=durable).close()
    with pytest.raises(StoreForeign, match=r"written in \w+ mode"):
        opened(tmp_path, durable=not durable)
    opened(tmp_path, durable=durable).close()


def test_a_store_of_a_newer_format_is_refused(tmp_path):
    store = opened(tmp_path)
    fill(store, b"a")
    store.close()
    marker = tmp_path / "hotspare.json"
    ours = marker.read_text()
    marker.write_text(json.dumps(json.loads(ours) | {"format": FORMAT + 1}))
    with pytest.raises(StoreForeign, match=f"format {FORMAT + 1}"):
        opened(tmp_path)
    marker.write_text(ours)
    store = opened(tmp_path)
    assert store.ids() == [b"a"]
    store.close()


@pytest.mark.parametrize("place", ["a file in its way", "under a file"])
def test_a_place_where_no_directory_can_be_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="look at the directory"):
        opened(tmp_path / "file" if "way" in place else tmp_path / "file" / "store")


def test_what_is_discarded_is_gone_and_nothing_else(tmp_path):
    LmdbStore.discard(tmp_path / "not there")
    store = opened(tmp_path, durable=True)
    fill(store, b"a")
    with pytest.raises(StoreInUse):
        LmdbStore.discard(tmp_path)
    assert store.ids() == [b"a"]
    store.close()
    (tmp_path / "notes").write_text("of somebody")

    LmdbStore.discard(tmp_path)
    assert (tmp_path / "notes").exists()
    store = opened(tmp_path, durable=True)
    assert store.ids() == []
    store.close()


def test_what_hotspare_did_not_write_is_not_discarded(tmp_path):
    (tmp_path / "data.mdb").write_text("of another program")
    with pytest.raises(StoreForeign):
        LmdbStore.discard(tmp_path)
    assert (tmp_path / "data.mdb").read_text() == "of another program"


@pytest.mark.skipif(os.getuid() != 0, reason="needs a user to become, to whom the directory is read-only")
def test_a_read_only_directory_is_named_as_the_reason(monkeypatch):
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match="Permission denied; look at the directory and its permissi"):
                opened(Path(directory), durable=True)
        finally:
            os.seteuid(0)


def test_on_disk_the_names_of_new_directories_are_synced_too(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(lmdb_store, "_sync_directory", synced.append)
    opened(tmp_path / "of" / "node", durable=True).close()
    assert {tmp_path, tmp_path / "of", tmp_path / "of" / "node"} <= set(synced)


# Damage and lack of room


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_marker_is_reported(tmp_path, content):
    opened(tmp_path).close()
    (tmp_path / "hotspare.json").write_text(content)
    with pytest.raises(StoreCorrupt, match=r"hotspare\.json"):
        opened(tmp_path)


def test_a_data_file_that_is_no_environment_any_more_is_reported_as_corrupt(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "data.mdb").write_bytes(bytes(100_000))
    with pytest.raises(StoreCorrupt, match="--discard"):
        opened(tmp_path)


def taken_bytes(path: Path) -> int:
    """One that is written in place is as long as it may become from the beginning."""
    return 512 * (path / "data.mdb").stat().st_blocks


@pytest.mark.parametrize("durable", [False, True])
def test_a_data_file_that_was_cut_off_is_reported_as_corrupt(tmp_path, durable):
    store = opened(tmp_path, durable=durable)
    fill(store, *(b"%04d" % number for number in range(2_000)), data=bytes(200))
    store.close()
    os.truncate(tmp_path / "data.mdb", 1 << 16)
    # In a process of its own: without the precaution it would be killed by SIGBUS.
    read_everything = (
        opened_and_filled(durable)
        + "\nstore.records(b'', 3000), list(store.begin().expiry.due(1 << 60, 3000))"
    )
    found = run(read_everything, tmp_path)
    assert found.returncode == 1
    assert "StoreCorrupt" in found.stderr


def test_a_full_store_says_so_and_stays_as_it_was(tmp_path):
    store = opened(tmp_path)
    fill(store, b"a")
    txn = store.begin()
    for number in range(20_000):
        txn.sessions[b"%08d" % number] = record(bytes(1_000))
    with pytest.raises(StoreFull, match="max_memory_bytes"):
        txn.commit()
    txn.abort()
    assert store.ids() == [b"a"]
    fill(store, b"b")
    assert store.ids() == [b"a", b"b"]
    store.close()


def test_a_store_that_was_full_has_room_when_it_is_opened_again(tmp_path):
    def open_small() -> LmdbStore:
        return LmdbStore.open(tmp_path, durable=True, map_size_bytes=1 << 18)

    store = open_small()
    written = 0
    with suppress(StoreFull):
        while True:
            fill(store, b"%d" % written, data=bytes(1_000))
            written += 1
    store.close()
    store = open_small()
    assert len(store.ids()) == written
    fill(store, b"more", data=bytes(1_000))
    store.close()


WRITE_TOO_MUCH = """
from hotspare.errors import StoreFull
txn = store.begin()
for number in range(10_000):
    txn.sessions[b'%d' % number] = bytes(1_000)
try:
    txn.commit()
except StoreFull:
    txn.abort()
    sys.exit(7 if store.ids() == [b'a'] else 1)
"""


def test_a_failed_write_to_the_file_leaves_the_store_as_it_was(tmp_path):
    limit = (
        "import os, resource\n"
        "size_bytes = os.stat(sys.argv[1] + '/data.mdb').st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))\n"
    )
    found = run(opened_and_filled(durable=True) + limit + WRITE_TOO_MUCH, tmp_path)
    assert found.returncode == 7, found.stderr
    store = opened(tmp_path, durable=True)
    assert store.ids() == [b"a"]
    store.close()


def run_on_small_tmpfs(program: str, path: Path, size: str) -> subprocess.CompletedProcess[str]:
    """In a namespace of its own, so that no privileges are needed; skips where there are none to be had."""
    mount = ("unshare", "--map-root-user", "--mount", "sh", "-c")
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" || exit 99; exec "$@"'
    command = [*mount, script, str(path), sys.executable, "-c", program, str(path)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if found.returncode == 99 or "unshare" in found.stderr:
        pytest.skip("no file system can be mounted here")
    return found


def test_a_full_memory_is_an_error_and_does_not_end_the_process(tmp_path):
    found = run_on_small_tmpfs(opened_and_filled() + WRITE_TOO_MUCH, tmp_path, "4m")
    assert found.returncode == 7, found.stderr
    found = run_on_small_tmpfs(opened_and_filled(), tmp_path, "64k")
    assert found.returncode == 1
    assert "StoreFull" in found.stderr


USE_UP = """
with suppress(OSError), open(sys.argv[1] + '/rest', 'wb', buffering=0) as rest:
    while True:
        rest.write(bytes(4096))
"""


def test_a_full_memory_ends_no_reader(tmp_path):
    read = "print(len([store.snapshot() for _ in range(500)]))\n"
    program = "from contextlib import suppress\n" + opened_and_filled() + USE_UP + read
    found = run_on_small_tmpfs(program, tmp_path, "16m")
    assert found.stdout == "500\n", (found.returncode, found.stderr)


def test_many_small_sessions_fit_into_a_small_memory(tmp_path):
    program = opened_and_filled() + (
        "txn = store.begin()\n"
        "for number in range(4_000):\n"
        "    txn.sessions[b'%d' % number] = bytes(200)\n"
        "    txn.expiry.add(0, b'%d' % number)\n"
        "txn.commit()\n"
        "print(len(store.ids()))\n"
    )
    found = run_on_small_tmpfs(program, tmp_path, "16m")
    assert found.stdout == "4001\n", found.stderr


def test_the_room_that_a_transaction_claims_is_all_that_it_takes(shared_memory):
    """Where a page was used that was never claimed, a full memory would end the process."""
    store = LmdbStore.open(shared_memory, durable=False, map_size_bytes=1 << 28, boot_id="this boot")
    room = store._room
    assert room is not None
    reader = store.snapshot()  # what it sees cannot be used again
    pages = store._environment.info()["last_pgno"]
    for number in [*range(30), *range(100, 2000, 300), *[1] * 30]:
        fill(store, *(token_bytes(8) for _ in range(number)), data=bytes(200 + 10_000 * (number % 3)))
        pages, before = store._environment.info()["last_pgno"], pages
        assert pages - before <= room._claimed_pages
        assert (pages + 1) * room._page_bytes <= room._promised_bytes <= taken_bytes(shared_memory)
    reader.close()
    store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_file_system_is_reported_as_such(tmp_path, monkeypatch, code):
    store = opened(tmp_path)
    full = OSError(code, os.strerror(code))
    monkeypatch.setattr(lmdb_store, "_put", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(StoreFull, match="no room left"):
        fill(store, b"a")
    monkeypatch.undo()
    fill(store, b"b")
    assert store.ids() == [b"b"]
    store.close()


def test_the_file_stays_bounded_under_a_steady_load(tmp_path):
    """Entries come and are compacted away, sessions change: freed pages are used again."""
    store = opened(tmp_path, durable=True)
    sizes_bytes: list[int] = []
    for turn in range(400):
        txn = store.begin()
        for number in range(20):
            index = 20 * turn + number
            txn.log[index.to_bytes(8, "big")] = bytes(300)
            txn.log.pop((index - 1000).to_bytes(8, "big", signed=True))
            id = b"%d" % (index * 7919 % 2000)
            txn.sessions[id] = record(bytes(200))
        txn.commit()
        sizes_bytes.append((tmp_path / "data.mdb").stat().st_size)
    store.close()
    assert sizes_bytes[-1] < 1.2 * sizes_bytes[150]


# Other processes


def test_another_process_can_read_the_store_while_this_one_writes(tmp_path):
    store = opened(tmp_path)
    txn = store.begin()
    txn.stage([("sessions", b"a", record())])
    txn.install_staged()
    txn.commit()
    fill(store, b"b")
    program = """
import lmdb, sys
environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=16)
store = environment.open_db(b"store", create=False)
generations = {number: environment.open_db(b"sessions." + number, create=False) for number in (b"0", b"1")}
with environment.begin() as txn:
    print([key for key, _ in txn.cursor(generations[txn.get(b"generation", db=store)])])
"""
    found = run(program, tmp_path)
    assert found.stdout.strip() == "[b'a', b'b']", found.stderr
    store.close()


def test_a_reader_that_died_in_mid_read_is_forgotten(tmp_path):
    store = opened(tmp_path)
    program = (
        "import lmdb, os, signal, sys\n"
        "transaction = lmdb.open(sys.argv[1], readonly=True).begin()\n"
        "print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    reader = run(program, tmp_path).stdout.strip()
    assert reader in store._environment.readers().split()
    for _ in range(lmdb_store._READER_CHECK_TRANSACTIONS):
        store.begin().commit()
    assert reader not in store._environment.readers().split()
    store.close()


# The default place


@pytest.fixture
def temporary_place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(lmdb_store, "_is_tmpfs", lambda _: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Path(tmp_path, f"hotspare-{os.getuid()}")


def test_without_shared_memory_the_default_place_is_private_all_the_same(temporary_place):
    assert default_directory("127.0.0.1:7401") == temporary_place / "127.0.0.1:7401"
    assert stat.S_IMODE(temporary_place.stat().st_mode) == 0o700
    assert default_directory("127.0.0.1:7402") == temporary_place / "127.0.0.1:7402"


@pytest.mark.parametrize("name", ["..", ".", "../other", "a/b", "/etc", ".hidden", "[::1]:7401", "nœud"])
def test_no_name_of_a_node_leads_out_of_the_default_place(temporary_place, name):
    directory = default_directory(name)
    assert directory.parent == temporary_place
    assert directory.resolve().parent == temporary_place.resolve()


def test_different_nodes_have_different_default_places(temporary_place):
    names = ["a.b", "a/b", "a%2Fb", ".a", "%2Ea", "a:b", "a_b"]
    assert len({default_directory(name) for name in names}) == len(names)


@pytest.mark.parametrize("trap", ["a link", "open to everybody", "a file"])
def test_a_default_place_that_somebody_else_prepared_is_refused(temporary_place, trap):
    if trap == "a link":
        elsewhere = temporary_place.with_name("elsewhere")
        elsewhere.mkdir()
        temporary_place.symlink_to(elsewhere)
    elif trap == "a file":
        temporary_place.touch()
    else:
        temporary_place.mkdir()
        temporary_place.chmod(0o777)
    with pytest.raises(StoreError, match="belongs to this user"):
        default_directory("127.0.0.1:7401")


def test_a_default_place_of_another_user_is_refused(temporary_place, monkeypatch):
    default_directory("127.0.0.1:7401")
    real = os.getuid()
    temporary_place.rename(temporary_place.with_name(f"hotspare-{real + 1}"))
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    with pytest.raises(StoreError, match="belongs to this user"):
        default_directory("127.0.0.1:7401")
