"""The settings of a node: one frozen value, valid by construction.

They come from a TOML file, the environment and keyword arguments; later ones win. Types, limits and defaults
stand once, at the fields. Types are exact: true is not a number, and "100" is one in the environment only.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, get_type_hints

import msgspec
from msgspec import Meta

from hotspare.errors import ConfigError

__all__ = ["Address", "Settings", "is_loopback"]

TABLE = "session_replication"
DEFAULT_FILE = "hotspare.toml"
ENVIRONMENT_PREFIX = "HOTSPARE_"
FILE_VARIABLE = "HOTSPARE_CONFIG"
# What Kubernetes tells every pod about services called hotspare or hotspare-something.
SERVICE_LINK = re.compile(
    r"HOTSPARE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)

MIN_KEY_BYTES = 16
"""Of the cluster's key: shorter ones can be guessed by whoever has overheard a handshake."""

MAX_REPLICAS = 6
"""Other members than the node itself: more than seven voters make every write slower and nothing safer."""

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1, le=10_000)]
# An hour is longer than anything here can sensibly wait.
Milliseconds = Annotated[int, Meta(ge=1, le=3_600_000)]
Ttl = Annotated[int, Meta(ge=1, le=100 * 366 * 86_400_000)]
SessionSize = Annotated[int, Meta(ge=1, le=2**20)]
MemorySize = Annotated[int, Meta(ge=2**20, le=2**46)]
# With one missed check as the limit, every late heartbeat would be a failover.
Threshold = Annotated[int, Meta(ge=2, le=100)]

# What this version can do of the settings whose features are still to come: any other value is refused.
AVAILABLE: Mapping[str, tuple[Any, ...]] = {
    "storage_mode": ("memory", "disk"),
    "redis_url": (None,),
}

# Never shown: not in an error, not in a repr.
SECRET = frozenset({"cluster_key", "encryption_keys", "redis_url"})

LISTS = {
    "replica_nodes": "a list of host:port",
    "encryption_keys": "a list of keys, each the base64 of 32 random bytes",
}
"""What the settings expect that are lists. In the environment they have commas."""

PLAIN = "plain"
"""Among the encryption keys: no encryption."""
ENCRYPTION_KEY_BYTES = 32

# The original's names for them.
STORAGE_ALIASES = {"ets": "memory", "mnesia": "disk"}


class Address(NamedTuple):
    """Where a node listens. Written host:port, with an IPv6 host in brackets: [::1]:7401."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def from_here(self) -> Address:
        """The address from this host, of a node that may listen on all of them."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        return Address(loopback.get(self.host, self.host), self.port)

    @classmethod
    def parse(cls, text: str, *, key: str = "address", ephemeral: bool = False) -> Address:
        """Reads host:port, and brings the host into its one canonical spelling.

        `key` is the setting that an error names. Port 0, any free port, is for `ephemeral` addresses only.
        Raises ConfigError.
        """
        host, colon, port = text.rpartition(":")
        if not colon:
            _reject_address(key, f"{text!r} has no port")
        if not re.fullmatch(r"[0-9]{1,5}", port) or not (0 if ephemeral else 1) <= int(port) <= 65535:
            _reject_address(key, f"{text!r} has no port from 1 to 65535")
        if host.startswith("[") and host.endswith("]"):
            host = _canonical_ip(host[1:-1], 6) or _reject_address(key, f"{text!r} holds no IPv6 address")
        elif ":" in host:
            _reject_address(key, f"{text!r} is no host and port; an IPv6 address needs brackets: [::1]:7401")
        elif re.fullmatch(r"[0-9.]+", host):
            host = _canonical_ip(host, 4) or _reject_address(key, f"{text!r} holds no IPv4 address")
        elif len(host) > 253 or not re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", host):
            _reject_address(key, f"{text!r} has no usable host name")
        return cls(host.lower(), int(port))


def _canonical_ip(text: str, version: int) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(address) if address.version == version else None


