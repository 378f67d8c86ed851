from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotspare.errors import ConfigError
from hotspare.settings import AVAILABLE, KEYS, SERVICE_LINK, Address, Settings, is_loopback

DEFAULTS: dict[str, Any] = {
    "enabled": True,
    "node": "127.0.0.1:7401",
    "listen": None,
    "advertise": None,
    "replica_nodes": (),
    "role": "member",
    "attach": None,
    "attach_group": None,
    "batch_size": 100,
    "batch_timeout_ms": 20,
    "replication_rpc_timeout_ms": 5000,
    "ack": "quorum",
    "health_check_interval_ms": 200,
    "failure_threshold": 5,
    "max_staleness_ms": 1000,
    "max_clock_skew_ms": 500,
    "storage_mode": "memory",
    "data_dir": None,
    "max_memory_bytes": 1024 * 1024 * 1024,
    "cleanup_interval_ms": 30000,
    "default_ttl_ms": None,
    "max_session_size_bytes": 65536,
    "enable_compression": False,
    "cluster_key": None,
    "cluster_key_file": None,
    "encryption_keys": (),
    "encryption_keys_file": None,
    "tls_cert": None,
    "tls_key": None,
    "tls_ca": None,
    "redis_url": None,
}

KEY = "0123456789abcdef"

SEVEN = [f"127.0.0.1:{port}" for port in range(7401, 7408)]


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str) -> Path:
    path.write_text("[session_replication]\n" + text, encoding="utf-8")
    return path


