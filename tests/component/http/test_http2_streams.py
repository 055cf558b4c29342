"""HTTP/2 on the wire: cancelled, stalled, refused and reset streams, and their connections."""

import asyncio
import ssl
from collections.abc import AsyncIterator

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    SettingsFrame,
)

from fetchfleet.worker.errors import (
    ConnectError,
    FirstByteTimeoutError,
    InvalidRequestError,
    PoolTimeoutError,
    ReadError,
    ReadTimeoutError,
    RemoteProtocolError,
    WriteTimeoutError,
)
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.http2.connection import Http2Connection
from fetchfleet.worker.http.http2.session import STREAM_WINDOW_BYTES
from fetchfleet.worker.http.http2.stream import MAX_INTERIM
from fetchfleet.worker.http.net.pool import LanePool
from tests.support.lane_pools import exchange, fetch, lane_pool, read_all, request_to
from tests.support.waiting import wait_until
from tools.origin import http2 as o
from tools.origin.certificates import HAS_OPENSSL, Authority
from tools.origin.http2 import Exchange, Http2Origin, server_tls

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="needs openssl")

HOST = "127.0.95.1"
MIB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the CA of the origin's certificate."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    """Return the TLS context of the origin."""
    return server_tls(authority.issue("host", f"IP:{HOST}"))


@pytest.fixture
async def origin(tls: ssl.SSLContext) -> AsyncIterator[Http2Origin]:
    """Yield an origin that responds "ok" by default."""
    async with Http2Origin.serving(HOST, tls, o.ok) as serving:
        yield serving


@pytest.fixture
async def pool(authority: Authority) -> AsyncIterator[LanePool]:
    """Yield the pool of a lane whose policy offers HTTP/2."""
    async with lane_pool(HOST, authority.cert, http2=True) as made:
        yield made


async def silent(x: Exchange) -> None:
    """Send nothing."""
    await asyncio.Event().wait()


async def test_a_hundred_concurrent_requests_share_one_connection(
    origin: Http2Origin, pool: LanePool
) -> None:
    """The origin accepts that many streams."""
    bodies = await asyncio.gather(*(fetch(pool, origin.url(f"/{n}")) for n in range(100)))

    assert bodies == [b"ok"] * 100
    assert len(origin.peers) == 1


async def test_two_hundred_cancelled_streams_leave_nothing_behind(
    origin: Http2Origin, pool: LanePool
) -> None:
    """Each is reset, and a hundred more requests succeed on the same connection."""
    bodies = b"x" * 300_000

    async def half(x: Exchange) -> None:
        await x.head(200, [("content-length", str(2 * len(bodies)))])
        await x.send(bodies)
        await silent(x)

    origin.behaviour = half
    for group in range(4):
        tasks = [asyncio.create_task(fetch(pool, origin.url(f"/{n}"))) for n in range(50)]
        await wait_until(lambda: len(origin.requests) == 50 * (group + 1), "the requests to come")  # noqa: B023
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await wait_until(lambda: all(seen.reset == ErrorCodes.CANCEL for seen in origin.requests), "200 resets")

    async def whole(x: Exchange) -> None:
        await x.respond(200, bodies)

    origin.behaviour = whole
    found = await asyncio.gather(*(fetch(pool, origin.url(f"/{n}")) for n in range(100)))

    assert found == [bodies] * 100
    assert len(origin.peers) == 1


async def test_a_response_that_is_closed_early_is_reset(origin: Http2Origin, pool: LanePool) -> None:
    """The reset stops the host from sending. The connection is reused."""

    async def endless(x: Exchange) -> None:
        await x.head()
        while True:
            await x.send(b"x" * 10_000)

    origin.behaviour = endless
    async with exchange(pool, origin.url()) as answer:
        assert await answer.read()

    await wait_until(lambda: origin.requests[0].reset == ErrorCodes.CANCEL, "the reset")
    with pytest.raises(ReadError):
        await read_all(answer)
    origin.behaviour = o.ok
    assert await fetch(pool, origin.url()) == b"ok"
    assert len(origin.peers) == 1


