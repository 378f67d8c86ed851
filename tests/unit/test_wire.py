from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotspare.cluster.framing import FIRST_READ_BYTES, MAX_READ_BYTES, Inbound, with_headers
from hotspare.cluster.wire import (
    MAX_FRAME_BYTES,
    MAX_HANDSHAKE_BYTES,
    PREAMBLE,
    PROTOCOL_VERSION,
    Hello,
    Rejected,
    RejectionCode,
    Welcome,
    decode_answer,
    decode_hello,
    encode_farewell,
    encode_greeting,
    is_passing,
)
from hotspare.errors import ProtocolError

OTHER_VERSION = PREAMBLE[:6] + struct.pack(">H", PROTOCOL_VERSION + 1)
OLD_VERSION = PREAMBLE[:6] + struct.pack(">H", PROTOCOL_VERSION - 1)
FAREWELL = Rejected(RejectionCode.SHUTTING_DOWN, "node a is shutting down")


def feed(inbound: Inbound, data: bytes) -> list[bytes]:
    """Puts the bytes in as a socket would, as far as there is room each time, and takes the frames."""
    frames = []
    while data:
        room = inbound.room()
        assert room, "a socket could not read any more"
        part, data = data[: len(room)], data[len(room) :]
        room[: len(part)] = part
        inbound.received(len(part))
        frames += inbound.take_frames()
    return frames


@pytest.fixture
def inbound() -> Inbound:
    """An open connection's."""
    inbound = Inbound()
    inbound.limit_bytes = MAX_FRAME_BYTES
    return inbound


def test_frames_come_out_as_they_went_in(inbound):
    frames = [b"one", b"2", b"three" * 1000]
    assert feed(inbound, with_headers(frames)) == frames
    assert inbound.pending_bytes == 0


def test_thousands_of_small_frames_in_one_segment_come_out_in_order(inbound):
    frames = [b"%d" % number for number in range(5000)]
    assert feed(inbound, with_headers(frames)) == frames


def test_frames_that_arrive_byte_by_byte_come_out_whole(inbound):
    frames = [b"one", b"2", b"three" * 30]
    stream = with_headers(frames)
    assert [frame for byte in stream for frame in feed(inbound, bytes([byte]))] == frames


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 100) | st.integers(1, 3 * MAX_READ_BYTES), max_size=6),
    cuts=st.lists(st.integers(FIRST_READ_BYTES // 2, 2 * MAX_READ_BYTES), min_size=1, max_size=12),
)
def test_any_frames_cut_anywhere_come_out_whole(sizes, cuts):
    inbound = Inbound()
    inbound.limit_bytes = MAX_FRAME_BYTES
    frames = [bytes([size % 251]) * size for size in sizes]
    stream = with_headers(frames)
    received = []
    while stream:
        for cut in cuts:
            received += feed(inbound, stream[:cut])
            stream = stream[cut:]
    assert received == frames


def test_the_longest_frame_is_taken_and_the_buffer_shrinks_again(inbound):
    frame = bytes(MAX_FRAME_BYTES)
    assert feed(inbound, with_headers([frame])) == [frame]
    assert len(inbound.room()) == MAX_READ_BYTES


def test_a_frame_that_is_only_announced_takes_no_memory(inbound):
    feed(inbound, struct.pack(">I", MAX_FRAME_BYTES) + b"x")
    assert len(inbound.room()) < FIRST_READ_BYTES


@pytest.mark.parametrize("size", [0, MAX_FRAME_BYTES + 1, 2**31 - 1])
def test_a_frame_of_impossible_size_is_an_error_that_names_the_size(inbound, size):
    with pytest.raises(ProtocolError, match=f"a frame of {size} bytes"):
        feed(inbound, struct.pack(">I", size))


def test_a_stranger_may_send_a_small_frame_only():
    inbound = Inbound()
    assert feed(inbound, struct.pack(">I", MAX_HANDSHAKE_BYTES)) == []
    with pytest.raises(ProtocolError, match=f"a frame of {MAX_HANDSHAKE_BYTES + 1} bytes"):
        feed(Inbound(), struct.pack(">I", MAX_HANDSHAKE_BYTES + 1))


@pytest.mark.parametrize("size", [0, MAX_FRAME_BYTES + 1])
def test_a_frame_of_impossible_size_is_not_sent(size):
    with pytest.raises(AssertionError, match=str(size)):
        with_headers([bytes(size)])


def test_frames_can_be_taken_one_at_a_time(inbound):
    stream = with_headers([b"a", b"b", b"c"])
    inbound.room()[: len(stream)] = stream
    inbound.received(len(stream))
    assert inbound.take_frames(at_most=1) == [b"a"]
    assert inbound.take_frames() == [b"b", b"c"]


def test_a_farewell_ends_the_stream_and_says_why(inbound):
    stream = with_headers([b"last"]) + encode_farewell(FAREWELL)
    received = [frame for byte in stream for frame in feed(inbound, bytes([byte]))]
    assert received == [b"last"]
    assert inbound.farewell == FAREWELL


def test_a_farewell_that_means_nothing_is_an_error(inbound):
    with pytest.raises(ProtocolError, match="farewell is malformed"):
        feed(inbound, struct.pack(">I", 2**31 | 3) + b"abc")


@pytest.mark.parametrize("size", [0, MAX_HANDSHAKE_BYTES + 1])
def test_a_farewell_is_short(inbound, size):
    with pytest.raises(ProtocolError, match="a frame of"):
        feed(inbound, struct.pack(">I", 2**31 | size))


def take_preamble(stream: bytes) -> bool:
    inbound = Inbound()
    inbound.room()[: len(stream)] = stream
    inbound.received(len(stream))
    return inbound.take_preamble()


def test_the_preamble_is_taken_once_it_is_complete():
    assert [take_preamble(PREAMBLE[:size]) for size in range(9)] == [False] * 8 + [True]


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", r"it said b'HTTP/1.1 400 Bad'"),
        (b"G", r"it said b'G'"),
        (PREAMBLE[:3] + b"\x00", r"it said b'\\x89HS\\x00'"),
        (bytes(100), r"it said b'(\\x00){16}'"),
    ],
)
def test_what_is_not_hotspare_is_recognised_by_its_first_bytes(stream, said):
    with pytest.raises(ProtocolError, match=f"it is not hotspare, {said}"):
        take_preamble(stream)


