"""Answers that break HTTP/1.1, or leave it unknown what comes next on a connection: it is not used again.

The origin's count of connections is the judge.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fetchfleet import Fetch, Outcome, Reason
from tests.component.conftest import Start, on_both_engines
from tests.support import wire
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
    """Sends these bytes, one piece after the other, and keeps the connection."""

    async def answer(x: Exchange) -> None:
        for piece in pieces:
            await x.raw(piece)

    return answer


def head(first: str, *fields: str) -> bytes:
    """The head of an answer."""
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
    "two framings, turned round": head("200 OK", "Transfer-Encoding: chunked", "Content-Length: 2")
    + b"2\r\nok\r\n0\r\n\r\n",
    "a framing nobody knows": head("200 OK", "Transfer-Encoding: gzip") + b"ok",
    "two lengths": head("200 OK", "Content-Length: 2", "Content-Length: 3") + b"ok!",
    "two lengths in a list": head("200 OK", "Content-Length: 2, 3") + b"ok!",
    "a negative length": head("200 OK", "Content-Length: -2") + b"ok",
    "a signed length": head("200 OK", "Content-Length: +2") + b"ok",
    "a length in words": head("200 OK", "Content-Length: two") + b"ok",
    "a length of 10^30": head("200 OK", f"Content-Length: {10**30}") + b"ok",
    "a folded length": head("200 OK", "Content-Length:", " 2", " 3") + b"ok",
    "a name with a blank": head("200 OK", "Content-Length : 2") + b"ok",
    "a bad chunk size": head("200 OK", "Transfer-Encoding: chunked") + b"-2\r\nok\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_an_answer_that_breaks_the_protocol_costs_its_connection(
    origin: Origin, start: Start, broken: bytes
) -> None:
    """It is never stored, and the next request goes over another connection and has its own answer."""
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
    "a line too many": (OK + b"\r\n",),
    "a second response after chunks": (
        head("200 OK", "Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    ),
}


@pytest.mark.parametrize("pieces", FOLLOWED.values(), ids=FOLLOWED.keys())
async def test_what_follows_an_answer_is_nobodys(
    origin: Origin, start: Start, engine: str, pieces: tuple[bytes, ...]
) -> None:
    """The answer stands, by its length; what came after it goes with its connection."""
    worker = await start(engine=engine, policy=ONE_AT_A_TIME)
    origin.behaviour = o.sequence(raw(*pieces), o.ok(b"mine"))

    first, second = await worker.results([origin.url("/first"), origin.url("/second")])

    assert (worker.body(first), worker.body(second)) == (b"ok", b"mine")
    assert origin.connections_opened == 2


@pytest.mark.parametrize("status", [304, 404, 503])
async def test_an_answer_that_is_not_kept_may_not_carry_another_either(
    origin: Origin, start: Start, status: int
) -> None:
    """Whatever its status, and whether its framings contradict each other or more follows."""
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
    """What the caller has stays, and the connection goes."""
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
async def test_a_length_that_is_said_twice_is_one_length(
    origin: Origin, start: Start, lengths: tuple[str, ...]
) -> None:
    """The same each time, it leaves no doubt (RFC 9110 §8.6), and the connection is used again."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = raw(head("200 OK", *(f"Content-Length: {length}" for length in lengths)) + b"ok")

    results = await worker.results([origin.url("/1"), origin.url("/2")])

    assert [worker.body(result) for result in results] == [b"ok", b"ok"]
    assert origin.connections_opened == 1


def closes_when_used(close: Callable[[Exchange], None]) -> Behaviour:
    """Answers the first request of a connection, and none after it."""
    seen: set[int] = set()

    async def answer(x: Exchange) -> None:
        if x.request.connection in seen:
            close(x)
        else:
            seen.add(x.request.connection)
            await x.respond(200, (), b"ok")

    return answer


@pytest.mark.parametrize("close", [Exchange.close, Exchange.abort], ids=["closed", "reset"])
async def test_an_idle_connection_that_the_host_closed_is_one_request_more(
    origin: Origin, start: Start, engine: str, close: Callable[[Exchange], None]
) -> None:
    """Made at once on a new connection, no attempt charged, and no wait."""
    worker = await start(engine=engine, policy={**ONE_AT_A_TIME, "retry_base_s": 60, "retry_cap_s": 60})
    origin.behaviour = closes_when_used(close)

    results = await worker.results([origin.url("/1"), origin.url("/2")])

    assert [(result.outcome, result.attempts) for result in results] == [(Outcome.STORED, 1)] * 2
    assert [(seen.target, seen.connection) for seen in origin.requests] == [("/1", 1), ("/2", 1), ("/2", 2)]


async def test_of_many_idle_connections_none_is_tried_after_one_was_dead(
    origin: Origin, start: Start
) -> None:
    """A host that closes them all costs each request one more, and none an attempt."""
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


async def test_a_post_on_an_idle_connection_is_sent_once(origin: Origin, start: Start) -> None:
    """Nobody knows whether the host has done it (RFC 9110 §9.2.2)."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = closes_when_used(Exchange.close)

    second = Fetch(url=origin.url("/2"), method="POST", body="once")
    _, result = await worker.results([Fetch(url=origin.url("/1")), second])

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.PROTOCOL)
    assert len(origin.requests) == 2


async def test_a_put_on_an_idle_connection_is_sent_again_whole(origin: Origin, start: Start) -> None:
    """It may be repeated, so it is, from the first byte."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = closes_when_used(Exchange.close)

    second = Fetch(url=origin.url("/2"), method="PUT", body="twice" * 50_000)
    _, result = await worker.results([Fetch(url=origin.url("/1")), second])

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert [len(seen.body) for seen in origin.requests] == [0, 250_000, 250_000]


async def test_a_new_connection_that_closes_is_an_attempt(origin: Origin, worker: OneWorker) -> None:
    """Only one that was idle is excused."""
    origin.behaviour = o.sequence(o.stall_headers(0), o.OK)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)


async def test_an_answer_that_broke_off_in_its_head_is_an_attempt(origin: Origin, start: Start) -> None:
    """The host had begun: on an idle connection, too, that is no close that crossed a request."""
    worker = await start(policy={"concurrency": 1})
    origin.behaviour = o.sequence(o.OK, o.garbage(b"HTTP/1.1 2"), o.OK)

    results = await worker.results([origin.url("/1"), origin.url("/2")])

    assert [(result.outcome, result.attempts) for result in results] == [
        (Outcome.STORED, 1),
        (Outcome.STORED, 2),
    ]


@asynccontextmanager
async def tls_origin(authority: Authority, answer: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Its URL, and its connections; it answers with these bytes, record by record."""
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
async def test_a_second_response_in_a_tls_record_of_its_own_is_seen(
    tmp_path_factory: pytest.TempPathFactory, answer: bytes, connections: int
) -> None:
    """Though it has left the kernel, and nobody has read it; a connection without one is used again."""
    authority = Authority(tmp_path_factory.mktemp("ca"))
    async with (
        tls_origin(authority, answer) as (url, opened),
        wire.lane_pool("127.0.95.2", authority.cert) as pool,
    ):
        for _ in range(3):
            assert await wire.fetch(pool, url) == b"ok"
    assert len(opened) == connections
