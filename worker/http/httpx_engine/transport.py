"""httpx's transport over the wire: it sends a request on the connections of its lane."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx

from fetchfleet.jobs.contract.urls import DEFAULT_PORTS
from fetchfleet.worker.http.exchange import Request, Response
from fetchfleet.worker.http.net.pool import LanePools
from fetchfleet.worker.http.request_body import Blocks, Upload
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.policy.model import Timeouts

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
