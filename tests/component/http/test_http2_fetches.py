"""Fetches over HTTP/2: their results when a host refuses, resets or breaks streams."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from h2.errors import ErrorCodes

from fetchfleet import Fetch, Outcome, Reason
from fetchfleet.worker.policy.model import Timeouts
from tests.component.conftest import QUICK, Start
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import http2 as o
from tools.origin.certificates import HAS_OPENSSL, Authority
from tools.origin.http2 import Behaviour, Exchange, Http2Origin, server_tls

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="needs openssl")

HOST = "127.0.95.3"
PATIENT = Timeouts(connect_s=10, read_s=20, write_s=20, pool_s=20, total_s=40)
SHORT = Timeouts(connect_s=10, read_s=1, write_s=1, pool_s=1, total_s=20)
BODY = bytes(range(256)) * 8192
ETAG = ("etag", '"1"')


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the CA of the origin's certificate."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def host(authority: Authority) -> AsyncIterator[Http2Origin]:
    """Yield an origin that responds "ok" by default."""
    tls = server_tls(authority.issue("host", f"IP:{HOST}"))
    async with Http2Origin.serving(HOST, tls, o.ok) as serving:
        yield serving


@pytest.fixture
async def worker(
    authority: Authority, start: Start, engine: str, monkeypatch: pytest.MonkeyPatch
) -> OneWorker:
    """Return a worker that offers HTTP/2, trusts the origin and makes one attempt."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    return await start(engine=engine, policy={"http2": True, "attempts": 1, "timeout": PATIENT})


@pytest.fixture
async def hurried(start: Start, worker: OneWorker, engine: str) -> OneWorker:
    """Return such a worker with short timeouts."""
    await worker.stop()
    return await start(engine=engine, policy={"http2": True, "attempts": 1, "timeout": SHORT})


async def refused(x: Exchange) -> None:
    """Refuse the stream on the first connection."""
    if x.peer.number == 1:
        await x.reset(ErrorCodes.REFUSED_STREAM)
    else:
        await x.respond()


async def goaway_first(x: Exchange) -> None:
    """Send GOAWAY on the first connection."""
    if x.peer.number == 1:
        await x.goaway(0)
    else:
        await x.respond()


async def test_a_cancelled_stream_does_not_affect_its_siblings(
    host: Http2Origin, start: Start, worker: OneWorker, engine: str
) -> None:
    """The sibling is stored in its first attempt."""
    await worker.stop()
    go_on = asyncio.Event()

    async def waits(x: Exchange) -> None:
        if x.seen.path == "/waits":
            await go_on.wait()
        if x.seen.path != "/silent":
            await x.respond()

    host.behaviour = waits
    policy = {"http2": True, "concurrency": 2, "timeout": PATIENT}
    worker = await start(engine=engine, policy=policy, timings=replace(QUICK, heartbeat_s=0.05))
    sibling = await worker.submit([host.url("/waits")])
    unwanted = await worker.submit([host.url("/silent")])
    await wait_until(lambda: len(host.requests) == 2, "both requests")
    await unwanted.cancel()
    [lane] = worker.runtime.lanes.values()
    await wait_until(lambda: lane.interrupted, "the cancellation")
    go_on.set()

    [cancelled], [stored] = await results_of(unwanted), await results_of(sibling)

    assert (cancelled.outcome, stored.outcome) == (Outcome.CANCELLED, Outcome.STORED)
    assert stored.attempts == 1


@pytest.mark.parametrize("behaviour", [refused, goaway_first], ids=lambda each: each.__name__)
async def test_a_request_that_the_host_has_not_processed_is_repeated_without_charge(
    host: Http2Origin, worker: OneWorker, behaviour: Behaviour
) -> None:
    """A POST is repeated at once on a new connection (RFC 9113 §8.7)."""
    host.behaviour = behaviour

    result = await worker.one(host.url(), method="POST", body="once")

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 0)
    assert [seen.connection for seen in host.requests] == [1, 2]