@pytest.mark.parametrize(("preamble", "whom"), [(OTHER_VERSION, "this end"), (OLD_VERSION, "it")])
def test_another_version_is_named_with_who_has_to_be_upgraded(preamble, whom):
    with pytest.raises(ProtocolError, match=f"upgrade {whom}") as caught:
        take_preamble(preamble)
    (version,) = struct.unpack(">H", preamble[6:])
    assert caught.value.problem == f"it speaks protocol {version} and this end speaks {PROTOCOL_VERSION}"


def body_of(frame: bytes) -> bytes:
    (body,) = feed(Inbound(), frame)
    return body


def test_greetings_survive_the_wire():
    hello = Hello("node", "a:1", "i1", "c1", "10.0.0.1:1", "member", "b:2", bytes(32))
    welcome = Welcome("b:2", "i2", "c1", "10.0.0.2:2", "a:1", b"proof")
    assert decode_hello(body_of(encode_greeting(hello))) == hello
    assert decode_answer(body_of(encode_greeting(welcome))) == welcome


def test_a_node_that_does_not_say_who_it_is_is_refused():
    with pytest.raises(ProtocolError, match="does not say who it is"):
        decode_hello(body_of(encode_greeting(Hello("node", name="a:1"))))


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "x" * 1001])
def test_what_does_not_belong_into_a_log_is_no_greeting_and_no_farewell(inbound, text):
    with pytest.raises(ProtocolError, match="printable characters"):
        decode_hello(body_of(encode_greeting(Hello("client", expected=text))))
    with pytest.raises(ProtocolError, match="printable characters"):
        decode_answer(body_of(encode_greeting(Welcome(text, "i1"))))
    with pytest.raises(ProtocolError, match="printable characters"):
        feed(inbound, encode_farewell(Rejected(RejectionCode.BUSY, text)))


@pytest.mark.parametrize("decode", [decode_hello, decode_answer])
@pytest.mark.parametrize("frame", [b"garbage", b"\x90", b"\xc1", bytes(100)])
def test_a_malformed_greeting_is_an_error_of_ours(decode, frame):
    with pytest.raises(ProtocolError):
        decode(frame)


def test_only_a_node_that_is_busy_or_leaving_may_accept_the_same_connection_later():
    passing = {code for code in RejectionCode if is_passing(Rejected(code, "no"))}
    assert passing == {RejectionCode.BUSY, RejectionCode.SHUTTING_DOWN}
