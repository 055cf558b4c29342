"""HTTP/2 on the wire: streams that are given up, stand still, are refused or reset, and their connections."""

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
from tests.support.waiting import wait_until
from tests.support.wire import asking, fetch, lane_pool, request_to, rest_of
from tools.origin import http2 as o
from tools.origin.certificates import HAS_OPENSSL, Authority
from tools.origin.http2 import Exchange, Http2Origin, server_tls

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="needs openssl")

HOST = "127.0.95.1"
MIB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for the origin."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    """The origin's side."""
    return server_tls(authority.issue("host", f"IP:{HOST}"))


@pytest.fixture
async def origin(tls: ssl.SSLContext) -> AsyncIterator[Http2Origin]:
    """An origin that answers "ok" until it is told otherwise."""
    async with Http2Origin.serving(HOST, tls, o.ok) as serving:
        yield serving


@pytest.fixture
async def pool(authority: Authority) -> AsyncIterator[LanePool]:
    """A lane's pool, by whose policy HTTP/2 is offered."""
    async with lane_pool(HOST, authority.cert, http2=True) as made:
        yield made


async def silent(x: Exchange) -> None:
    """Says nothing."""
    await asyncio.Event().wait()


async def test_one_connection_carries_all(origin: Http2Origin, pool: LanePool) -> None:
    """A hundred at once need no second one."""
    bodies = await asyncio.gather(*(fetch(pool, origin.url(f"/{n}")) for n in range(100)))

    assert bodies == [b"ok"] * 100
    assert len(origin.peers) == 1


async def test_two_hundred_that_are_cancelled_leave_nothing(origin: Http2Origin, pool: LanePool) -> None:
    """The host is told of each, and a hundred more go over the same connection."""
    bodies = b"x" * 300_000

    async def half(x: Exchange) -> None:
        await x.head(200, [("content-length", str(2 * len(bodies)))])
        await x.send(bodies)
        await silent(x)

    origin.behaviour = half
    for turn in range(4):
        tasks = [asyncio.create_task(fetch(pool, origin.url(f"/{n}"))) for n in range(50)]
        await wait_until(lambda: len(origin.requests) == 50 * (turn + 1), "the requests to come")  # noqa: B023
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


async def test_an_answer_that_is_closed_early_is_reset(origin: Http2Origin, pool: LanePool) -> None:
    """Who wants no more of a body says so, and the host stops sending."""

    async def endless(x: Exchange) -> None:
        await x.head()
        while True:
            await x.send(b"x" * 10_000)

    origin.behaviour = endless
    async with asking(pool, origin.url()) as answer:
        assert await answer.read()

    await wait_until(lambda: origin.requests[0].reset == ErrorCodes.CANCEL, "the reset")
    with pytest.raises(ReadError):
        await rest_of(answer)
    origin.behaviour = o.ok
    assert await fetch(pool, origin.url()) == b"ok"
    assert len(origin.peers) == 1


