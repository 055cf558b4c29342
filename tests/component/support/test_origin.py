"""The test origin: its behaviours, and its record of the requests."""

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop

from tests.support.waiting import wait_until
from tools.origin import behaviours
from tools.origin import server as o
from tools.origin.process import origins_in_child
from tools.origin.server import Behaviour, Exchange, Origin, Seen
from tools.origin.static_server import Kind, serve_folder

HOST = "127.0.0.11"
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Run = Callable[[Coroutine[Any, Any, list[Seen]]], list[Seen]]


@asynccontextmanager
async def connected(origin: Origin) -> AsyncIterator[Streams]:
    """Yield a raw connection to the origin."""
    address = urlsplit(origin.url())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answers_to(behaviour: Behaviour, request: bytes = GET) -> bytes:
    """Return all bytes that a raw client reads for this request before the origin closes."""
    async with Origin.serving(HOST, behaviour) as origin, connected(origin) as (reader, writer):
        writer.write(request)
        return await reader.read()


async def one_get(behaviour: Behaviour, path: str = "/") -> tuple[httpx.Response, Origin]:
    """Return the response to one GET of httpx, redirects followed, and the origin."""
    client = httpx.AsyncClient(follow_redirects=True)
    async with Origin.serving(HOST, behaviour) as origin, client:
        return await client.get(origin.url(path)), origin


async def statuses_of(behaviour: Behaviour, times: int) -> list[int]:
    """Return the statuses of some requests, made one after the other."""
    async with Origin.serving(HOST, behaviour) as origin, httpx.AsyncClient() as client:
        return [(await client.get(origin.url())).status_code for _ in range(times)]


class Gate:
    """A behaviour that does not respond until it is opened."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()

    async def __call__(self, x: Exchange) -> None:
        """Respond once the gate is open."""
        await self.is_open.wait()
        await x.respond(200)


# The connection.


async def test_many_requests_share_a_connection() -> None:
    """Keep-alive works, and each recorded request has the number of its connection."""
    async with Origin.serving(HOST, behaviours.ok(str.encode)) as origin, httpx.AsyncClient() as client:
        bodies = [(await client.get(origin.url(f"/{n}"))).text for n in range(5)]

    assert bodies == ["/0", "/1", "/2", "/3", "/4"]
    assert origin.connections_opened == 1
    assert {seen.connection for seen in origin.requests} == {1}


async def test_pipelined_requests_get_their_responses_in_order() -> None:
    """Both requests arrive in one write."""
    last = GET.replace(b"/a", b"/b").replace(b"Host: x", b"Host: x\r\nConnection: close")

    answer = await answers_to(behaviours.ok(str.encode), GET + last)

    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b"/a") < answer.index(b"/b")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
async def test_connection_close_and_http_1_0_end_the_connection(request_bytes: bytes) -> None:
    """The response announces the close."""
    answer = await answers_to(behaviours.ok(b"bye"), request_bytes)

    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"bye")


async def test_a_response_without_a_length_ends_with_its_connection() -> None:
    """Only the end of the connection delimits its body (RFC 9112 §6.3)."""

    async def endless(x: Exchange) -> None:
        await x.send_head(200)
        await x.send(b"until the end")

    assert (await answers_to(endless)).endswith(b"\r\n\r\nuntil the end")


async def test_a_head_request_gets_no_body() -> None:
    """The response has the Content-Length of the body that is not sent; the connection is reused."""
    async with Origin.serving(HOST, behaviours.ok(b"12345")) as origin, httpx.AsyncClient() as client:
        head = await client.head(origin.url())
        body = await client.get(origin.url())

    assert head.headers["content-length"] == "5"
    assert (head.content, body.content) == (b"", b"12345")
    assert origin.connections_opened == 1


async def test_request_bodies_are_recorded_with_either_framing() -> None:
    """One body has a Content-Length, one is chunked."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"in "
        yield b"pieces"

    async with Origin.serving(HOST, behaviours.OK) as origin, httpx.AsyncClient() as client:
        await client.post(origin.url("/p"), content=b"whole", headers={"X-One": "1"})
        await client.post(origin.url("/p"), content=pieces())

    assert [seen.body for seen in origin.requests] == [b"whole", b"in pieces"]
    assert Origin.header(origin.requests[0], "x-oNe") == "1"
    assert Origin.header(origin.requests[0], "absent") is None


# The record.


