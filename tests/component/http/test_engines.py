"""The contract of engines: a fetch has the same outcome on each of them."""

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fetchfleet import Outcome, Reason
from fetchfleet.worker.policy.model import Timeouts
from tests.component.conftest import Start, needs_openssl
from tests.support.nameserver import Nameserver, addresses
from tests.support.range_server import RangedBody
from tests.support.tls_server import TlsServer, context
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.certificates import Authority, Certificate
from tools.origin.server import Behaviour, Exchange, Origin

HERE = "127.0.71.1"
PATIENT = Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=10)
HURRIED = replace(PATIENT, connect_s=0.3, read_s=0.3, write_s=0.3)
LINE = b"HTTP/1.1 200 OK\r\n"


async def stalls(x: Exchange) -> None:
    """Send half a body, and stall."""
    await x.raw(LINE + b"Content-Length: 99\r\n\r\nhello")
    await asyncio.Event().wait()


async def test_a_body_is_stored_as_it_was_sent(origin: Origin, start: Start, engine: str) -> None:
    """A large body matches byte for byte, and the connection is reused."""
    big = o.big(5_000_000)
    origin.behaviour = o.by_path({"/big": big, "/small": o.ok(b"small")})
    worker = await start(engine=engine, policy={"concurrency": 1})

    first, second = await worker.results([origin.url("/big"), origin.url("/small")])

    assert (first.bytes, first.sha256) == (5_000_000, big.sha256)
    assert worker.body(second) == b"small"
    assert origin.connections_opened == 1


async def test_a_request_has_the_headers_of_the_worker_and_of_the_fetch(
    origin: Origin, start: Start, engine: str
) -> None:
    """A header of the fetch replaces the worker's. No cookie and no referer is added."""
    worker = await start(engine=engine, user_agent="ours/1")
    await worker.one(origin.url("/a?b=c%20d"), headers={"X-Own": "1", "Accept": "text/plain"})

    [seen] = origin.requests
    sent_fields = {name.lower(): value for name, value in seen.headers}
    assert (seen.method, seen.target) == ("GET", "/a?b=c%20d")
    assert (sent_fields["user-agent"], sent_fields["accept"], sent_fields["x-own"]) == (
        "ours/1",
        "text/plain",
        "1",
    )
    assert sent_fields["accept-encoding"] == "identity"
    assert not {"cookie", "referer"} & sent_fields.keys()


async def test_a_proxy_of_the_environment_is_ignored(
    origin: Origin, start: Start, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four proxy variables name an address without a server."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.71.9:9")
    worker = await start(engine=engine, policy={"attempts": 1})

    assert (await worker.one(origin.url())).outcome is Outcome.STORED


async def test_cookies_are_not_kept(origin: Origin, start: Start, engine: str) -> None:
    """A cookie of one fetch is not sent by the next fetch to the same host."""
    origin.behaviour = o.set_cookie("a=b")
    worker = await start(engine=engine, policy={"concurrency": 1})
    await worker.results([origin.url("/1"), origin.url("/2")])

    assert [Origin.header(seen, "cookie") for seen in origin.requests] == [None, None]


async def test_a_coded_body_is_not_decoded_by_default(origin: Origin, start: Start, engine: str) -> None:
    """Its length and digest are of the bytes that the host sent."""
    origin.behaviour = o.ok(b"no gzip at all", headers=[("Content-Encoding", "gzip")])
    worker = await start(engine=engine)

    assert worker.body(await worker.one(origin.url())) == b"no gzip at all"


async def test_a_redirect_to_another_host_drops_authorization(
    origin: Origin, other: Origin, start: Start, engine: str
) -> None:
    """The worker follows the redirect, not the HTTP library."""
    origin.behaviour = o.redirect(other.url("/there"))
    worker = await start(engine=engine)
    result = await worker.one(origin.url(), headers={"Authorization": "secret"})

    assert (result.outcome, result.final_url) == (Outcome.STORED, other.url("/there"))
    assert Origin.header(other.requests[0], "authorization") is None


async def test_a_failing_host_is_retried(origin: Origin, start: Start, engine: str) -> None:
    """The policy allows three attempts, and the third succeeds."""
    origin.behaviour = o.fail_times(2, 500)
    worker = await start(engine=engine, policy={"attempts": 3})
    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 3)


async def test_a_429_with_retry_after_charges_no_attempt(origin: Origin, start: Start, engine: str) -> None:
    """The fetch is stored after one throttle, though the policy allows one attempt."""
    origin.behaviour = o.sequence(o.retry_after(1), o.OK)
    worker = await start(engine=engine, policy={"attempts": 1})
    result = await worker.one(origin.url())

    assert (result.outcome, result.throttles) == (Outcome.STORED, 1)


