from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from hotspare.cluster import verification
from hotspare.cluster.verification import FIRST, LAST, Half, _difference, inspect_store, look, verify_store
from hotspare.errors import StoreCorrupt, StoreError
from hotspare.record import data_checksum, pack_record, verify_record
from hotspare.store import journal
from hotspare.store.journal import Identity
from hotspare.store.lmdb import LmdbStore
from hotspare.table import Table, Totals, recount

NODE = "127.0.0.1:7401"
PAGE_BYTES = 4096


def opened(path: Path) -> LmdbStore:
    return LmdbStore.open(
        path, durable=True, map_size_bytes=1 << 26, inspect=verify_store, verify=verify_record
    )


def put(txn, number: int, data: bytes, *, checksum: int = 0) -> bytes:
    id = b"session %d" % number
    record = pack_record(number << 16, 10_000 + number, 0, checksum or data_checksum(id, data, 0), data)
    txn.sessions[id] = record
    txn.expiry.add(10_000 + number, id)
    return id


def fill(path: Path, count: int) -> None:
    """A store as a node leaves it."""
    store = opened(path)
    txn = store.begin()
    journal.save_identity(txn, Identity("1234", NODE, "c1"))
    table = Table(txn)
    for number in range(1, count + 1):
        put(txn, number, b"\x81\xa1a\xc4\x64" + bytes(100))
    table.applied_index, table.totals = count, recount(txn.sessions.scan())
    table.save(txn)
    txn.commit()
    store.close()


def test_a_store_as_its_node_left_it_passes(tmp_path):
    verify_store_of_new_directory(tmp_path / "new")
    fill(tmp_path / "used", 1000)
    assert inspect_store(tmp_path / "used") == (NODE, "")
    opened(tmp_path / "used").close()


@pytest.mark.parametrize("count", range(1, 5))
def test_the_two_halves_of_a_store_meet(tmp_path, count):
    fill(tmp_path, count)
    halves = [look(tmp_path, half) for half in (FIRST, LAST)]
    assert [half.counted.sessions for half in halves] == [count // 2, count - count // 2]
    assert len({half.border for half in halves}) == 1
    assert inspect_store(tmp_path) == (NODE, "")


def test_sessions_between_the_halves_are_noticed():
    """Damage may show rows that the count does not count."""
    one, all_of_them = Totals(1, 10, 5), Totals(2, 20, 10)
    first = Half(NODE, "", one, all_of_them, 2, "62")
    assert _difference(first, first) == ""
    assert "not those that were stored" in _difference(first, first._replace(border="63"))


def verify_store_of_new_directory(path: Path) -> None:
    LmdbStore.open(path, durable=True, map_size_bytes=1 << 20).close()
    assert inspect_store(path) == ("", "")


@pytest.mark.parametrize("damage", ["a lost session", "a foreign one", "an old record", "a lost expiry"])
def test_sessions_that_are_not_those_that_were_stored_are_noticed(tmp_path, damage):
    fill(tmp_path, 20)
    store = opened(tmp_path)
    txn = store.begin()
    if damage == "a lost session":
        txn.sessions.pop(b"session 7")
        txn.expiry.discard(10_007, b"session 7")
    elif damage == "a foreign one":
        put(txn, 99, b"\x80")
    elif damage == "an old record":
        txn.sessions[b"session 7"] = pack_record(
            3, 10_007, 0, data_checksum(b"session 7", b"\x80" + bytes(104), 0), b"\x80" + bytes(104)
        )
    else:
        txn.expiry.discard(10_007, b"session 7")
    txn.commit()
    store.close()

    with pytest.raises(StoreCorrupt, match="--discard"):
        opened(tmp_path)


def test_a_record_that_does_not_match_its_checksum_is_noticed_at_the_start_and_when_read(tmp_path):
    fill(tmp_path, 20)
    store = opened(tmp_path)
    txn = store.begin()
    damaged = put(txn, 5, b"\x81\xa1a\xc4\x64" + b"x" * 100, checksum=5)
    txn.commit()
    with pytest.raises(StoreCorrupt, match="checksum"):
        store.get(damaged)
    with pytest.raises(StoreCorrupt, match="checksum"):
        store.records(b"", 100)
    snapshot = store.snapshot()
    with pytest.raises(StoreCorrupt, match="checksum"):
        snapshot.read(1 << 20)
    snapshot.close()
    assert store.get(b"session 4")
    store.close()
    with pytest.raises(StoreCorrupt, match="checksum"):
        opened(tmp_path)


def test_no_damaged_page_is_ever_read_as_if_it_were_whole(tmp_path):
    """Whichever page is damaged: the store is refused, or everything in it is as it was."""
    random_ = random.Random(1)
    fill(tmp_path, 600)
    data = tmp_path / "data.mdb"
    whole = data.read_bytes()
    store = opened(tmp_path)
    expected = store.records(b"", 1000)
    store.close()
    refused = 0
    for _ in range(12):
        damaged = bytearray(whole)
        at = random_.randrange(2, len(whole) // PAGE_BYTES) * PAGE_BYTES
        if random_.random() < 0.5:
            damaged[at : at + PAGE_BYTES] = bytes(PAGE_BYTES)
        else:
            for _ in range(30):
                damaged[at + random_.randrange(PAGE_BYTES)] = random_.randrange(256)
        data.write_bytes(damaged)
        try:
            store = opened(tmp_path)
        except StoreCorrupt:
            refused += 1
        else:
            assert store.records(b"", 1000) == expected
            store.close()
    assert refused > 4


def test_a_reader_that_damage_kills_tells_of_the_damage(tmp_path, monkeypatch):
    fill(tmp_path, 5)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -SEGV $$\n")
    program.chmod(0o700)

    class Interpreter:
        executable = str(program)

    monkeypatch.setattr(verification, "sys", Interpreter)
    with pytest.raises(StoreCorrupt, match="SIGSEGV"):
        verify_store(tmp_path)


def test_a_damaged_header_is_reported_as_damage(tmp_path):
    fill(tmp_path, 5)
    with (tmp_path / "data.mdb").open("r+b") as data:
        data.write(os.urandom(PAGE_BYTES))
    with pytest.raises(StoreCorrupt):
        opened(tmp_path)


def test_nothing_can_be_said_where_the_store_cannot_be_read(tmp_path, monkeypatch):
    fill(tmp_path, 5)
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setattr(verification, "__name__", "no.such.module")
    with pytest.raises(StoreError, match="could not be verified"):
        verify_store(tmp_path)
