"""Connections of each engine: cancelled requests, lost lanes, hosts that move, and the load on a host."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.worker.policy.model import Timeouts
from tests.component.conftest import QUICK, Start, needs_openssl
from tests.support import tcp
from tests.support.nameserver import Nameserver, addresses
from tests.support.waiting import wait_until
from tests.support.warc import read, segments
from tools.one_worker import results_of
from tools.origin import behaviours as o
from tools.origin import http2
from tools.origin.certificates import Authority
from tools.origin.http2 import Http2Origin, server_tls
from tools.origin.server import Exchange, Origin

HERE = "127.0.71.4"
PATIENT = Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=10)
LINE = b"HTTP/1.1 200 OK\r\n"
ATTENTIVE = replace(QUICK, heartbeat_s=0.05)
"""Timings of workers that check for cancelled batches many times a second."""


async def test_a_cancelled_request_ends_at_its_host_before_another_begins(
    origin: Origin, start: Start, engine: str
) -> None:
    """Its slot is free once its connection is closed."""
    origin.behaviour = o.by_path({"/silent": o.silent}, o.OK)
    worker = await start(engine=engine, policy={"concurrency": 1, "timeout": PATIENT}, timings=ATTENTIVE)
    unwanted = await worker.submit([origin.url("/silent")])
    await wait_until(lambda: origin.requests, "the request")
    wanted = await worker.submit([origin.url("/next")])
    await unwanted.cancel()

    [cancelled], [stored] = await results_of(unwanted), await results_of(wanted)

    assert (cancelled.outcome, stored.outcome) == (Outcome.CANCELLED, Outcome.STORED)
    assert origin.high_water == 1
    assert origin.requests[0].aborted


async def test_a_cancelled_request_costs_its_siblings_nothing(
    origin: Origin, start: Start, engine: str
) -> None:
    """The host never has more requests in progress than the policy allows."""
    go_on = asyncio.Event()

    async def waits(x: Exchange) -> None:
        await go_on.wait()
        await x.respond(200, (), b"ok")

    origin.behaviour = o.by_path({"/silent": o.silent, "/waits": waits}, o.OK)
    worker = await start(engine=engine, policy={"concurrency": 2, "timeout": PATIENT}, timings=ATTENTIVE)
    unwanted = await worker.submit([origin.url("/silent")])
    sibling = await worker.submit([origin.url("/waits")])
    await wait_until(lambda: origin.in_progress == 2, "both requests")
    await unwanted.cancel()
    [lane] = worker.runtime.lanes.values()
    await wait_until(lambda: lane.cancelled or len(lane.in_flight) == 1, "the cancellation")
    queued = await worker.submit([origin.url(f"/{number}") for number in range(5)])
    go_on.set()

    [cancelled], [other] = await results_of(unwanted), await results_of(sibling)

    assert (cancelled.outcome, other.outcome, other.attempts) == (Outcome.CANCELLED, Outcome.STORED, 1)
    assert {result.outcome for result in await results_of(queued)} == {Outcome.STORED}
    assert origin.high_water == 2


async def test_a_lost_lane_leaves_no_request_at_its_host(origin: Origin, start: Start, engine: str) -> None:
    """The next holder of the lane may begin at once."""
    origin.behaviour = o.silent
    worker = await start(engine=engine, policy={"concurrency": 3, "timeout": PATIENT})
    await worker.submit([origin.url(f"/{number}") for number in range(3)])
    await wait_until(lambda: origin.in_progress == 3, "the requests")
    await worker.stop_acquiring()
    [lane] = worker.runtime.lanes.values()
    lane.lose()

    await wait_until(lambda: not worker.runtime.lanes, "the end of the lane")
    await wait_until(lambda: origin.in_progress == 0, "the end of the requests at the host", timeout_s=1)
    assert all(seen.aborted for seen in origin.requests)


async def test_a_released_lane_leaves_no_connection(origin: Origin, start: Start, engine: str) -> None:
    """Its exchanges ended normally, by a reset, with ambiguous framing, or in the middle of a body."""
    both = LINE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    ends = [o.OK, o.reset, o.garbage(both), o.truncated(b"half", 99), o.redirect("/"), o.NOT_FOUND]
    origin.behaviour = o.by_path({f"/{n}": end for n, end in enumerate(ends)}, o.OK)
    worker = await start(engine=engine, policy={"concurrency": 4, "attempts": 1, "breaker_failures": 100})
    await worker.results(origin.url(f"/{number % len(ends)}") for number in range(60))

    await wait_until(lambda: not worker.runtime.lanes, "the end of the lane")
    await wait_until(
        lambda: tcp.connections(origin.url()).keys() <= {"listen", "time_wait"}, "the connections' end"
    )


async def test_a_host_that_moves_is_dialled_at_its_new_address(
    names: Nameserver, start: Start, engine: str
) -> None:
    """The worker keeps the lane. Once the TTL is over, the new address is vetted and dialled."""
    close = [("Connection", "close")]
    behaviour = o.by_path({"/silent": o.silent}, o.ok(b"old", close))
    async with (
        Origin.serving(HERE, behaviour) as old,
        Origin.serving("127.0.71.3", o.ok(b"new", close), old.port) as new,
    ):
        names.replies["shop.test"] = [
            addresses(HERE),
            addresses(HERE),
            addresses("127.0.71.3"),
            addresses("10.1.2.3"),
        ]
        worker = await start(
            engine=engine, nameservers=names.address, policy={"attempts": 1, "timeout": PATIENT}
        )
        url = f"http://shop.test:{old.port}"
        await worker.submit([f"{url}/silent"])
        await wait_until(lambda: old.requests, "the request that keeps the lane")
        before, after, last = [await worker.one(f"{url}/{number}") for number in range(3)]

    assert [worker.body(result) for result in (before, after)] == [b"old", b"new"]
    assert last.reason is Reason.EGRESS_REFUSED
    assert (len(old.requests), len(new.requests)) == (2, 1)


async def test_a_host_at_an_ipv6_address_is_dialled(start: Start, engine: str) -> None:
    """Its Host field has the brackets."""
    async with Origin.serving("::1", o.OK) as there:
        worker = await start(engine=engine, allow_net="::1/128")
        result = await worker.one(f"http://[::1]:{there.port}/")

    assert result.outcome is Outcome.STORED
    assert Origin.header(there.requests[0], "host") == f"[::1]:{there.port}"


async def test_a_warc_request_record_matches_the_request_that_the_host_received(
    origin: Origin, start: Start, engine: str
) -> None:
    """Its target, its body and its fields in their order are compared."""
    worker = await start(engine=engine, sink="warc")
    own = {"X-Own-Field": "1", "Accept": "text/plain"}
    sent = await worker.one(origin.url("/a?b=c"), method="POST", body="sent", headers=own)
    plain = await worker.one(origin.url("/plain"))

    for result, seen in zip((sent, plain), origin.requests, strict=True):
        records = read(segments(worker.out)[str(result.path)])
        [request] = [
            each for each in records if each.kind == "request" and seen.target in each.http.statusline
        ]
        assert [(name.lower(), value) for name, value in request.http.headers] == list(seen.headers)
        assert request.payload == seen.body


@needs_openssl
class TestHttp2:
    """Fetches use HTTP/2 if the policy enables it and the host supports it."""

    @pytest.fixture
    async def host(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Http2Origin]:
        """Yield an HTTP/2 origin that the system store trusts."""
        authority = Authority(tmp_path_factory.mktemp("ca"))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
        tls = server_tls(authority.issue("host", f"IP:{HERE}"))
        async with Http2Origin.serving(HERE, tls, http2.ok) as serving:
            yield serving

    async def test_requests_share_a_connection(self, host: Http2Origin, start: Start, engine: str) -> None:
        """Four fetches, one after the other, use one connection."""
        worker = await start(engine=engine, policy={"http2": True, "concurrency": 1})
        results = await worker.results([host.url(f"/{number}") for number in range(4)])

        assert {result.outcome for result in results} == {Outcome.STORED}
        assert {seen.connection for seen in host.requests} == {1}
