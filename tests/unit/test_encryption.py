"""Encryption at the origin: the cipher by itself, and the public verbs of processes with and without keys."""

from __future__ import annotations

import asyncio
import builtins
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotspare import AsyncSessionReplicator, SessionReplicator, Settings
from hotspare.cluster.remote import RemoteEngine
from hotspare.encryption import DERIVED_KEYS, OVERHEAD_BYTES, Keyring
from hotspare.errors import ConfigError, Undecryptable, VersionConflict
from hotspare.record import (
    COMPRESSED,
    ENCRYPTED,
    data_checksum,
    decode_record,
    pack_record,
    record_data,
    record_flags,
    verify_record,
)
from tests.unit.clusters import Cluster, node_of, running

MINUTE_MS = 60_000
OLD, NEW, OTHER = (b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))
SECRET = "correct horse battery staple"
IDS = st.binary(min_size=1, max_size=40)


def sealed(id: bytes, data: bytes, flags: int = 0, key: str = OLD) -> tuple[int, bytes]:
    return Keyring([key]).encrypt(id, flags, data)


# The cipher


@given(IDS, st.binary(max_size=200), st.sampled_from([0, COMPRESSED]))
def test_what_was_encrypted_comes_back_and_does_not_show(id: bytes, data: bytes, flags: int):
    keyring = Keyring([OLD])
    marked, encrypted = keyring.encrypt(id, flags, data)
    assert marked == flags | ENCRYPTED
    assert len(encrypted) == len(data) + OVERHEAD_BYTES
    assert len(data) < 8 or data not in encrypted
    assert keyring.decrypt(id, marked, encrypted) == (flags, data)


def test_the_same_data_never_looks_the_same():
    seen = {sealed(b"s1", b"data")[1] for _ in range(100)}
    assert len(seen) == 100


@given(st.data())
def test_what_was_changed_anywhere_is_refused(data: st.DataObject):
    flags, encrypted = sealed(b"s1", b"some data")
    position = data.draw(st.integers(0, len(encrypted) - 1))
    damaged = bytearray(encrypted)
    damaged[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Undecryptable):
        Keyring([OLD]).decrypt(b"s1", flags, bytes(damaged))


@given(st.integers(0, 100))
def test_what_was_cut_off_is_refused(length: int):
    flags, encrypted = sealed(b"s1", b"x" * 100)
    with pytest.raises(Undecryptable):
        Keyring([OLD]).decrypt(b"s1", flags, encrypted[:length])


@given(IDS, IDS)
def test_data_belongs_to_the_id_for_which_it_was_encrypted(id: bytes, other: bytes):
    flags, encrypted = sealed(id, b"data")
    if id == other:
        return
    with pytest.raises(Undecryptable, match="not what was encrypted for this id"):
        Keyring([OLD]).decrypt(other, flags, encrypted)


def test_flags_cannot_be_changed():
    flags, encrypted = sealed(b"s1", b"data")
    with pytest.raises(Undecryptable, match="changed"):
        Keyring([OLD]).decrypt(b"s1", flags | COMPRESSED, encrypted)


def test_the_first_key_encrypts_and_all_decrypt():
    by_old, by_new = sealed(b"s1", b"data", key=OLD), sealed(b"s1", b"data", key=NEW)
    both = Keyring([NEW, OLD])
    for flags, encrypted in (by_old, by_new):
        assert both.decrypt(b"s1", flags, encrypted) == (0, b"data")
    flags, encrypted = both.encrypt(b"s1", 0, b"data")
    assert Keyring([NEW]).decrypt(b"s1", flags, encrypted) == (0, b"data")
    with pytest.raises(Undecryptable, match="this process has other keys") as caught:
        Keyring([OLD]).decrypt(b"s1", flags, encrypted)
    assert caught.value.key_id == encrypted[:8].hex()