def _reject_address(key: str, problem: str) -> NoReturn:
    raise ConfigError(key, problem, "host:port, such as 127.0.0.1:7401")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. No name but localhost counts: names can change."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. An instance that exists is valid: anything else raises ConfigError.

    Several sources: `Settings.load`.
    """

    enabled: bool = True
    """Whether to replicate at all; false keeps sessions in this process only, without a network."""

    node: Text = "127.0.0.1:7401"
    """The node's name, and its address (host:port) unless `listen` and `advertise` say otherwise."""
    listen: Text | None = None
    """Where it listens; `node` when not given. Port 0 takes any free port."""
    advertise: Text | None = None
    """Where the others reach it; `node` when not given."""
    replica_nodes: tuple[Text, ...] = ()
    """The other nodes. The node's own name may be among them: all nodes can share one list."""
    role: Literal["member", "observer"] = "member"
    attach: Text | None = None
    """For replicators: the address of a daemon on this host, whose copy is read instead of keeping one."""
    attach_group: Text | None = None
    """For daemons: the group of users whose processes may read its copy; only its own user when not given."""

    batch_size: Count = 100
    batch_timeout_ms: Milliseconds = 20
    """How long a write waits for company, at most; a lone write does not wait."""
    replication_rpc_timeout_ms: Milliseconds = 5000
    """How long a write may take, a failover included."""
    ack: Literal["quorum", "all"] = "quorum"
    """When a write returns that does not say so itself: `quorum` once a majority has it; `all` once, beyond
    that, every copy that may answer reads shows it."""

    health_check_interval_ms: Milliseconds = 200
    """Time between two heartbeats."""
    failure_threshold: Threshold = 5
    """Missed heartbeats after which a silent node counts as gone."""
    max_staleness_ms: Milliseconds = 1000
    """How long a copy that hears nothing from the primary goes on answering reads: the length of its lease.
    To be the same on all nodes."""
    max_clock_skew_ms: Milliseconds = 500
    """How far the nodes' clocks may differ."""

    storage_mode: Literal["memory", "disk", "redis"] = "memory"
    """`ets` and `mnesia` are accepted for memory and disk."""
    data_dir: Text | None = None
    """Where a daemon keeps its store. In memory mode a place is chosen when none is given."""
    max_memory_bytes: MemorySize = 2**30
    """What all sessions together may take; from there on, writes that need more are refused."""
    cleanup_interval_ms: Milliseconds = 30_000
    """How often an idle primary removes expired sessions."""

    default_ttl_ms: Ttl | None = None
    """The TTL of sessions stored without one; when not set, a TTL must be given."""
    max_session_size_bytes: SessionSize = 65_536
    """Of one session's data, encoded."""
    enable_compression: bool = False
    """Whether to compress larger sessions where they are written; needs the extra `compression`."""

    cluster_key: Text | None = None
    """What nodes and clients must know to be let in."""
    cluster_key_file: Text | None = None
    """A file with that key, in place of it."""
    encryption_keys: tuple[Text, ...] = ()
    """Of processes that write or read sessions: the first one encrypts, all decrypt. Needs the extra
    `encryption`."""
    encryption_keys_file: Text | None = None
    """A file with the same, one a line."""
    tls_cert: Text | None = None
    """A file with the certificate of this node or client, in PEM; its private key in `tls_key`."""
    tls_key: Text | None = None
    tls_ca: Text | None = None
    """A file with the certificate of the cluster's own authority, which has signed everybody's."""
    redis_url: Text | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> Settings:
        """Settings from a TOML file (`[session_replication]`), HOTSPARE_<KEY> variables and arguments.

        Without `path` the file is the one HOTSPARE_CONFIG names, or else `hotspare.toml` in the working
        directory, if it is there. Empty variables and arguments that are None count as not given. Raises
        ConfigError for an unknown key, a bad value, and a file that cannot be read.
        """
        environ = os.environ if environ is None else environ
        given = ((key, value, "") for key, value in overrides.items() if value is not None)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for key, value, source in chain(_read_file(path, environ), _read_environment(environ), given):
            _check_known(key, source)
            values[key], sources[key] = value, source
        try:
            return cls(**values)
        except ConfigError as exc:
            exc.source = sources.get(exc.key, "")
            raise

    def changed(self, **overrides: Any) -> Settings:
        """These settings with some of them replaced. Raises ConfigError."""
        for key in overrides:
            _check_known(key, "")
        return msgspec.structs.replace(self, **overrides)

    def __post_init__(self) -> None:
        set_value = msgspec.structs.force_setattr
        for key in KEYS:
            set_value(self, key, _checked(key, getattr(self, key)))
        for key, allowed in AVAILABLE.items():
            _check_available(key, getattr(self, key), allowed)
        set_value(self, "node", str(self.address))
        if self.attach is not None:
            set_value(self, "attach", str(Address.parse(self.attach, key="attach")))
        set_value(self, "replica_nodes", self._other_nodes())
        self._check_security()
        self._check_reach()
        self._check_encryption_keys()

    @property
    def address(self) -> Address:
        return Address.parse(self.node, key="node")

    @property
    def listen_address(self) -> Address:
        return (
            self.address if self.listen is None else Address.parse(self.listen, key="listen", ephemeral=True)
        )

    @property
    def advertise_address(self) -> Address:
        return self.address if self.advertise is None else Address.parse(self.advertise, key="advertise")

    @property
    def election_timeout_ms(self) -> int:
        """How long silence lasts until it means that a node is gone."""
        return self.health_check_interval_ms * self.failure_threshold

    def _other_nodes(self) -> tuple[str, ...]:
        names = [str(Address.parse(text, key="replica_nodes")) for text in self.replica_nodes]
        for position, name in enumerate(names):
            if name in names[:position]:
                raise ConfigError("replica_nodes", f"{name} is listed twice", "every node once")
        others = tuple(name for name in names if name != self.node)
        limit = MAX_REPLICAS if self.role == "member" else MAX_REPLICAS + 1
        if len(others) > limit:
            raise ConfigError("replica_nodes", f"it lists {len(others)} other nodes", f"at most {limit}")
        if self.role == "observer" and self.enabled and not others:
            raise ConfigError("replica_nodes", "an observer needs somebody to observe", "some of the members")
        return others

    def _check_security(self) -> None:
        """What can be said of it without looking into files."""
        if self.cluster_key is not None and self.cluster_key_file is not None:
            raise ConfigError("cluster_key_file", "cluster_key is given as well", "one of the two")
        if self.cluster_key is not None and len(self.cluster_key.encode()) < MIN_KEY_BYTES:
            expected = f"at least {MIN_KEY_BYTES} random bytes, as `hotspare new-key` makes them"
            raise ConfigError("cluster_key", "it is too short", expected)
        tls = {key: getattr(self, key) for key in ("tls_cert", "tls_key", "tls_ca")}
        for key, value in tls.items():
            if value is None and any(tls.values()):
                given = " and ".join(key for key, value in tls.items() if value is not None)
                raise ConfigError(key, f"it is missing, and {given} is given", "all three or none of them")

    def _check_reach(self) -> None:
        """Where nobody proves who they are, nothing may leave the machine."""
        addresses = [
            ("listen" if self.listen else "node", self.listen_address),
            ("advertise" if self.advertise else "node", self.advertise_address),
            *(("replica_nodes", Address.parse(name)) for name in self.replica_nodes),
        ]
        proofs = (self.cluster_key, self.cluster_key_file, self.tls_ca)
        if self.enabled and proofs == (None, None, None):
            for key, address in addresses:
                _require_loopback(key, address)

    def _check_encryption_keys(self) -> None:
        if self.encryption_keys and self.encryption_keys_file is not None:
            raise ConfigError(
                "encryption_keys_file",
                "encryption_keys are given too, so one would be ignored",
                "one of them",
            )
        for text in self.encryption_keys:
            read_encryption_key(text)

    def __repr__(self) -> str:
        changed = {
            key: "(hidden)" if key in SECRET else value
            for (key, value), default in zip(
                msgspec.structs.asdict(self).items(), self.__struct_defaults__, strict=True
            )
            if value != default
        }
        return f"Settings({', '.join(f'{key}={value!r}' for key, value in changed.items())})"