def refusal(environ: dict[str, str] | None = None, path: Path | None = None, **values: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Settings.load(path, environ or {}, **values)
    return caught.value


def refusal_of(key: str, value: Any) -> ConfigError:
    values: dict[str, Any] = {key: value}
    return refusal(**values)


# Defaults and sources


def test_the_defaults_are_the_documented_ones():
    assert msgspec.structs.asdict(Settings()) == DEFAULTS
    assert Settings.load(environ={}) == Settings()


def test_later_sources_win(tmp_path: Path):
    file = write(tmp_path / "a.toml", "batch_size = 1\nbatch_timeout_ms = 1\nfailure_threshold = 2\n")
    environ = {"HOTSPARE_BATCH_TIMEOUT_MS": "2", "HOTSPARE_FAILURE_THRESHOLD": "3"}
    settings = Settings.load(file, environ, failure_threshold=4)
    assert (settings.batch_size, settings.batch_timeout_ms, settings.failure_threshold) == (1, 2, 4)


def test_hotspare_toml_in_the_working_directory_is_read():
    write(Path("hotspare.toml"), "batch_size = 7")
    assert Settings.load(environ={}).batch_size == 7


def test_a_named_file_takes_the_place_of_the_default_one(tmp_path: Path):
    write(Path("hotspare.toml"), "batch_size = 7")
    by_variable = write(tmp_path / "variable.toml", "batch_size = 8")
    by_path = write(tmp_path / "path.toml", "batch_size = 9")
    environ = {"HOTSPARE_CONFIG": str(by_variable)}
    assert Settings.load(environ=environ).batch_size == 8
    assert Settings.load(by_path, environ).batch_size == 9


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOTSPARE_BATCH_SIZE", "12")
    assert Settings.load().batch_size == 12


def test_every_kind_of_value_can_be_written_in_the_environment():
    environ = {
        "HOTSPARE_ENABLED": "false",
        "HOTSPARE_ENABLE_COMPRESSION": "1",
        "HOTSPARE_REPLICA_NODES": "127.0.0.1:7402, 127.0.0.1:7403",
        "HOTSPARE_DEFAULT_TTL_MS": "60000",
        "HOTSPARE_DATA_DIR": "/var/lib/hotspare",
        "HOTSPARE_STORAGE_MODE": "ets",
    }
    assert Settings.load(environ=environ) == Settings(
        enabled=False,
        enable_compression=True,
        replica_nodes=("127.0.0.1:7402", "127.0.0.1:7403"),
        default_ttl_ms=60_000,
        data_dir="/var/lib/hotspare",
        storage_mode="memory",
    )


def test_empty_variables_and_arguments_that_are_none_count_as_not_given():
    environ = {"HOTSPARE_BATCH_SIZE": "", "HOTSPARE_DATA_DIR": "/a"}
    assert Settings.load(environ=environ, data_dir=None) == Settings(data_dir="/a")


@pytest.mark.parametrize(
    "variable",
    [
        "HOTSPARE_SERVICE_HOST",
        "HOTSPARE_SERVICE_PORT",
        "HOTSPARE_SERVICE_PORT_NODES",
        "HOTSPARE_PORT",
        "HOTSPARE_PORT_7401_TCP",
        "HOTSPARE_PORT_7401_TCP_ADDR",
        "HOTSPARE_0_SERVICE_HOST",
        "HOTSPARE_0_PORT_7401_TCP_PROTO",
        "PATH",
    ],
)
def test_variables_that_are_about_something_else_are_left_alone(variable: str):
    assert Settings.load(environ={variable: "tcp://10.0.0.1:7401"}) == Settings()


def test_no_setting_looks_like_a_variable_about_a_service():
    assert not any(SERVICE_LINK.fullmatch(f"HOTSPARE_{key.upper()}") for key in KEYS)


# Refusals


@pytest.mark.parametrize("key", sorted(set(KEYS) - {"enabled", "enable_compression"}))
@pytest.mark.parametrize("value", [True, 1.5, b"5", {}, ""], ids=["bool", "float", "bytes", "dict", "empty"])
def test_a_value_of_another_type_is_refused_by_name(key: str, value: Any):
    error = refusal_of(key, value)
    assert error.key == key
    assert error.expected


@pytest.mark.parametrize("key", ["enabled", "enable_compression"])
@pytest.mark.parametrize("value", [0, 1, "true", 1.0], ids=["zero", "one", "text", "float"])
def test_only_true_and_false_are_bools(key: str, value: Any):
    assert refusal_of(key, value).expected == "true or false"


@pytest.mark.parametrize(
    ("key", "lowest", "highest"),
    [
        ("batch_size", 1, 10_000),
        ("batch_timeout_ms", 1, 3_600_000),
        ("replication_rpc_timeout_ms", 1, 3_600_000),
        ("health_check_interval_ms", 1, 3_600_000),
        ("failure_threshold", 2, 100),
        ("max_staleness_ms", 1, 3_600_000),
        ("max_clock_skew_ms", 1, 3_600_000),
        ("cleanup_interval_ms", 1, 3_600_000),
        ("max_session_size_bytes", 1, 1_048_576),
        ("max_memory_bytes", 1_048_576, 2**46),
        ("default_ttl_ms", 1, 3_162_240_000_000),
    ],
)
def test_numbers_have_limits_and_the_error_names_them(key: str, lowest: int, highest: int):
    for allowed in (lowest, highest):
        values: dict[str, Any] = {key: allowed}
        assert getattr(Settings.load(environ={}, **values), key) == allowed
    for refused in (lowest - 1, highest + 1, 2**70, str(lowest)):
        assert refusal_of(key, refused).expected == f"a whole number from {lowest} to {highest}"


def test_settings_built_directly_are_checked_too():
    with pytest.raises(ConfigError, match="batch_size"):
        Settings(batch_size=0)
    with pytest.raises(ConfigError, match="batch_size"):
        msgspec.structs.replace(Settings(), batch_size=0)


def test_an_unknown_key_is_an_error_that_guesses_what_was_meant(tmp_path: Path):
    assert "did you mean batch_size?" in str(refusal(batch_sise=5))
    assert "did you mean replica_nodes?" in str(refusal({"HOTSPARE_REPLICANODES": "127.0.0.1:7402"}))
    assert "did you mean listen?" in str(refusal(path=write(tmp_path / "a.toml", "listn = 1")))
    assert all(key in str(refusal(zzz=1)) for key in KEYS)


def test_an_error_names_where_the_value_came_from(tmp_path: Path):
    file = write(tmp_path / "a.toml", "batch_size = 0")
    assert refusal({"HOTSPARE_BATCH_SIZE": "many"}).source == "the environment variable HOTSPARE_BATCH_SIZE"
    assert refusal({"HOTSPARE_NODE": "10.0.0.1:1"}).source == "the environment variable HOTSPARE_NODE"
    assert refusal({"HOTSPARE_NOPE": "1"}).source == "the environment variable HOTSPARE_NOPE"
    assert refusal(path=file).source == f"the file {file}"
    assert refusal(path=file, batch_size=-1).source == ""


def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path):
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"[session_replication\xff")
    assert str(tmp_path / "missing.toml") in str(refusal(path=tmp_path / "missing.toml"))
    assert "cannot be read" in str(refusal({"HOTSPARE_CONFIG": str(tmp_path)}))
    assert "is not TOML" in str(refusal(path=broken))


