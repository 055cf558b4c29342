"""An origin's one or two HTTP/2 connections, which its exchanges share; to the pool they are one.

A second one is made when the first has no room; never a third. Those that the host takes leave of, or that
have fallen silent, take nothing more and do not count.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import httpcore2

from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.worker.http.http2.connection import Http2Connection
from fetchfleet.worker.http.http2.stream import RefusedError, UnansweredError
from fetchfleet.worker.http.httpx_engine.http11 import Dialler, Http11Connection
from fetchfleet.worker.util.clock import mono_s

MAX_CONNECTIONS = 2
MAX_FREE_RETRIES = 3
"""So often a request that its host has not begun is made again at once; then it has failed."""


class SharedConnections(httpcore2.AsyncConnectionInterface):
    """All exchanges with an origin that speaks HTTP/2; a single connection where it turns out not to.

    on_http1: called in that case; the pool is to make the origin's other connections itself.
    """

    def __init__(
        self,
        origin: httpcore2.Origin,
        dialler: Dialler,
        keepalive_expiry_s: float,
        on_http1: Callable[[], None],
    ) -> None:
        self._origin = origin
        self._dialler = dialler
        self._keepalive_expiry_s = keepalive_expiry_s
        self._on_http1 = on_http1
        self._http1: Http11Connection | None = None
        self._connections: list[Http2Connection] = []
        self._dialling: asyncio.Future[Exception | None] | None = None
        self._alone = False
        """Whether the host would not have a second connection beside the first."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._exchanges = 0
        self._idle_since_s: float | None = None
        self._closed = False

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """As httpcore2's connections do; raises PoolTimeout where no stream is free in time."""
        if self._http1 is not None:
            return await self._http1.handle_async_request(request)
        if self._closed:
            raise httpcore2.ConnectionNotAvailable
        self._retire_spare()
        self._exchanges += 1
        self._idle_since_s = None
        try:
            return await self._exchange(request)
        finally:
            self._exchanges -= 1
            self._changed()

    async def _exchange(self, request: httpcore2.Request) -> httpcore2.Response:
        """Made again where the host has not begun it, and once where a connection ended as it was sent.

        The first whatever it is (RFC 9113 §8.7), the second if that does no harm (RFC 9110 §9.2.2).
        """
        refusals, repeated = 0, request.method.decode() not in IDEMPOTENT_METHODS
        other_than: Http2Connection | None = None
        while True:
            connection, reused = await self._connection(request, other_than)
            if isinstance(connection, Http11Connection):
                return await connection.handle_async_request(request)
            try:
                return await connection.exchange(request)
            except RefusedError as error:
                refusals += 1
                if refusals > MAX_FREE_RETRIES:
                    raise httpcore2.ConnectError(f"refused {refusals} times: {error}") from error
            except UnansweredError as error:
                if repeated or not reused:
                    raise httpcore2.RemoteProtocolError(str(error)) from error
                repeated = True
            other_than = connection

    async def _connection(
        self, request: httpcore2.Request, other_than: Http2Connection | None
    ) -> tuple[Http2Connection | Http11Connection, bool]:
        """One with room, and whether it had been there before."""
        waiting = _Waiting(request.extensions.get("timeout", {}).get("pool"))
        while not self._closed:
            found = self._with_room(other_than)
            if found is not None:
                return found, True
            if self._dialling is not None:
                await self._dialled(self._dialling)
            elif self._may_dial():
                made = await self._dial(request)
                if made is not None:
                    return made, False
            elif (last := self._with_room(None)) is not None:
                return last, True
            else:
                await waiting.on(self._waiting)
        raise httpcore2.ConnectError("closed while a request waited")

    def _usable(self) -> list[Http2Connection]:
        return [connection for connection in self._connections if connection.usable]

    def _with_room(self, other_than: Http2Connection | None) -> Http2Connection | None:
        """The oldest first, so that a second one falls idle when it is needed no more."""
        for connection in self._connections:
            if connection is not other_than and connection.room:
                return connection
        return None

    def _retire_spare(self) -> None:
        """The second goes when it has not been needed for as long as an idle one is kept."""
        long_ago_s = mono_s() - self._keepalive_expiry_s
        for connection in self._usable()[1:]:
            if not connection.streams and connection.idle_since_s < long_ago_s:
                connection.retire()

    def _may_dial(self) -> bool:
        usable = self._usable()
        full = len(usable) >= MAX_CONNECTIONS or self._alone
        return not usable or not (full or any(not connection.settled for connection in usable))

    async def _dial(self, request: httpcore2.Request) -> Http2Connection | Http11Connection | None:
        """A new connection; None where the first must do. Others wait for what comes of it."""
        self._dialling = dialling = asyncio.get_running_loop().create_future()
        failed: Exception | None = None
        try:
            return await self._spoken(await self._dialler.dial(request))
        except Exception as error:
            failed = error
            if not self._usable():
                raise
            self._alone = True
            return None
        finally:
            self._dialling = None
            dialling.set_result(failed)

    async def _spoken(
        self, network: httpcore2.AsyncNetworkStream
    ) -> Http2Connection | Http11Connection | None:
        """The connection, in the protocol that the host chose."""
        tls = network.get_extra_info("ssl_object")
        http2 = tls is not None and tls.selected_alpn_protocol() == "h2"
        if self._closed or (not http2 and self._usable()):
            await network.aclose()
            raise httpcore2.ConnectError("not another of this kind")
        if http2:
            return self._begun(Http2Connection(network, self._changed))
        self._on_http1()
        self._http1 = Http11Connection(self._origin, network, self._keepalive_expiry_s)
        return self._http1

    def _begun(self, connection: Http2Connection) -> Http2Connection:
        self._alone = self._alone and bool(self._usable())
        self._connections.append(connection)
        connection.start()
        return connection

    async def _dialled(self, dialling: asyncio.Future[Exception | None]) -> None:
        """What came of somebody's dialling; raises its error where there is no connection without it.

        Not bounded: it has bounds of its own, and where it was cancelled somebody else dials.
        """
        error = await asyncio.shield(dialling)
        if self._http1 is not None:
            raise httpcore2.ConnectionNotAvailable
        if error is not None and not self._usable():
            raise _twin(error)

    def _changed(self) -> None:
        """There may be more room, or less of a connection."""
        self._connections = [connection for connection in self._connections if not connection.gone]
        free = sum(connection.room for connection in self._connections)
        if not self._usable() and self._dialling is None:
            free = len(self._waiting)  # somebody must dial
        while free and self._waiting:
            _set(self._waiting.popleft())
            free -= 1
        if self._exchanges or any(connection.streams for connection in self._connections):
            return
        if self._idle_since_s is None:
            self._idle_since_s = mono_s()
        if not self._connections and self._http1 is None:
            self._closed = True

    # What a pool asks.

    def can_handle_request(self, origin: httpcore2.Origin) -> bool:
        """Whether it is to that origin."""
        return origin == self._origin

    def can_multiplex(self) -> bool:
        """Whether it takes more than one exchange at a time."""
        return self._http1 is None

    def is_available(self) -> bool:
        """Always, but for the connection of HTTP/1.1: who comes waits here, and not in the pool."""
        return self._http1.is_available() if self._http1 else not self._closed

    def is_connected(self) -> bool:
        """Whether there is a socket to be closed."""
        return self._http1.is_connected() if self._http1 else bool(self._connections)

    def is_idle(self) -> bool:
        """Whether nothing is under way on it."""
        if self._http1 is not None:
            return self._http1.is_idle()
        return self._idle_since_s is not None

    def has_expired(self) -> bool:
        """Whether it has been idle for too long."""
        if self._http1 is not None:
            return self._http1.has_expired()
        return self._idle_since_s is not None and mono_s() - self._idle_since_s > self._keepalive_expiry_s

    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._http1.is_closed() if self._http1 else self._closed

    def info(self) -> str:
        """For people."""
        if self._http1 is not None:
            return self._http1.info()
        streams = sum(connection.streams for connection in self._connections)
        return f"{str(self._origin)!r}, HTTP/2, {len(self._connections)} connections, {streams} streams"

    async def aclose(self) -> None:
        """Close all of it."""
        self._closed = True
        if self._http1 is not None:
            await self._http1.aclose()
        for connection in list(self._connections):
            await connection.aclose()
        self._changed()