KEYS: tuple[str, ...] = Settings.__struct_fields__
_TYPES: dict[str, Any] = {
    key: hint for key, hint in get_type_hints(Settings, include_extras=True).items() if key in KEYS
}


def _check_known(key: str, source: str) -> None:
    if key in KEYS:
        return
    near = get_close_matches(key, KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(KEYS)}"
    raise ConfigError(key, "there is no such setting", f"one that exists; {hint}", source)


def _checked(key: str, value: Any, source: str = "", *, exactly: bool = True) -> Any:
    if key == "storage_mode" and isinstance(value, str):
        value = STORAGE_ALIASES.get(value, value)
    try:
        return msgspec.convert(value, _TYPES[key], strict=exactly)
    except msgspec.ValidationError:
        problem = "its value does not fit" if key in SECRET else f"{value!r:.100} does not fit"
        raise ConfigError(key, problem, LISTS.get(key) or _describe(_TYPES[key]), source) from None


def read_encryption_key(text: str) -> bytes | None:
    """The 32 bytes of a key; None for the word "plain". Raises ConfigError, without the key."""
    if text == PLAIN:
        return None
    try:
        key = b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        key = b""
    if len(key) != ENCRYPTION_KEY_BYTES:
        raise ConfigError(
            "encryption_keys",
            "one of the keys is not the base64 of exactly 32 bytes",
            "what `openssl rand -base64 32` prints",
        )
    return key