def test_settings_outside_the_table_are_not_silently_ignored(tmp_path: Path):
    stray, flat = tmp_path / "stray.toml", tmp_path / "flat.toml"
    stray.write_text("batch_size = 5\n")
    flat.write_text("session_replication = 5\n")
    assert refusal(path=stray).key == "batch_size"
    assert "[session_replication]" in str(refusal(path=stray))
    assert refusal(path=flat).key == "session_replication"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("storage_mode", "redis"),
        *((key, "x") for key, allowed in AVAILABLE.items() if None in allowed),
    ],
)
def test_what_this_version_cannot_do_is_refused_as_that(key: str, value: str):
    error = refusal_of(key, value)
    assert error.key == key
    assert "this version does not have" in str(error)


@pytest.mark.parametrize("key", ["cluster_key", "encryption_keys", "redis_url"])
def test_secrets_are_in_no_error(key: str):
    for secret in ("hunter2", ["hunter2"]):
        assert "hunter2" not in str(refusal_of(key, secret))


def test_secrets_are_not_shown():
    shown = repr(Settings(cluster_key="hunter2-and-more", batch_size=5))
    assert shown == "Settings(batch_size=5, cluster_key='(hidden)')"


# Addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7401", "127.0.0.1", 7401),
        ("[::1]:7401", "::1", 7401),
        ("[0:0:0:0:0:0:0:1]:1", "::1", 1),
        ("LocalHost:65535", "localhost", 65535),
        ("node_1.Example.org:7401", "node_1.example.org", 7401),
    ],
)
def test_addresses_are_read_into_one_spelling(text: str, host: str, port: int):
    address = Address.parse(text)
    assert address == (host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "127.0.0.1", "127.0.0.1:", ":7401", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1"),
        *("127.0.0.1:7401x", "127.0.0.1: 7401", "::1:7401", "[::1]", "[::1:7401", "[127.0.0.1]:1", "[]:1"),
        *("1.2.3:7401", "256.0.0.1:7401", "http://localhost:7401", "a b:1", "a..b:1", f"{'a' * 64}:1"),
        *("a:1,b:2", "localhost:\N{ARABIC-INDIC DIGIT THREE}", "127.0.0.1:7401\n", "a/b:1", "user@host:1"),
    ],
)
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(ConfigError, match="expected host:port") as caught:
        Address.parse(text, key="listen")
    assert caught.value.key == "listen"


@given(st.text(max_size=40))
def test_an_address_is_read_or_refused_and_nothing_else(text: str):
    try:
        address = Address.parse(text)
    except ConfigError:
        return
    assert Address.parse(str(address)) == address


def test_only_listen_may_leave_the_port_to_the_system():
    assert Settings(listen="127.0.0.1:0").listen_address == ("127.0.0.1", 0)
    for key in ("node", "advertise", "replica_nodes"):
        value = ["127.0.0.1:0"] if key == "replica_nodes" else "127.0.0.1:0"
        assert refusal_of(key, value).key == key