async def test_a_body_whose_stream_was_reset_is_resumed(
    host: Http2Origin, start: Start, worker: OneWorker
) -> None:
    """The second attempt requests the rest with a Range."""
    await worker.stop()
    worker = await start(policy={"http2": True, "attempts": 2})

    async def in_halves(x: Exchange) -> None:
        wanted = x.seen.fields.get("range")
        if wanted is None:
            await x.head(200, [ETAG, ("content-length", str(len(BODY)))])
            await x.send(BODY[: len(BODY) // 2])
            await x.reset()
            return
        since = int(wanted.removeprefix("bytes=").removesuffix("-"))
        content_range = ("content-range", f"bytes {since}-{len(BODY) - 1}/{len(BODY)}")
        await x.respond(206, BODY[since:], [ETAG, content_range])

    host.behaviour = in_halves

    result = await worker.one(host.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)
    assert worker.body(result) == BODY
    assert "range" in host.requests[-1].fields


async def hangs_up(x: Exchange) -> None:
    await x.peer.hang_up()


async def sends_garbage(x: Exchange) -> None:
    await x.peer.raw(b"\xff" * 100)


async def resets(x: Exchange) -> None:
    await x.reset()


async def sends_a_short_body(x: Exchange) -> None:
    await x.head(200, [("content-length", "9")])
    await x.send(b"half", last=True)


async def hangs_up_in_a_body(x: Exchange) -> None:
    await x.head(200, [("content-length", "9")])
    await x.send(b"half")
    await x.peer.hang_up()


async def stalls(x: Exchange) -> None:
    await x.head(200, [("content-length", "9")])
    await x.send(b"half")


async def allows_no_streams(x: Exchange) -> None:
    await x.peer.allow(0)
    await x.reset(ErrorCodes.REFUSED_STREAM)


async def refuses_all_streams(x: Exchange) -> None:
    await x.reset(ErrorCodes.REFUSED_STREAM)


async def sends_status_999(x: Exchange) -> None:
    await x.head(999)


ALSO_POSSIBLE: dict[Behaviour, set[Reason]] = {
    hangs_up: {Reason.READ},  # if the kernel reports a reset
    hangs_up_in_a_body: {Reason.READ},
}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (hangs_up, Reason.PROTOCOL),
        (sends_garbage, Reason.PROTOCOL),
        (resets, Reason.READ),
        (sends_a_short_body, Reason.TRUNCATED),
        (hangs_up_in_a_body, Reason.TRUNCATED),
        (stalls, Reason.READ_TIMEOUT),
        (allows_no_streams, Reason.POOL_TIMEOUT),
        (refuses_all_streams, Reason.CONNECT),
        (sends_status_999, Reason.PROTOCOL),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_each_fault_has_its_reason(
    host: Http2Origin, hurried: OneWorker, fault: Behaviour, reason: Reason
) -> None:
    """No body is stored, and no fetch hangs."""
    host.behaviour = fault

    result = await hurried.one(host.url())

    assert result.outcome is Outcome.FAILED
    assert result.reason in {reason, *ALSO_POSSIBLE.get(fault, ())}
    assert not hurried.files() | hurried.parts()


async def test_concurrent_bodies_far_larger_than_their_windows_are_stored(
    host: Http2Origin, worker: OneWorker, engine: str
) -> None:
    """Sixteen bodies arrive byte for byte over one connection."""

    async def big(x: Exchange) -> None:
        await x.respond(200, BODY)

    host.behaviour = big
    results = await worker.results([Fetch(url=host.url(f"/{n}")) for n in range(16)])

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert {worker.body(result) == BODY for result in results} == {True}
    assert len(host.peers) == 1
    assert len({seen.connection for seen in host.requests[-8:]}) == 1


async def test_an_empty_body_with_a_content_coding_is_complete(host: Http2Origin, worker: OneWorker) -> None:
    """END_STREAM marks its end, so a gzip body of no bytes is not truncated."""

    async def empty(x: Exchange) -> None:
        await x.head(200, [("content-encoding", "gzip")], last=True)

    host.behaviour = empty

    result = await worker.one(host.url(), decode=True)

    assert (result.outcome, result.bytes, result.unverified) == (Outcome.STORED, 0, False)