async def test_high_water_counts_concurrent_requests() -> None:
    """Held requests count at once, and later ones do not lower the mark."""
    gate = Gate()
    async with Origin.serving(HOST, gate) as origin, httpx.AsyncClient() as client:
        held = [asyncio.create_task(client.get(origin.url())) for _ in range(3)]
        await wait_until(lambda: origin.in_progress == 3, "three requests at the gate")
        unfinished = [seen.finished_s for seen in origin.requests]
        gate.is_open.set()
        await asyncio.gather(*held)
        await client.get(origin.url())

    assert unfinished == [math.inf] * 3
    assert (origin.high_water, origin.in_progress) == (3, 0)
    assert all(seen.arrived_s <= seen.finished_s < math.inf for seen in origin.requests)


async def test_sequential_requests_never_overlap() -> None:
    """The mark stays at one."""
    async with Origin.serving(HOST, behaviours.OK) as origin, httpx.AsyncClient() as client:
        for _ in range(10):
            await client.get(origin.url())

    assert origin.high_water == 1


async def test_a_request_closed_before_the_response_is_recorded_as_aborted() -> None:
    """The close ends the exchange at once, although the behaviour would wait forever."""
    async with Origin.serving(HOST, Gate()) as origin:
        async with connected(origin) as (_, writer):
            writer.write(GET)
            await wait_until(lambda: origin.in_progress, "the request at the gate")
        await wait_until(lambda: not origin.in_progress, "the end of the exchange")

    assert [seen.aborted for seen in origin.requests] == [True]
    assert origin.requests[0].finished_s < math.inf


async def test_a_request_closed_in_the_body_is_recorded_as_aborted() -> None:
    """The close ends a large response whose bytes are no longer read."""
    async with Origin.serving(HOST, behaviours.big(1 << 30)) as origin:
        async with connected(origin) as (reader, writer):
            writer.write(GET)
            await reader.readexactly(1 << 20)
        await wait_until(lambda: not origin.in_progress, "the end of the exchange")

    assert [seen.aborted for seen in origin.requests] == [True]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_request_followed_by_an_end_of_file_is_recorded_as_aborted(run: Run) -> None:
    """It ends at once on both event loops, which deliver the two differently."""

    async def ask_and_leave() -> list[Seen]:
        async with Origin.serving(HOST, Gate()) as origin, connected(origin) as (reader, writer):
            writer.write(GET)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 5) == b""
        return origin.requests

    assert [seen.aborted for seen in run(ask_and_leave())] == [True]


async def test_a_connection_closed_after_the_response_is_not_recorded_as_aborted() -> None:
    """Closing an idle connection is normal."""
    async with Origin.serving(HOST, behaviours.OK) as origin, httpx.AsyncClient() as client:
        await client.get(origin.url())

    assert [seen.aborted for seen in origin.requests] == [False]


async def test_a_connection_closed_by_the_origin_is_not_recorded_as_aborted() -> None:
    """The behaviour runs on after its close."""
    is_lost = asyncio.Event()

    async def close_then_linger(x: Exchange) -> None:
        x.close()
        await is_lost.wait()

    async with Origin.serving(HOST, close_then_linger) as origin:
        async with connected(origin) as (reader, writer):
            writer.write(GET)
            await reader.read()
        is_lost.set()
        await wait_until(lambda: not origin.in_progress, "the end of the exchange")

    assert [seen.aborted for seen in origin.requests] == [False]


async def test_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    """Unsent bytes are dropped."""
    async with Origin.serving(HOST, behaviours.big(1 << 30)) as origin, connected(origin) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a ReadTransport too
        writer.write(GET)
        await wait_until(lambda: origin.in_progress, "the request")
        await asyncio.wait_for(origin.stop(), 5)

    assert [seen.aborted for seen in origin.requests] == [False]


async def test_stop_ends_open_connections_and_running_behaviours() -> None:
    """No task is left, and the client finds the connection closed."""
    tasks_before = asyncio.all_tasks()
    origin = await Origin.start(HOST, behaviour=Gate())
    async with connected(origin) as (reader, writer), connected(origin):
        writer.write(GET)
        await wait_until(lambda: origin.in_progress, "the request at the gate")
        await origin.stop()
        assert await reader.read() == b""

    assert asyncio.all_tasks() == tasks_before
    assert origin.in_progress == 0


async def test_stop_raises_errors_of_behaviours_and_bad_requests() -> None:
    """A bug in a behaviour, or a malformed request, fails the test that made it."""

    async def broken(x: Exchange) -> None:
        raise LookupError(x.request.target)

    with pytest.raises(ExceptionGroup) as behaviour_fault:
        await answers_to(broken)
    with pytest.raises(ExceptionGroup) as client_fault:
        await answers_to(behaviours.OK, b"NONSENSE\r\n\r\n")

    assert behaviour_fault.group_contains(LookupError)
    assert client_fault.group_contains(ValueError)


