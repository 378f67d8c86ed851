"""Real sockets again: who is let in, who is not, and what each end is told about it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from hotspare.cluster import transport as transport_module
from hotspare.cluster.authentication import NONCE_BYTES, Role, proof
from hotspare.cluster.connection import KEYS_DIFFER, connect_client
from hotspare.cluster.framing import with_headers
from hotspare.cluster.remote import RemoteEngine
from hotspare.cluster.security import NO_SECURITY, Security
from hotspare.cluster.wire import (
    MAX_FRAME_BYTES,
    MAX_HANDSHAKE_BYTES,
    PREAMBLE,
    Challenge,
    Hello,
    Proof,
    Rejected,
    RejectionCode,
    Welcome,
    decode_answer,
    encode_body,
    encode_greeting,
)
from hotspare.errors import ConfigError, ProtocolError, Refused
from hotspare.settings import Settings
from tests.certificates import Authority, openssl
from tests.unit.test_transport import Client, Impostor, Node, Stranger, until

KEY = b"the key of the cluster"
OTHER_KEY = b"the key of another cluster"
WITH_KEY, WITH_OTHER_KEY = Security(KEY), Security(OTHER_KEY)


@pytest_asyncio.fixture
async def start():
    nodes = []

    async def start(name, **options):
        node = Node(name, **options)
        await node.transport.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        await node.transport.stop()


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.DEBUG, "hotspare")
    return caplog


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def files(authority):
    return authority.issue("node")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "foreign").issue("stranger")


def security(files, **settings) -> Security:
    return Security.load(Settings(**files._asdict(), **settings))


@pytest.fixture(scope="module")
def with_tls(files):
    return security(files)


@pytest.fixture(params=["a key", "tls", "tls and a key"])
def secured(request, with_tls) -> Security:
    kinds: dict[str, Security] = {
        "a key": WITH_KEY,
        "tls": with_tls,
        "tls and a key": Security(KEY, with_tls.tls),
    }
    return kinds[request.param]


class Raw(Stranger):
    """A stranger that reads frames."""

    async def frame(self):
        size = int.from_bytes(await self.hear(4), "big") & ~(1 << 31)
        return await self.hear(size)

    async def challenged(self, hello):
        """What was said so far, up to the challenge."""
        self.say(PREAMBLE + encode_greeting(hello))
        assert await self.hear(len(PREAMBLE)) == PREAMBLE
        challenge = await self.frame()
        assert isinstance(decode_answer(challenge), Challenge)
        return encode_body(hello), challenge

    async def is_rejected(self):
        with suppress(ConnectionError):
            said = await self.reader.read()
        await self.hang_up()
        return msgspec.msgpack.decode(said[4:])[1:3] if said else None


HELLO = Hello("client", authentication=bytes(range(NONCE_BYTES)))


# Among those who belong together


async def test_nodes_that_belong_together_meet(start, secured):
    a, b = await start("a", security=secured), await start("b", security=secured)
    a.transport.dial("b", b.address)
    b.transport.dial("a", a.address)
    await until(lambda: a.events and b.events)
    frames = [bytes([size % 256]) * size for size in (1, 17_000, 300_000, MAX_FRAME_BYTES)]
    for frame in frames:
        assert a.transport.send("b", [b"small", frame])
    await until(lambda: len(b.frames) == 2 * len(frames))
    assert [frame for _, frame in b.frames[1::2]] == frames


async def test_clients_that_belong_here_are_served(start, secured):
    a = await start("a", security=secured)
    handler = Client()
    connection = await connect_client(a.address, handler, security=secured)
    for size in (1, 16_384, 1_000_000):
        assert connection.send([b"x" * size])
    await until(lambda: len(handler.received) == 3)
    assert [len(frame) for frame in handler.received] == [1, 16_384, 1_000_000]
    connection.close()
    await connection.ended


async def test_cut_connections_are_made_again_and_nobody_is_called_down(start, secured):
    a, b = await start("a", security=secured), await start("b", security=secured)
    a.transport.dial("b", b.address)
    b.transport.dial("a", a.address)
    await until(lambda: a.events and b.events)
    a.transport.cut("b")
    await until(lambda: len(a.events) > 1 and len(b.events) > 1)
    assert set(a.events) == {a.up(b)}
    assert set(b.events) == {b.up(a)}


async def test_a_node_that_stops_says_so_to_its_clients(start, secured):
    a = await start("a", security=secured)
    handler = Client()
    connection = await connect_client(a.address, handler, security=secured)
    connection.send([b"a last question"])
    await until(lambda: handler.received)
    await a.transport.stop()
    await until(lambda: handler.reason)
    assert handler.reason == "node a is shutting down"


async def test_a_client_of_another_cluster_hears_why_it_is_not_admitted(start, secured):
    a = await start("a", security=secured)
    a.refusal = Rejected(RejectionCode.OTHER_CLUSTER, "a belongs to cluster x, you to y")
    with pytest.raises(Refused, match="a belongs to cluster x, you to y"):
        await connect_client(a.address, Client(), security=secured)


# Keys that do not fit


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (WITH_KEY, WITH_OTHER_KEY, "the two ends have different cluster_keys"),
        (WITH_KEY, NO_SECURITY, "only one of the two ends has a cluster_key"),
        (NO_SECURITY, WITH_KEY, "only one of the two ends has a cluster_key"),
    ],
    ids=["different", "none at the dialler", "none at the acceptor"],
)
class TestKeysThatDoNotFit:
    async def test_the_client_and_the_log_of_the_node_say_so(self, start, log, ours, theirs, reason):
        a = await start("a", security=ours)
        with pytest.raises(Refused, match=reason):
            await connect_client(a.address, Client(), security=theirs)
        await until(lambda: reason in log.text)
        assert a.clients == []

    async def test_a_client_with_several_addresses_hears_it_at_once(self, start, ours, theirs, reason):
        a, b = await start("a", security=ours), await start("b", security=ours)
        engine = RemoteEngine([str(a.address), str(b.address)], security=theirs)
        with pytest.raises(Refused, match=reason):
            await engine.start()

    async def test_two_nodes_say_it_once_each_and_keep_trying(self, start, log, ours, theirs, reason):
        a, b = await start("a", security=ours), await start("b", security=theirs)
        a.transport.dial("b", b.address)
        await until(lambda: a.transport.trouble("b"))
        assert a.transport.trouble("b").startswith(reason)
        await until(lambda: a.transport._peers["b"]._pause_ms >= 80)  # several attempts later
        said = [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]
        dialled, accepted = sorted(said, key=lambda text: not text.startswith("node b cannot be reached"))
        assert reason in dialled
        assert accepted.startswith("refused a connection from 127.0.0.1")
        assert reason in accepted
        assert b.frames == []
        assert a.events == []


async def test_a_node_that_gets_the_right_key_at_last_is_let_in(start):
    a, b = await start("a", security=WITH_KEY), await start("b", security=WITH_OTHER_KEY)
    a.transport.dial("b", b.address)
    await until(lambda: a.transport.trouble("b"))
    await b.transport.stop()
    b = await start("b", listen=b.address, security=WITH_KEY)
    await until(lambda: a.events)
    assert a.events == [a.up(b)]


# Attacks


async def test_a_stranger_learns_nothing_before_it_has_proved_that_it_belongs_here(start):
    a = await start("a", security=WITH_KEY, incarnation="its incarnation")
    stranger = await Raw.dial(a)
    _, challenge = await stranger.challenged(HELLO)
    stranger.say(encode_greeting(Proof(bytes(32))))
    rest = await stranger.reader.read()
    assert b"its incarnation" not in challenge + rest
    assert b"different cluster_keys" in rest
    await stranger.hang_up()


async def test_a_proof_that_was_overheard_is_worth_nothing(start):
    a = await start("a", security=WITH_KEY)
    first = await Raw.dial(a)
    code = encode_greeting(Proof(proof(KEY, Role.DIALLER, *await first.challenged(HELLO))))
    first.say(code)
    assert isinstance(decode_answer(await first.frame()), Welcome)
    again = await Raw.dial(a)
    await again.challenged(HELLO)
    again.say(code)
    assert await again.is_rejected() == [RejectionCode.AUTHENTICATION, KEYS_DIFFER.reason]
    await first.hang_up()
    assert len(a.clients) == 1


@pytest.mark.parametrize(
    "altered", ["kind", "name", "incarnation", "cluster_id", "address", "role", "expected"]
)
async def test_no_word_of_a_greeting_can_be_altered_on_the_way(start, altered):
    a = await start("a", security=WITH_KEY)
    said = Hello("node", "b", "b-1", "cluster", "127.0.0.1:9", "member", "a", bytes(NONCE_BYTES))
    other = {"kind": "client"}.get(altered, "a")
    if getattr(said, altered) == other:
        other = ""
    heard = msgspec.structs.replace(said, **{altered: other})
    stranger = await Raw.dial(a)
    _, challenge = await stranger.challenged(heard)
    stranger.say(encode_greeting(Proof(proof(KEY, Role.DIALLER, encode_body(said), challenge))))
    assert await stranger.is_rejected() == [RejectionCode.AUTHENTICATION, KEYS_DIFFER.reason]
    assert not a.transport._incoming


async def test_what_a_node_says_when_it_is_dialled_proves_nothing_when_it_is_sent_back(start, log):
    a = await start("a", security=WITH_KEY)

    async def reflect(stranger):
        # Everything goes to another connection to the very node that dialled, and its answers come back.
        other = await asyncio.open_connection(*a.address)
        await asyncio.gather(
            pipe(stranger.reader, other[1]), pipe(other[0], stranger.writer), return_exceptions=True
        )

    async with Impostor(reflect) as impostor:
        a.transport.dial("b", impostor.address)
        await until(lambda: a.transport.trouble("b"))
    assert a.events == []
    assert not a.transport._incoming


async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_an_impostor_that_does_not_know_the_key_is_not_believed(start):
    a = await start("a", security=WITH_KEY)

    async def behave(stranger):
        stranger.say(PREAMBLE + encode_greeting(Challenge(bytes(NONCE_BYTES))))
        await asyncio.sleep(0)
        stranger.say(encode_greeting(Welcome("b", "b-1", authentication=bytes(32))))

    async with Impostor(behave) as impostor:
        a.transport.dial("b", impostor.address)
        await until(lambda: a.transport.trouble("b"))
        assert "different cluster_keys" in a.transport.trouble("b")
        with pytest.raises(Refused, match="different cluster_keys"):
            await connect_client(impostor.address, Client(), security=WITH_KEY)
    assert a.events == []


async def test_an_impostor_that_asks_for_no_proof_is_not_believed():
    async def behave(stranger):
        stranger.say(PREAMBLE + encode_greeting(Welcome("b", "b-1")))

    async with Impostor(behave) as impostor:
        with pytest.raises(Refused, match="only one of the two ends has a cluster_key"):
            await connect_client(impostor.address, Client(), security=WITH_KEY)


async def test_an_impostor_that_asks_twice_gets_one_proof_only():
    async def behave(stranger):
        stranger.say(PREAMBLE + encode_greeting(Challenge(bytes(32))) + encode_greeting(Challenge(bytes(32))))

    async with Impostor(behave) as impostor:
        with pytest.raises(ProtocolError, match="a challenge that nobody asked for"):
            await connect_client(impostor.address, Client(), security=WITH_KEY)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (encode_greeting(Hello("client")), "its answer to our challenge is malformed"),
        (encode_greeting(Proof(bytes(31))), "it authenticates itself with 31 bytes"),
        (with_headers([bytes(MAX_HANDSHAKE_BYTES + 1)]), "it sent a frame of 4097 bytes"),
    ],
    ids=["another greeting", "short", "long"],
)
async def test_a_stranger_with_bad_manners_is_hung_up_on(start, log, said, problem):
    a = await start("a", security=WITH_KEY)
    stranger = await Raw.dial(a)
    await stranger.challenged(HELLO)
    stranger.say(said)
    assert await stranger.is_hung_up_on()
    await until(lambda: problem in log.text)
    assert a.clients == []


async def test_what_comes_before_the_proof_is_not_heard(start):
    a = await start("a", security=WITH_KEY)
    stranger = await Raw.dial(a)
    stranger.say(PREAMBLE + encode_greeting(HELLO) + with_headers([b"first words"]))
    assert await stranger.is_hung_up_on()
    assert a.clients == []


async def test_strangers_who_do_not_prove_anything_are_hung_up_on(start, log, monkeypatch, secured):
    monkeypatch.setattr(transport_module, "HANDSHAKE_TIMEOUT_MS", 50)
    a = await start("a", security=secured)
    stranger = await Raw.dial(a)
    if secured.tls is None:
        await stranger.challenged(HELLO)
    assert await stranger.is_hung_up_on()
    await until(lambda: "it has not introduced itself in 50 ms" in log.text)
    await until(lambda: not a.transport._strangers)


async def test_a_crowd_in_the_middle_of_tls_is_counted_too(start, monkeypatch, with_tls):
    monkeypatch.setattr(transport_module, "MAX_HANDSHAKES", 4)
    monkeypatch.setattr(transport_module, "HANDSHAKE_TIMEOUT_MS", 10**6)
    a = await start("a", security=with_tls)
    crowd = [await Raw.dial(a) for _ in range(6)]
    for stranger in crowd[1:]:
        stranger.say(b"\x16\x03\x01")
    assert await crowd[0].is_hung_up_on()
    connection = await connect_client(a.address, Client(), security=with_tls)
    assert len(a.transport._strangers) < 4
    connection.abort()
    for stranger in crowd[1:]:
        await stranger.hang_up()


# TLS


def client_contexts(files, **changes) -> Security:
    loaded = security(files)
    assert loaded.tls is not None
    for name, value in changes.items():
        for context in loaded.tls:
            setattr(context, name, value)
    return loaded


async def test_a_certificate_of_another_authority_is_refused_at_both_ends(start, log, with_tls, foreign):
    a = await start("a", security=with_tls)
    with pytest.raises(Refused, match=r"its certificate is not accepted here .*: compare it with tls_ca"):
        await connect_client(a.address, Client(), security=security(foreign))
    await until(lambda: "it does not accept this end's certificate (" in log.text)
    assert a.clients == []


async def test_a_client_that_trusts_us_and_shows_another_certificate_is_refused(
    start, log, with_tls, files, foreign
):
    a = await start("a", security=with_tls)
    theirs = security(foreign._replace(tls_ca=files.tls_ca))
    with pytest.raises(Refused, match="it does not accept this end's certificate"):
        await connect_client(a.address, Client(), security=theirs)
    await until(lambda: "its certificate is not accepted here" in log.text)
    assert a.clients == []


async def test_a_client_without_a_certificate_is_refused(start, log, with_tls, files):
    a = await start("a", security=with_tls)
    assert with_tls.tls is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files.tls_ca)
    theirs = Security(tls=with_tls.tls._replace(dialling=context))
    with pytest.raises(Refused, match="it does not accept this end's certificate"):
        await connect_client(a.address, Client(), security=theirs)
    await until(lambda: "it shows no certificate" in log.text)


async def test_a_certificate_that_has_expired_is_refused(start, log, with_tls, authority):
    a = await start("a", security=with_tls)
    expired = security(authority.issue("expired", days=-1))
    with pytest.raises(Refused, match=r"it does not accept this end's certificate .*expired"):
        await connect_client(a.address, Client(), security=expired)
    await until(lambda: "certificate has expired" in log.text)


async def test_older_versions_of_tls_are_refused(start, with_tls, files):
    a = await start("a", security=with_tls)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old = client_contexts(
            files, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1
        )
    assert old.tls is not None
    old.tls.dialling.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(Refused, match="it speaks another version of TLS"):
        await connect_client(a.address, Client(), security=old)


async def test_version_1_2_will_do(start, with_tls, files):
    a = await start("a", security=with_tls)
    theirs = client_contexts(files, maximum_version=ssl.TLSVersion.TLSv1_2)
    connection = await connect_client(a.address, Client(), security=theirs)
    assert connection.welcome.name == "a"
    connection.abort()


async def test_tls_at_the_node_alone_is_named_at_both_ends(start, log, with_tls):
    a = await start("a", security=with_tls)
    with pytest.raises(Refused, match="only one of the two ends speaks TLS"):
        await connect_client(a.address, Client())
    await until(lambda: "only one of the two ends speaks TLS" in log.text)


async def test_tls_at_the_client_alone_is_named_at_both_ends(start, log, with_tls):
    a = await start("a")
    with pytest.raises(Refused, match="only one of the two ends speaks TLS"):
        await connect_client(a.address, Client(), security=with_tls)
    await until(lambda: "it speaks TLS and this end does not" in log.text)


async def test_noise_where_tls_is_spoken_is_hung_up_on(start, log, with_tls):
    a = await start("a", security=with_tls)
    stranger = await Raw.dial(a)
    stranger.say(b"GET / HTTP/1.1\r\n\r\n")
    assert await stranger.is_hung_up_on()
    await until(lambda: "it does not speak TLS, and this end does" in log.text)


async def test_two_nodes_whose_certificates_do_not_fit_say_it_once_each(start, log, with_tls, foreign):
    a, b = await start("a", security=with_tls), await start("b", security=security(foreign))
    a.transport.dial("b", b.address)
    await until(lambda: a.transport.trouble("b"))
    await until(lambda: a.transport._peers["b"]._pause_ms >= 80)  # several attempts later
    said = [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]
    assert len(said) == 2, said
    assert a.events == []


async def test_what_is_said_under_tls_cannot_be_read_on_the_way(start, with_tls):
    a = await start("a", security=with_tls)
    seen = bytearray()

    async def listen_in(stranger):
        other = await asyncio.open_connection(*a.address)

        async def pass_on(reader, writer):
            while data := await reader.read(65536):
                seen.extend(data)
                writer.write(data)
            writer.close()

        await asyncio.gather(
            pass_on(stranger.reader, other[1]), pass_on(other[0], stranger.writer), return_exceptions=True
        )

    async with Impostor(listen_in) as eavesdropper:
        handler = Client()
        connection = await connect_client(eavesdropper.address, handler, security=with_tls)
        connection.send([b"recognisable session data"])
        await until(lambda: handler.received == [b"recognisable session data"])
        connection.abort()
        await connection.ended
    assert len(seen) > 1000
    assert b"recognisable" not in seen
    assert b"HSPR" not in seen


async def test_what_was_altered_under_tls_ends_the_connection(start, with_tls):
    a = await start("a", security=with_tls)
    count = itertools.count()

    async def alter(stranger):
        reader, writer = await asyncio.open_connection(*a.address)

        async def pass_on():
            while data := bytearray(await stranger.reader.read(65536)):
                if next(count) >= 3:
                    data[-1] ^= 1
                writer.write(data)
            writer.close()

        await asyncio.gather(pass_on(), pipe(reader, stranger.writer), return_exceptions=True)

    async with Impostor(alter) as impostor:
        with suppress(Refused):
            handler = Client()
            connection = await connect_client(impostor.address, handler, security=with_tls)
            while handler.reason is None:
                connection.send([b"data"])
                await asyncio.sleep(0.001)
    assert all(echo.received in ([], [b"data"], [b"data"] * 2, [b"data"] * 3) for echo in a.clients)


# Files


def refusal(**settings) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Security.load(Settings(**settings))
    return caught.value


def private(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    return str(path)


def test_a_key_is_read_from_its_file_without_the_line_break(tmp_path):
    file = private(tmp_path / "key", "the key of the cluster\n")
    assert Security.load(Settings(cluster_key_file=file)).key == KEY
    assert Security.load(Settings(cluster_key="the key of the cluster")).key == KEY


def test_a_key_is_in_no_repr():
    assert "the key" not in repr(WITH_KEY)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o602])
def test_a_key_that_every_user_may_read_is_refused(tmp_path, mode):
    file = tmp_path / "key"
    file.write_text("the key of the cluster")
    file.chmod(mode)
    error = refusal(cluster_key_file=str(file))
    assert error.key == "cluster_key_file"
    assert f"chmod o= {file}" in str(error)
    assert "the key of" not in str(error)


def test_a_key_of_a_group_is_that_groups_business(tmp_path):
    file = tmp_path / "key"
    file.write_bytes(KEY)
    file.chmod(0o640)
    assert Security.load(Settings(cluster_key_file=str(file))).key == KEY


def test_a_file_with_a_short_key_or_none_is_refused(tmp_path):
    assert "has 5 bytes" in str(refusal(cluster_key_file=private(tmp_path / "short", " short\n")))
    assert "has 0 bytes" in str(refusal(cluster_key_file=private(tmp_path / "empty", "")))
    assert "No such file" in str(refusal(cluster_key_file=str(tmp_path / "missing")))


def test_files_of_tls_that_cannot_be_used_are_named(tmp_path, files, foreign, authority):
    given = files._asdict()
    junk = private(tmp_path / "junk", "no certificate")
    missing = str(tmp_path / "missing")
    for key in given:
        error = refusal(**given | {key: missing})
        assert (error.key, "No such file" in str(error)) == (key, True)
    assert refusal(**given | {"tls_ca": junk}).key == "tls_ca"
    assert refusal(**given | {"tls_cert": junk}).key == "tls_cert"
    assert refusal(**given | {"tls_key": junk}).key == "tls_cert"
    error = refusal(**given | {"tls_key": foreign.tls_key})
    assert f"{foreign.tls_key} is not the key of the certificate in {files.tls_cert}" in str(error)
    assert "holds 0 certificate authorities" in str(refusal(**given | {"tls_ca": files.tls_cert}))
    exposed = private(tmp_path / "exposed", Path(files.tls_key).read_bytes())
    Path(exposed).chmod(0o644)
    assert "every user of this machine" in str(refusal(**given | {"tls_key": exposed}))
    with_password = str(tmp_path / "with-password.key")
    openssl("ec", "-in", files.tls_key, "-aes128", "-passout", "pass:secret", "-out", with_password)
    Path(with_password).chmod(0o600)
    assert "without a password" in str(refusal(**given | {"tls_key": with_password}))


def test_the_public_authorities_are_no_cluster_of_ours(tmp_path, files):
    everybody = [Authority(tmp_path / f"public{number}").certificate.read_text() for number in range(11)]
    bundle = tmp_path / "bundle.crt"
    bundle.write_text("".join(everybody))
    error = refusal(**files._asdict() | {"tls_ca": str(bundle)})
    assert "holds 11 certificate authorities" in str(error)
    assert "whoever has one of its certificates is in" in str(error)
