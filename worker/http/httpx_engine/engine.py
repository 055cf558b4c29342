"""The engine over httpx: one client for a worker process, shared by all its fetches."""

from functools import lru_cache
from pathlib import Path

import httpx
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.http.answer import Answer
from fetchfleet.worker.http.compat import set_cookies
from fetchfleet.worker.http.httpx_engine.event_hooks import hooks
from fetchfleet.worker.http.httpx_engine.transport import (
    CONTEXT,
    ExchangeContext,
    LaneTransport,
    WireResponse,
)
from fetchfleet.worker.http.request_body import framing_of, open_content, own_headers
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util.clock import mono_s


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