async def test_one_that_stands_still_holds_up_no_other(origin: Http2Origin, pool: LanePool) -> None:
    """It is sent its window and no more; others on the connection have theirs, many times over."""
    sent: dict[str, int] = {}

    async def big(x: Exchange) -> None:
        await x.head(200, [("content-length", str(8 * MIB))])
        for _ in range(8 * 16):
            await x.send(b"x" * (MIB // 16))
            sent[x.seen.path] = sent.get(x.seen.path, 0) + MIB // 16
        await x.end()

    origin.behaviour = big
    async with asking(pool, origin.url("/still")) as still:
        for _ in range(4):
            assert len(await fetch(pool, origin.url("/moving"))) == 8 * MIB
        assert sent["/still"] <= STREAM_WINDOW_BYTES
        rest = await rest_of(still)

    assert len(rest) == 8 * MIB
    assert len(origin.peers) == 1


async def test_a_second_connection_is_made_when_the_first_is_full_and_never_a_third(
    origin: Http2Origin, pool: LanePool
) -> None:
    """What has no room on either waits its turn."""
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


async def test_who_finds_no_free_stream_waits_no_longer_than_the_pool_timeout(
    origin: Http2Origin, pool: LanePool
) -> None:
    """No stream is to be had from a host that allows none."""
    origin.max_streams = 0

    async def refuse(x: Exchange) -> None:
        await x.reset(ErrorCodes.REFUSED_STREAM)

    origin.behaviour = refuse
    tasks = [asyncio.create_task(fetch(pool, origin.url(), pool_s=0.2)) for _ in range(3)]
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(result) for result in results} == {PoolTimeoutError}
    assert len(origin.peers) == 2


async def test_a_limit_that_falls_and_rises_is_kept(origin: Http2Origin, pool: LanePool) -> None:
    """Lowered to none while streams run, the limit lets them end and others wait; raised, these go on."""
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
    await wait_until(lambda: len(origin.peers) == 2, "a try at a second connection")
    for peer in origin.peers:
        await peer.allow(2)

    assert await asyncio.gather(*second) == [b"ok"] * 5
    assert len(origin.peers) == 2


def has_room(pool: LanePool) -> bool:
    """Whether a stream could be opened now."""
    return any(connection.room for connection in pool._open if isinstance(connection, Http2Connection))


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_the_host_has_not_begun_is_made_again(
    origin: Http2Origin, pool: LanePool, method: str
) -> None:
    """A stream that is refused goes over a new connection, body and all, whatever the method."""

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
    """Though it is sent on two connections that are there, one after the other."""
    stats = ConnectionStats()

    async def refuse_twice(x: Exchange) -> None:
        if len(origin.requests) in {2, 3}:
            await x.reset(ErrorCodes.REFUSED_STREAM)
        else:
            await x.respond()

    origin.behaviour = refuse_twice
    async with lane_pool(HOST, authority.cert, stats=stats, http2=True) as pool:
        await fetch(pool, origin.url())
        stats.pool_wait_s.taken()
        assert await fetch(pool, origin.url()) == b"ok"

        assert [seen.connection for seen in origin.requests] == [1, 1, 2, 1]
        assert len(stats.pool_wait_s.taken()) == 1


async def test_a_host_that_begins_nothing_has_failed_after_a_few(origin: Http2Origin, pool: LanePool) -> None:
    """Once, and three times more."""

    async def refuse(x: Exchange) -> None:
        await x.reset(ErrorCodes.REFUSED_STREAM)

    origin.behaviour = refuse
    with pytest.raises(ConnectError, match="refused 4 times"):
        await fetch(pool, origin.url(), "POST", b"once")

    assert len(origin.requests) == 4


async def test_after_goaway_what_was_begun_ends_and_the_rest_is_made_again(
    origin: Http2Origin, pool: LanePool
) -> None:
    """Streams up to the last one have their answers where they are, those above theirs elsewhere."""
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


async def test_a_host_that_goes_away_each_time_costs_nothing(origin: Http2Origin, pool: LanePool) -> None:
    """One answer a connection, as with keep-alive switched off."""

    async def leave(x: Exchange) -> None:
        await x.goaway(x.seen.stream)
        await x.respond()

    origin.behaviour = leave

    assert [await fetch(pool, origin.url(f"/{n}")) for n in range(10)] == [b"ok"] * 10
    assert len(origin.peers) == 10


async def test_a_silent_stream_times_out_alone(origin: Http2Origin, pool: LanePool) -> None:
    """Another on the same connection, to which something comes, goes on."""

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


async def test_a_connection_that_died_in_silence_is_not_used_again(
    origin: Http2Origin, pool: LanePool
) -> None:
    """Nothing at all came on it while a stream waited: the next attempt has a new one."""
    origin.behaviour = silent
    with pytest.raises(FirstByteTimeoutError):
        await fetch(pool, origin.url(), read_s=0.2)
    origin.behaviour = o.ok

    assert await fetch(pool, origin.url()) == b"ok"
    assert [seen.connection for seen in origin.requests] == [1, 2]


async def test_a_body_that_stalls_times_out(origin: Http2Origin, pool: LanePool) -> None:
    """Between two pieces, as before the first."""

    async def half(x: Exchange) -> None:
        await x.head(200, [("content-length", "4")])
        await x.send(b"ha")
        await silent(x)

    origin.behaviour = half
    with pytest.raises(ReadTimeoutError):
        await fetch(pool, origin.url(), read_s=0.2)


async def test_a_body_that_is_not_read_is_given_up(origin: Http2Origin, pool: LanePool) -> None:
    """The host opens no window for what is sent to it: the write timeout holds."""
    origin.reads_bodies = False
    origin.behaviour = silent
    with pytest.raises(WriteTimeoutError):
        await fetch(pool, origin.url(), "PUT", b"x" * 200_000, write_s=0.2)

    await wait_until(lambda: origin.requests[0].reset == ErrorCodes.CANCEL, "the reset")


async def test_a_large_body_is_sent_as_the_host_takes_it(origin: Http2Origin, pool: LanePool) -> None:
    """Far beyond the window that it began with."""

    async def sized(x: Exchange) -> None:
        await wait_until(lambda: len(x.seen.body) == len(body), "the body")
        await x.respond()

    body = bytes(range(256)) * 4096
    origin.behaviour = sized

    assert await fetch(pool, origin.url(), "PUT", body) == b"ok"
    assert origin.requests[0].body == body


async def test_an_answer_before_the_end_of_the_body_is_taken(origin: Http2Origin, pool: LanePool) -> None:
    """A host that has seen enough says so, and is sent no more (RFC 9113 §8.1)."""

    async def enough(x: Exchange) -> None:
        await x.respond(413, b"too much")
        await x.reset(ErrorCodes.NO_ERROR)

    origin.reads_bodies = False
    origin.behaviour = enough
    async with asking(pool, origin.url(), "POST", b"x" * 500_000) as answer:
        assert answer.status == 413
        assert await rest_of(answer) == b"too much"


async def garbage(x: Exchange) -> None:
    await x.peer.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2000)


