"""The engine over httpx: one client for a worker process, shared by all its fetches."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import httpx
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.http.base import EventTrace, FramedAnswer
from fetchfleet.worker.http.compat import set_cookies
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.httpx_engine.event_hooks import hooks
from fetchfleet.worker.http.httpx_engine.transport import LANE, LaneTransport
from fetchfleet.worker.http.request_body import content_of, framing_of, own_headers
from fetchfleet.worker.http.wire import Wire
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.settings import Settings

_NO_BODY = nullcontext()


class HttpxEngine:
    """The shared httpx client as an engine."""

    def __init__(
        self, client: httpx.AsyncClient, in_folder: Path | None = None, stats: ConnectionStats | None = None
    ) -> None:
        self._client = client
        self._stats = stats or ConnectionStats()
        self._in_folder = in_folder

    @asynccontextmanager
    async def open(
        self, request: Hop, lane: str, timeouts: Timeouts, trace: EventTrace
    ) -> AsyncIterator["HttpxAnswer"]:
        """Make one exchange on the lane's pool; raises httpx.TransportError, FetchError or OSError."""
        trace.start_exchange(self._stats)
        async with content_of(request, self._in_folder) if request.has_body else _NO_BODY as content:
            headers = request.headers if content is None else (*request.headers, *framing_of(content))
            if "://xn--" in request.url:  # httpx would decode the host, and IDNA 2008 refuses some
                headers = (*headers, ("Host", request.url.split("/", 3)[2]))
            sent = self._client.build_request(
                request.method,
                request.url,
                headers=headers,
                content=content,
                timeout=httpx_timeout(timeouts),
                extensions={LANE: lane, "trace": trace},
            )
            response = await self._client.send(sent, stream=True)
            try:
                trace.head_received()
                answer = HttpxAnswer(response, request.method)
                answer.check_status()
                yield answer
            finally:
                await response.aclose()


class HttpxAnswer(FramedAnswer):
    """A response of httpx."""

    def __init__(self, response: httpx.Response, method: str) -> None:
        is_http1 = response.http_version.startswith("HTTP/1")
        super().__init__(response.status_code, method, response.headers.raw, is_http1=is_http1)
        self._response = response

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it was sent."""
        return self._response.aiter_raw()

    def wire(self) -> Wire:
        """Return the request and the response headers as they were sent, without HTTP/2's pseudo-headers."""
        response, request = self._response, self._response.request
        network = response.extensions.get("network_stream")
        peer = network.get_extra_info("server_addr") if network is not None else None
        return Wire(
            url=str(request.url),
            method=request.method,
            target=request.url.raw_path,
            request_headers=request.headers.raw,
            version=response.http_version,
            status=response.status_code,
            phrase=response.extensions.get("reason_phrase", b""),
            headers=response.headers.raw,
            address=peer[0] if peer else None,
        )


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
