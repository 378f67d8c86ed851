"""The public verbs, as coroutines: checks and encodes what callers bring, and says what came of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import timedelta
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeAlias

from hotspare.commands import (
    ABSENT,
    CONFLICT_ABSENT,
    EXPIRED,
    FULL,
    IF_ABSENT,
    IF_PRESENT,
    KEEP_EXPIRY_MS,
    TAKEN,
    TOO_LARGE,
    UNCONDITIONAL,
    UNMERGEABLE,
    Command,
    Delete,
    Patch,
    Put,
    Rotate,
    Touch,
    conflicting_version,
)
from hotspare.data import check_field_names, encode_fields
from hotspare.encoder import UNSET_DEADLINE, Encoder
from hotspare.encryption import Keyring
from hotspare.engine import Ack, Engine, Read, Source
from hotspare.errors import ConfigError, InvalidSession, SessionTooLarge, Unavailable, VersionConflict
from hotspare.events import Event
from hotspare.protocol.origin import MAX_GROUPS_IN_FLIGHT
from hotspare.record import (
    Cipher,
    data_checksum,
    decode_record,
    decrypt_record,
    record_expires_at_ms,
    record_version,
)
from hotspare.rules import check_id, check_ttl_ms
from hotspare.session import Session
from hotspare.settings import Settings

Item: TypeAlias = tuple[str, Mapping[str, Any]] | tuple[str, Mapping[str, Any], int | timedelta | None]
"""What `store_sessions` takes: id, data and (unless `default_ttl_ms` is set) a TTL."""

MAX_SLICES_UNDER_WAY = MAX_GROUPS_IN_FLIGHT
"""Of `store_sessions`: enough to keep the cluster busy, few enough to keep memory small."""
MERGE_ATTEMPTS = 20
"""How often an update that is merged here is tried again because somebody else was faster."""
MAX_WAITING_EVENTS = 10_000
"""For one consumer, unless it says otherwise: some megabytes."""


class AsyncSessionReplicator:
    """Replicated sessions, for programs that run an event loop.

    With settings (or keyword arguments of the same names) it runs a node of the cluster on the running event
    loop: reads are memory look-ups, and whatever blocks the loop blocks the node. With `attach` it reads the
    copy of a daemon on this host and writes through it, on any number of event loops. Raises ConfigError.

        async with AsyncSessionReplicator(node="127.0.0.1:7401") as sessions:
            await sessions.start_cluster(["127.0.0.1:7402", "127.0.0.1:7403"])
            await sessions.store_session("s1", {"user": "alice"}, ttl_ms=3_600_000)
    """

    def __init__(
        self, settings: Settings | None = None, *, engine: Engine | None = None, **overrides: Any
    ) -> None:
        if settings is None and engine is not None:
            settings = Settings()  # what file and environment say is meant for nodes
        self.settings = _settings(settings, overrides)
        self.engine = engine if engine is not None else _engine_for(self.settings)
        self.keyring = Keyring.of(self.settings)
        self._timeout_ms = self.settings.replication_rpc_timeout_ms
        self._encoder = Encoder(
            self.settings.max_session_size_bytes,
            self.settings.default_ttl_ms,
            self.settings.enable_compression,
            self.keyring,
        )

    # --- life -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes part in the cluster. Raises ConfigError if it cannot listen where it should."""
        await self.engine.start()

    async def stop(self) -> None:
        """Ends what is pending, hands the leadership over if it has it, and leaves."""
        await self.engine.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start_cluster(self, replica_nodes: Iterable[str] = ()) -> None:
        """Founds a cluster of this node and those ("host:port" each), all of which must be empty.

        Returns when it has a primary. Raises Refused if a node belongs to a cluster already or does not
        answer.
        """
        nodes = self.settings.changed(replica_nodes=tuple(replica_nodes)).replica_nodes
        await self.engine.call("found", self._timeout_ms, nodes=list(nodes))

    async def flush(self) -> None:
        """Returns when everything written through this node is acknowledged, and applied by all copies in
        reach if this node is the primary. Raises Unavailable."""
        await self.engine.call("flush", self._timeout_ms)

    # --- writing ----------------------------------------------------------------------------------------

    async def store_session(
        self,
        id: str,
        data: Mapping[str, Any],
        ttl_ms: int | timedelta | None = None,
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        ack: Ack | None = None,
    ) -> int:
        """Stores `data` under `id` for `ttl_ms` milliseconds (or a timedelta), and returns its new version.

        `ack`: "quorum" returns when a majority of the members has it, "all" when, beyond that, every copy
        that may answer reads shows it; None is what the setting `ack` says. Raises InvalidSession or
        SessionTooLarge (nothing was sent), VersionConflict if the condition does not hold, Unavailable
        (certainly not applied), OutcomeUnknown.
        """
        for_all = self.is_for_all(ack)
        put = self.as_put(id, data, ttl_ms, if_version, if_absent, if_present)
        if for_all:
            result = await self._write_for_all(put)
        else:  # as `_write`, without another coroutine
            (result,) = await self.engine.write([put], self._timeout_ms)
        return result if result > 0 else version_of(result, put.condition)

    def as_put(
        self,
        id: str,
        data: Mapping[str, Any],
        ttl_ms: int | timedelta | None,
        if_version: int | None,
        if_absent: bool,
        if_present: bool,
    ) -> Put:
        """The command that `store_session` sends. Raises InvalidSession or SessionTooLarge."""
        condition = _condition(if_version, if_absent, if_present)
        return self._encoder.put(id, data, ttl_ms, condition)

    async def store_sessions(self, sessions: Iterable[Item], *, ack: Ack | None = None) -> int:
        """Stores many: (id, data, ttl_ms) each, or (id, data) with `default_ttl_ms`. Returns how many.

        They are checked, sent and acknowledged in slices, several of which are under way at once; all of
        them together are not one transaction. Raises what `store_session` raises for the first one that
        fails, after everything under way has ended; sessions before and a few after it may be stored then.
        """
        for_all = self.is_for_all(ack)
        iterator = iter(sessions)
        under_way: deque[asyncio.Task[int]] = deque()
        stored = 0
        try:
            while batch := list(islice(iterator, self.settings.batch_size)):
                if len(under_way) >= MAX_SLICES_UNDER_WAY:
                    stored += await under_way.popleft()
                under_way.append(asyncio.ensure_future(self.store_slice(batch)))
                await asyncio.sleep(0)
            while under_way:
                stored += await under_way.popleft()
        finally:
            if under_way:
                await asyncio.gather(*under_way, return_exceptions=True)
        if for_all and stored:
            await self.show_everywhere()
        return stored

    async def show_everywhere(self) -> None:
        """Returns when every copy that may answer reads shows what was written through here."""
        await self.engine.barrier(self._timeout_ms)

    def is_for_all(self, ack: Ack | None) -> bool:
        """Raises ConfigError for what is no way to acknowledge a write."""
        ack = ack or self.settings.ack
        if ack not in ("quorum", "all"):
            raise ConfigError("ack", f"{ack!r:.40} is no way to acknowledge a write", '"quorum" or "all"')
        return ack == "all"

    async def store_slice(self, sessions: list[Item]) -> int:
        """At most `batch_size` of what `store_sessions` takes, at once."""
        for part in self._encoder.slices(sessions):
            worst = min(await self.engine.write(part, self._timeout_ms), default=1)
            if worst <= 0:
                version_of(worst, UNCONDITIONAL)
        return len(sessions)

    async def update_session(
        self,
        id: str,
        changes: Mapping[str, Any],
        *,
        remove: Iterable[str] = (),
        if_version: int | None = None,
        ack: Ack | None = None,
    ) -> int | None:
        """Sets the top-level fields in `changes` and removes those in `remove`; the other fields, and the
        expiry, stay as they are, whoever else changes them meanwhile. Returns the new version, or None if
        there is no such session. Raises as `store_session` does."""
        for_all = self.is_for_all(ack)
        limit_bytes = self.settings.max_session_size_bytes
        condition = _condition(if_version, False, False)
        key, fields = check_id(id), encode_fields(changes, limit_bytes)
        names = check_field_names(remove)
        if self._encrypts:  # a patch would tell everybody on its way what the fields are
            return await self._merge(id, changes, names, if_version, for_all)
        patch = Patch(key, fields, names, UNSET_DEADLINE, condition, limit_bytes)
        result = await self._write(patch, for_all)
        if result == UNMERGEABLE:
            return await self._merge(id, changes, names, if_version, for_all)
        if result == ABSENT or (result == CONFLICT_ABSENT and if_version is None):
            return None
        if result == TOO_LARGE:
            raise SessionTooLarge(limit_bytes + 1, limit_bytes)
        return version_of(result, condition)

    async def touch_session(self, id: str, ttl_ms: int | timedelta, *, ack: Ack | None = None) -> bool:
        """Lets the session live for `ttl_ms` from now; changes nothing else, so it never undoes a write.
        False if there is no such session. Raises as `store_session` does."""
        for_all = self.is_for_all(ack)
        touch = Touch(check_id(id), check_ttl_ms(ttl_ms), UNSET_DEADLINE)
        return _is_done(await self._write(touch, for_all))

    async def delete_session(self, id: str, *, if_version: int | None = None, ack: Ack | None = None) -> bool:
        """False if there was none. Raises as `store_session` does."""
        for_all = self.is_for_all(ack)
        condition = _condition(if_version, False, False)
        delete = Delete(check_id(id), UNSET_DEADLINE, condition)
        return _is_done(await self._write(delete, for_all), condition)

    async def rotate_session(self, old_id: str, new_id: str, *, ack: Ack | None = None) -> bool:
        """Gives the session a new id, at a stroke: for logins, so that an id known before is worth nothing
        after. False if there is none under the old id. Raises VersionConflict if the new one is taken, and
        otherwise as `store_session` does."""
        for_all = self.is_for_all(ack)
        old_key, new_key = check_id(old_id), check_id(new_id)
        if old_key == new_key:
            raise InvalidSession("new_id", "it is the old one: a rotation needs another")
        if not self._encrypts:
            result = await self._write(Rotate(old_key, new_key, UNSET_DEADLINE), for_all)
            if result != UNMERGEABLE:
                return _is_rotated(result)
        return await self._rotate_encrypted(old_id, old_key, new_key, for_all)

    # --- reading ----------------------------------------------------------------------------------------

    async def get_session(self, id: str, *, read: Read = "local") -> dict[str, Any] | None:
        """The data, as a fresh object, or None if there is no such session.

        `read`: "local" from this host's copy, in microseconds; "primary" linearizably; "stale" from the copy
        however old it is. Raises StaleRead, NotReady or Unavailable: never None for want of an answer.
        """
        record = await self._record(id, read)
        return None if record is None else decode_record(record, id.encode(), self.keyring)

    async def get_session_record(self, id: str, *, read: Read = "local") -> Session | None:
        """Like `get_session`, with version and expiry."""
        record = await self._record(id, read)
        return None if record is None else session_of(id, record, self.keyring)

    async def get_all_sessions(self) -> list[str]:
        """The ids of all live sessions of this host's copy. Raises StaleRead or NotReady."""
        ids = await self.engine.call("ids", self._timeout_ms)
        return [id.decode() for id in ids]

    async def session_count(self) -> int:
        """How many live sessions this host's copy has. Raises StaleRead or NotReady."""
        count: int = await self.engine.call("count", self._timeout_ms)
        return count

    # --- events -----------------------------------------------------------------------------------------

    def events(self, *, max_waiting: int = MAX_WAITING_EVENTS) -> EventStream:
        """What happens from now on to the sessions of this node's copy, and to the node: see hotspare.events.

            async for event in replicator.events():
                ...

        Who is slow makes nobody wait: above `max_waiting` events the oldest ones become a Missed. They end
        when this replicator is stopped. Raises NotReady, and in a client Unavailable while no node answers.
        """
        return EventStream(self.engine.watch(max_waiting))

    # --- operating --------------------------------------------------------------------------------------

    async def get_replication_status(self) -> dict[str, Any]:
        """How this node sees itself and the cluster: plain values."""
        status: dict[str, Any] = await self.engine.call("status", self._timeout_ms)
        return status

    async def get_metrics(self) -> dict[str, Any]:
        """This node's figures; durations in ms, lag over the last ten seconds."""
        metrics: dict[str, Any] = await self.engine.call("metrics", self._timeout_ms)
        return metrics

    async def promote_to_primary(self, *, force: bool = False) -> str:
        """Writes what is pending and makes this node the primary, in an orderly way: nothing is lost and no
        writer sees an error. Returns when it is the primary, and says so. Raises Refused or Unavailable.

        With `force`, where a majority of the members is lost for good: this node goes on alone, as a new
        cluster, from what it has. What only the others had is lost, acknowledged or not; they can take part
        again when they are started without their state. Refused while a primary or a majority answers.
        """
        text: str = await self.engine.call("fork" if force else "promote", self._timeout_ms)
        return text

    async def trigger_failover(self, node: str) -> str:
        """The primary named: moves the leadership to the most up-to-date secondary. A secondary that does
        not answer: takes its vote away until it is back. A healthy secondary: there is nothing to do. Says
        which. Raises UnknownNode, Refused or Unavailable."""
        text: str = await self.engine.call("failover", self._timeout_ms, node=_name(node))
        return text

    async def add_node(self, node: str) -> str:
        """Takes a running, empty node ("host:port") into the cluster: as a learner first, and as a member
        that votes when it has caught up. Returns then, or says that it is still to come. Raises
        ClusterMismatch if it belongs to another cluster, Refused or Unavailable."""
        text: str = await self.engine.call("add", self._timeout_ms, node=_name(node))
        return text

    async def remove_node(self, node: str) -> str:
        """Takes a member out of the cluster, whether it answers or not; a primary hands over first. The node
        acts no more, and says so. Raises UnknownNode, Refused (if those who remain could not go on) or
        Unavailable."""
        text: str = await self.engine.call("remove", self._timeout_ms, node=_name(node))
        return text

    # --- inside -----------------------------------------------------------------------------------------

    async def _record(self, id: str, read: Read) -> bytes | None:
        if read == "local" and self.engine.has_copy:
            return self.engine.read_local(check_id(id))
        if read not in ("local", "primary", "stale"):
            raise ConfigError("read", f"{read!r:.40} is no way to read", '"local", "primary" or "stale"')
        return await self.engine.fetch(check_id(id), read, self._timeout_ms)

    async def _write(self, command: Command, for_all: bool) -> int:
        if for_all:
            return await self._write_for_all(command)
        (result,) = await self.engine.write([command], self._timeout_ms)
        return result

    async def _write_for_all(self, command: Command) -> int:
        give_up = monotonic() + self._timeout_ms / 1000
        (result,) = await self.engine.write([command], self._timeout_ms)
        if result > 0 or result in (ABSENT, CONFLICT_ABSENT):  # the caller will rely on it
            await self.engine.barrier(max(1, int(1000 * (give_up - monotonic()))))
        return result

    async def _merge(
        self,
        id: str,
        changes: Mapping[str, Any],
        remove: list[str],
        if_version: int | None,
        for_all: bool,
    ) -> int | None:
        """What `update_session` does with a session that cannot be merged where it is stored: here, under
        the exact version that was read."""
        for _ in range(MERGE_ATTEMPTS):
            session = await self.get_session_record(id, read="primary")
            current = session.version if session is not None else None
            if if_version is not None and if_version != current:
                raise VersionConflict(if_version, current)
            if session is None:
                return None
            kept = {name: value for name, value in session.data.items() if name not in remove}
            put = self._encoder.encoded_put(id, kept | dict(changes), KEEP_EXPIRY_MS, session.version)
            result = await self._write(put, for_all)
            if result == CONFLICT_ABSENT and if_version is None:
                return None
            if if_version is not None or conflicting_version(result) is None:
                return version_of(result, session.version)
        raise Unavailable("others changed the session faster than the update could be merged")

    async def _rotate_encrypted(self, old_id: str, old_key: bytes, new_key: bytes, for_all: bool) -> bool:
        """What `rotate_session` does with data that is bound to its id: encrypts it for the new one, under
        the exact version that was read."""
        for _ in range(MERGE_ATTEMPTS):
            record = await self._record(old_id, "primary")
            if record is None:
                return False
            flags, data = decrypt_record(record, old_key, self.keyring)
            if self.keyring is not None:
                flags, data = self.keyring.encrypt(new_key, flags, data)
            version, checksum = record_version(record), data_checksum(new_key, data, flags)
            rotate = Rotate(old_key, new_key, UNSET_DEADLINE, version, data, flags, checksum)
            result = await self._write(rotate, for_all)
            if conflicting_version(result) is None:
                return _is_rotated(result)
        raise Unavailable("others changed the session faster than it could be encrypted for its new id")

    @property
    def _encrypts(self) -> bool:
        return self.keyring is not None and self.keyring.encrypts