def test_without_a_key_and_with_another_one_it_is_said_that_the_session_is_there():
    flags, encrypted = sealed(b"s1", b"\x80")
    record = pack_record(1, 1, flags, data_checksum(b"s1", encrypted, flags), encrypted)
    verify_record(b"s1", record)  # a node can tell that it is whole
    for keyring, hint in ((None, "has no key"), (Keyring([OTHER]), "has other keys")):
        with pytest.raises(Undecryptable, match="the session is there") as caught:
            decode_record(record, b"s1", keyring)
        assert hint in str(caught.value)
    assert decode_record(record, b"s1", Keyring([OLD])) == {}


def test_what_is_not_encrypted_is_trusted_only_where_that_was_said():
    with pytest.raises(Undecryptable, match="not encrypted"):
        Keyring([OLD]).decrypt(b"s1", 0, b"forged")
    assert Keyring([OLD, "plain"]).decrypt(b"s1", 0, b"data") == (0, b"data")
    reading_only = Keyring(["plain", OLD])
    assert not reading_only.encrypts
    assert reading_only.encrypt(b"s1", COMPRESSED, b"data") == (COMPRESSED, b"data")
    assert reading_only.decrypt(b"s1", *sealed(b"s1", b"data")) == (0, b"data")


def test_one_keyring_serves_many_threads_and_more_ids_than_it_remembers():
    keyring = Keyring([OLD])

    def use(thread: int) -> None:
        for number in range(DERIVED_KEYS + 100):
            id = f"{thread % 2} {number}".encode()
            flags, encrypted = keyring.encrypt(id, 0, id * 3)
            assert keyring.decrypt(id, flags, encrypted) == (0, id * 3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))


# Settings


@pytest.mark.parametrize(
    "key", ["", "x", OLD[:-4], OLD + OLD, OLD[:-1] + "!", "PLAIN", b64encode(bytes(31)).decode()]
)
def test_what_is_no_key_is_refused_without_showing_it(key: str):
    with pytest.raises(ConfigError) as caught:
        Settings(encryption_keys=(key,))
    assert caught.value.key == "encryption_keys"
    assert len(key) < 5 or key not in str(caught.value)


def test_keys_may_be_written_in_either_alphabet():
    key = bytes([251, 255] * 16)
    flags, encrypted = sealed(b"s1", b"data", key=b64encode(key).decode())
    assert Keyring([urlsafe_b64encode(key).decode()]).decrypt(b"s1", flags, encrypted) == (0, b"data")


def test_keys_come_from_arguments_the_environment_or_a_file(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"{NEW}\n{OLD}\n")
    by_variable = Settings.load(environ={"HOTSPARE_ENCRYPTION_KEYS": f"{NEW}, {OLD}"})
    by_file = Settings.load(environ={"HOTSPARE_ENCRYPTION_KEYS_FILE": str(file)})
    expected = {NEW: "first", OLD: "second"}
    for settings in (Settings(encryption_keys=(NEW, OLD)), by_variable, by_file):
        keyring = Keyring.of(settings)
        assert keyring is not None
        for key in expected:
            keyring.decrypt(b"s1", *sealed(b"s1", b"data", key=key))
        assert Keyring([NEW]).decrypt(b"s1", *keyring.encrypt(b"s1", 0, b"data")) == (0, b"data")
    assert Keyring.of(Settings()) is None


def test_two_sources_of_keys_contradict_each_other():
    with pytest.raises(ConfigError, match="one of them"):
        Settings(encryption_keys=(OLD,), encryption_keys_file="/keys")


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"not a key\n", b"\xff\xfe"])
def test_a_key_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path, content: bytes | None):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        SessionReplicator(enabled=False, encryption_keys_file=str(file))
    assert caught.value.key == "encryption_keys_file"
    assert str(file) in str(caught.value)
    assert "not a key" not in str(caught.value)


def test_keys_are_not_shown():
    settings = Settings(encryption_keys=(OLD,))
    assert OLD not in repr(settings)
    assert OLD not in repr(Keyring.of(settings))


def test_encryption_that_is_not_installed_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    actual = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return actual(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"hotspare\[encryption\]") as caught:
        Keyring([OLD])
    assert caught.value.key == "encryption_keys"