# Behaviours that throttle or delay.


async def test_retry_after_windows_are_recorded() -> None:
    """A throttled request opens a window, and only a request inside it is a breach."""
    behaviour = behaviours.sequence(behaviours.OK, behaviours.retry_after(30), behaviours.OK)
    async with Origin.serving(HOST, behaviour) as origin, httpx.AsyncClient() as client:
        answers = [await client.get(origin.url(f"/{n}")) for n in range(3)]

    [(from_s, until_s)] = origin.windows
    inside = o.requests_inside(origin.windows, origin.requests)
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert answers[1].headers["retry-after"] == "30"
    assert until_s - from_s == pytest.approx(30, abs=1)
    assert [seen.target for seen in inside] == ["/2"]
    assert o.requests_inside(origin.windows, origin.requests, slack_s=29) == []


async def test_a_retry_after_date_opens_a_window_until_then() -> None:
    """An HTTP date has whole seconds (RFC 9110 §10.2.3)."""
    answer, origin = await one_get(behaviours.retry_after(formatdate(time.time() + 60, usegmt=True), 503))

    [(from_s, until_s)] = origin.windows
    assert answer.status_code == 503
    assert until_s - from_s == pytest.approx(60, abs=2)


async def test_an_invalid_retry_after_opens_no_window() -> None:
    """The value is sent unchanged."""
    answer, origin = await one_get(behaviours.retry_after("soon"))

    assert answer.headers["retry-after"] == "soon"
    assert origin.windows == []


async def test_a_throttle_limits_the_requests_a_second() -> None:
    """Two of a second are served; each other one gets 429 and opens a window."""
    behaviour = behaviours.throttle_window(2, 0.01)
    async with Origin.serving(HOST, behaviour) as origin, httpx.AsyncClient() as client:
        statuses = [(await client.get(origin.url())).status_code for _ in range(9)]

    seconds = {int(seen.arrived_s) for seen in origin.requests}
    assert 2 <= statuses.count(200) <= 2 * len(seconds)
    assert len(origin.windows) == statuses.count(429) > 0


async def test_a_trickle_arrives_whole() -> None:
    """A slow body is complete."""
    answer, origin = await one_get(behaviours.slow(b"ab", 0.01, 5))

    [seen] = origin.requests
    assert answer.content == b"ab" * 5
    assert seen.finished_s - seen.arrived_s >= 0.05


async def test_latency_passes_before_the_response() -> None:
    """The given behaviour follows the delay."""
    answer, origin = await one_get(behaviours.latency(0.02, behaviours.status(418)))

    [seen] = origin.requests
    assert answer.status_code == 418
    assert seen.finished_s - seen.arrived_s >= 0.02


# Behaviours that fail.


async def test_an_outage_ends_after_its_duration() -> None:
    """Requests fail from the first one until the clock has passed the outage."""
    ticks = iter([100.0, 100.0, 104.9, 105.0])

    assert await statuses_of(behaviours.fail_for(5, 503, clock=lambda: next(ticks)), 3) == [503, 503, 200]


async def test_failures_end_after_a_number_of_requests() -> None:
    """The first two requests fail, later ones do not."""
    assert await statuses_of(behaviours.fail_times(2, 500), 4) == [500, 500, 200, 200]


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (behaviours.truncated(b"half", 8), httpx.RemoteProtocolError),
        (behaviours.cut_chunked(b"half"), httpx.RemoteProtocolError),
        (behaviours.garbage(b"\x00\x01 not HTTP\r\n\r\n"), httpx.RemoteProtocolError),
        (behaviours.stall_headers(0.01), httpx.RemoteProtocolError),
        (behaviours.reset_after(10), httpx.ReadError),
        (behaviours.reset, httpx.ReadError),
    ],
    ids=["truncated", "cut-chunked", "garbage", "stalled", "reset-in-body", "reset"],
)
async def test_a_broken_response_raises_its_error_in_a_client(
    behaviour: Behaviour, error: type[Exception]
) -> None:
    """Each kind raises the corresponding error in httpx, and none is recorded as aborted."""
    async with Origin.serving(HOST, behaviour) as origin, httpx.AsyncClient() as client:
        with pytest.raises(error):
            await client.get(origin.url())

    assert [seen.aborted for seen in origin.requests] == [False]


async def test_a_truncated_response_ends_early() -> None:
    """The raw response has the announced length and fewer bytes."""
    answer = await answers_to(behaviours.truncated(b"half", 8))

    assert b"Content-Length: 8\r\n" in answer
    assert answer.endswith(b"\r\n\r\nhalf")


# Whole responses, and routes.


