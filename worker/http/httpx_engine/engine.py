"""The engine over httpx: one client for a worker process, shared by all its fetches."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

import httpx
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.http.answer import Answer
from fetchfleet.worker.http.compat import set_cookies
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.exchange import Request
from fetchfleet.worker.http.httpx_engine.event_hooks import hooks
from fetchfleet.worker.http.httpx_engine.transport import LANE, ExchangeEvents, LaneTransport
from fetchfleet.worker.http.request_body import framing_of, open_content, own_headers
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.http.wire import Header
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util.clock import mono_s


class HttpxEngine:
    """The shared httpx client as an engine."""

    def __init__(
        self, client: httpx.AsyncClient, in_folder: Path | None = None, stats: ConnectionStats | None = None
    ) -> None:
        self._client = client
        self._stats = stats or ConnectionStats()
        self._in_folder = in_folder

    async def open(self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace) -> Answer:
        """Send a request on the lane's pool and return its response, which the caller closes.

        Raises httpx.TransportError, FetchError or OSError.
        """
        content = await open_content(request, self._in_folder)
        try:
            headers = request.headers if content is None else (*request.headers, *framing_of(content))
            if "://xn--" in request.url:  # httpx would decode the host, and IDNA 2008 refuses some
                headers = (*headers, ("Host", request.url.split("/", 3)[2]))
            sent = self._client.build_request(
                request.method,
                request.url,
                headers=headers,
                content=content,
                timeout=httpx_timeout(timeouts),
                extensions={LANE: lane, "trace": ExchangeEvents(trace, self._stats)},
            )
            response = await self._client.send(sent, stream=True)
        except BaseException:
            if content is not None:
                content.close()
            raise
        trace.head_s = mono_s()
        url = sent.url
        exchange = Request(
            method=sent.method,
            scheme=url.scheme,
            host=url.raw_host.decode("ascii"),
            port=url.port or 0,
            target=url.raw_path,
            headers=sent.headers.raw,
            content=content,
            timeouts=timeouts,
            trace=trace,
        )
        answer = Answer(str(url), exchange, _HttpxResponse(response))
        try:
            answer.check_status()
        except BaseException:
            answer.close()
            raise
        return answer


class _HttpxResponse:
    """A response of httpx, read piece by piece."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.phrase = response.extensions.get("reason_phrase", b"")
        self.version = response.http_version
        self.headers: Sequence[Header] = response.headers.raw
        network = response.extensions.get("network_stream")
        peer = network.get_extra_info("server_addr") if network is not None else None
        self.address = peer[0] if peer else None
        self.lenient = network is not None and network.get_extra_info("odd_head") is True
        self.ended = False
        self._response = response
        self._pieces = cast("AsyncGenerator[bytes]", response.aiter_raw())
        self._closing: asyncio.Task[None] | None = None

    async def read(self) -> bytes:
        """Return the next piece of the body; empty at its end."""
        if self.ended:
            return b""
        async for piece in self._pieces:
            if piece:
                return piece
        self.ended = True
        return b""

    def close(self) -> None:
        """End the exchange; a second call does nothing."""
        if not self._response.is_closed and self._closing is None:
            self._closing = asyncio.create_task(self._end())

    async def _end(self) -> None:
        await self._pieces.aclose()
        await self._response.aclose()


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
