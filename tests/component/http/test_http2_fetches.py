"""Fetches over HTTP/2: what hosts do to streams, as results tell it."""

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
    """Who vouches for the origin."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def host(authority: Authority) -> AsyncIterator[Http2Origin]:
    """An origin that answers "ok" until it is told otherwise."""
    tls = server_tls(authority.issue("host", f"IP:{HOST}"))
    async with Http2Origin.serving(HOST, tls, o.ok) as serving:
        yield serving


@pytest.fixture
async def worker(
    authority: Authority, start: Start, engine: str, monkeypatch: pytest.MonkeyPatch
) -> OneWorker:
    """A worker that offers HTTP/2, trusts the origin, and tries once."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    return await start(engine=engine, policy={"http2": True, "attempts": 1, "timeout": PATIENT})


@pytest.fixture
async def hurried(start: Start, worker: OneWorker, engine: str) -> OneWorker:
    """Such a worker that does not wait for long."""
    await worker.stop()
    return await start(engine=engine, policy={"http2": True, "attempts": 1, "timeout": SHORT})


async def refused(x: Exchange) -> None:
    """On the first connection."""
    if x.peer.number == 1:
        await x.reset(ErrorCodes.REFUSED_STREAM)
    else:
        await x.respond()


async def left(x: Exchange) -> None:
    """By the first connection."""
    if x.peer.number == 1:
        await x.goaway(0)
    else:
        await x.respond()


async def test_a_stream_that_is_cancelled_is_reset_and_its_siblings_go_on(
    host: Http2Origin, start: Start, worker: OneWorker, engine: str
) -> None:
    """No more streams are open than the policy lets be."""
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
    await wait_until(lambda: lane.cut, "the cancellation")
    go_on.set()

    [cancelled], [stored] = await results_of(unwanted), await results_of(sibling)

    assert (cancelled.outcome, stored.outcome) == (Outcome.CANCELLED, Outcome.STORED)
    assert stored.attempts == 1


@pytest.mark.parametrize("behaviour", [refused, left], ids=lambda each: each.__name__)
async def test_what_the_host_has_not_begun_charges_nothing(
    host: Http2Origin, worker: OneWorker, behaviour: Behaviour
) -> None:
    """Also a POST is made again, at once and unseen: it was not done (RFC 9113 §8.7)."""
    host.behaviour = behaviour

    result = await worker.one(host.url(), method="POST", body="once")

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 0)
    assert [seen.connection for seen in host.requests] == [1, 2]


async def test_a_body_whose_stream_was_reset_goes_on_where_it_stopped(
    host: Http2Origin, start: Start, worker: OneWorker
) -> None:
    """As one whose connection broke."""
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
        told = ("content-range", f"bytes {since}-{len(BODY) - 1}/{len(BODY)}")
        await x.respond(206, BODY[since:], [ETAG, told])

    host.behaviour = in_halves

    result = await worker.one(host.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)
    assert worker.body(result) == BODY
    assert "range" in host.requests[-1].fields


async def hangs_up(x: Exchange) -> None:
    await x.peer.hang_up()


async def is_garbage(x: Exchange) -> None:
    await x.peer.raw(b"\xff" * 100)


async def resets(x: Exchange) -> None:
    await x.reset()


async def cuts_short(x: Exchange) -> None:
    await x.head(200, [("content-length", "9")])
    await x.send(b"half", last=True)


async def hangs_up_in_the_middle(x: Exchange) -> None:
    await x.head(200, [("content-length", "9")])
    await x.send(b"half")
    await x.peer.hang_up()


async def stalls(x: Exchange) -> None:
    await x.head(200, [("content-length", "9")])
    await x.send(b"half")


async def takes_none(x: Exchange) -> None:
    await x.peer.allow(0)
    await x.reset(ErrorCodes.REFUSED_STREAM)


async def begins_none(x: Exchange) -> None:
    await x.reset(ErrorCodes.REFUSED_STREAM)


async def is_odd(x: Exchange) -> None:
    await x.head(999)


TOLD_OTHERWISE: dict[Behaviour, set[Reason]] = {
    hangs_up: {Reason.READ},  # the kernel may say more of it
    hangs_up_in_the_middle: {Reason.READ},
}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (hangs_up, Reason.PROTOCOL),
        (is_garbage, Reason.PROTOCOL),
        (resets, Reason.READ),
        (cuts_short, Reason.TRUNCATED),
        (hangs_up_in_the_middle, Reason.TRUNCATED),
        (stalls, Reason.READ_TIMEOUT),
        (takes_none, Reason.POOL_TIMEOUT),
        (begins_none, Reason.CONNECT),
        (is_odd, Reason.PROTOCOL),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_each_fault_has_its_reason(
    host: Http2Origin, hurried: OneWorker, fault: Behaviour, reason: Reason
) -> None:
    """None is stored, and none hangs."""
    host.behaviour = fault

    result = await hurried.one(host.url())

    assert result.outcome is Outcome.FAILED
    assert result.reason in {reason, *TOLD_OTHERWISE.get(fault, ())}
    assert not hurried.files() | hurried.parts()


async def test_bodies_far_beyond_their_windows_come_side_by_side(
    host: Http2Origin, worker: OneWorker, engine: str
) -> None:
    """Byte for byte, over one connection."""

    async def big(x: Exchange) -> None:
        await x.respond(200, BODY)

    host.behaviour = big
    results = await worker.results([Fetch(url=host.url(f"/{n}")) for n in range(16)])

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert {worker.body(result) == BODY for result in results} == {True}
    assert len(host.peers) == 1
    assert len({seen.connection for seen in host.requests[-8:]}) == 1


async def test_an_empty_body_is_whole_in_every_coding(host: Http2Origin, worker: OneWorker) -> None:
    """A stream marks its end itself."""

    async def empty(x: Exchange) -> None:
        await x.head(200, [("content-encoding", "gzip")], last=True)

    host.behaviour = empty

    result = await worker.one(host.url(), decode=True)

    assert (result.outcome, result.bytes, result.unverified) == (Outcome.STORED, 0, False)
