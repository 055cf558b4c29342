"""The engine over httpx: one client for all fetches of a worker, on the pools of the lanes."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

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
from fetchfleet.worker.util.hidden_packages import hidden

# For its own command line, httpx imports click, rich and pygments, which takes longer than the rest of it.
with hidden("click"):
    import httpx

CONTEXT = "fetchfleet.context"
"""The request extension that holds an ExchangeContext."""

_NO_CONTENT = httpx.ByteStream(b"")


class ExchangeContext(NamedTuple):
    """The data of a request that httpx has no field for."""

    lane: str
    url: str
    """The whole URL. The httpx request has the origin only, and the path in the extension `target`."""
    content: MemoryBody | FileBody | None
    timeouts: Timeouts
    trace: Trace
    began_s: float
    """The time when the request was started, by the monotonic clock."""


class WireResponse(httpx.Response):
    """An httpx response with the exchange below it."""

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
        """The response headers, built at each call: the worker reads those of the exchange."""
        return httpx.Headers(self.exchange[1].headers)

    @headers.setter
    def headers(self, _: httpx.Headers) -> None:
        """Do nothing: httpx sets the headers once, in the constructor."""

    @property
    def stream(self) -> "_Body":
        """The body, read from the connection."""
        return _Body(self.exchange[1])

    @stream.setter
    def stream(self, _: object) -> None:
        """Do nothing: httpx's wrapper refers to the response, and only the GC could free that cycle."""

    @property
    def has_redirect_location(self) -> bool:
        """False: worker/fetch/rules/redirects.py decides what a redirect means.

        httpx would raise for a Location that it cannot parse.
        """
        return False


class LaneTransport(httpx.AsyncBaseTransport):
    """The pools of the lanes as an httpx transport. It does not map their errors to those of httpx."""

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
    """The body of a response, for callers that read it through httpx."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._response.read():
            yield piece

    async def aclose(self) -> None:
        self._response.close()


class HttpxEngine:
    """An engine on the shared httpx client."""

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
        """Return the URL of an origin, `scheme://host[:port]`, and the headers of a plain GET to it.

        Cached: httpx spends more time on parsing a URL and merging headers than on the rest of a request.
        """
        host = text.partition("://")[2].encode("ascii")
        return httpx.URL(text + "/"), httpx.Headers([(b"Host", host), *self._client.headers.raw])


def build_client(
    settings: Settings, transport: LaneTransport, log: FilteringBoundLogger
) -> httpx.AsyncClient:
    """Return the client of a worker, without proxies from the environment, cookies and redirects.

    Its timeouts are those of the default policy; each request has those of its lane. At debug level, it
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
    """No authentication: a fetch sets its own Authorization header, and its URL has no password."""

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request unchanged."""
        yield request


class _NoCookies(httpx.Cookies):
    """A cookie store that stays empty."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Store nothing."""


@lru_cache(maxsize=1024)
def httpx_timeout(timeouts: Timeouts) -> Mapping[str, float]:
    """Return the four timeouts of httpx. The caller enforces the total, which httpx does not have."""
    return {
        "connect": timeouts.connect_s,
        "read": timeouts.read_s,
        "write": timeouts.write_s,
        "pool": timeouts.pool_s,
    }


def hooks(log: FilteringBoundLogger) -> Mapping[str, list[Callable[[Any], Awaitable[None]]]]:
    """Return the event hooks that log each exchange."""

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
