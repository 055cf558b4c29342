"""Responses that break HTTP/1.1 or leave their connection in doubt. It is not reused: the origin counts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fetchfleet import Fetch, Outcome, Reason
from tests.component.conftest import Start, on_both_engines
from tests.support import lane_pools
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.certificates import HAS_OPENSSL, Authority
from tools.origin.http2 import server_tls
from tools.origin.server import Behaviour, Exchange, Origin

pytestmark = on_both_engines

ONE_AT_A_TIME = {"concurrency": 1, "attempts": 1}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


def raw(*pieces: bytes) -> Behaviour:
    """Return a behaviour that sends these bytes piece by piece and keeps the connection open."""

    async def answer(x: Exchange) -> None:
        for piece in pieces:
            await x.raw(piece)

    return answer


def head(first: str, *fields: str) -> bytes:
    """Return the head of a response."""
    return "\r\n".join([f"HTTP/1.1 {first}", *fields, "", ""]).encode("latin-1")


BROKEN = {
    "status 099": head("099 Odd", "Content-Length: 2") + b"ok",
    "status 999": head("999 Denied", "Content-Length: 2") + b"ok",
    "status 600": head("600 Odd", "Content-Length: 2") + b"ok",
    "204 with a length": head("204 No Content", "Content-Length: 2") + b"ok",
    "204 in chunks": head("204 No Content", "Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n",
    "HTTP/0.9": b"<html>ok</html>\r\n\r\n",
    "garbage": b"\x00\xff\x16\x03\x01" * 20 + b"\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "two framings": head("200 OK", "Content-Length: 2", "Transfer-Encoding: chunked")
    + b"2\r\nok\r\n0\r\n\r\n",
    "two framings, reversed": head("200 OK", "Transfer-Encoding: chunked", "Content-Length: 2")
    + b"2\r\nok\r\n0\r\n\r\n",
    "an unknown framing": head("200 OK", "Transfer-Encoding: gzip") + b"ok",
    "two lengths": head("200 OK", "Content-Length: 2", "Content-Length: 3") + b"ok!",
    "two lengths in a list": head("200 OK", "Content-Length: 2, 3") + b"ok!",
    "a negative length": head("200 OK", "Content-Length: -2") + b"ok",
    "a signed length": head("200 OK", "Content-Length: +2") + b"ok",
    "a length in words": head("200 OK", "Content-Length: two") + b"ok",
    "a length of 10^30": head("200 OK", f"Content-Length: {10**30}") + b"ok",
    "a folded length": head("200 OK", "Content-Length:", " 2", " 3") + b"ok",
    "a space before the colon": head("200 OK", "Content-Length : 2") + b"ok",
    "a bad chunk size": head("200 OK", "Transfer-Encoding: chunked") + b"-2\r\nok\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_a_response_that_breaks_the_protocol_costs_its_connection(
    origin: Origin, start: Start, broken: bytes
) -> None:
    """It is never stored. The next request uses another connection and gets its own response."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = o.sequence(raw(broken), o.ok(b"mine"))

    bad, good = await worker.results([origin.url("/bad"), origin.url("/good")])

    expected = Reason.TRUNCATED if broken == BROKEN["a bad chunk size"] else Reason.PROTOCOL
    assert (bad.outcome, bad.reason) == (Outcome.FAILED, expected)
    assert worker.body(good) == b"mine"
    assert len(worker.files()) == 1
    assert origin.connections_opened == 2


