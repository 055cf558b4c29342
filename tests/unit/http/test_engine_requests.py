"""The requests that both engines pass to the wire, and the response that httpx's hooks receive."""

import gc
import weakref
from collections.abc import Mapping

import httpx
import pytest

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.urls import canonical_url
from fetchfleet.worker.http.base import Engine
from fetchfleet.worker.http.direct_engine import DirectEngine
from fetchfleet.worker.http.exchange import Answer, Request, Response, Trace
from fetchfleet.worker.http.http1.messages import by_name
from fetchfleet.worker.http.httpx_engine import HttpxEngine, LaneTransport, WireResponse, build_client
from fetchfleet.worker.http.net.pool import LanePools
from fetchfleet.worker.http.wire import GetBuffer, Header
from fetchfleet.worker.observability import log
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.settings import ENGINES, Settings

TIMEOUTS = Timeouts(connect_s=1, read_s=2, write_s=3, pool_s=4, total_s=5)


class Recorded(Response):
    """A recorded response."""

    status, phrase, version, lenient, address = 200, b"Fine", "HTTP/1.1", False, None
    headers = ((b"X-Name", b"caf\xe9"), (b"Set-Cookie", b"a=1"))
    by_name: Mapping[bytes, bytes] = by_name(headers)
    ended = False

    async def read(self) -> bytes:
        """Return the body, then its end."""
        if self.ended:
            return b""
        self.ended = True
        return b"body"

    async def receive(self, get_buffer: GetBuffer) -> bytes:  # noqa: ARG002 the body is in memory
        """Return the body, then its end."""
        return await self.read()

    def close(self) -> None:
        """Do nothing."""


class Recorder(LanePools):
    """Pools that record each request."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Request]] = []

    async def exchange(self, lane: str, request: Request) -> Response:
        """Record the request, and return a response."""
        self.seen.append((lane, request))
        return Recorded()


def client_on(pools: LanePools) -> httpx.AsyncClient:
    return build_client(Settings(user_agent="ours/1"), LaneTransport(pools), log.get_logger())


def engine_on(pools: LanePools, name: str) -> Engine:
    return DirectEngine(pools, "ours/1") if name == "direct" else HttpxEngine(client_on(pools))


async def sent(engine: str, request: Hop) -> Request:
    """Return the request that the engine passes to the wire."""
    pools = Recorder()
    answer = await engine_on(pools, engine).open(request, "lane", TIMEOUTS, Trace())
    assert isinstance(answer, Answer)
    [(lane, seen)] = pools.seen
    assert (lane, seen.timeouts, answer.header("x-name")) == ("lane", TIMEOUTS, "café")
    return seen


def named(headers: list[Header], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://a.example", b"/"),
        ("http://a.example/a[1]?ids[]=1", b"/a[1]?ids[]=1"),
        ("http://a.example/%7euser/%41", b"/%7euser/%41"),
        ("http://a.example/a//b/?", b"/a//b/?"),
        ("http://a.example/a'b?c='d'", b"/a'b?c='d'"),
        ("http://a.example/ü?q=|", b"/%C3%BC?q=%7C"),
    ],
)
async def test_the_target_is_that_of_the_canonical_url(engine: str, url: str, target: bytes) -> None:
    """No engine escapes it again."""
    assert (await sent(engine, Hop("GET", canonical_url(url)))).target == target


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "field"),
    [
        ("https://a.example/", "https", "a.example", 443, b"a.example"),
        ("http://a_b.example:8080/", "http", "a_b.example", 8080, b"a_b.example:8080"),
        ("http://[2001:db8::1]:81/", "http", "2001:db8::1", 81, b"[2001:db8::1]:81"),
        ("http://i❤.ws/", "http", "xn--i-7iq.ws", 80, b"xn--i-7iq.ws"),
        ("http://xn--a.com/", "http", "xn--a.com", 80, b"xn--a.com"),
    ],
)
async def test_a_request_names_its_host(
    engine: str, url: str, scheme: str, host: str, port: int, field: bytes
) -> None:
    """IDNA 2008 rejects one of the hosts."""
    request = await sent(engine, Hop("GET", canonical_url(url)))

    assert (request.scheme, request.host, request.port) == (scheme, host, port)
    assert request.headers[0] == (b"Host", field)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("method", "body", "length"),
    [
        ("GET", None, []),
        ("DELETE", None, []),
        ("POST", None, [b"0"]),
        ("PUT", "", [b"0"]),
        ("GET", "ab", [b"2"]),
    ],
)
async def test_a_method_with_a_body_declares_its_length(
    engine: str, method: str, body: str | None, length: list[bytes]
) -> None:
    """It declares a length of zero too. No request is chunked."""
    request = await sent(engine, Hop(method, "http://a.example/", body=body))

    assert named([*request.headers], b"content-length") == length
    assert named([*request.headers], b"transfer-encoding") == []


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_headers_of_a_fetch_stay_with_it(engine: str) -> None:
    """They replace the worker's own, and the next request to the same host has none of them."""
    pools = Recorder()
    opener = engine_on(pools, engine)
    own = (("accept", "text/plain"), ("X-A", "1"), ("X-A", "2"), ("Authorization", "secret"))
    for headers in (own, ()):
        await opener.open(Hop("GET", "http://a.example/", headers), "lane", TIMEOUTS, Trace())

    first, second = ([*request.headers] for _, request in pools.seen)
    assert (named(first, b"accept"), named(first, b"x-a")) == ([b"text/plain"], [b"1", b"2"])
    assert (named(second, b"accept"), named(second, b"user-agent")) == ([b"*/*"], [b"ours/1"])
    assert not {b"x-a", b"authorization"} & {name.lower() for name, _ in second}


async def test_a_hook_of_the_client_receives_the_response_of_the_wire() -> None:
    """The response has its status, reason and headers, and the client keeps no cookie."""
    seen: list[httpx.Response] = []

    async def look(response: httpx.Response) -> None:
        seen.append(response)

    client = client_on(Recorder())
    client.event_hooks = {"response": [look]}
    await HttpxEngine(client).open(Hop("GET", "http://a.example/a"), "lane", TIMEOUTS, Trace())

    [response] = seen
    assert isinstance(response, WireResponse)
    assert (response.status_code, response.reason_phrase, response.http_version) == (200, "Fine", "HTTP/1.1")
    assert response.headers["x-name"] == "café"
    assert not client.cookies


async def test_an_exchange_by_httpx_is_freed_at_its_end() -> None:
    """It is part of no reference cycle: the garbage collector would cost more than the exchange."""
    seen: list[weakref.ref[httpx.Response]] = []

    async def look(response: httpx.Response) -> None:
        seen.append(weakref.ref(response))

    client = client_on(Recorder())
    client.event_hooks = {"response": [look]}
    engine = HttpxEngine(client)
    gc.disable()
    try:
        answer = await engine.open(Hop("GET", "http://a.example/a"), "lane", TIMEOUTS, Trace())
        answer.close()
        [response] = seen
        assert response() is None
    finally:
        gc.enable()


async def test_the_body_can_be_read_by_httpx() -> None:
    """An event hook of the client can read the body with `aread`."""
    pieces: list[bytes] = []

    async def read(response: httpx.Response) -> None:
        pieces.append(await response.aread())

    client = client_on(Recorder())
    client.event_hooks = {"response": [read]}
    await HttpxEngine(client).open(Hop("GET", "http://a.example/a"), "lane", TIMEOUTS, Trace())

    assert pieces == [b"body"]