async def test_chunks_arrive_as_one_body_and_the_connection_is_reused() -> None:
    """The last chunk delimits a chunked body."""
    behaviour = behaviours.chunked([b"one ", b"two ", b"x" * 100])
    async with Origin.serving(HOST, behaviour) as origin, httpx.AsyncClient() as client:
        bodies = [(await client.get(origin.url())).content for _ in range(2)]

    assert bodies == [b"one two " + b"x" * 100] * 2
    assert origin.connections_opened == 1


@pytest.mark.parametrize("size_bytes", [0, 1, o.BLOCK_BYTES, 3 * o.BLOCK_BYTES + 5])
async def test_a_big_body_has_its_size_and_digest(size_bytes: int) -> None:
    """The digest matches at and around the edges of a block."""
    behaviour = behaviours.big(size_bytes)
    async with Origin.serving(HOST, behaviour) as origin, httpx.AsyncClient() as client:
        body = (await client.get(origin.url())).content

    assert len(body) == size_bytes
    assert hashlib.sha256(body).hexdigest() == behaviour.sha256


async def test_a_request_is_routed_by_the_longest_prefix() -> None:
    """Routes, redirects and cookies compose."""
    behaviour = behaviours.by_path(
        {
            "/": behaviours.redirect(lambda target: f"/b{target}"),
            "/b": behaviours.set_cookie("a=1", "b=2"),
        }
    )
    answer, origin = await one_get(behaviour, "/x")

    assert answer.url.path == "/b/x"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert [seen.target for seen in origin.requests] == ["/x", "/b/x"]


async def test_a_request_without_a_route_gets_404() -> None:
    """The target has no prefix of the table."""
    assert await statuses_of(behaviours.by_path({"/elsewhere": behaviours.OK}), 1) == [404]


# The same origins in a child process, and an independent server.


def three_hosts() -> Mapping[str, Behaviour]:
    """Return two hosts: one serves, one throttles."""
    return {"127.0.0.12": behaviours.ok(b"hello"), "127.0.0.13": behaviours.retry_after(60)}


def test_origins_of_a_child_process_report_their_requests() -> None:
    """Both processes use the same monotonic clock."""
    before_s = time.monotonic()
    with origins_in_child(three_hosts) as process:
        statuses = [httpx.get(url).status_code for url in process.urls.values()]
        report = process.report()

    [seen] = report["127.0.0.12"].requests
    assert statuses == [200, 429]
    assert before_s < seen.arrived_s < seen.finished_s < time.monotonic()
    assert len(report["127.0.0.13"].windows) == 1


NGINX = pytest.param("nginx", marks=pytest.mark.skipif(not which("nginx"), reason="no nginx"))


@pytest.mark.parametrize("kind", [NGINX, "http.server"])
def test_a_folder_is_served_on_every_host_and_logged(tmp_path: Path, kind: Kind) -> None:
    """Both servers send the same bytes on all hosts and log the same columns."""
    (tmp_path / "page.txt").write_bytes(b"hello")
    with serve_folder(tmp_path, ["127.0.0.14", "127.0.0.15"], kind=kind) as server:
        answers = [httpx.get(f"{url}/page.txt") for url in server.base_urls]
        lines = [line.split() for line in server.access_log.read_text().splitlines()]

    assert server.name == kind
    assert [answer.content for answer in answers] == [b"hello", b"hello"]
    assert [line[2:] for line in lines] == [
        ["127.0.0.14", "200", "/page.txt"],
        ["127.0.0.15", "200", "/page.txt"],
    ]
    assert all(float(line[0]) <= time.time() and float(line[1]) >= 0 for line in lines)
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.base_urls[0])


async def test_a_folder_is_not_served_on_a_port_in_use(tmp_path: Path) -> None:
    """It fails at once; otherwise the tests would use the other server."""
    async with Origin.serving(HOST, behaviours.OK) as origin:
        port = urlsplit(origin.url()).port or 0
        with pytest.raises(OSError, match="in use"), serve_folder(tmp_path, [HOST], port):
            raise AssertionError("unreachable")


# Waiting.


async def test_wait_until_returns_the_first_truthy_value() -> None:
    """The predicate may be plain or async."""
    values = iter([0, 0, 7])

    async def later() -> int:
        return next(values)

    assert await wait_until(later, "a value", every_s=0) == 7
    assert await wait_until(lambda: "at once", "a value", timeout_s=0) == "at once"


async def test_wait_until_fails_after_its_timeout() -> None:
    """The error names the condition and the time."""
    with pytest.raises(AssertionError, match=r"^waited 0\.01 s for rain$"):
        await wait_until(lambda: False, "rain", timeout_s=0.01)