FOLLOWED = {
    "a second response": (OK + SMUGGLED,),
    "a second response, later": (OK, SMUGGLED),
    "a body longer than its length": (OK + b"k" * 10,),
    "an extra line": (OK + b"\r\n",),
    "a second response after chunks": (
        head("200 OK", "Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    ),
}


@pytest.mark.parametrize("pieces", FOLLOWED.values(), ids=FOLLOWED.keys())
async def test_data_after_a_response_is_discarded_with_its_connection(
    origin: Origin, start: Start, engine: str, pieces: tuple[bytes, ...]
) -> None:
    """The body is stored by its declared length."""
    worker = await start(engine=engine, policy=ONE_AT_A_TIME)
    origin.behaviour = o.sequence(raw(*pieces), o.ok(b"mine"))

    first, second = await worker.results([origin.url("/first"), origin.url("/second")])

    assert (worker.body(first), worker.body(second)) == (b"ok", b"mine")
    assert origin.connections_opened == 2


@pytest.mark.parametrize("status", [304, 404, 503])
async def test_a_response_in_doubt_that_is_not_kept_costs_its_connection(
    origin: Origin, start: Start, status: int
) -> None:
    """Its framings contradict each other, or more data follows. The status makes no difference."""
    worker = await start(policy=ONE_AT_A_TIME)
    both = head(f"{status} No", "Content-Length: 2", "Transfer-Encoding: chunked") + b"2\r\nno\r\n0\r\n\r\n"
    more = head(f"{status} No", "Content-Length: 0") + SMUGGLED
    origin.behaviour = o.sequence(raw(both), raw(more), o.ok(b"mine"))
    asked = {"If-None-Match": '"1"'}

    *_, last = await worker.results(
        [Fetch(url=origin.url(path), headers=asked) for path in ("/both", "/more", "/last")]
    )

    assert worker.body(last) == b"mine"
    assert origin.connections_opened == 3


async def test_a_304_with_a_body_leaves_the_file_as_it_is(origin: Origin, start: Start) -> None:
    """The fetch is `unchanged`, and the connection is not reused."""
    worker = await start(policy=ONE_AT_A_TIME)
    etag = ("ETag", '"1"')
    changed = head("304 Not Modified", 'ETag: "1"', "Content-Length: 6") + b"poison"
    all_submitted = asyncio.Event()
    whole = o.held(all_submitted, o.ok(b"whole", [etag]))
    origin.behaviour = o.sequence(whole, raw(changed), o.ok(b"mine"))

    kept = Fetch(url=origin.url("/"), dest="kept", revalidate=True)
    batches = [await worker.submit([kept]), await worker.submit([kept, Fetch(url=origin.url("/last"))])]
    all_submitted.set()
    [first], [again, last] = [await results_of(batch) for batch in batches]

    assert (first.outcome, again.outcome) == (Outcome.STORED, Outcome.UNCHANGED)
    assert (worker.out / "kept").read_bytes() == b"whole"
    assert worker.body(last) == b"mine"
    assert origin.connections_opened == 2


@pytest.mark.parametrize("lengths", [("2", "2"), ("2, 2",)], ids=["twice", "in a list"])
async def test_equal_content_lengths_count_as_one(
    origin: Origin, start: Start, lengths: tuple[str, ...]
) -> None:
    """They leave no doubt (RFC 9110 §8.6), so the connection is reused."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = raw(head("200 OK", *(f"Content-Length: {length}" for length in lengths)) + b"ok")

    results = await worker.results([origin.url("/1"), origin.url("/2")])

    assert [worker.body(result) for result in results] == [b"ok", b"ok"]
    assert origin.connections_opened == 1


def closes_when_used(close: Callable[[Exchange], None]) -> Behaviour:
    """Return a behaviour that responds to the first request of a connection and closes at the second."""
    seen: set[int] = set()

    async def answer(x: Exchange) -> None:
        if x.request.connection in seen:
            close(x)
        else:
            seen.add(x.request.connection)
            await x.respond(200, (), b"ok")

    return answer


@pytest.mark.parametrize("close", [Exchange.close, Exchange.abort], ids=["closed", "reset"])
async def test_an_idle_connection_that_the_host_closed_charges_no_attempt(
    origin: Origin, start: Start, engine: str, close: Callable[[Exchange], None]
) -> None:
    """The request is repeated at once on a new connection, without back-off."""
    worker = await start(engine=engine, policy={**ONE_AT_A_TIME, "retry_base_s": 60, "retry_cap_s": 60})
    origin.behaviour = closes_when_used(close)

    results = await worker.results([origin.url("/1"), origin.url("/2")])

    assert [(result.outcome, result.attempts) for result in results] == [(Outcome.STORED, 1)] * 2
    assert [(seen.target, seen.connection) for seen in origin.requests] == [("/1", 1), ("/2", 1), ("/2", 2)]


async def test_after_one_dead_idle_connection_no_other_is_tried(origin: Origin, start: Start) -> None:
    """Each request is sent at most twice, and no attempt is charged."""
    worker = await start(policy={"concurrency": 4, "attempts": 1})
    go_on = asyncio.Event()
    closing = closes_when_used(Exchange.close)

    async def together(x: Exchange) -> None:
        if len(origin.requests) == 4:
            go_on.set()
        await go_on.wait()
        await closing(x)

    origin.behaviour = together
    results = await worker.results([origin.url(f"/{n}") for n in range(8)])

    assert {result.outcome for result in results} == {Outcome.STORED}
    per_path = [seen.target for seen in origin.requests]
    assert all(per_path.count(f"/{n}") <= 2 for n in range(8))


async def test_a_post_on_an_idle_connection_that_closes_is_not_repeated(origin: Origin, start: Start) -> None:
    """The host may have processed it (RFC 9110 §9.2.2)."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = closes_when_used(Exchange.close)

    second = Fetch(url=origin.url("/2"), method="POST", body="once")
    _, result = await worker.results([Fetch(url=origin.url("/1")), second])

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.PROTOCOL)
    assert len(origin.requests) == 2


async def test_a_put_on_an_idle_connection_that_closes_is_repeated_whole(
    origin: Origin, start: Start
) -> None:
    """PUT is idempotent. Its body is sent again from the first byte."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = closes_when_used(Exchange.close)

    second = Fetch(url=origin.url("/2"), method="PUT", body="twice" * 50_000)
    _, result = await worker.results([Fetch(url=origin.url("/1")), second])

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert [len(seen.body) for seen in origin.requests] == [0, 250_000, 250_000]


async def test_a_new_connection_that_closes_charges_an_attempt(origin: Origin, worker: OneWorker) -> None:
    """Only the close of an idle connection is free."""
    origin.behaviour = o.sequence(o.stall_headers(0), o.OK)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)


async def test_a_response_that_breaks_off_in_its_head_charges_an_attempt(
    origin: Origin, start: Start
) -> None:
    """The host had begun to respond, so the close did not cross a request."""
    worker = await start(policy={"concurrency": 1})
    origin.behaviour = o.sequence(o.OK, o.garbage(b"HTTP/1.1 2"), o.OK)

    results = await worker.results([origin.url("/1"), origin.url("/2")])

    assert [(result.outcome, result.attempts) for result in results] == [
        (Outcome.STORED, 1),
        (Outcome.STORED, 2),
    ]


@asynccontextmanager
async def tls_origin(authority: Authority, answer: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Yield the URL of a TLS origin and its connections. The answer is split into records at `|`."""
    opened: list[int] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(1)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for line in answer.split(b"|"):
                    writer.write(line)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
        ended.set()

    tls = server_tls(authority.issue("host", "IP:127.0.95.2"), "http/1.1")
    async with await asyncio.start_server(serve, "127.0.95.2", 0, ssl=tls) as server:
        yield f"https://127.0.95.2:{server.sockets[0].getsockname()[1]}/", opened
        await wait_until(ended.is_set, "the end of the connections")


@pytest.mark.skipif(not HAS_OPENSSL, reason="needs openssl")
@pytest.mark.parametrize(
    ("answer", "connections"), [(OK + b"|" + SMUGGLED, 3), (OK, 1)], ids=["smuggled", "clean"]
)
async def test_a_second_response_in_its_own_tls_record_costs_the_connection(
    tmp_path_factory: pytest.TempPathFactory, answer: bytes, connections: int
) -> None:
    """The record has left the kernel but is unread. Without it, the connection is reused."""
    authority = Authority(tmp_path_factory.mktemp("ca"))
    async with (
        tls_origin(authority, answer) as (url, opened),
        lane_pools.lane_pool("127.0.95.2", authority.cert) as pool,
    ):
        for _ in range(3):
            assert await lane_pools.fetch(pool, url) == b"ok"
    assert len(opened) == connections
