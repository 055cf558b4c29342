"""httpx's transport over httpcore2, with a small connection pool for each lane.

One big pool would be slow, since every request looks at every connection, and one slow host could take every
slot. The gate bounds the connections of a lane, so no fetch waits for one.
"""

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import httpcore2
import httpx

from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.worker.http.base import KEEPALIVE_EXPIRY_S, Pools
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.http2.pool import SharedConnections
from fetchfleet.worker.http.http11 import Http11Connection
from fetchfleet.worker.http.net.connection_stream import (
    HEAD_EVENTS,
    begin_exchange,
    follow_head,
    reused_without_response,
)
from fetchfleet.worker.http.net.guard import GuardedNetwork, LaneNetwork
from fetchfleet.worker.http.net.tls_contexts import TlsContexts
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import mono_s

LANE = "fetchfleet.lane"
"""The request extension that names the lane whose pool is to be used."""

MAX_CONNECTIONS = 1000
"""Never reached: the gate starts no more fetches than the policy allows."""

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
"""httpcore2's errors and the httpx errors of the same name."""

_ERRORS = tuple(TO_HTTPX)

_CONNECTED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})
_TRACE_EVENTS = _CONNECTED | HEAD_EVENTS


class ExchangeEvents:
    """The timings of one exchange, taken from the events of httpcore2."""

    def __init__(self, timings: Trace, stats: ConnectionStats) -> None:
        self.timings = timings
        self._connecting_s = 0.0
        self._stats = stats
        self._entered_pool_s: float | None = None
        timings.opened = False

    async def __call__(self, event: str, _info: Mapping[str, Any]) -> None:
        """Take one event of httpcore2's `trace` extension; most are ignored."""
        if self._entered_pool_s is not None:  # the first event of an exchange: it has a connection, or dials
            self._stats.pool_wait_s.add(mono_s() - self._entered_pool_s)
            if event != "connection.connect_tcp.started":
                self._stats.reused += 1
            self._entered_pool_s = None
        if event not in _TRACE_EVENTS:
            return
        follow_head(event)
        if event == "connection.connect_tcp.started":
            self.timings.opened = True
            self._connecting_s = mono_s()
        elif event in _CONNECTED:
            self.timings.connect_s = mono_s() - self._connecting_s

    def enter_pool(self) -> None:
        """Record that the pool has the request."""
        self._entered_pool_s = mono_s()


class LanePool(httpcore2.AsyncConnectionPool):
    """A lane's connections: HTTP/2 to https origins if allowed and supported, else HTTP/1.1.

    tls: returns the context; called for https origins only.
    """

    def __init__(
        self,
        network: httpcore2.AsyncNetworkBackend,
        tls: Callable[[], ssl.SSLContext],
        *,
        http2: bool = False,
        keepalive_expiry_s: float = KEEPALIVE_EXPIRY_S,
        max_connections: int = MAX_CONNECTIONS,
        max_idle: int | None = None,
    ) -> None:
        super().__init__(
            max_connections=max_connections,
            max_keepalive_connections=max_idle,
            keepalive_expiry=keepalive_expiry_s,
            network_backend=network,
        )
        self._network = network
        self._tls = tls
        self._offers_http2 = http2
        self._keepalive_s = keepalive_expiry_s
        self._http1_only: list[httpcore2.Origin] = []  # few, and not hashable

    def create_connection(self, origin: httpcore2.Origin) -> httpcore2.AsyncConnectionInterface:
        """Return a connection that dials when it gets its first request."""
        if self._offers_http2 and origin.scheme == b"https" and origin not in self._http1_only:
            dial = partial(self._dial, ["h2", "http/1.1"])
            return SharedConnections(
                origin, dial, self._keepalive_s, on_http1=lambda: self._http1_only.append(origin)
            )
        return Http11Connection(origin, self._keepalive_s, partial(self._dial, ["http/1.1"]))

    async def _dial(self, alpn: list[str], request: httpcore2.Request) -> httpcore2.AsyncNetworkStream:
        """Open a connection to the request's origin, and report it to the request's trace."""
        origin, extensions = request.url.origin, request.extensions
        host, timeout_s = origin.host.decode("ascii"), extensions.get("timeout", {}).get("connect")
        trace: Any = extensions.get("trace")
        if trace is not None:
            await trace("connection.connect_tcp.started", {})
        stream = await self._network.connect_tcp(host, origin.port, timeout_s)
        if trace is not None:
            await trace("connection.connect_tcp.complete", {})
        if origin.scheme == b"https":
            context = self._tls()
            context.set_alpn_protocols(alpn)
            stream = await stream.start_tls(context, host, timeout_s)
            if trace is not None:
                await trace("connection.start_tls.complete", {})
        return stream

    async def close_idle(self) -> None:
        """Close idle connections: when the host has closed one, it may have closed the others too."""
        for connection in self.connections:
            if connection.is_idle():
                await connection.aclose()