async def pings(x: Exchange) -> None:
    await x.frames(*(PingFrame(0, b"12345678") for _ in range(2000)))


async def settings(x: Exchange) -> None:
    await x.frames(*(SettingsFrame(0, {SettingCodes.HEADER_TABLE_SIZE: 4096}) for _ in range(2000)))


async def nothings(x: Exchange) -> None:
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


async def unasked(x: Exchange) -> None:
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


OF_THE_CONNECTION = [garbage, pings, settings, nothings, continuations, large_head, pushed, unasked]
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
    """What is on it has failed at once, and the next request goes over another."""
    origin.behaviour = fault
    with pytest.raises(RemoteProtocolError):
        await fetch(pool, origin.url())
    origin.behaviour = o.ok

    assert await fetch(pool, origin.url()) == b"ok"
    assert [seen.connection for seen in origin.requests] == [1, 2]


@pytest.mark.parametrize("fault", OF_THE_STREAM, ids=lambda fault: fault.__name__)
async def test_an_answer_that_breaks_the_protocol_ends_alone(
    origin: Http2Origin, pool: LanePool, fault: o.Behaviour
) -> None:
    """Its stream is reset, and another on the same connection goes on."""
    go_on = asyncio.Event()

    async def answer(x: Exchange) -> None:
        if x.seen.path == "/bad":
            await fault(x)
        else:
            await x.head()
            await go_on.wait()
            await x.send(b"ok", last=True)

    origin.behaviour = answer
    async with asking(pool, origin.url("/good")) as good:
        with pytest.raises(RemoteProtocolError):
            await fetch(pool, origin.url("/bad"))
        go_on.set()
        assert await rest_of(good) == b"ok"

    assert len(origin.peers) == 1


async def test_a_stream_that_the_host_resets_has_failed_after_what_had_come(
    origin: Http2Origin, pool: LanePool
) -> None:
    """So that a body can be gone on with."""

    async def half(x: Exchange) -> None:
        await x.head(200, [("content-length", "9")])
        await x.send(b"half")
        await x.reset()

    origin.behaviour = half
    came = b""
    with pytest.raises(ReadError):  # noqa: PT012
        async with asking(pool, origin.url()) as answer:
            while piece := await answer.read():
                came += piece

    assert came == b"half"


async def test_trailers_and_a_few_interim_heads_are_none_of_that(origin: Http2Origin, pool: LanePool) -> None:
    """Nor is padding, nor a body without a length."""

    async def answer(x: Exchange) -> None:
        await x.head(103)
        await x.head(200)
        x.peer.h2.send_data(x.seen.stream, b"ok", pad_length=200)
        x.peer.h2.send_headers(x.seen.stream, [("x-sum", "1")], end_stream=True)
        await x.peer.flush()

    origin.behaviour = answer

    assert await fetch(pool, origin.url()) == b"ok"


