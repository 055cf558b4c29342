"""The engine without httpx: it passes the request of a fetch to the lane's pool."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.urls import origin_of_url, parse_url
from fetchfleet.worker.http.exchange import Answer, Request, Trace
from fetchfleet.worker.http.net.pool import LanePools
from fetchfleet.worker.http.request_body import (
    FileBody,
    MemoryBody,
    default_headers,
    framing_headers,
    open_content,
)
from fetchfleet.worker.http.wire import Header
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.util.clock import mono_s


class DirectEngine:
    """An engine on the pools of the lanes. log: for a line about each exchange; None: write no lines."""

    def __init__(
        self,
        pools: LanePools,
        user_agent: str,
        in_folder: Path | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._pools = pools
        self._default_headers = encoded(default_headers(user_agent))
        self._origin = lru_cache(maxsize=4096)(self._origin_of)
        self._in_folder = in_folder
        self._log = log

    async def open(self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace) -> Answer:
        """Send a request on the lane's connections and return its response, which the caller closes.

        Raises FetchError or OSError.
        """
        began_s = mono_s()
        origin_text = origin_of_url(request.url)
        origin = self._origin(origin_text)
        content = await open_content(request, self._in_folder) if request.has_body else None
        is_plain = request.method == "GET" and content is None and not request.headers
        sent = Request(
            method=request.method,
            scheme=origin.scheme,
            host=origin.host,
            port=origin.port,
            target=request.url[len(origin_text) :].encode("ascii"),
            headers=origin.headers if is_plain else self._headers(origin.headers, request, content),
            content=content,
            timeouts=timeouts,
            trace=trace,
        )
        try:
            response = await self._pools.exchange(lane, sent)
        except BaseException:
            if content is not None:
                content.close()
            raise
        if self._log is not None:
            events.exchange(
                trace.entry,
                self._log,
                lane=lane.rpartition("#")[0],
                method=request.method,
                url=redact.url(request.url),
                status=response.status,
                version=response.version,
                reused=not trace.opened,
                ms=round((mono_s() - began_s) * 1000, 1),
            )
        return Answer(request.url, sent, response)

    def _headers(
        self, plain: Sequence[Header], request: Hop, content: MemoryBody | FileBody | None
    ) -> Sequence[Header]:
        """Return the headers of a plain GET, without those that this request replaces, then its own.

        Host stays first: a fetch cannot set it.
        """
        own = encoded((*request.headers, *framing_headers(request.method, content)))
        names = {name.lower() for name, _ in own}
        return (plain[0], *(header for header in plain[1:] if header[0].lower() not in names), *own)

    def _origin_of(self, text: str) -> "_Origin":
        """Parse an origin, `scheme://host[:port]`."""
        url = parse_url(text + "/")
        host = (b"Host", text.partition("://")[2].encode("ascii"))
        return _Origin(url.scheme, url.host, url.port, (host, *self._default_headers))


class _Origin(NamedTuple):
    """An origin, with the headers of a plain GET to it."""

    scheme: str
    host: str
    port: int
    headers: Sequence[Header]
    """Host, then the defaults."""


def encoded(headers: Sequence[tuple[str, str]]) -> tuple[Header, ...]:
    """Encode headers as bytes."""
    return tuple((name.encode("ascii"), value.encode("ascii")) for name, value in headers)
