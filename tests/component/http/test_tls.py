"""TLS: verification of hosts, client certificates, and handshakes that fail."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import submit
from fetchfleet.jobs.contract.entry import Entry, Hop, serialize_entry
from fetchfleet.worker.fetch.cases import unattempted
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.scheduler import lane_loop
from fetchfleet.worker.util import aio
from tests.component.conftest import Lines, Start, on_both_engines
from tests.support.lanes import NEVER_MS
from tests.support.tls_server import TlsServer, context, ok, redirect
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.certificates import HAS_OPENSSL, Authority, Certificate
from tools.origin.server import Origin

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="needs the openssl command")

HERE, THERE = "127.0.5.1", "127.0.5.2"
FOREIGN_BATCH = "00ff00ff00ff00ff"
PATIENT = Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=10)
HURRIED = Timeouts(connect_s=0.6, read_s=5, write_s=5, pool_s=5, total_s=10)


class Files:
    """Certificates for HERE and THERE, valid and invalid, and a client's."""

    def __init__(self, folder: Path) -> None:
        ca, other = Authority(folder), Authority(folder, "other")
        names = (f"IP:{HERE}", f"IP:{THERE}")
        self.ca, self.other_ca = str(ca.cert), str(other.cert)
        self.good = ca.issue("good", *names)
        self.of_another_ca = other.issue("stranger", *names)
        self.of_another_host = ca.issue("elsewhere", "IP:127.0.5.99")
        self.expired = ca.issue_expired("expired", *names)
        self.self_signed = Certificate(other.cert, folder / "other.key")
        self.client = ca.issue("client", "DNS:client")
        both = folder / "both.pem"
        both.write_bytes(self.client.cert.read_bytes() + self.client.key.read_bytes())
        self.client_in_one = str(both)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return the certificates, made once for the module."""
    return Files(tmp_path_factory.mktemp("certificates"))


def old(version: ssl.TLSVersion) -> Callable[[ssl.SSLContext], None]:
    """Return a change that limits a server to an old version."""

    def change(server_tls: ssl.SSLContext) -> None:
        server_tls.set_ciphers("ALL:@SECLEVEL=0")
        server_tls.minimum_version = server_tls.maximum_version = version

    return change


def unchanged(_: ssl.SSLContext) -> None:
    """Leave the server as it is."""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("cert", "change", "message"),
    [
        ("expired", unchanged, "expired"),
        ("of_another_host", unchanged, "IP address mismatch"),
        ("of_another_ca", unchanged, "unable to get local issuer"),
        ("self_signed", unchanged, "signed certificate"),
        ("good", old(ssl.TLSVersion.TLSv1), "PROTOCOL"),
        ("good", old(ssl.TLSVersion.TLSv1_1), "PROTOCOL"),
    ],
    ids=["expired", "wrong host", "unknown CA", "self-signed", "TLS 1.0", "TLS 1.1"],
)
@on_both_engines
async def test_an_untrusted_host_receives_no_request(
    files: Files,
    start: Start,
    lines: Lines,
    cert: str,
    change: Callable[[ssl.SSLContext], None],
    message: str,
) -> None:
    """The fetch fails with `tls` after one connection, without a downgrade. The note has the cause."""
    server_tls = context(getattr(files, cert))
    change(server_tls)
    with TlsServer(HERE, server_tls) as server:
        worker = await start(policy={"attempts": 5, "ca_file": files.ca})
        result = await worker.one(server.url)

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.TLS, 1)
    assert (server.requests, server.connections) == ([], 1)
    [finished] = [line for line in lines if line["event"] == "fetch.finished"]
    assert message.lower() in finished["note"].lower()


async def test_a_host_that_one_worker_does_not_trust_is_fetched_by_one_that_does(
    files: Files, start: Start
) -> None:
    """Their policy files name different CAs. The failed handshake charges no attempt."""
    with TlsServer(HERE, context(files.good)) as server:
        hosts = {"a.example": {"attempts": 1}}  # a policy's digest omits the paths of certificates
        trusting = await start(worker_id="trusting", policy={"ca_file": files.ca}, hosts=hosts)
        await trusting.stop_acquiring()  # the other worker acquires the lane first
        await start(worker_id="other", policy={"ca_file": files.other_ca})
        result = await trusting.one(server.url)

    assert (result.outcome, result.worker, result.attempts) == (Outcome.STORED, "trusting", 1)
    assert (len(server.requests), server.connections) == (1, 2)


async def test_the_system_store_is_trusted_by_default(
    files: Files, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE may name it. Other CAs are refused."""
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)
    with (
        TlsServer(HERE, context(files.good)) as known,
        TlsServer(HERE, context(files.of_another_ca)) as not_known,
    ):
        worker = await start(policy={"attempts": 1})
        results = [await worker.one(server.url) for server in (known, not_known)]

    assert [result.outcome for result in results] == [Outcome.STORED, Outcome.FAILED]