class LaneTransport(httpx.AsyncBaseTransport, Pools):
    """A connection pool for each lane: `open` before the first request of a lane, `close` after the last."""

    def __init__(
        self,
        network: GuardedNetwork,
        contexts: TlsContexts,
        stats: ConnectionStats,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._network = network
        self._contexts = contexts
        self._stats = stats
        self.max_connections = max_connections
        self._networks: dict[str, LaneNetwork] = {}
        self._pools: dict[str, LanePool] = {}

    def open(self, lane: str, host: str, policy: LanePolicy) -> None:
        """Make the lane's pool."""
        self._networks[lane] = LaneNetwork(self._network, host, policy.ports, self._stats)
        self._pools[lane] = LanePool(
            self._networks[lane],
            partial(self._contexts.for_policy, policy),
            http2=policy.http2,
            max_connections=self.max_connections,
            max_idle=policy.most_at_once,
        )

    def apply_policy(self, lane: str, policy: LanePolicy) -> None:
        """Apply a changed policy: its ports count for the connections made from now on."""
        if lane in self._networks:
            self._networks[lane].ports = policy.ports

    async def close(self, lane: str) -> None:
        """Close the lane's connections; does nothing if it has none."""
        self._networks.pop(lane, None)
        pool = self._pools.pop(lane, None)
        if pool is not None:
            await pool.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one exchange on the pool of the lane that the request names.

        A host may close an idle connection while a request is being sent on it (RFC 9112 §9.3.1). An
        idempotent request is then sent once more, on a new connection.
        """
        pool = self._pools[request.extensions[LANE]]
        try:
            return await self._exchange(pool, request)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if request.method not in IDEMPOTENT_METHODS or not reused_without_response():
                raise
        await pool.close_idle()
        return await self._exchange(pool, request)

    async def _exchange(self, pool: LanePool, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        begin_exchange()
        url, extensions = request.url, request.extensions.copy()
        if (trace := extensions.get("trace")) is not None:
            trace.enter_pool()
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
            raise TO_HTTPX[type(error)](str(error)) from error
        extensions.pop("trace", None)  # the body is not traced
        return _Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseStream(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close every lane's connections."""
        for lane in list(self._pools):
            await self.close(lane)
        await self._network.aclose()


class _Response(httpx.Response):
    """A response whose Location httpx does not read: it would raise for one that it cannot parse."""

    @property
    def has_redirect_location(self) -> bool:
        """False: worker/fetch/rules/redirects.py decides what a redirect means."""
        return False


class _ResponseStream(httpx.AsyncByteStream):
    """The body of a response, with httpx's errors."""

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = self._response.stream
        assert isinstance(pieces, AsyncIterable)
        try:
            async for piece in pieces:
                yield piece
        except _ERRORS as error:
            raise TO_HTTPX[type(error)](str(error)) from error

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        except _ERRORS as error:
            raise TO_HTTPX[type(error)](str(error)) from error