class EventStream:
    """The events of one consumer, in order. Leave it with `async with`, `close()`, or by letting go of it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._taken: deque[Event] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._taken:
            self._taken.extend(await self._source.take())
        if not self._taken:
            raise StopAsyncIteration
        return self._taken.popleft()

    async def take(self) -> list[Event]:
        """All that are here, at least one; none when it is over."""
        taken = [*self._taken] or await self._source.take()
        self._taken.clear()
        return taken

    def close(self) -> None:
        """It ends after what is here already."""
        self._source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def session_of(id: str, record: bytes, cipher: Cipher | None) -> Session:
    data = decode_record(record, id.encode(), cipher)
    return Session(id, data, record_version(record), record_expires_at_ms(record))


def _settings(settings: Settings | None, overrides: dict[str, Any]) -> Settings:
    return Settings.load(**overrides) if settings is None else settings.changed(**overrides)


def _engine_for(settings: Settings) -> Engine:
    if settings.attach is not None and settings.enabled:
        from hotspare.cluster.attached import AttachedEngine

        return AttachedEngine(settings)
    from hotspare.cluster.node import ClusterNode
    from hotspare.store.plain import PlainStore

    if settings.storage_mode != "memory":
        problem = f"{settings.storage_mode!r} is for daemons: a node in a program keeps all in its memory"
        raise ConfigError("storage_mode", problem, "memory, or a node run by hotspare serve")
    return ClusterNode(settings, PlainStore(volatile=True))


def _name(node: object) -> str:
    if type(node) is not str:
        raise ConfigError("node", f"it is of type {type(node).__name__}", 'the name of a node, "host:port"')
    return node


def _condition(if_version: int | None, if_absent: bool, if_present: bool) -> int:
    given = (if_version is not None) + bool(if_absent) + bool(if_present)
    if given > 1:
        raise InvalidSession("condition", "give only one of if_version, if_absent and if_present")
    if if_version is not None:
        if type(if_version) is not int or if_version <= 0:
            raise InvalidSession("if_version", "it must be a version that hotspare gave, a positive int")
        return if_version
    return IF_ABSENT if if_absent else IF_PRESENT if if_present else UNCONDITIONAL


def _is_rotated(result: int) -> bool:
    if result == TAKEN:
        raise VersionConflict("absent", None)
    return _is_done(result)


def _is_done(result: int, condition: int = UNCONDITIONAL) -> bool:
    return False if result == ABSENT else version_of(result, condition) > 0


def version_of(result: int, condition: int) -> int:
    """The version, or what the result says instead, as an exception."""
    if result > 0:
        return result
    expected = {IF_ABSENT: "absent", IF_PRESENT: "present"}.get(condition, condition)
    if result == CONFLICT_ABSENT:
        raise VersionConflict(expected, None)
    current = conflicting_version(result)
    if current is not None:
        raise VersionConflict(expected, current)
    if result in _REFUSALS:
        raise Unavailable(_REFUSALS[result])
    raise InvalidSession("command", "the cluster refused it as malformed: do all nodes run the same version?")


_REFUSALS = {
    EXPIRED: "it was ordered after its deadline, so it was left out",
    FULL: "the cluster holds as many sessions as max_memory_bytes allows",
}
