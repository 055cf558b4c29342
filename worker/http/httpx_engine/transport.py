"""httpx's transport over httpcore2: each lane has a small connection pool of its own.

One big pool is slow (every request looks at every connection) and lets one slow host take every
slot; a lane's pool is its own, and what bounds its connections is the gate, so no fetch ever waits for one.
"""

from collections.abc import AsyncIterable, AsyncIterator

import httpcore2
import httpx

from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.worker.http.base import KEEPALIVE_EXPIRY_S, Pools
from fetchfleet.worker.http.connection_stats import Traffic, WatchedNetwork
from fetchfleet.worker.http.httpx_engine import head_limit
from fetchfleet.worker.http.httpx_engine.pool import LanePool
from fetchfleet.worker.http.net.guard import GuardedNetwork, LaneNetwork
from fetchfleet.worker.http.net.tls_contexts import Contexts
from fetchfleet.worker.policy.model import LanePolicy

TO_HTTPX: dict[type[Exception], type[httpx.TransportError]] = {
    getattr(httpcore2, name): getattr(httpx, name)
    for name in (
        "ConnectError",
        "ConnectTimeout",
        "LocalProtocolError",
        "PoolTimeout",
        "ReadError",
        "ReadTimeout",
        "RemoteProtocolError",
        "UnsupportedProtocol",
        "WriteError",
        "WriteTimeout",
    )
}
"""httpcore2's errors under the names that httpx's users know."""


LANE = "fetchfleet.lane"
"""The request extension that names the lane whose pool is to be used."""

MAX_CONNECTIONS = 1000
"""Never reached: the gate lets no more fetches run than the policy of the moment says."""


class LanePools(httpx.AsyncBaseTransport, Pools):
    """Connection pools by lane: `open` before the first request of a lane, `close` after the last."""

    def __init__(self, network: GuardedNetwork, contexts: Contexts, traffic: Traffic) -> None:
        self._network = network
        self._contexts = contexts
        self._traffic = traffic
        self._networks: dict[str, LaneNetwork] = {}
        self._pools: dict[str, LanePool] = {}

    def open(self, lane: str, policy: LanePolicy) -> None:
        """Make the lane's pool."""
        self._networks[lane] = LaneNetwork(self._network, policy.ports)
        self._pools[lane] = LanePool(
            ssl_context=self._contexts.of(policy),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=policy.most_at_once,
            keepalive_expiry=KEEPALIVE_EXPIRY_S,
            http2=policy.http2,
            network_backend=WatchedNetwork(self._networks[lane], self._traffic),
        )

    def heed(self, lane: str, policy: LanePolicy) -> None:
        """The lane's policy is another: connections that are made from now on go by its ports."""
        if lane in self._networks:
            self._networks[lane].ports = policy.ports

    async def close(self, lane: str) -> None:
        """Close the lane's connections; nothing if it has none."""
        self._networks.pop(lane, None)
        pool = self._pools.pop(lane, None)
        if pool is not None:
            await pool.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange on the pool of the lane that the request names.

        Hosts close idle connections as they like, and may as we send (RFC 9112 §9.3.1). What may be
        repeated is then sent once more, on a connection that was not idle.
        """
        pool = self._pools[request.extensions[LANE]]
        try:
            return await self._exchange(pool, request)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if request.method not in IDEMPOTENT_METHODS or not head_limit.unheard():
                raise
        await pool.drop_idle()
        return await self._exchange(pool, request)

    async def _exchange(self, pool: LanePool, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        head_limit.begins()
        url, extensions = request.url, request.extensions.copy()
        if (trace := extensions.get("trace")) is not None:
            trace.handed_over()
        try:
            response = await pool.handle_async_request(
                httpcore2.Request(
                    method=request.method,
                    url=httpcore2.URL(
                        scheme=url.raw_scheme,
                        host=url.raw_host,
                        port=url.port,
                        target=url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=extensions,
                )
            )
        except _ERRORS as error:
            raise _as_httpx(error) from error
        extensions.pop("trace", None)  # it follows no further than the head
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close every lane's connections."""
        for lane in list(self._pools):
            await self.close(lane)
        await self._network.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of an answer; its errors are httpx's too."""

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = self._response.stream
        assert isinstance(pieces, AsyncIterable)
        try:
            async for piece in pieces:
                yield piece
        except _ERRORS as error:
            raise _as_httpx(error) from error

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        except _ERRORS as error:
            raise _as_httpx(error) from error


_ERRORS = tuple(TO_HTTPX)


def _as_httpx(error: Exception) -> httpx.TransportError:
    return TO_HTTPX[type(error)](str(error))