def _check_available(key: str, value: Any, allowed: Sequence[Any]) -> None:
    if value in allowed:
        return
    if None in allowed:
        raise ConfigError(key, "this version does not have it yet", "no value")
    raise ConfigError(key, f"this version does not have {value!r} yet", " or ".join(map(str, allowed)))


def _require_loopback(key: str, address: Address) -> None:
    if not is_loopback(address.host):
        raise ConfigError(
            key,
            f"{address} can be reached from other machines, and without a cluster_key anyone there could "
            "read and change all sessions",
            "a loopback address (127.0.0.0/8, ::1 or localhost), or a cluster_key",
        )


def _describe(hint: Any) -> str:
    """A type and its limits in words."""
    kind = msgspec.inspect.type_info(hint)
    if isinstance(kind, msgspec.inspect.UnionType):  # with None, which nobody writes
        kind = kind.types[0]
    match kind:
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case msgspec.inspect.StrType():
            return "a text that is not empty"
        case msgspec.inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
    raise AssertionError(f"there are no words for settings of the kind {kind}")


def _read_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    """Key, value and source of every setting there. Numbers are written as text, and lists with commas."""
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        if variable == FILE_VARIABLE or SERVICE_LINK.fullmatch(variable):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        source = f"the environment variable {variable}"
        yield key, _from_text(key, text, source) if key in KEYS else text, source


def _from_text(key: str, text: str, source: str) -> Any:
    value = [part.strip() for part in text.split(",")] if key in LISTS else text.strip()
    return _checked(key, value, source, exactly=False)


def _read_file(
    path: str | os.PathLike[str] | None, environ: Mapping[str, str]
) -> Iterator[tuple[str, Any, str]]:
    """Key, value and source of every setting in the file. Only the default file may be missing."""
    named = path or environ.get(FILE_VARIABLE)
    file = Path(named or DEFAULT_FILE)
    if not named and not file.exists():
        return
    source = f"the file {file}"
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError("config", f"{file} cannot be read ({exc.strerror})", "a file that exists") from exc
    except ValueError as exc:
        raise ConfigError(
            "config", f"{file} is not TOML ({exc})", f"a TOML file with a table [{TABLE}]"
        ) from exc
    table = content.pop(TABLE, {})
    for stray in content:
        raise ConfigError(
            stray, f"it stands outside the table [{TABLE}]", "every setting in that table", source
        )
    if not isinstance(table, dict):
        raise ConfigError(TABLE, f"{table!r:.100} is no table", f"settings under [{TABLE}]", source)
    for key, value in table.items():
        yield key, value, source