async def test_a_ca_file_replaces_the_system_store_for_its_host(
    files: Files, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA of the system store is refused there and trusted for other hosts."""
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)
    with TlsServer(HERE, context(files.good)) as here, TlsServer(THERE, context(files.good)) as there:
        worker = await start(hosts={HERE: {"ca_file": files.other_ca}})
        results = [await worker.one(server.url) for server in (here, there)]

    assert [result.reason for result in results] == [Reason.TLS, None]
    assert here.requests == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_both_engines
async def test_a_host_that_requires_a_client_certificate_gets_it_or_the_fetch_fails_with_tls(
    files: Files, start: Start, version: ssl.TLSVersion
) -> None:
    """A host with TLS 1.3 requests it after the handshake. Its refusal is not an error of the disk."""
    server_tls = context(files.good, client_ca=files.ca)
    server_tls.maximum_version = version
    known = {"client_cert": str(files.client.cert), "client_key": str(files.client.key)}
    with TlsServer(HERE, server_tls) as requiring, TlsServer(THERE, server_tls) as refusing:
        worker = await start(policy={"ca_file": files.ca}, hosts={HERE: known})
        shown, without = [await worker.one(server.url) for server in (requiring, refusing)]

    assert (shown.outcome, requiring.client_names) == (Outcome.STORED, ["client"])
    assert (without.outcome, without.reason, without.attempts) == (Outcome.FAILED, Reason.TLS, 1)
    assert (refusing.requests, refusing.connections) == ([], 1)


@on_both_engines
async def test_a_client_certificate_is_shown_to_its_host_only(files: Files, start: Start) -> None:
    """A redirect to another host follows that host's policy. The key may be in the certificate's file."""
    server_tls = context(files.good, client_ca=files.ca, required=False)
    with TlsServer(HERE, server_tls) as here, TlsServer(THERE, server_tls) as there:
        here.respond = redirect(there.url)
        worker = await start(policy={"ca_file": files.ca}, hosts={HERE: {"client_cert": files.client_in_one}})
        result = await worker.one(here.url)

    assert (result.outcome, result.final_url) == (Outcome.STORED, there.url)
    assert (here.client_names, there.client_names) == (["client"], [None])


def foreign_entry(place: int, url: str, hop: Hop | None = None, hops: int = 0) -> bytes:
    """Return a serialized entry of a batch that was never submitted."""
    fetch_id = f"{FOREIGN_BATCH}-{place:08x}"
    entry = Entry(id=fetch_id, deadline_ms=NEVER_MS, fetch=Fetch(url=url), hop=hop, hops=hops)
    return serialize_entry(entry)


async def test_no_entry_of_a_lane_gets_its_certificate_or_trust_for_another_host(
    files: Files, start: Start, redis: Redis, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS follows the dialled URL, whatever Redis holds. A hop to another host moves to its lane."""
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)
    server_tls = context(files.good, client_ca=files.ca, required=False)
    with (
        TlsServer(HERE, server_tls) as here,
        TlsServer(THERE, server_tls) as there,
        TlsServer(THERE, context(files.self_signed)) as unverified,
    ):
        for place, url in enumerate((f"{there.url}plain", f"{unverified.url}plain")):
            forged = foreign_entry(place, url)
            away = Hop("GET", url.replace("plain", "hop"))
            elements = (
                forged,
                foreign_entry(place + 10, here.url, away, 1),
                foreign_entry(place + 20, url, away, 3),
            )
            await redis.rpush(keys.waiting_at(HERE, "high"), *elements)  # type: ignore[misc]
        hosts = {HERE: {"client_cert": files.client_in_one, "verify": False}}
        worker = await start(engine=engine, policy={"attempts": 1}, hosts=hosts)
        own, other = await worker.results([here.url, f"{there.url}own"])

        async def all_ended() -> bool:
            queues = (keys.waiting_at(HERE, "high"), keys.waiting_at(THERE, "normal"))
            counts = [await redis.llen(queue) for queue in queues]  # type: ignore[misc]
            counts += [await redis.hlen(keys.claimed(host)) for host in (HERE, THERE)]  # type: ignore[misc]
            return not any(counts)

        await wait_until(all_ended, "the forged entries to end")
        await redis.delete(keys.batch_lanes(FOREIGN_BATCH))

    assert [Outcome.STORED] * 2 == [own.outcome, other.outcome]
    assert (["client"], {None}) == (here.client_names, set(there.client_names))
    assert b"/plain" not in {request.split(b" ")[1] for request in there.requests}
    assert [] == unverified.requests