class _Waiting:
    """One exchange's wait for a stream, however often it must wait again."""

    def __init__(self, left_s: float | None) -> None:
        self._whole_s = self._left_s = left_s
        self._again = False

    async def on(self, line: deque[asyncio.Future[None]]) -> None:
        """Until it is this one's turn; raises httpcore2.PoolTimeout."""
        turn = asyncio.get_running_loop().create_future()
        line.appendleft(turn) if self._again else line.append(turn)
        self._again = True
        since_s = mono_s()
        try:
            async with asyncio.timeout(self._left_s):
                await turn
        except BaseException as error:
            self._pass_on(turn, line)
            if isinstance(error, TimeoutError):
                raise httpcore2.PoolTimeout(f"no stream free within {self._whole_s} s") from None
            raise
        if self._left_s is not None:
            self._left_s = max(0.0, self._left_s - (mono_s() - since_s))

    @staticmethod
    def _pass_on(turn: asyncio.Future[None], line: deque[asyncio.Future[None]]) -> None:
        """Whose turn comes as it goes lets the next one have it."""
        if turn in line:
            line.remove(turn)
        elif line:
            _set(line.popleft())


def _set(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


def _twin(error: Exception) -> Exception:
    """The same error for another request: one that is raised twice tells two stories."""
    twin = type(error)(*error.args)
    twin.__cause__ = error.__cause__
    return twin
