"""The connection pool of each lane: HTTP/2 to https origins if policy and host allow it, else HTTP/1.1.

In one pool for all lanes, a slow host could occupy every connection. A pool has no bound, as the gate bounds
the fetches in flight: no fetch waits for an HTTP/1.1 connection, but it may wait for an HTTP/2 stream.
"""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from fetchfleet.jobs.contract.checks.field_checks import IDEMPOTENT_METHODS
from fetchfleet.worker.errors import ConnectError, ForeignHostError, ReadError, RemoteProtocolError
from fetchfleet.worker.http.base import KEEPALIVE_EXPIRY_S, Pools
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.exchange import Request, Response
from fetchfleet.worker.http.http1.connection import Http1Connection
from fetchfleet.worker.http.http2.connection import Http2Connection
from fetchfleet.worker.http.http2.pool import Http1OnlyError, SharedConnections
from fetchfleet.worker.http.net.guard import Dialler, GuardedNetwork
from fetchfleet.worker.http.net.tls_contexts import TlsContexts
from fetchfleet.worker.http.net.tls_transport import TlsTransport
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

Origin = tuple[str, int]
"""The scheme and the port; the host is the lane's."""

AnyConnection = Http1Connection | Http2Connection


class LanePool:
    """A lane's connections. Each is idle, used by one exchange, or shared by exchanges (HTTP/2).

    tls: returns the context for https, with or without the offer of HTTP/2.
    max_idle: the most idle connections; beyond it, the one that was idle for longest is closed.
    """

    def __init__(
        self,
        dialler: Dialler,
        tls: Callable[[bool], ssl.SSLContext],
        stats: ConnectionStats,
        *,
        http2: bool = False,
        max_idle: int,
        keepalive_s: float = KEEPALIVE_EXPIRY_S,
    ) -> None:
        self.dialler = dialler
        self._tls = tls
        self._stats = stats
        self._http2 = http2
        self._max_idle = max_idle
        self._keepalive_s = keepalive_s
        self._open: dict[AnyConnection, Origin] = {}
        """Every connection that is not closed."""
        self._idle: list[Http1Connection] = []
        """Ordered by last use, the most recent at the end."""
        self._shared: dict[Origin, SharedConnections] = {}
        self._emptied: asyncio.Future[None] | None = None
        """Done once every connection is closed; None before `close` is called."""

    async def exchange(self, request: Request) -> Response:
        """Make one exchange.

        An idempotent request is repeated once if a reused connection ended before any byte of a response: the
        host may have closed it while the request was sent (RFC 9112 §9.3.1).
        """
        if request.host != self.dialler.host:
            raise ForeignHostError(request.host, self.dialler.host)
        entered_s = mono_s()
        trace = request.trace
        trace.opened, trace.peer, trace.response = False, None, None
        if self._http2 and request.scheme == "https":
            shared = self._shared_by((request.scheme, request.port))
            if not shared.http1_only:
                try:
                    return await shared.exchange(request)
                except Http1OnlyError:
                    pass
        connection = self._pop_idle((request.scheme, request.port))
        self._stats.pool_wait_s.add(mono_s() - entered_s)
        if connection is not None:
            self._stats.reused += 1
            try:
                return await connection.exchange(request)
            except (ReadError, RemoteProtocolError):
                if (
                    connection.response_started
                    or request.method not in IDEMPOTENT_METHODS
                    or self._emptied is not None
                ):
                    raise
            self.close_idle()  # the host may have closed the other idle connections too
        return await (await self._dial(request, None)).exchange(request)

    def _shared_by(self, origin: Origin) -> SharedConnections:
        shared = self._shared.get(origin)
        if shared is None:
            shared = self._shared[origin] = SharedConnections(self._dial, self._stats)
        return shared

    def _pop_idle(self, origin: Origin) -> Http1Connection | None:
        """Return the usable idle connection that was used last, else None. Unusable ones are closed."""
        for index in range(len(self._idle) - 1, -1, -1):
            if self._open[self._idle[index]] == origin:
                connection = self._idle.pop(index)
                if connection.usable:
                    return connection
                connection.close()
        return None

    async def _dial(self, request: Request, changed: Callable[[], None] | None) -> AnyConnection:
        """Open a connection in the protocol that the host selects.

        changed: the callback of an Http2Connection; None: do not offer HTTP/2.
        """
        began_s = mono_s()
        request.trace.opened = True
        timeout_s = request.timeouts.connect_s
        if request.scheme == "http":
            over_tcp = Http1Connection(
                self.dialler.loop_budget, self._keepalive_s, self._on_idle, self._on_lost
            )
            request.trace.dns_s = await self.dialler.connect(over_tcp, request.port, timeout_s)
            self._stats.opened += 1
            self._open[over_tcp] = (request.scheme, request.port)
            if over_tcp.socket_closed:
                self._on_lost(over_tcp)
            return self._dialled(over_tcp, request, began_s)
        connections: list[AnyConnection] = []

        def protocol_of(selected: str | None) -> AnyConnection:
            budget = self.dialler.loop_budget
            connection: AnyConnection
            if selected == "h2" and changed is not None:
                connection = Http2Connection(budget, self._keepalive_s, changed, self._on_lost)
            else:
                connection = Http1Connection(budget, self._keepalive_s, self._on_idle, self._on_lost)
            connections.append(connection)
            self._open[connection] = (request.scheme, request.port)
            return connection

        tls = TlsTransport(self._tls(changed is not None), request.host, protocol_of)
        request.trace.dns_s = await self.dialler.connect(tls, request.port, timeout_s)
        request.trace.peer = aio.peer_of(tls)
        self._stats.opened += 1
        try:
            connected_s = mono_s()
            await tls.handshake(timeout_s)
            request.trace.tls_s = tls_s = mono_s() - connected_s
            self._stats.tls_s.add(tls_s)
        except BaseException:
            for connection in connections:
                self._on_lost(connection)
            self._stats.closed += not connections
            raise
        return self._dialled(connections[0], request, began_s)

    def _dialled(self, connection: AnyConnection, request: Request, began_s: float) -> AnyConnection:
        """Return a connection that was opened for a request. Raises ConnectError if the pool has closed."""
        if self._emptied is not None:
            connection.close()
            raise ConnectError("the lane's connections were closed while this one was opened")
        request.trace.connect_s = mono_s() - began_s
        return connection

    def _on_idle(self, connection: Http1Connection) -> None:
        """Add a connection to the idle ones."""
        if len(self._idle) >= self._max_idle:
            self._idle.pop(0).close()
        self._idle.append(connection)

    def _on_lost(self, connection: AnyConnection) -> None:
        """Forget a connection that is closed; a second call does nothing."""
        if self._open.pop(connection, None) is None:
            return
        self._stats.closed += 1
        if isinstance(connection, Http1Connection) and connection in self._idle:
            self._idle.remove(connection)
        if self._emptied is not None and not self._open and not self._emptied.done():
            self._emptied.set_result(None)

    def close_idle(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    async def close(self) -> None:
        """Close all connections, and wait until they are closed."""
        self._emptied = asyncio.get_running_loop().create_future()
        for shared in self._shared.values():
            shared.close()
        for connection in list(self._open):
            connection.close()
        if self._open:
            await self._emptied


class LanePools(Pools):
    """The connection pools of the lanes, in one guarded network."""

    def __init__(self, network: GuardedNetwork, contexts: TlsContexts, stats: ConnectionStats) -> None:
        self._network = network
        self._contexts = contexts
        self._stats = stats
        self._pools: dict[str, LanePool] = {}

    def open(self, lane: str, host: str, policy: LanePolicy) -> None:
        """Create the pool of a lane. Its connections go to this host only, under this policy."""
        self._pools[lane] = LanePool(
            Dialler(self._network, host, policy.ports, self._stats),
            lambda http2: self._contexts.for_policy(policy, http2=http2),
            self._stats,
            http2=policy.http2,
            max_idle=policy.max_concurrency,
        )

    def apply_policy(self, lane: str, policy: LanePolicy) -> None:
        """Apply a changed policy: its ports apply to connections opened from now on."""
        if (pool := self._pools.get(lane)) is not None:
            pool.dialler.ports = policy.ports

    def exchange(self, lane: str, request: Request) -> Coroutine[Any, Any, Response]:
        """Make one exchange on the lane's connections. Raises FetchError or ForeignHostError."""
        return self._pools[lane].exchange(request)

    async def close(self, lane: str) -> None:
        """Close the lane's connections; does nothing if it has no pool."""
        if (pool := self._pools.pop(lane, None)) is not None:
            await pool.close()

    async def aclose(self) -> None:
        """Close every lane's connections, and cancel the DNS queries."""
        for lane in list(self._pools):
            await self.close(lane)
        await self._network.aclose()
