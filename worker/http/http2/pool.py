"""An origin's HTTP/2 connections, shared by its exchanges; one connection to httpcore2's pool.

A second connection is made when the first has no room; never a third. Connections that the host is closing,
or that have fallen silent, take no new exchange and do not count.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import httpcore2

from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.worker.http.http2.connection import Http2Connection
from fetchfleet.worker.http.http2.stream import RefusedError, UnansweredError
from fetchfleet.worker.http.http11 import Dial, Http11Connection
from fetchfleet.worker.util.clock import mono_s

MAX_SHARED = 2
"""The most connections to an origin."""
MAX_FREE_RETRIES = 3
"""How often a request that its host has not begun is repeated at once before it fails."""


class SharedConnections(httpcore2.AsyncConnectionInterface):
    """All exchanges with an origin that speaks HTTP/2; a single connection if it turns out not to.

    on_http1: called in that case; the pool then makes the origin's other connections itself.
    """

    def __init__(
        self,
        origin: httpcore2.Origin,
        dial: Dial,
        keepalive_expiry_s: float,
        on_http1: Callable[[], None],
    ) -> None:
        self._origin = origin
        self._dial = dial
        self._keepalive_expiry_s = keepalive_expiry_s
        self._on_http1 = on_http1
        self._http1: Http11Connection | None = None
        self._connections: list[Http2Connection] = []
        self._dialling: asyncio.Future[Exception | None] | None = None
        self._alone = False
        """Whether the host rejected a second connection beside the first."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._exchanges = 0
        self._idle_since_s: float | None = None
        self._closed = False

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """Make one exchange, as httpcore2's connections do; raises PoolTimeout if no stream is free in time.

        A request is repeated if the host has not begun it, whatever it is (RFC 9113 §8.7), and once if the
        connection ended while it was sent, if it is idempotent (RFC 9110 §9.2.2).
        """
        if self._http1 is not None:
            return await self._http1.handle_async_request(request)
        if self._closed:
            raise httpcore2.ConnectionNotAvailable
        for spare in self._usable()[1:]:
            spare.retire_if_idle_since(mono_s() - self._keepalive_expiry_s)
        self._exchanges += 1
        self._idle_since_s = None
        refusals, may_repeat = 0, request.method.decode() in IDEMPOTENT_METHODS
        failed: Http2Connection | None = None
        try:
            while True:
                connection, reused = await self._connection(request, other_than=failed)
                if isinstance(connection, Http11Connection):
                    return await connection.handle_async_request(request)
                try:
                    return await connection.exchange(request)
                except RefusedError as error:
                    refusals += 1
                    if refusals > MAX_FREE_RETRIES:
                        raise httpcore2.ConnectError(f"refused {refusals} times: {error}") from error
                except UnansweredError as error:
                    if not may_repeat or not reused:
                        raise httpcore2.RemoteProtocolError(str(error)) from error
                    may_repeat = False
                failed = connection
        finally:
            self._exchanges -= 1
            self._update()

    async def _connection(
        self, request: httpcore2.Request, other_than: Http2Connection | None
    ) -> tuple[Http2Connection | Http11Connection, bool]:
        """Return a connection with room, and whether it existed before; wait for one if necessary."""
        place = _PlaceInLine(self._waiting, request.extensions.get("timeout", {}).get("pool"))
        while not self._closed:
            found = self._with_room(other_than)
            if found is not None:
                return found, True
            usable = self._usable()
            full = len(usable) >= MAX_SHARED or self._alone or any(not each.settled for each in usable)
            if self._dialling is not None:
                # Without a timeout: dialling has its own. If it is cancelled, another request dials.
                error = await asyncio.shield(self._dialling)
                if self._http1 is not None:
                    raise httpcore2.ConnectionNotAvailable
                if error is not None and not self._usable():
                    own = type(error)(*error.args)  # each request raises an error of its own
                    own.__cause__ = error.__cause__
                    raise own
            elif not usable or not full:
                made = await self._dial_another(request)
                if made is not None:
                    return made, False
            elif (last := self._with_room(None)) is not None:
                return last, True
            else:
                await place.wait()
        raise httpcore2.ConnectError("closed while a request waited")

    def _usable(self) -> list[Http2Connection]:
        return [connection for connection in self._connections if connection.usable]

    def _with_room(self, other_than: Http2Connection | None) -> Http2Connection | None:
        """Return the oldest connection with room, so that a second one falls idle when it is not needed."""
        for connection in self._connections:
            if connection is not other_than and connection.room:
                return connection
        return None

    async def _dial_another(self, request: httpcore2.Request) -> Http2Connection | Http11Connection | None:
        """Open a connection; return None if the first one must suffice.

        Other requests wait for the outcome.
        """
        self._dialling = dialling = asyncio.get_running_loop().create_future()
        failure: Exception | None = None
        try:
            return await self._adopt(await self._dial(request))
        except Exception as error:
            failure = error
            if not self._usable():
                raise
            self._alone = True
            return None
        finally:
            self._dialling = None
            dialling.set_result(failure)

    async def _adopt(self, network: httpcore2.AsyncNetworkStream) -> Http2Connection | Http11Connection:
        """Return the connection on a stream, in the protocol that the host selected."""
        tls = network.get_extra_info("ssl_object")
        is_http2 = tls is not None and tls.selected_alpn_protocol() == "h2"
        if self._closed or (not is_http2 and self._usable()):
            await network.aclose()
            raise httpcore2.ConnectError("the connection is not needed any more")
        if not is_http2:
            self._on_http1()
            self._http1 = Http11Connection(self._origin, self._keepalive_expiry_s, self._dial)
            self._http1.open_on(network)
            return self._http1
        connection = Http2Connection(network, self._update)
        self._alone = self._alone and bool(self._usable())
        self._connections.append(connection)
        connection.start()
        return connection

    def _update(self) -> None:
        """Wake waiting requests: there may be more room, or one connection less."""
        self._connections = [connection for connection in self._connections if not connection.gone]
        free = sum(connection.room for connection in self._connections)
        if not self._usable() and self._dialling is None:
            free = len(self._waiting)  # one of them must dial
        while free and self._waiting:
            _wake(self._waiting.popleft())
            free -= 1
        if self._exchanges or any(connection.streams for connection in self._connections):
            return
        if self._idle_since_s is None:
            self._idle_since_s = mono_s()
        if not self._connections and self._http1 is None:
            self._closed = True

    # The methods that httpcore2's pool calls.

    def can_handle_request(self, origin: httpcore2.Origin) -> bool:
        """Return whether it leads to that origin."""
        return origin == self._origin

    def can_multiplex(self) -> bool:
        """Return whether it takes more than one exchange at a time."""
        return self._http1 is None

    def is_available(self) -> bool:
        """Return whether it takes requests; with HTTP/2 always, since they wait here and not in the pool."""
        return self._http1.is_available() if self._http1 else not self._closed

    def is_connected(self) -> bool:
        """Return whether a socket is open."""
        return self._http1.is_connected() if self._http1 else bool(self._connections)

    def is_idle(self) -> bool:
        """Return whether no exchange runs on it."""
        if self._http1 is not None:
            return self._http1.is_idle()
        return self._idle_since_s is not None

    def has_expired(self) -> bool:
        """Return whether it was idle for too long."""
        if self._http1 is not None:
            return self._http1.has_expired()
        return self._idle_since_s is not None and mono_s() - self._idle_since_s > self._keepalive_expiry_s

    def is_closed(self) -> bool:
        """Return whether it is closed."""
        return self._http1.is_closed() if self._http1 else self._closed

    def info(self) -> str:
        """Describe it for a reader."""
        if self._http1 is not None:
            return self._http1.info()
        streams = sum(connection.streams for connection in self._connections)
        return f"{str(self._origin)!r}, HTTP/2, {len(self._connections)} connections, {streams} streams"

    async def aclose(self) -> None:
        """Close every connection."""
        self._closed = True
        if self._http1 is not None:
            await self._http1.aclose()
        for connection in list(self._connections):
            await connection.aclose()
        self._update()


class _PlaceInLine:
    """One request's wait for a stream; a request that must wait again goes to the front."""

    def __init__(self, line: deque[asyncio.Future[None]], timeout_s: float | None) -> None:
        self._line = line
        self._timeout_s = self._left_s = timeout_s
        self._again = False

    async def wait(self) -> None:
        """Wait for a turn; raises httpcore2.PoolTimeout once all waits exceed the timeout."""
        turn = asyncio.get_running_loop().create_future()
        self._line.appendleft(turn) if self._again else self._line.append(turn)
        self._again = True
        since_s = mono_s()
        try:
            async with asyncio.timeout(self._left_s):
                await turn
        except BaseException as error:
            if turn in self._line:
                self._line.remove(turn)
            elif self._line:  # the turn had come: it goes to the next
                _wake(self._line.popleft())
            if isinstance(error, TimeoutError):
                raise httpcore2.PoolTimeout(f"no stream became free within {self._timeout_s} s") from None
            raise
        if self._left_s is not None:
            self._left_s = max(0.0, self._left_s - (mono_s() - since_s))


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