async def test_an_empty_frame_is_no_end_of_a_body(origin: Http2Origin, pool: LanePool) -> None:
    """Nor is one that is padding alone."""
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
    async with asking(pool, origin.url()) as response:
        reading = asyncio.create_task(rest_of(response))
        await fetch(pool, origin.url("/later"))  # comes behind those frames
        go_on.set()
        assert await reading == b"ok"


async def test_a_connection_that_ends_before_its_first_request_is_replaced(
    origin: Http2Origin, pool: LanePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host may go away with the bytes that end the handshake. That is no fault of the request."""
    made = Http2Connection.connection_made

    def gone(connection: Http2Connection, transport: asyncio.BaseTransport) -> None:
        monkeypatch.undo()
        made(connection, transport)
        connection.data_received(SettingsFrame(0).serialize() + GoAwayFrame(0).serialize())

    monkeypatch.setattr(Http2Connection, "connection_made", gone)

    assert await fetch(pool, origin.url(), "POST", b"x") == b"ok"
    assert len(origin.requests) == 1


async def test_a_connection_that_was_closed_as_it_was_used_is_made_good(
    origin: Http2Origin, pool: LanePool
) -> None:
    """What may be repeated is, once, on a new connection; what may not has failed."""

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
    """It is closed with the next request, which has a new one."""
    async with lane_pool(HOST, authority.cert, http2=True, keepalive_s=0.01) as pool:
        await fetch(pool, origin.url())
        await asyncio.sleep(0.05)
        await fetch(pool, origin.url())

        assert [seen.connection for seen in origin.requests] == [1, 2]
        await wait_until(lambda: origin.open == 1, "the first to be closed")


async def test_a_second_connection_that_is_not_needed_expires(
    authority: Authority, origin: Http2Origin
) -> None:
    """Though the first one is in use all the time."""
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
        asking(pool, origin.url("/long")) as long,
    ):
        await fetch(pool, origin.url())
        assert origin.open == 2
        await asyncio.sleep(0.05)
        await fetch(pool, origin.url())
        await wait_until(lambda: origin.open == 2, "the idle one to be closed")
        go_on.set()
        assert await rest_of(long) == b"ok"

    assert [seen.connection for seen in origin.requests] == [1, 2, 3]


async def test_a_request_that_cannot_be_said_is_our_fault(origin: Http2Origin, pool: LanePool) -> None:
    """It is not sent, and not tried again."""
    with pytest.raises(InvalidRequestError):
        await fetch(pool, origin.url(), headers=((b":odd", b"x"),))

    assert await fetch(pool, origin.url()) == b"ok"
    assert len(origin.requests) == 1


async def test_closing_the_pool_says_farewell(authority: Authority, origin: Http2Origin) -> None:
    """The host hears that we go, and nothing is left of the connection."""
    async with lane_pool(HOST, authority.cert, http2=True) as pool:
        await fetch(pool, origin.url())

    await wait_until(lambda: origin.open == 0, "the end of the connection")
    assert origin.peers[0].gone is not None


async def test_those_who_wait_for_a_connection_share_its_failure(pool: LanePool) -> None:
    """Ten fetches to a host that is not there cost one connection, and each has its own error."""
    calls = [fetch(pool, f"https://{HOST}:1/{n}") for n in range(10)]
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(result) for result in results} == {ConnectError}
    assert len({id(result) for result in results}) == 10


async def test_who_connects_for_others_may_be_cancelled(origin: Http2Origin, pool: LanePool) -> None:
    """The next in line connects in its place."""
    first = asyncio.create_task(fetch(pool, origin.url("/first")))
    others = [asyncio.create_task(fetch(pool, origin.url(f"/{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    first.cancel()

    assert await asyncio.gather(*others) == [b"ok"] * 5
    assert first.cancelled()


async def test_a_host_without_http2_is_spoken_to_as_before(authority: Authority) -> None:
    """As many connections as fetches at once, and each is used again."""
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
    """Its trace says that a connection was opened, how long that took, and when the headers were complete."""
    first, second = request_to(origin.url()), request_to(origin.url())

    for request in (first, second):
        response = await pool.exchange(request)
        assert await rest_of(response) == b"ok"
        response.close()

    assert (response.version, response.address) == ("HTTP/2", HOST)
    assert (first.trace.opened, second.trace.opened) == (True, False)
    assert first.trace.connect_s > second.trace.connect_s == 0
    for request in (first, second):
        assert request.trace.head_s is not None
        assert request.trace.latency_ms is not None