async def test_a_stalled_stream_delays_no_other(origin: Http2Origin, pool: LanePool) -> None:
    """It receives one window at most. Another stream receives many windows meanwhile."""
    sent: dict[str, int] = {}

    async def big(x: Exchange) -> None:
        await x.head(200, [("content-length", str(8 * MIB))])
        for _ in range(8 * 16):
            await x.send(b"x" * (MIB // 16))
            sent[x.seen.path] = sent.get(x.seen.path, 0) + MIB // 16
        await x.end()

    origin.behaviour = big
    async with exchange(pool, origin.url("/still")) as still:
        for _ in range(4):
            assert len(await fetch(pool, origin.url("/moving"))) == 8 * MIB
        assert sent["/still"] <= STREAM_WINDOW_BYTES
        rest = await read_all(still)

    assert len(rest) == 8 * MIB
    assert len(origin.peers) == 1


async def test_a_second_connection_is_opened_when_the_first_is_full_and_never_a_third(
    origin: Http2Origin, pool: LanePool
) -> None:
    """Further requests wait for a free stream."""
    origin.max_streams = 3
    at_once: dict[int, int] = {}
    most = 0

    async def slow(x: Exchange) -> None:
        nonlocal most
        at_once[x.peer.number] = at_once.get(x.peer.number, 0) + 1
        most = max(most, *at_once.values())
        await asyncio.sleep(0.005)
        at_once[x.peer.number] -= 1
        await x.respond()

    origin.behaviour = slow
    bodies = await asyncio.gather(*(fetch(pool, origin.url(f"/{n}")) for n in range(60)))

    assert bodies == [b"ok"] * 60
    assert len(origin.peers) == 2
    assert most <= 3


async def test_a_request_without_a_free_stream_fails_by_the_pool_timeout(
    origin: Http2Origin, pool: LanePool
) -> None:
    """The host allows no stream on either connection."""
    origin.max_streams = 0

    async def refuse(x: Exchange) -> None:
        await x.reset(ErrorCodes.REFUSED_STREAM)

    origin.behaviour = refuse
    tasks = [asyncio.create_task(fetch(pool, origin.url(), pool_s=0.2)) for _ in range(3)]
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(result) for result in results} == {PoolTimeoutError}
    assert len(origin.peers) == 2


async def test_a_stream_limit_that_falls_and_rises_is_respected(origin: Http2Origin, pool: LanePool) -> None:
    """At a limit of zero, open streams end and new requests wait. They continue when it is raised."""
    go_on = asyncio.Event()

    async def held(x: Exchange) -> None:
        await go_on.wait()
        await x.respond()

    origin.behaviour = held
    first = [asyncio.create_task(fetch(pool, origin.url(f"/{n}"))) for n in range(5)]
    await wait_until(lambda: len(origin.requests) == 5, "the first five")
    origin.max_streams = 0
    await origin.peers[0].allow(0)
    await wait_until(lambda: not has_room(pool), "the limit to arrive")
    go_on.set()
    assert await asyncio.gather(*first) == [b"ok"] * 5

    second = [asyncio.create_task(fetch(pool, origin.url(f"/{n}"))) for n in range(5)]
    await wait_until(lambda: len(origin.peers) == 2, "a second connection")
    for peer in origin.peers:
        await peer.allow(2)

    assert await asyncio.gather(*second) == [b"ok"] * 5
    assert len(origin.peers) == 2


def has_room(pool: LanePool) -> bool:
    """Return whether a stream can be opened now."""
    return any(
        connection.free_streams for connection in pool._open if isinstance(connection, Http2Connection)
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refused_stream_is_repeated_on_a_new_connection(
    origin: Http2Origin, pool: LanePool, method: str
) -> None:
    """The host has not processed it, so a POST is repeated too, with its body."""

    async def refuse_first(x: Exchange) -> None:
        if x.peer.number == 1:
            await x.reset(ErrorCodes.REFUSED_STREAM)
        else:
            await wait_until(lambda: len(x.seen.body) == size, "the body")
            await x.respond()

    body = b"b" * 100_000 if method == "POST" else None
    size = len(body or b"")
    origin.behaviour = refuse_first

    assert await fetch(pool, origin.url(), method, body) == b"ok"
    assert [seen.connection for seen in origin.requests] == [1, 2]


async def test_the_wait_of_a_repeated_request_is_counted_once(
    authority: Authority, origin: Http2Origin
) -> None:
    """Two connections refuse the request before it succeeds."""
    stats = ConnectionStats()

    async def refuse_twice(x: Exchange) -> None:
        if len(origin.requests) in {2, 3}:
            await x.reset(ErrorCodes.REFUSED_STREAM)
        else:
            await x.respond()

    origin.behaviour = refuse_twice
    async with lane_pool(HOST, authority.cert, stats=stats, http2=True) as pool:
        await fetch(pool, origin.url())
        stats.pool_wait_s.pop_sorted()
        assert await fetch(pool, origin.url()) == b"ok"

        assert [seen.connection for seen in origin.requests] == [1, 1, 2, 1]
        assert len(stats.pool_wait_s.pop_sorted()) == 1


async def test_a_host_that_refuses_every_stream_fails_after_three_repetitions(
    origin: Http2Origin, pool: LanePool
) -> None:
    """A refused request was not processed, so the error is a ConnectError."""

    async def refuse(x: Exchange) -> None:
        await x.reset(ErrorCodes.REFUSED_STREAM)

    origin.behaviour = refuse
    with pytest.raises(ConnectError, match="refused 4 times"):
        await fetch(pool, origin.url(), "POST", b"once")

    assert len(origin.requests) == 4


async def test_after_goaway_lower_streams_complete_and_higher_ones_are_repeated(
    origin: Http2Origin, pool: LanePool
) -> None:
    """Streams up to the last one complete on their connection, those above it on a new one."""
    last = asyncio.Event()

    async def leave(x: Exchange) -> None:
        if x.peer.number == 1:
            if x.seen.path == "/9":
                await x.goaway(last_stream_id=9)
                last.set()
            await last.wait()
            if x.seen.stream > 9:
                return
        await x.respond(body=f"{x.peer.number}".encode())

    # One stream goes first, so that the host's limit is known and the others keep their order.
    await fetch(pool, origin.url())
    origin.behaviour = leave
    found = await asyncio.gather(*(fetch(pool, origin.url(f"/{n}"), "POST") for n in range(10)))

    assert found == [b"1"] * 4 + [b"2"] * 6
    await wait_until(lambda: origin.open == 1, "the first connection to be closed")
    assert await fetch(pool, origin.url()) == b"2"


async def test_a_goaway_with_each_response_fails_no_request(origin: Http2Origin, pool: LanePool) -> None:
    """Each request uses a connection of its own, as without keep-alive."""

    async def leave(x: Exchange) -> None:
        await x.goaway(x.seen.stream)
        await x.respond()

    origin.behaviour = leave

    assert [await fetch(pool, origin.url(f"/{n}")) for n in range(10)] == [b"ok"] * 10
    assert len(origin.peers) == 10


async def test_a_silent_stream_times_out_alone(origin: Http2Origin, pool: LanePool) -> None:
    """A stream that receives data on the same connection continues."""

    async def answer(x: Exchange) -> None:
        if x.seen.path == "/silent":
            await silent(x)
        await x.head()
        while not origin.requests[-1].reset:
            await x.send(b"x")
            await asyncio.sleep(0.01)
        await x.end()

    origin.behaviour = answer
    moving = asyncio.create_task(fetch(pool, origin.url("/moving")))
    await wait_until(lambda: origin.requests, "the first request")
    with pytest.raises(FirstByteTimeoutError):
        await fetch(pool, origin.url("/silent"), read_s=0.2)

    assert set(await moving) == set(b"x")
    assert len(origin.peers) == 1


async def test_a_connection_that_receives_nothing_until_a_timeout_is_not_reused(
    origin: Http2Origin, pool: LanePool
) -> None:
    """It may be dead, so the next request opens a new one."""
    origin.behaviour = silent
    with pytest.raises(FirstByteTimeoutError):
        await fetch(pool, origin.url(), read_s=0.2)
    origin.behaviour = o.ok

    assert await fetch(pool, origin.url()) == b"ok"
    assert [seen.connection for seen in origin.requests] == [1, 2]


async def test_a_body_that_stalls_times_out(origin: Http2Origin, pool: LanePool) -> None:
    """The read timeout applies between two pieces, as before the first."""

    async def half(x: Exchange) -> None:
        await x.head(200, [("content-length", "4")])
        await x.send(b"ha")
        await silent(x)

    origin.behaviour = half
    with pytest.raises(ReadTimeoutError):
        await fetch(pool, origin.url(), read_s=0.2)


async def test_an_upload_that_the_host_does_not_read_times_out(origin: Http2Origin, pool: LanePool) -> None:
    """The host opens no window, so the write timeout applies."""
    origin.reads_bodies = False
    origin.behaviour = silent
    with pytest.raises(WriteTimeoutError):
        await fetch(pool, origin.url(), "PUT", b"x" * 200_000, write_s=0.2)

    await wait_until(lambda: origin.requests[0].reset == ErrorCodes.CANCEL, "the reset")


async def test_a_large_upload_follows_the_windows_of_the_host(origin: Http2Origin, pool: LanePool) -> None:
    """The body is far larger than the initial window."""

    async def sized(x: Exchange) -> None:
        await wait_until(lambda: len(x.seen.body) == len(body), "the body")
        await x.respond()

    body = bytes(range(256)) * 4096
    origin.behaviour = sized

    assert await fetch(pool, origin.url(), "PUT", body) == b"ok"
    assert origin.requests[0].body == body


async def test_a_response_before_the_end_of_the_upload_is_accepted(
    origin: Http2Origin, pool: LanePool
) -> None:
    """The host does not want the rest of the body (RFC 9113 §8.1)."""

    async def enough(x: Exchange) -> None:
        await x.respond(413, b"too much")
        await x.reset(ErrorCodes.NO_ERROR)

    origin.reads_bodies = False
    origin.behaviour = enough
    async with exchange(pool, origin.url(), "POST", b"x" * 500_000) as answer:
        assert answer.status == 413
        assert await read_all(answer) == b"too much"


async def garbage(x: Exchange) -> None:
    await x.peer.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2000)


async def pings(x: Exchange) -> None:
    await x.frames(*(PingFrame(0, b"12345678") for _ in range(2000)))


async def settings(x: Exchange) -> None:
    await x.frames(*(SettingsFrame(0, {SettingCodes.HEADER_TABLE_SIZE: 4096}) for _ in range(2000)))


async def empty_frames(x: Exchange) -> None:
    await x.head()
    await x.frames(*(DataFrame(x.seen.stream, b"") for _ in range(2000)))


async def interim(x: Exchange) -> None:
    for _ in range(MAX_INTERIM + 1):
        await x.head(103, [("link", "</a>")])
    await silent(x)


async def continuations(x: Exchange) -> None:
    more = [ContinuationFrame(x.seen.stream, b"") for _ in range(2000)]
    await x.frames(HeadersFrame(x.seen.stream, b""), *more)


async def large_head(x: Exchange) -> None:
    await x.head(200, [(f"x-{n}", "x" * 1000) for n in range(100)])


async def pushed(x: Exchange) -> None:
    await x.frames(
        PushPromiseFrame(x.seen.stream, 2, x.peer.h2.encoder.encode([(":path", "/")]), flags=["END_HEADERS"])
    )


async def data_on_an_idle_stream(x: Exchange) -> None:
    await x.frames(DataFrame(x.seen.stream + 2, b"x"))


async def headless(x: Exchange) -> None:
    await x.frames(DataFrame(x.seen.stream, b"x", flags=["END_STREAM"]))


async def statusless(x: Exchange) -> None:
    x.peer.h2.send_headers(x.seen.stream, [("x", "y")])
    await x.peer.flush()


async def two_lengths(x: Exchange) -> None:
    await x.head(200, [("content-length", "2"), ("content-length", "3")])


async def two_framings(x: Exchange) -> None:
    await x.head(200, [("transfer-encoding", "chunked")])


async def broken_name(x: Exchange) -> None:
    await x.head(200, [("X Y", "z")])


async def overlong(x: Exchange) -> None:
    await x.head(200, [("content-length", "2")])
    await x.send(b"three", last=True)


async def too_short(x: Exchange) -> None:
    await x.head(200, [("content-length", "9")])
    await x.send(b"three", last=True)


async def reset_as_wrong(x: Exchange) -> None:
    await x.reset(ErrorCodes.PROTOCOL_ERROR)


OF_THE_CONNECTION = [
    garbage,
    pings,
    settings,
    empty_frames,
    continuations,
    large_head,
    pushed,
    data_on_an_idle_stream,
]
OF_THE_STREAM = [
    interim,
    headless,
    statusless,
    two_lengths,
    two_framings,
    broken_name,
    overlong,
    too_short,
    reset_as_wrong,
]


@pytest.mark.parametrize("fault", OF_THE_CONNECTION, ids=lambda fault: fault.__name__)
async def test_a_connection_that_breaks_the_protocol_is_closed(
    origin: Http2Origin, pool: LanePool, fault: o.Behaviour
) -> None:
    """Its requests fail at once, and the next request uses another connection."""
    origin.behaviour = fault
    with pytest.raises(RemoteProtocolError):
        await fetch(pool, origin.url())
    origin.behaviour = o.ok

    assert await fetch(pool, origin.url()) == b"ok"
    assert [seen.connection for seen in origin.requests] == [1, 2]


@pytest.mark.parametrize("fault", OF_THE_STREAM, ids=lambda fault: fault.__name__)
async def test_a_response_that_breaks_the_protocol_fails_alone(
    origin: Http2Origin, pool: LanePool, fault: o.Behaviour
) -> None:
    """Its stream ends, and another on the same connection continues."""
    go_on = asyncio.Event()

    async def answer(x: Exchange) -> None:
        if x.seen.path == "/bad":
            await fault(x)
        else:
            await x.head()
            await go_on.wait()
            await x.send(b"ok", last=True)

    origin.behaviour = answer
    async with exchange(pool, origin.url("/good")) as good:
        with pytest.raises(RemoteProtocolError):
            await fetch(pool, origin.url("/bad"))
        go_on.set()
        assert await read_all(good) == b"ok"

    assert len(origin.peers) == 1


async def test_data_before_a_reset_is_read_before_the_error(origin: Http2Origin, pool: LanePool) -> None:
    """A resumed fetch can keep this part of the body."""

    async def half(x: Exchange) -> None:
        await x.head(200, [("content-length", "9")])
        await x.send(b"half")
        await x.reset()

    origin.behaviour = half
    came = b""
    with pytest.raises(ReadError):  # noqa: PT012
        async with exchange(pool, origin.url()) as answer:
            while piece := await answer.read():
                came += piece

    assert came == b"half"


async def test_trailers_and_a_few_interim_heads_are_accepted(origin: Http2Origin, pool: LanePool) -> None:
    """Padding and a body without a length are accepted too."""

    async def answer(x: Exchange) -> None:
        await x.head(103)
        await x.head(200)
        x.peer.h2.send_data(x.seen.stream, b"ok", pad_length=200)
        x.peer.h2.send_headers(x.seen.stream, [("x-sum", "1")], end_stream=True)
        await x.peer.flush()

    origin.behaviour = answer

    assert await fetch(pool, origin.url()) == b"ok"


async def test_an_empty_data_frame_does_not_end_a_body(origin: Http2Origin, pool: LanePool) -> None:
    """A frame of padding alone does not end it either."""
    go_on = asyncio.Event()

    async def answer(x: Exchange) -> None:
        if x.seen.path == "/later":
            await x.respond()
            return
        await x.head()
        await x.frames(DataFrame(x.seen.stream, b""))
        x.peer.h2.send_data(x.seen.stream, b"", pad_length=9)
        await x.peer.flush()
        await go_on.wait()
        await x.send(b"ok", last=True)

    origin.behaviour = answer
    async with exchange(pool, origin.url()) as response:
        reading = asyncio.create_task(read_all(response))
        await fetch(pool, origin.url("/later"))  # its response follows those frames
        go_on.set()
        assert await reading == b"ok"


async def test_a_connection_that_ends_before_its_first_request_is_replaced(
    origin: Http2Origin, pool: LanePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host may send GOAWAY with the end of the handshake. A POST was not sent then, so it is repeated."""
    made = Http2Connection.connection_made

    def gone(connection: Http2Connection, transport: asyncio.BaseTransport) -> None:
        monkeypatch.undo()
        made(connection, transport)
        connection.data_received(SettingsFrame(0).serialize() + GoAwayFrame(0).serialize())

    monkeypatch.setattr(Http2Connection, "connection_made", gone)

    assert await fetch(pool, origin.url(), "POST", b"x") == b"ok"
    assert len(origin.requests) == 1


async def test_a_request_on_a_connection_that_closes_is_repeated_if_idempotent(
    origin: Http2Origin, pool: LanePool
) -> None:
    """A GET is repeated once on a new connection. A POST fails."""

    async def close(x: Exchange) -> None:
        if x.seen.path == "/close" and x.peer.number % 2:
            await x.peer.hang_up()
        else:
            await x.respond()

    origin.behaviour = close
    await fetch(pool, origin.url())
    assert await fetch(pool, origin.url("/close")) == b"ok"
    assert [seen.connection for seen in origin.requests] == [1, 1, 2]

    await origin.peers[1].hang_up()
    await wait_until(lambda: origin.open == 0, "the connections to be gone")
    await fetch(pool, origin.url())
    with pytest.raises(RemoteProtocolError):
        await fetch(pool, origin.url("/close"), "POST")
    assert [seen.connection for seen in origin.requests] == [1, 1, 2, 3, 3]


async def test_an_idle_connection_expires(authority: Authority, origin: Http2Origin) -> None:
    """The next request opens a new connection, and the old one is closed."""
    async with lane_pool(HOST, authority.cert, http2=True, keepalive_s=0.01) as pool:
        await fetch(pool, origin.url())
        await asyncio.sleep(0.05)
        await fetch(pool, origin.url())

        assert [seen.connection for seen in origin.requests] == [1, 2]
        await wait_until(lambda: origin.open == 1, "the first to be closed")


async def test_a_second_connection_that_is_not_needed_expires(
    authority: Authority, origin: Http2Origin
) -> None:
    """The first one stays in use."""
    origin.max_streams = 1
    go_on = asyncio.Event()

    async def held(x: Exchange) -> None:
        await x.head()
        if x.seen.path == "/long":
            await go_on.wait()
        await x.send(b"ok", last=True)

    origin.behaviour = held
    async with (
        lane_pool(HOST, authority.cert, http2=True, keepalive_s=0.01) as pool,
        exchange(pool, origin.url("/long")) as long,
    ):
        await fetch(pool, origin.url())
        assert origin.open == 2
        await asyncio.sleep(0.05)
        await fetch(pool, origin.url())
        await wait_until(lambda: origin.open == 2, "the idle one to be closed")
        go_on.set()
        assert await read_all(long) == b"ok"

    assert [seen.connection for seen in origin.requests] == [1, 2, 3]


async def test_an_invalid_request_is_not_sent(origin: Http2Origin, pool: LanePool) -> None:
    """It fails with InvalidRequestError, and the pool stays usable."""
    with pytest.raises(InvalidRequestError):
        await fetch(pool, origin.url(), headers=((b":odd", b"x"),))

    assert await fetch(pool, origin.url()) == b"ok"
    assert len(origin.requests) == 1


async def test_closing_the_pool_sends_goaway(authority: Authority, origin: Http2Origin) -> None:
    """The connection is closed after it."""
    async with lane_pool(HOST, authority.cert, http2=True) as pool:
        await fetch(pool, origin.url())

    await wait_until(lambda: origin.open == 0, "the end of the connection")
    assert origin.peers[0].gone is not None


async def test_requests_that_wait_for_a_connection_share_its_failure(pool: LanePool) -> None:
    """Each of them raises its own error."""
    calls = [fetch(pool, f"https://{HOST}:1/{n}") for n in range(10)]
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(result) for result in results} == {ConnectError}
    assert len({id(result) for result in results}) == 10


async def test_a_cancelled_request_that_connects_for_others_does_not_fail_them(
    origin: Http2Origin, pool: LanePool
) -> None:
    """The next request in line connects instead."""
    first = asyncio.create_task(fetch(pool, origin.url("/first")))
    others = [asyncio.create_task(fetch(pool, origin.url(f"/{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    first.cancel()

    assert await asyncio.gather(*others) == [b"ok"] * 5
    assert first.cancelled()


async def test_a_host_without_http2_is_fetched_over_http1(authority: Authority) -> None:
    """Four concurrent requests open four connections and reuse them."""
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(0.005)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
        ended.release()

    ended = asyncio.Semaphore(0)
    plain = server_tls(authority.issue("plain", f"IP:{HOST}"), "http/1.1")
    async with await asyncio.start_server(serve, HOST, 0, ssl=plain) as server:
        url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}/"
        async with lane_pool(HOST, authority.cert, http2=True) as pool:
            for _ in range(3):
                assert await asyncio.gather(*(fetch(pool, url) for _ in range(4))) == [b"ok"] * 4

        for _ in range(opened):
            await ended.acquire()
    assert opened == 4


async def test_an_exchange_is_timed(origin: Http2Origin, pool: LanePool) -> None:
    """Its trace has the time to connect, if a connection was opened, and the time of the head."""
    first, second = request_to(origin.url()), request_to(origin.url())

    for request in (first, second):
        response = await pool.exchange(request)
        assert await read_all(response) == b"ok"
        response.close()

    assert (response.version, response.address) == ("HTTP/2", HOST)
    assert (first.trace.opened, second.trace.opened) == (True, False)
    assert first.trace.connect_s > second.trace.connect_s == 0
    for request in (first, second):
        assert request.trace.head_s is not None
        assert request.trace.latency_ms is not None