BROKEN: dict[str, tuple[Behaviour, Reason]] = {
    "truncated": (o.truncated(b"hello", 99), Reason.TRUNCATED),
    "truncated in chunks": (o.cut_chunked(b"hello"), Reason.TRUNCATED),
    "reset before the head": (o.reset, Reason.READ),
    "not HTTP": (o.garbage(b"hello\r\n\r\n"), Reason.PROTOCOL),
    "nothing at all": (o.garbage(b""), Reason.PROTOCOL),
    "a status of 99": (o.garbage(b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n"), Reason.PROTOCOL),
    "a status of 600": (o.garbage(b"HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n"), Reason.PROTOCOL),
    "a length in words": (o.garbage(LINE + b"Content-Length: two\r\n\r\nok"), Reason.PROTOCOL),
    "two lengths": (o.garbage(LINE + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok"), Reason.PROTOCOL),
    "two framings": (
        o.garbage(LINE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        Reason.PROTOCOL,
    ),
    "a head too large": (o.garbage(LINE + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n"), Reason.PROTOCOL),
    "a NUL in a field": (o.garbage(LINE + b"X: a\0b\r\nContent-Length: 2\r\n\r\nok"), Reason.PROTOCOL),
}


@pytest.mark.parametrize(("answer", "reason"), BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_response_fails_with_its_reason(
    origin: Origin, start: Start, engine: str, answer: Behaviour, reason: Reason
) -> None:
    """No part of it is stored."""
    origin.behaviour = answer
    worker = await start(engine=engine, policy={"attempts": 1})
    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)
    assert not worker.files() | worker.parts()


async def test_an_interrupted_body_is_resumed(origin: Origin, start: Start, engine: str) -> None:
    """The second request has a Range."""
    body = b"x" * 2_000_000
    origin.behaviour = RangedBody(body, breaks=[1_000_000])
    worker = await start(engine=engine, policy={"attempts": 3})
    result = await worker.one(origin.url())

    assert worker.body(result) == body
    assert [Origin.header(seen, "range") is None for seen in origin.requests] == [True, False]


async def test_a_request_body_is_sent_with_its_content_length(
    origin: Origin, start: Start, engine: str
) -> None:
    """Many hosts do not accept chunked requests."""
    worker = await start(engine=engine)
    result = await worker.one(origin.url(), method="POST", body="x" * 200_000)

    [seen] = origin.requests
    assert (result.outcome, seen.body) == (Outcome.STORED, b"x" * 200_000)
    assert Origin.header(seen, "content-length") == "200000"
    assert Origin.header(seen, "transfer-encoding") is None


async def test_a_body_file_is_sent(origin: Origin, start: Start, engine: str, tmp_path: Path) -> None:
    """It is streamed from the in folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(b"y" * 300_000)
    worker = await start(engine=engine, in_folder=folder)
    await worker.one(origin.url(), method="PUT", body_file="a")

    assert hashlib.sha256(origin.requests[0].body).digest() == hashlib.sha256(b"y" * 300_000).digest()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(o.silent, Reason.FIRST_BYTE_TIMEOUT), (stalls, Reason.READ_TIMEOUT)],
    ids=["no head", "half a body"],
)
async def test_a_host_that_stalls_times_out(
    origin: Origin, start: Start, engine: str, answer: Behaviour, reason: Reason
) -> None:
    """The reason distinguishes a missing first byte from a stalled body."""
    origin.behaviour = answer
    worker = await start(engine=engine, policy={"attempts": 1, "timeout": HURRIED})

    assert (await worker.one(origin.url())).reason is reason


async def test_the_deadline_ends_a_fetch_to_a_silent_host(origin: Origin, start: Start, engine: str) -> None:
    """A POST is not repeated after it."""
    origin.behaviour = o.silent
    worker = await start(engine=engine, policy={"attempts": 5, "timeout": PATIENT})
    result = await worker.one(origin.url(), method="POST", body="x", deadline_s=1.0)

    assert (result.reason, result.attempts, len(origin.requests)) == (Reason.DEADLINE, 1, 1)


async def test_a_refused_connection_fails_with_connect(start: Start, engine: str) -> None:
    """No request was sent, so a POST is retried too."""
    with socket.create_server((HERE, 0)) as gone:
        url = f"http://{HERE}:{gone.getsockname()[1]}/"
    worker = await start(engine=engine, policy={"attempts": 2})
    result = await worker.one(url, method="POST", body="x")

    assert (result.reason, result.attempts) == (Reason.CONNECT, 2)


@pytest.mark.parametrize("url", ["http://127.0.71.2/", "http://[::ffff:127.0.71.2]/", "http://10.1.2.3/"])
async def test_an_address_that_is_not_allowed_is_not_dialled(start: Start, engine: str, url: str) -> None:
    """The refusal is permanent, so the fetch makes one attempt."""
    worker = await start(engine=engine, allow_net="", policy={"attempts": 3})
    result = await worker.one(url)

    assert (result.reason, result.attempts) == (Reason.EGRESS_REFUSED, 1)


async def test_a_name_is_dialled_at_the_address_that_the_nameserver_gave(
    names: Nameserver, start: Start, engine: str
) -> None:
    """The resolver of the system does not know this name."""
    async with Origin.serving(HERE, o.OK) as there:
        names.replies["shop.test"] = [addresses(HERE)]
        worker = await start(engine=engine, nameservers=names.address)
        result = await worker.one(f"http://shop.test:{there.port}/")

    assert result.outcome is Outcome.STORED
    assert Origin.header(there.requests[0], "host") == f"shop.test:{there.port}"


async def test_a_name_with_one_forbidden_address_is_refused(
    names: Nameserver, start: Start, engine: str
) -> None:
    """Its other address is allowed."""
    names.replies["shop.test"] = [addresses(HERE, "10.1.2.3")]
    worker = await start(engine=engine, nameservers=names.address, policy={"attempts": 1})

    assert (await worker.one("http://shop.test/")).reason is Reason.EGRESS_REFUSED


async def test_the_next_address_of_a_name_is_tried(names: Nameserver, start: Start, engine: str) -> None:
    """The first one refuses connections. Both are tried within one attempt."""
    async with Origin.serving(HERE, o.OK) as there:
        names.replies["shop.test"] = [addresses("127.0.71.8", HERE)]
        worker = await start(engine=engine, nameservers=names.address, policy={"attempts": 1})
        result = await worker.one(f"http://shop.test:{there.port}/")

    assert result.outcome is Outcome.STORED


async def test_a_robots_txt_is_fetched_and_obeyed(origin: Origin, start: Start, engine: str) -> None:
    """The engine of the fetch requests it."""
    origin.behaviour = o.by_path({"/robots.txt": o.ok(b"User-agent: *\nDisallow: /private")}, o.OK)
    worker = await start(engine=engine, policy={"robots": "obey"})
    refused, taken = await worker.results([origin.url("/private"), origin.url("/public")])

    assert {refused.reason, taken.reason} == {Reason.ROBOTS_DISALLOWED, None}


class Files:
    """Certificates for HERE, valid and invalid, and a client's."""

    def __init__(self, folder: Path) -> None:
        ca, other = Authority(folder), Authority(folder, "other")
        self.ca = str(ca.cert)
        self.good = ca.issue("good", f"IP:{HERE}")
        self.stranger = other.issue("stranger", f"IP:{HERE}")
        self.elsewhere = ca.issue("elsewhere", "IP:127.0.71.99")
        self.expired = ca.issue_expired("expired", f"IP:{HERE}")
        self.client = ca.issue("client", "DNS:client")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return the certificates, made once for the module."""
    return Files(tmp_path_factory.mktemp("certificates"))


NOT_TRUSTED: dict[str, Callable[[Files], Certificate]] = {
    "unknown CA": lambda files: files.stranger,
    "another host": lambda files: files.elsewhere,
    "expired": lambda files: files.expired,
}


@needs_openssl
@pytest.mark.parametrize("cert", NOT_TRUSTED.values(), ids=NOT_TRUSTED.keys())
async def test_an_untrusted_host_receives_no_request(
    files: Files,
    start: Start,
    engine: str,
    cert: Callable[[Files], Certificate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fetch fails with `tls` and is not retried."""
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)
    with TlsServer(HERE, context(cert(files))) as server:
        worker = await start(engine=engine, policy={"attempts": 3})
        result = await worker.one(server.url)

    assert (result.reason, result.attempts, server.requests) == (Reason.TLS, 1, [])


@needs_openssl
async def test_a_host_that_requires_a_client_certificate_gets_it(
    files: Files, start: Start, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system store, set by SSL_CERT_FILE, trusts the host."""
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)
    with TlsServer(HERE, context(files.good, client_ca=files.ca)) as server:
        certificate = {"client_cert": str(files.client.cert), "client_key": str(files.client.key)}
        worker = await start(engine=engine, policy=certificate)
        result = await worker.one(server.url)

    assert (result.outcome, server.client_names) == (Outcome.STORED, ["client"])


@needs_openssl
async def test_verify_false_accepts_an_unknown_ca(files: Files, start: Start, engine: str) -> None:
    """The policy of the host switches verification off."""
    with TlsServer(HERE, context(files.stranger)) as server:
        worker = await start(engine=engine, policy={"verify": False})

        assert (await worker.one(server.url)).outcome is Outcome.STORED


@needs_openssl
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_1_0_is_refused(files: Files, start: Start, engine: str) -> None:
    """`verify = false` does not allow it."""
    server_tls = context(files.good)
    server_tls.set_ciphers("ALL:@SECLEVEL=0")
    server_tls.minimum_version = server_tls.maximum_version = ssl.TLSVersion.TLSv1
    with TlsServer(HERE, server_tls) as server:
        worker = await start(engine=engine, policy={"verify": False, "attempts": 3})
        result = await worker.one(server.url)

    assert (result.reason, result.attempts, server.requests) == (Reason.TLS, 1, [])


async def test_a_stop_leaves_no_partial_file_of_a_running_fetch(
    origin: Origin, start: Start, engine: str
) -> None:
    """The grace period is shorter than the read timeout."""
    origin.behaviour = o.silent
    worker = await start(engine=engine, grace_s=0.1, policy={"timeout": HURRIED})
    await worker.submit([origin.url()])
    await wait_until(lambda: origin.requests, "the request")
    await worker.stop()

    assert not worker.files() | worker.parts()