async def test_connections_of_a_lane_refuse_another_host_and_log_it(
    files: Files, start: Start, engine: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug is injected that brings a fetch of another host so far. It fails before anything is dialled."""
    monkeypatch.setattr(Entry, "may_wait_in", lambda *_: True)
    for module in (lane_loop, unattempted, submit):
        monkeypatch.setattr(module, "lane_of_url", lambda _: HERE)
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)
    server_tls = context(files.good, client_ca=files.ca, required=False)
    with TlsServer(HERE, server_tls) as here, TlsServer(THERE, server_tls) as there:
        hosts = {HERE: {"client_cert": files.client_in_one, "verify": False}}
        worker = await start(engine=engine, policy={"attempts": 1}, hosts=hosts)
        own, other = await worker.results([here.url, there.url])

    assert (Outcome.STORED, Reason.INTERNAL) == (own.outcome, other.reason)
    assert 0 == there.connections
    assert [THERE in line["error"] for line in lines if line["event"] == "fetch.bug"] == [True]


async def test_a_robots_txt_on_another_host_is_not_shown_the_client_certificate(
    files: Files, start: Start
) -> None:
    """A redirect of a robots.txt follows the policy of its target host."""
    server_tls = context(files.good, client_ca=files.ca, required=False)
    with TlsServer(HERE, server_tls) as here, TlsServer(THERE, server_tls) as there:
        elsewhere = redirect(there.url + "robots.txt")

        def answer(line: ssl.SSLSocket, request: bytes) -> None:
            (elsewhere if b"/robots.txt" in request else ok)(line, request)

        here.respond = answer
        policy = {"ca_file": files.ca, "robots": "obey"}
        worker = await start(policy=policy, hosts={HERE: {"client_cert": files.client_in_one}})
        result = await worker.one(here.url)

    assert result.outcome is Outcome.STORED
    assert (here.client_names, there.client_names) == (["client", "client"], [None])


async def test_verify_false_applies_to_its_host_only_and_is_logged(
    files: Files, start: Start, lines: Lines
) -> None:
    """The warning is logged when the worker acquires the lane."""
    with (
        TlsServer(HERE, context(files.self_signed)) as here,
        TlsServer(THERE, context(files.self_signed)) as there,
    ):
        worker = await start(hosts={HERE: {"verify": False}})
        results = [await worker.one(server.url) for server in (here, there)]

    assert [result.reason for result in results] == [None, Reason.TLS]
    warnings = [line for line in lines if line["event"] == "lane.unverified_tls"]
    assert [(line["lane"], line["log_level"]) for line in warnings] == [(HERE, "warning")]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_verify_false_does_not_allow_tls_1_0(files: Files, start: Start) -> None:
    """Verification and protocol version are separate settings."""
    server_tls = context(files.good)
    old(ssl.TLSVersion.TLSv1)(server_tls)
    with TlsServer(HERE, server_tls) as server:
        worker = await start(policy={"verify": False})
        result = await worker.one(server.url)

    assert (result.reason, result.attempts, server.requests) == (Reason.TLS, 1, [])


async def test_redis_cannot_switch_verification_off(
    files: Files, start: Start, lines: Lines, redis: Redis
) -> None:
    """The worker refuses such an override and logs it. The policy file applies."""
    await redis.hset(keys.POLICY, HERE, '{"verify": false}')  # type: ignore[misc]
    await redis.incr(keys.POLICY_VERSION)
    with TlsServer(HERE, context(files.self_signed)) as server:
        worker = await start()
        result = await worker.one(server.url)

    assert (result.reason, server.requests) == (Reason.TLS, [])
    assert any(line["event"] == "policy.refused" and "verify" in line["error"] for line in lines)


async def test_a_post_follows_a_redirect_of_its_host_from_http_to_https(files: Files, start: Start) -> None:
    """Each of the two servers receives its body once."""
    with TlsServer(HERE, context(files.good)) as server:
        async with Origin.serving(HERE, o.redirect(f"{server.url}x", 308)) as clear:
            worker = await start(policy={"ca_file": files.ca})
            result = await worker.one(clear.url(), method="POST", body="the body")

    assert (result.outcome, result.attempts, result.final_url) == (Outcome.STORED, 1, f"{server.url}x")
    assert [seen.body for seen in clear.requests] == [b"the body"]
    [request] = server.requests
    assert request.startswith(b"POST /x ")
    assert request.endswith(b"the body")


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_redirect_from_https_to_http_is_refused_unless_allowed(
    files: Files, start: Start, origin: Origin, *, allowed: bool
) -> None:
    """The policy of the redirecting host decides."""
    with TlsServer(HERE, context(files.good), redirect(origin.url("/x"))) as server:
        worker = await start(policy={"ca_file": files.ca}, hosts={HERE: {"https_to_http": allowed}})
        result = await worker.one(server.url)

    expected = (None, 1) if allowed else (Reason.REDIRECT_REFUSED, 0)
    assert (result.reason, len(origin.requests)) == expected


@on_both_engines
async def test_a_body_that_ends_without_close_notify_is_stored_unverified(files: Files, start: Start) -> None:
    """Only the end of the connection ends this body."""

    def answer(line: ssl.SSLSocket, _: bytes) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\n\r\nhello")
        line.shutdown(socket.SHUT_WR)

    with TlsServer(HERE, context(files.good), answer) as server:
        worker = await start(policy={"ca_file": files.ca})
        result = await worker.one(server.url)

    assert (result.outcome, result.unverified, result.bytes) == (Outcome.STORED, True, 5)


@on_both_engines
async def test_a_garbled_record_fails_the_attempt(files: Files, start: Start) -> None:
    """The failure is charged, unlike an error of the disk, and no partial body is stored."""

    def garble(line: ssl.SSLSocket, _: bytes) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhello")
        socket.socket.sendall(line, b"\x17\x03\x03\x00\x20" + b"x" * 32)

    with TlsServer(HERE, context(files.good), garble) as server:
        worker = await start(policy={"ca_file": files.ca, "attempts": 2})
        result = await worker.one(server.url)

    assert (result.reason, result.attempts, result.interruptions) == (Reason.TLS, 2, 0)
    assert not worker.files() | worker.parts()


async def test_a_handshake_that_stalls_is_retried_even_for_a_post(files: Files, start: Start) -> None:
    """The first attempt sent no request, so the host receives one."""
    with TlsServer(HERE, context(files.good), ignored=1) as server:
        worker = await start(policy={"ca_file": files.ca, "timeout": HURRIED})
        result = await worker.one(server.url, method="POST", body="once")

    assert (result.outcome, result.attempts, len(server.requests)) == (Outcome.STORED, 2, 1)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[str]:
    """Yield the https URL of a host that runs this over plain TCP."""
    talks: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            with suppress(ConnectionError, asyncio.CancelledError):
                await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(accept, HERE, 0)
    try:
        yield f"https://{HERE}:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        await aio.end(*talks)
        await server.wait_closed()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept the connection and send nothing."""
    await reader.read()


async def trickles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a long record byte by byte."""
    writer.write(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")
    while not reader.at_eof() and not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.05)
        await writer.drain()


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection after the first byte."""
    await reader.read(1)


@pytest.mark.parametrize("talk", [silent, trickles])
@pytest.mark.parametrize(
    ("policy", "fields", "reason"),
    [
        ({"timeout": HURRIED, "attempts": 2}, {}, Reason.TLS_TIMEOUT),
        ({"timeout": PATIENT}, {"deadline_s": 1.0}, Reason.DEADLINE),
    ],
)
@on_both_engines
async def test_a_handshake_that_does_not_end_times_out(
    start: Start, talk: Talk, policy: dict[str, Any], fields: dict[str, Any], reason: Reason
) -> None:
    """Its own timeout or the deadline ends it, whether the host is silent or trickles bytes."""
    worker = await start(policy=policy)
    async with serving(talk) as url:
        result = await worker.one(url, **fields)

    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)
    assert result.attempts == policy.get("attempts", 1)


async def test_a_host_that_closes_during_the_handshake_is_retried(start: Start) -> None:
    """It may be starting. The reason is `tls`."""
    worker = await start(policy={"attempts": 2})
    async with serving(hangs_up) as url:
        result = await worker.one(url)

    assert (result.reason, result.attempts) == (Reason.TLS, 2)