def test_listen_and_advertise_follow_the_node_unless_said_otherwise():
    settings = Settings(node="127.0.0.1:7402")
    assert settings.address == settings.listen_address == settings.advertise_address == ("127.0.0.1", 7402)
    settings = Settings(node="127.0.0.1:7402", listen="[::1]:1", advertise="localhost:2")
    assert settings.address == ("127.0.0.1", 7402)
    assert settings.listen_address == ("::1", 1)
    assert settings.advertise_address == ("localhost", 2)


def test_bad_addresses_are_refused_even_where_there_is_no_network():
    assert refusal(enabled=False, listen="nonsense").key == "listen"


def test_all_nodes_can_share_one_list_of_all_nodes():
    assert Settings(node=SEVEN[0], replica_nodes=tuple(SEVEN)).replica_nodes == tuple(SEVEN[1:])
    spelled_otherwise = Settings.load(environ={}, node="[::1]:1", replica_nodes=["[0::1]:1", "LOCALHOST:2"])
    assert spelled_otherwise.replica_nodes == ("localhost:2",)


def test_a_node_listed_twice_and_too_many_nodes_are_refused():
    assert "127.0.0.1:7402 is listed twice" in str(
        refusal(replica_nodes=["127.0.0.1:7402", "127.0.0.1:7402"])
    )
    assert "at most 6" in str(refusal(replica_nodes=[*SEVEN, "127.0.0.1:7408"]))
    assert refusal(replica_nodes="127.0.0.1:7402").expected == "a list of host:port"


# Reach


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.255.254", "::1", "localhost", "LOCALHOST"])
def test_loopback_hosts_are_known(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "localhost.example.org", "127.0.0.1.example.org", ""]
)
def test_everything_else_is_not_loopback(host: str):
    assert not is_loopback(host)


@pytest.mark.parametrize("key", ["node", "listen", "advertise", "replica_nodes"])
@pytest.mark.parametrize("address", ["0.0.0.0:7401", "192.168.1.5:7401", "[::]:7401", "example.org:7401"])
def test_without_a_cluster_key_nothing_beyond_this_machine_is_accepted(key: str, address: str):
    error = refusal_of(key, [address] if key == "replica_nodes" else address)
    assert error.key == key
    assert "without a cluster_key" in str(error)


@pytest.mark.parametrize(
    "proof",
    [
        {"cluster_key": KEY},
        {"cluster_key_file": "/key"},
        {"tls_cert": "/a.crt", "tls_key": "/a.key", "tls_ca": "/ca.crt"},
    ],
    ids=["a key", "a key in a file", "mutual TLS"],
)
def test_where_everybody_proves_who_they_are_any_address_will_do(proof: dict[str, Any]):
    assert Settings(node="192.168.1.5:7401", **proof).address.host == "192.168.1.5"


@pytest.mark.parametrize("key", ["x", "fifteen bytes..", "\N{KEY}\N{KEY}\N{KEY}"])
def test_a_short_key_is_refused_without_being_shown(key: str):
    error = refusal_of("cluster_key", key)
    assert error.key == "cluster_key"
    assert "at least 16 random bytes" in str(error)
    assert key not in str(error).replace("cluster_key", "").replace("expected", "").replace("makes", "")


def test_a_key_stands_in_one_place():
    error = refusal(cluster_key=KEY, cluster_key_file="/key")
    assert error.key == "cluster_key_file"
    assert "one of the two" in str(error)


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_ca"])
def test_the_files_of_tls_come_together(missing: str):
    files: dict[str, Any] = {"tls_cert": "/a.crt", "tls_key": "/a.key", "tls_ca": "/ca.crt"}
    error = refusal(**{key: file for key, file in files.items() if key != missing})
    assert error.key == missing
    assert "all three or none" in str(error)


def test_without_a_network_any_name_will_do():
    assert Settings(enabled=False, node="192.168.1.5:7401").address.host == "192.168.1.5"


def test_silence_lasts_as_many_health_checks_as_the_threshold_says():
    assert Settings(health_check_interval_ms=300, failure_threshold=4).election_timeout_ms == 1200


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        Settings().batch_size = 5  # type: ignore[misc]
