from __future__ import annotations

import copy
import inspect
import json
import pickle

import msgspec
import pytest

from hotspare import errors
from hotspare.cluster.wire import Hello
from hotspare.errors import HotspareError, ProtocolError, from_dict

EXAMPLES = [
    errors.InvalidSession("data", "a set cannot be stored; use a list", "data['cart'][0]"),
    errors.SessionTooLarge(70_000, 65_536),
    errors.ConfigError("batch_size", "'x' does not fit", "a whole number from 1 to 10000", "the file a.toml"),
    errors.UnknownNode("127.0.0.1:9", ("127.0.0.1:7401", "127.0.0.1:7402")),
    errors.ForkedProcess(100, 200),
    errors.VersionConflict(131072, 196608),
    errors.Unavailable("no primary could be reached for 5000 ms"),
    errors.OutcomeUnknown("no answer within 5000 ms"),
    errors.OutcomeUnknown("not every copy showed it in time", is_applied=True),
    errors.StaleRead(1500, 1000),
    errors.NotReady("it does not know yet what is committed"),
    errors.Undecryptable("this process has other keys", "0123456789abcdef"),
    errors.Refused("promote_to_primary", "the primary is reachable"),
    errors.ClusterMismatch("127.0.0.1:7402", "aaaa", "bbbb"),
    errors.ProtocolError("a frame of 70000000 bytes", "at most 8388608", "127.0.0.1:80"),
    errors.StoreError("/data", "permission denied"),
    errors.StoreCorrupt("/data", "entry 17 has another checksum"),
    errors.StoreFull("/data", "the disk has no room"),
    errors.StoreInUse("/data", "process 12 has it open"),
    errors.StoreForeign("/data", "it belongs to 127.0.0.1:7402"),
    errors.StoreOutdated("/data", "it holds less than this node acknowledged"),
]


def each(example: HotspareError) -> str:
    is_applied = isinstance(example, errors.OutcomeUnknown) and example.is_applied
    return type(example).__name__ + ("-applied" if is_applied else "")


def kinds() -> set[type[HotspareError]]:
    return {getattr(errors, name) for name in errors.__all__ if name != "from_dict"}


def test_every_error_has_an_example_here():
    assert {type(example) for example in EXAMPLES} == kinds() - {HotspareError}


def test_every_error_of_the_module_is_public():
    defined = {
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HotspareError)
    }
    assert defined == kinds()


@pytest.mark.parametrize("error", EXAMPLES, ids=each)
def test_a_sentence_tells_every_field(error: HotspareError):
    for value in error.to_dict().values():
        if value != type(error).__name__ and not isinstance(value, bool):
            shown = value if isinstance(value, tuple) else [value]
            assert all(str(part) in str(error) for part in shown)


@pytest.mark.parametrize("error", EXAMPLES, ids=each)
@pytest.mark.parametrize("codec", [json, msgspec.json, msgspec.msgpack], ids=["json", "msgspec", "msgpack"])
def test_an_error_crosses_the_wire_unchanged(error: HotspareError, codec):
    encode = getattr(codec, "encode", None) or codec.dumps
    decode = getattr(codec, "decode", None) or codec.loads
    received = from_dict(decode(encode(error.to_dict())))
    assert type(received) is type(error)
    assert str(received) == str(error)
    assert received.to_dict() == error.to_dict()


@pytest.mark.parametrize("error", EXAMPLES, ids=each)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_an_error_survives_copying_and_pickling(error: HotspareError, duplicate):
    again = duplicate(error)
    assert again is not error
    assert type(again) is type(error)
    assert repr(again) == repr(error)


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"error": "FutureError", "field": 1},
        {"error": ["Unavailable"]},
        {"error": "HotspareError"},
        {"error": "ValueError"},
        {"error": "Unavailable"},
        {"error": "Unavailable", "reason": 5},
        {"error": "StaleRead", "staleness_ms": True, "limit_ms": 1},
        {"error": "UnknownNode", "node": "a", "known": [1]},
        {"error": "x" * 10_000},
    ],
    ids=[
        "empty",
        "future",
        "no-name",
        "root",
        "builtin",
        "missing",
        "wrong-type",
        "bool",
        "inner-type",
        "long",
    ],
)
def test_what_describes_no_known_error_becomes_a_protocol_error(described):
    received = from_dict(described)
    assert type(received) is ProtocolError
    assert len(str(received)) < 400


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidSession("id", "it is empty"), ValueError),
        (errors.SessionTooLarge(2, 1), ValueError),
        (errors.ConfigError("a", "b", "c"), ValueError),
        (errors.OutcomeUnknown("no answer"), TimeoutError),
        (errors.UnknownNode("a", ()), LookupError),
        (errors.ForkedProcess(1, 2), RuntimeError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else each(value),
)
def test_errors_are_caught_as_the_builtin_that_callers_expect(error: HotspareError, builtin: type[Exception]):
    with pytest.raises(builtin):
        raise error


def test_unavailable_is_no_timeout_and_no_missing_session():
    assert not isinstance(errors.Unavailable("x"), (TimeoutError, LookupError))


def test_two_errors_with_equal_fields_are_two_errors():
    assert errors.Unavailable("x") != errors.Unavailable("x")
    assert len({errors.Unavailable("x"), errors.Unavailable("x")}) == 2


def test_a_conflict_says_what_was_expected_and_what_is_there():
    assert "to be at version 7 and is at version 9" in str(errors.VersionConflict(7, 9))
    assert "to be at version 7 and is absent" in str(errors.VersionConflict(7, None))
    assert "to be absent and is at version 9" in str(errors.VersionConflict("absent", 9))


def test_each_kind_of_store_error_gives_its_own_advice():
    advices = {kind.advice for kind in kinds() if issubclass(kind, errors.StoreError)}
    assert len(advices) == 6


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (["no such tag", 1], "Invalid value - at `$[0]`"),
        (["hello", "no such kind"], "Invalid value - at `$[1]`"),
        (["hello", "node", 5], "Expected `str`, got `int` - at `$[2]`"),
        ("no array", "Expected `array`, got `str`"),
    ],
)
def test_a_fault_is_told_without_what_it_was_found_in(said: object, fault: str):
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(said, Hello)
    assert errors.fault_of(caught.value) == fault
    assert errors.fault_of(RecursionError("anything")) == "it is nested too deeply"
