"""The same contract on every engine: what a fetch comes to does not depend on who makes the exchange."""

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
from tests.support.nameserver import Nameserver, at
from tests.support.ranged import Ranged
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
    """Half a body, and no more."""
    await x.raw(LINE + b"Content-Length: 99\r\n\r\nhello")
    await asyncio.Event().wait()


async def test_a_body_is_stored_as_it_was_sent(origin: Origin, start: Start, engine: str) -> None:
    """However large, byte for byte; connections are used again."""
    big = o.big(5_000_000)
    origin.behaviour = o.by_path({"/big": big, "/small": o.ok(b"small")})
    worker = await start(engine=engine, policy={"concurrency": 1})

    first, second = await worker.results([origin.url("/big"), origin.url("/small")])

    assert (first.bytes, first.sha256) == (5_000_000, big.sha256)
    assert worker.body(second) == b"small"
    assert origin.connections_opened == 1


async def test_a_request_goes_out_as_it_was_asked_for(origin: Origin, start: Start, engine: str) -> None:
    """The worker's own headers, the fetch's in their place; nothing of the environment."""
    worker = await start(engine=engine, user_agent="ours/1")
    await worker.one(origin.url("/a?b=c%20d"), headers={"X-Own": "1", "Accept": "text/plain"})

    [seen] = origin.requests
    said = {name.lower(): value for name, value in seen.headers}
    assert (seen.method, seen.target) == ("GET", "/a?b=c%20d")
    assert (said["user-agent"], said["accept"], said["x-own"]) == ("ours/1", "text/plain", "1")
    assert said["accept-encoding"] == "identity"
    assert not {"cookie", "referer"} & said.keys()


async def test_no_proxy_of_the_environment_is_asked(
    origin: Origin, start: Start, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.71.9:9")
    worker = await start(engine=engine, policy={"attempts": 1})

    assert (await worker.one(origin.url())).outcome is Outcome.STORED


async def test_no_cookie_is_kept(origin: Origin, start: Start, engine: str) -> None:
    """One fetch's is not another's."""
    origin.behaviour = o.set_cookie("a=b")
    worker = await start(engine=engine, policy={"concurrency": 1})
    await worker.results([origin.url("/1"), origin.url("/2")])

    assert [Origin.header(seen, "cookie") for seen in origin.requests] == [None, None]


async def test_a_coded_body_is_not_decoded_unasked(origin: Origin, start: Start, engine: str) -> None:
    """A length and a digest are of what the host has."""
    origin.behaviour = o.ok(b"no gzip at all", headers=[("Content-Encoding", "gzip")])
    worker = await start(engine=engine)

    assert worker.body(await worker.one(origin.url())) == b"no gzip at all"


async def test_a_redirect_is_followed_by_us(origin: Origin, other: Origin, start: Start, engine: str) -> None:
    """Secrets stay with the host they are for."""
    origin.behaviour = o.redirect(other.url("/there"))
    worker = await start(engine=engine)
    result = await worker.one(origin.url(), headers={"Authorization": "secret"})

    assert (result.outcome, result.final_url) == (Outcome.STORED, other.url("/there"))
    assert Origin.header(other.requests[0], "authorization") is None


async def test_a_failing_host_is_tried_again(origin: Origin, start: Start, engine: str) -> None:
    """As often as the policy says."""
    origin.behaviour = o.fail_times(2, 500)
    worker = await start(engine=engine, policy={"attempts": 3})
    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 3)


async def test_a_host_that_asks_for_quiet_gets_it(origin: Origin, start: Start, engine: str) -> None:
    """A 429 charges no attempt."""
    origin.behaviour = o.sequence(o.retry_after(1), o.OK)
    worker = await start(engine=engine, policy={"attempts": 1})
    result = await worker.one(origin.url())

    assert (result.outcome, result.throttles) == (Outcome.STORED, 1)


