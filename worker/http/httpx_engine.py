"""The engine over httpx: one client for a worker process, shared by all its fetches, on the lanes' pools."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.urls import DEFAULT_PORTS
from fetchfleet.worker.http.answer import Answer
from fetchfleet.worker.http.compat import set_cookies
from fetchfleet.worker.http.exchange import Request, Response
from fetchfleet.worker.http.net.pool import LanePools
from fetchfleet.worker.http.request_body import Blocks, Upload, framing_of, open_content, own_headers
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util.clock import mono_s

CONTEXT = "fetchfleet.context"
"""The request extension that holds an ExchangeContext."""


class ExchangeContext(NamedTuple):
    """The part of a request that httpx does not know."""

    lane: str
    content: Blocks | Upload | None
    timeouts: Timeouts
    trace: Trace
    began_s: float


class WireResponse(httpx.Response):
    """A response of httpx, with the exchange below it."""

    def __init__(self, request: Request, response: Response) -> None:
        super().__init__(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions={
                "http_version": response.version.encode("ascii"),
                "reason_phrase": response.phrase,
            },
        )
        self.exchange = request, response

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
            target=url.raw_path,
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

    async def open(self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace) -> Answer:
        """Send a request on the lane's connections and return its response, which the caller closes.

        Raises FetchError or OSError.
        """
        content = await open_content(request, self._in_folder) if request.has_body else None
        try:
            headers = request.headers if content is None else (*request.headers, *framing_of(content))
            if "://xn--" in request.url:  # httpx would decode the host, and IDNA 2008 refuses some
                headers = (*headers, ("Host", request.url.split("/", 3)[2]))
            context = ExchangeContext(lane, content, timeouts, trace, mono_s())
            sent = self._client.build_request(
                request.method,
                request.url,
                headers=headers,
                content=content,
                timeout=httpx_timeout(timeouts),
                extensions={CONTEXT: context},
            )
            response = await self._client.send(sent, stream=True)
        except BaseException:
            if content is not None:
                content.close()
            raise
        assert isinstance(response, WireResponse)
        return Answer(request.url, *response.exchange)


def build_client(
    settings: Settings, transport: LaneTransport, log: FilteringBoundLogger
) -> httpx.AsyncClient:
    """Return the client of a worker: no settings from the environment, no cookies, no redirects of its own.

    Its timeouts are those of the default policy; each request brings those of its lane. At debug level it
    logs each exchange.
    """
    client = httpx.AsyncClient(
        transport=transport,
        timeout=httpx_timeout(settings.policy.default.timeouts),
        headers=own_headers(settings.user_agent),
        follow_redirects=False,
        event_hooks=hooks(log) if settings.log_level == "debug" else None,
        trust_env=False,
    )
    set_cookies(client, _NoCookies())
    return client


class _NoCookies(httpx.Cookies):
    """Cookies that stay empty."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Store nothing."""


@lru_cache(maxsize=1024)
def httpx_timeout(timeouts: Timeouts) -> httpx.Timeout:
    """Return httpx's four timeouts; the caller enforces the total, which httpx does not know."""
    return httpx.Timeout(
        connect=timeouts.connect_s,
        read=timeouts.read_s,
        write=timeouts.write_s,
        pool=timeouts.pool_s,
    )


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
            url=redact.url(str(request.url)),
            status=response.status_code,
            version=response.http_version,
            reused=not context.trace.opened,
            ms=round((mono_s() - context.began_s) * 1000, 1),
        )

    return {"response": [log_exchange]}