# The verbs


@asynccontextmanager
async def client(cluster: Cluster, *keys: str, **settings: Any) -> AsyncIterator[AsyncSessionReplicator]:
    engine = RemoteEngine(cluster.names)
    chosen = Settings(encryption_keys=keys, **settings)
    async with AsyncSessionReplicator(chosen, engine=engine) as sessions:
        yield sessions


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Two nodes without keys."""
    async with running(2) as cluster:
        yield cluster


def stored(cluster: Cluster) -> dict[bytes, bytes]:
    """The records on the first node."""
    store = node_of(cluster[0]).store
    return dict(store.records(b"", 1000))


async def test_nodes_see_ciphertext_only_whatever_is_written(cluster: Cluster):
    async with client(cluster, OLD, enable_compression=True) as sessions:
        await sessions.store_session("a", {"secret": SECRET}, MINUTE_MS)
        await sessions.store_sessions([("b", {"secret": SECRET * 100}, MINUTE_MS)])
        await sessions.store_session("c", {}, MINUTE_MS)
        await sessions.update_session("c", {"secret": SECRET})
        await sessions.store_session("d", {"secret": SECRET}, MINUTE_MS)
        await sessions.rotate_session("d", "e")
        assert await sessions.get_session("a") == {"secret": SECRET}
        assert await sessions.get_session("b") == {"secret": SECRET * 100}
        assert await sessions.get_session("c") == {"secret": SECRET}
        assert await sessions.get_session("e") == {"secret": SECRET}
        await cluster.settled()
    records = stored(cluster)
    assert set(records) == {b"a", b"b", b"c", b"e"}
    assert record_flags(records[b"b"]) == COMPRESSED | ENCRYPTED
    for record in records.values():
        assert record_flags(record) & ENCRYPTED
        assert b"secret" not in record
        assert SECRET.encode() not in record


async def test_a_process_without_the_right_key_is_told_so_and_never_that_there_is_no_session(
    cluster: Cluster,
):
    async with client(cluster, OLD) as owner, client(cluster, OTHER) as stranger, client(cluster) as keyless:
        await owner.store_session("s1", {"secret": SECRET}, MINUTE_MS)
        for sessions in (stranger, keyless):
            for attempt in (
                sessions.get_session("s1", read="primary"),
                sessions.get_session_record("s1"),
                sessions.update_session("s1", {"a": 1}),
                sessions.rotate_session("s1", "s2"),
            ):
                with pytest.raises(Undecryptable) as caught:
                    await attempt
                assert SECRET not in str(caught.value)
        assert await owner.get_session("s1") == {"secret": SECRET}
        assert await stranger.touch_session("s1", MINUTE_MS), "what needs no data needs no key"
        assert await keyless.delete_session("s1")
        assert await stranger.get_session("s1", read="primary") is None


async def test_updates_of_an_encrypted_session_all_survive(cluster: Cluster):
    async with client(cluster, OLD) as first, client(cluster, OLD) as second:
        version = await first.store_session("s1", {"start": True}, MINUTE_MS)
        before = await first.get_session_record("s1")
        await asyncio.gather(
            *(first.update_session("s1", {f"a{n}": n}) for n in range(5)),
            *(second.update_session("s1", {f"b{n}": n}, remove=["start"]) for n in range(5)),
        )
        session = await first.get_session_record("s1", read="primary")
        assert session is not None
        assert before is not None
        assert session.data == {f"{side}{n}": n for side in "ab" for n in range(5)}
        assert session.version > version
        assert session.expires_at_ms == before.expires_at_ms


async def test_conditions_of_updates_hold_for_encrypted_sessions_too(cluster: Cluster):
    async with client(cluster, OLD) as sessions:
        version = await sessions.store_session("s1", {}, MINUTE_MS)
        assert await sessions.update_session("s1", {"a": 1}, if_version=version)
        with pytest.raises(VersionConflict):
            await sessions.update_session("s1", {"a": 2}, if_version=version)
        assert await sessions.update_session("not there", {"a": 2}) is None
        with pytest.raises(VersionConflict) as caught:
            await sessions.update_session("not there", {"a": 2}, if_version=version)
        assert caught.value.current is None
        assert await sessions.get_session("s1") == {"a": 1}


async def test_a_rotation_moves_an_encrypted_session_at_a_stroke(cluster: Cluster):
    async with client(cluster, OLD) as sessions:
        await sessions.store_session("before", {"user": 7}, MINUTE_MS)
        was = await sessions.get_session_record("before")
        assert await sessions.rotate_session("before", "after")
        session = await sessions.get_session_record("after")
        assert session is not None
        assert was is not None
        assert (session.data, session.expires_at_ms) == (was.data, was.expires_at_ms)
        assert session.version > was.version
        assert await sessions.get_session("before") is None
        assert not await sessions.rotate_session("before", "again")
        await sessions.store_session("taken", {}, MINUTE_MS)
        with pytest.raises(VersionConflict):
            await sessions.rotate_session("after", "taken")
        assert await sessions.get_session("after") == {"user": 7}


async def test_what_is_written_during_a_rotation_goes_along(cluster: Cluster):
    async with client(cluster, OLD) as first, client(cluster, OLD) as second:
        for round in range(10):
            old, new = f"old-{round}", f"new-{round}"
            await first.store_session(old, {"n": 0}, MINUTE_MS)
            rotated, updated = await asyncio.gather(
                first.rotate_session(old, new), second.update_session(old, {"n": 1})
            )
            assert rotated
            assert await first.get_session(old, read="primary") is None
            expected = {"n": 0 if updated is None else 1}
            assert await first.get_session(new, read="primary") == expected


async def test_keys_are_changed_and_encryption_is_begun_and_ended_while_sessions_live(cluster: Cluster):
    async with client(cluster) as plain, client(cluster, OLD, "plain") as beginning:
        await plain.store_session("s1", {"n": 0}, MINUTE_MS)
        assert await beginning.get_session("s1", read="primary") == {"n": 0}
        await beginning.update_session("s1", {"n": 1})
        assert record_flags(stored(cluster)[b"s1"]) == ENCRYPTED
    async with client(cluster, NEW, OLD) as changing:
        assert await changing.get_session("s1", read="primary") == {"n": 1}
        await changing.rotate_session("s1", "s2")
    async with client(cluster, NEW) as changed:
        assert await changed.get_session("s2", read="primary") == {"n": 1}
    async with client(cluster, "plain", NEW) as ending:
        assert await ending.rotate_session("s2", "s3")
    async with client(cluster) as plain:
        assert await plain.get_session("s3", read="primary") == {"n": 1}


async def test_a_session_that_was_moved_to_another_id_or_forged_is_refused(cluster: Cluster):
    async with client(cluster, OLD) as sessions, client(cluster) as attacker:
        await sessions.store_session("admin", {"admin": True}, MINUTE_MS)
        await cluster.settled()
        record = stored(cluster)[b"admin"]
        await attacker.store_session("forged", {"admin": True}, MINUTE_MS)
        put = attacker._encoder.put("mine", {}, MINUTE_MS, 0)
        put.data, put.flags = record_data(record), record_flags(record)
        put.checksum = data_checksum(b"mine", put.data, put.flags)
        await attacker.engine.write([put], 5000)
        for id in ("forged", "mine"):
            with pytest.raises(Undecryptable):
                await sessions.get_session(id, read="primary")


def test_an_in_process_node_reads_encrypted_sessions_from_its_memory():
    with SessionReplicator(enabled=False, encryption_keys=[OLD]) as sessions:
        sessions.store_session("s1", {"secret": SECRET}, MINUTE_MS)
        assert sessions.get_session("s1") == {"secret": SECRET}
        session = sessions.get_session_record("s1")
        assert session is not None
        assert session.data == {"secret": SECRET}
        engine: Any = sessions._async.engine
        assert SECRET.encode() not in engine.store.get(b"s1")