BROKEN: dict[str, tuple[Behaviour, Reason]] = {
    "cut short": (o.truncated(b"hello", 99), Reason.TRUNCATED),
    "cut in chunks": (o.cut_chunked(b"hello"), Reason.TRUNCATED),
    "reset before the head": (o.reset, Reason.READ),
    "no http": (o.garbage(b"hello\r\n\r\n"), Reason.PROTOCOL),
    "nothing at all": (o.garbage(b""), Reason.PROTOCOL),
    "a status of 99": (o.garbage(b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n"), Reason.PROTOCOL),
    "a status of 600": (o.garbage(b"HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n"), Reason.PROTOCOL),
    "a length of words": (o.garbage(LINE + b"Content-Length: two\r\n\r\nok"), Reason.PROTOCOL),
    "two lengths": (o.garbage(LINE + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok"), Reason.PROTOCOL),
    "two framings": (
        o.garbage(LINE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        Reason.PROTOCOL,
    ),
    "a head too large": (o.garbage(LINE + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n"), Reason.PROTOCOL),
    "a NUL in a field": (o.garbage(LINE + b"X: a\0b\r\nContent-Length: 2\r\n\r\nok"), Reason.PROTOCOL),
}


@pytest.mark.parametrize(("answer", "reason"), BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_answer_says_how_it_broke(
    origin: Origin, start: Start, engine: str, answer: Behaviour, reason: Reason
) -> None:
    """Nothing of it is stored."""
    origin.behaviour = answer
    worker = await start(engine=engine, policy={"attempts": 1})
    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)
    assert not worker.files() | worker.parts()


async def test_half_a_body_is_gone_on_with(origin: Origin, start: Start, engine: str) -> None:
    """By a range, under the condition that it is still the same."""
    body = b"x" * 2_000_000
    origin.behaviour = Ranged(body, breaks=[1_000_000])
    worker = await start(engine=engine, policy={"attempts": 3})
    result = await worker.one(origin.url())

    assert worker.body(result) == body
    assert [Origin.header(seen, "range") is None for seen in origin.requests] == [True, False]


async def test_a_body_is_sent_whole_with_its_length(origin: Origin, start: Start, engine: str) -> None:
    """Never in chunks, which many hosts do not take."""
    worker = await start(engine=engine)
    result = await worker.one(origin.url(), method="POST", body="x" * 200_000)

    [seen] = origin.requests
    assert (result.outcome, seen.body) == (Outcome.STORED, b"x" * 200_000)
    assert Origin.header(seen, "content-length") == "200000"
    assert Origin.header(seen, "transfer-encoding") is None


async def test_a_file_is_sent(origin: Origin, start: Start, engine: str, tmp_path: Path) -> None:
    """Streamed from the folder of what may be sent."""
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
async def test_a_host_that_stalls_is_given_up(
    origin: Origin, start: Start, engine: str, answer: Behaviour, reason: Reason
) -> None:
    """By its own bound and with its own reason."""
    origin.behaviour = answer
    worker = await start(engine=engine, policy={"attempts": 1, "timeout": HURRIED})

    assert (await worker.one(origin.url())).reason is reason


async def test_whatever_a_host_does_the_deadline_ends_it(origin: Origin, start: Start, engine: str) -> None:
    """And a POST is not sent again."""
    origin.behaviour = o.silent
    worker = await start(engine=engine, policy={"attempts": 5, "timeout": PATIENT})
    result = await worker.one(origin.url(), method="POST", body="x", deadline_s=1.0)

    assert (result.reason, result.attempts, len(origin.requests)) == (Reason.DEADLINE, 1, 1)


async def test_a_host_that_is_not_there_fails_as_connect(start: Start, engine: str) -> None:
    """Nothing was sent, so a POST is tried again too."""
    with socket.create_server((HERE, 0)) as gone:
        url = f"http://{HERE}:{gone.getsockname()[1]}/"
    worker = await start(engine=engine, policy={"attempts": 2})
    result = await worker.one(url, method="POST", body="x")

    assert (result.reason, result.attempts) == (Reason.CONNECT, 2)


@pytest.mark.parametrize("url", ["http://127.0.71.2/", "http://[::ffff:127.0.71.2]/", "http://10.1.2.3/"])
async def test_an_address_that_may_not_be_dialled_is_not(start: Start, engine: str, url: str) -> None:
    """Once and for all."""
    worker = await start(engine=engine, allow_net="", policy={"attempts": 3})
    result = await worker.one(url)

    assert (result.reason, result.attempts) == (Reason.EGRESS_REFUSED, 1)


async def test_a_name_is_dialled_where_our_own_look_found_it(
    names: Nameserver, start: Start, engine: str
) -> None:
    """The system knows nothing of that name; with a dot at its end it is vetted likewise."""
    async with Origin.serving(HERE, o.OK) as there:
        names.says["shop.test"] = [at(HERE)]
        worker = await start(engine=engine, nameservers=names.address)
        result = await worker.one(f"http://shop.test:{there.port}/")

    assert result.outcome is Outcome.STORED
    assert Origin.header(there.requests[0], "host") == f"shop.test:{there.port}"


async def test_a_name_with_one_forbidden_address_is_refused(
    names: Nameserver, start: Start, engine: str
) -> None:
    """Though another of its addresses might be dialled."""
    names.says["shop.test"] = [at(HERE, "10.1.2.3")]
    worker = await start(engine=engine, nameservers=names.address, policy={"attempts": 1})

    assert (await worker.one("http://shop.test/")).reason is Reason.EGRESS_REFUSED


async def test_the_next_address_of_a_name_is_tried(names: Nameserver, start: Start, engine: str) -> None:
    """Where the first takes no connection, within the same attempt."""
    async with Origin.serving(HERE, o.OK) as there:
        names.says["shop.test"] = [at("127.0.71.8", HERE)]
        worker = await start(engine=engine, nameservers=names.address, policy={"attempts": 1})
        result = await worker.one(f"http://shop.test:{there.port}/")

    assert result.outcome is Outcome.STORED


async def test_a_robots_txt_is_asked_for_and_obeyed(origin: Origin, start: Start, engine: str) -> None:
    """By the same engine."""
    origin.behaviour = o.by_path({"/robots.txt": o.ok(b"User-agent: *\nDisallow: /private")}, o.OK)
    worker = await start(engine=engine, policy={"robots": "obey"})
    refused, taken = await worker.results([origin.url("/private"), origin.url("/public")])

    assert {refused.reason, taken.reason} == {Reason.ROBOTS_DISALLOWED, None}


class Files:
    """Certificates for HERE."""

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
    """The certificates, made once."""
    return Files(tmp_path_factory.mktemp("certificates"))


NOT_TRUSTED: dict[str, Callable[[Files], Certificate]] = {
    "unknown CA": lambda files: files.stranger,
    "another host": lambda files: files.elsewhere,
    "expired": lambda files: files.expired,
}


@needs_openssl
@pytest.mark.parametrize("cert", NOT_TRUSTED.values(), ids=NOT_TRUSTED.keys())
async def test_who_is_not_to_be_trusted_sees_no_request(
    files: Files,
    start: Start,
    engine: str,
    cert: Callable[[Files], Certificate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reason tls, for good."""
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)
    with TlsServer(HERE, context(cert(files))) as server:
        worker = await start(engine=engine, policy={"attempts": 3})
        result = await worker.one(server.url)

    assert (result.reason, result.attempts, server.requests) == (Reason.TLS, 1, [])


@needs_openssl
async def test_who_asks_for_our_certificate_gets_it(
    files: Files, start: Start, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whom the system trusts is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)
    with TlsServer(HERE, context(files.good, client_ca=files.ca)) as server:
        ours = {"client_cert": str(files.client.cert), "client_key": str(files.client.key)}
        worker = await start(engine=engine, policy=ours)
        result = await worker.one(server.url)

    assert (result.outcome, server.shown) == (Outcome.STORED, ["client"])


@needs_openssl
async def test_an_unverified_host_is_taken(files: Files, start: Start, engine: str) -> None:
    """Where its policy says so."""
    with TlsServer(HERE, context(files.stranger)) as server:
        worker = await start(engine=engine, policy={"verify": False})

        assert (await worker.one(server.url)).outcome is Outcome.STORED


@needs_openssl
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_an_old_tls_is_not_spoken(files: Files, start: Start, engine: str) -> None:
    """Not even to who is not verified."""
    spoken = context(files.good)
    spoken.set_ciphers("ALL:@SECLEVEL=0")
    spoken.minimum_version = spoken.maximum_version = ssl.TLSVersion.TLSv1
    with TlsServer(HERE, spoken) as server:
        worker = await start(engine=engine, policy={"verify": False, "attempts": 3})
        result = await worker.one(server.url)

    assert (result.reason, result.attempts, server.requests) == (Reason.TLS, 1, [])


async def test_a_stop_hands_back_what_is_under_way(origin: Origin, start: Start, engine: str) -> None:
    """Nobody's fault, so no attempt is charged."""
    origin.behaviour = o.silent
    worker = await start(engine=engine, grace_s=0.1, policy={"timeout": HURRIED})
    await worker.submit([origin.url()])
    await wait_until(lambda: origin.requests, "the request")
    await worker.stop()

    assert not worker.files() | worker.parts()
