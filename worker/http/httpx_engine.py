"""The engine over httpx: one client for a worker process, shared by all its fetches, on the lanes' pools."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.urls import DEFAULT_PORTS, origin_of_url
from fetchfleet.worker.http.compat import set_cookies
from fetchfleet.worker.http.exchange import Answer, Request, Response, Trace
from fetchfleet.worker.http.net.pool import LanePools
from fetchfleet.worker.http.request_body import (
    FileBody,
    MemoryBody,
    default_headers,
    framing_headers,
    open_content,
)
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util.clock import mono_s

CONTEXT = "fetchfleet.context"
"""The request extension that holds an ExchangeContext."""

_NO_CONTENT = httpx.ByteStream(b"")


class ExchangeContext(NamedTuple):
    """The part of a request that httpx does not know."""

    lane: str
    url: str
    """With its path, which the request's own URL leaves to the extension `target`."""
    content: MemoryBody | FileBody | None
    timeouts: Timeouts
    trace: Trace
    began_s: float


class WireResponse(httpx.Response):
    """A response of httpx, with the exchange below it."""

    def __init__(self, request: Request, response: Response) -> None:
        self.exchange = request, response
        super().__init__(
            response.status,
            stream=_NO_CONTENT,
            extensions={
                "http_version": response.version.encode("ascii"),
                "reason_phrase": response.phrase,
            },
        )

    @property
    def headers(self) -> httpx.Headers:
        """The response headers, decoded anew each time: the worker reads those of the exchange."""
        return httpx.Headers(self.exchange[1].headers)

    @headers.setter
    def headers(self, _: httpx.Headers) -> None:
        """Keep none: httpx sets them once, when the response is made."""

    @property
    def stream(self) -> "_Body":
        """The body, read from the connection."""
        return _Body(self.exchange[1])

    @stream.setter
    def stream(self, _: object) -> None:
        """Keep none: httpx wraps it in an object that refers to the response, which only gc would free."""

    @property
    def has_redirect_location(self) -> bool:
        """False: worker/fetch/rules/redirects.py decides what a redirect means.

        httpx would raise for a Location that it cannot parse.
        """
        return False


class LaneTransport(httpx.AsyncBaseTransport):
    """The lanes' pools as a transport. It raises their errors as they are."""

    def __init__(self, pools: LanePools) -> None:
        self._pools = pools

    async def handle_async_request(self, request: httpx.Request) -> WireResponse:
        """Make one exchange on the pool of the lane that the request's context names."""
        context: ExchangeContext = request.extensions[CONTEXT]
        url = request.url
        sent = Request(
            method=request.method,
            scheme=url.scheme,
            host=url.raw_host.decode("ascii"),
            port=url.port or DEFAULT_PORTS[url.scheme],
            target=request.extensions["target"],
            headers=request.headers.raw,
            content=context.content,
            timeouts=context.timeouts,
            trace=context.trace,
        )
        return WireResponse(sent, await self._pools.exchange(context.lane, sent))

    async def aclose(self) -> None:
        """Close every lane's connections."""
        await self._pools.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of a response, for callers that read it by httpx."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._response.read():
            yield piece

    async def aclose(self) -> None:
        self._response.close()


class HttpxEngine:
    """The shared httpx client as an engine."""

    def __init__(self, client: httpx.AsyncClient, in_folder: Path | None = None) -> None:
        self._client = client
        self._in_folder = in_folder
        self._origin = lru_cache(maxsize=1024)(self._origin_of)

    async def open(self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace) -> Answer:
        """Send a request on the lane's connections and return its response, which the caller closes.

        Raises FetchError or OSError.
        """
        origin = origin_of_url(request.url)
        url, headers = self._origin(origin)
        content = await open_content(request, self._in_folder) if request.has_body else None
        try:
            sends = content is not None or request.method != "GET"
            framing = framing_headers(request.method, content) if sends else ()
            if request.headers or framing:
                headers = headers.copy()
                headers.update((*request.headers, *framing))
            sent = httpx.Request(
                request.method,
                url,
                headers=headers,
                content=content,
                stream=_NO_CONTENT if content is None else None,
                extensions={
                    CONTEXT: ExchangeContext(lane, request.url, content, timeouts, trace, mono_s()),
                    "target": request.url[len(origin) :].encode("ascii"),
                    "timeout": httpx_timeout(timeouts),
                },
            )
            response = await self._client.send(sent, stream=True)
        except BaseException:
            if content is not None:
                content.close()
            raise
        assert isinstance(response, WireResponse)
        return Answer(request.url, *response.exchange)

    def _origin_of(self, text: str) -> tuple[httpx.URL, httpx.Headers]:
        """Return the URL of an origin, `scheme://host[:port]`, and the headers of a plain request to it.

        httpx spends more on parsing a URL and merging headers than on the rest of a request.
        """
        host = text.partition("://")[2].encode("ascii")
        return httpx.URL(text + "/"), httpx.Headers([(b"Host", host), *self._client.headers.raw])


def build_client(
    settings: Settings, transport: LaneTransport, log: FilteringBoundLogger
) -> httpx.AsyncClient:
    """Return the client of a worker: no settings from the environment, no cookies, no redirects of its own.

    Its timeouts are those of the default policy; each request brings those of its lane. At debug level it
    logs each exchange.
    """
    client = httpx.AsyncClient(
        transport=transport,
        timeout=httpx.Timeout(**httpx_timeout(settings.policy.default.timeouts)),
        headers=default_headers(settings.user_agent),
        auth=_NoAuth(),
        follow_redirects=False,
        event_hooks=hooks(log) if settings.log_level == "debug" else None,
        trust_env=False,
    )
    set_cookies(client, _NoCookies())
    return client


class _NoAuth(httpx.Auth):
    """No authentication: a fetch brings its own Authorization header, and its URL no password."""

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request as it is."""
        yield request


class _NoCookies(httpx.Cookies):
    """Cookies that stay empty."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Store nothing."""


@lru_cache(maxsize=1024)
def httpx_timeout(timeouts: Timeouts) -> Mapping[str, float]:
    """Return httpx's four timeouts; the caller enforces the total, which httpx does not know."""
    return {
        "connect": timeouts.connect_s,
        "read": timeouts.read_s,
        "write": timeouts.write_s,
        "pool": timeouts.pool_s,
    }


def hooks(log: FilteringBoundLogger) -> Mapping[str, list[Callable[[Any], Awaitable[None]]]]:
    """Return hooks that read the lane and the timings from the request's context."""

    async def log_exchange(response: httpx.Response) -> None:
        request = response.request
        context: ExchangeContext = request.extensions[CONTEXT]
        events.exchange(
            context.trace.entry,
            log,
            lane=context.lane.rpartition("#")[0],
            method=request.method,
            url=redact.url(context.url),
            status=response.status_code,
            version=response.http_version,
            reused=not context.trace.opened,
            ms=round((mono_s() - context.began_s) * 1000, 1),
        )

    return {"response": [log_exchange]}
