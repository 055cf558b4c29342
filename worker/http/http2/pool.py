"""The HTTP/2 connections to an origin, shared by its exchanges.

A second connection is opened when the first has no free stream; a third never is. Connections that the host
is closing, or that received nothing for a whole timeout, take no new exchange and do not count.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from fetchfleet.jobs.contract.checks.field_checks import IDEMPOTENT_METHODS
from fetchfleet.worker.errors import ConnectError, PoolTimeoutError, RemoteProtocolError
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.exchange import Request, Response
from fetchfleet.worker.http.http2.connection import Http2Connection
from fetchfleet.worker.http.http2.stream import NoResponseError, RefusedError
from fetchfleet.worker.util.clock import mono_s

MAX_SHARED = 2
"""The maximum number of connections to an origin."""
MAX_FREE_RETRIES = 3
"""The maximum number of repeats of a request that the host refused unprocessed."""


class Http1OnlyError(Exception):
    """The host selected HTTP/1.1: each request needs a connection of its own."""


class OtherConnection(Protocol):
    """An HTTP/1.1 connection."""

    async def exchange(self, request: Request) -> Response:
        """Make one exchange."""

    def close(self) -> None:
        """Close it."""


class SharedConnections:
    """The exchanges with an origin that may support HTTP/2.

    dial: opens a connection for a request, in the protocol that the host selects. An HTTP/2 connection calls
    the function given to it when the number of free streams may have changed.
    """

    def __init__(
        self,
        dial: Callable[[Request, Callable[[], None]], Awaitable[Http2Connection | OtherConnection]],
        stats: ConnectionStats,
    ) -> None:
        self.http1_only = False
        """True if the host did not select HTTP/2."""
        self._dial = dial
        self._stats = stats
        self._connections: list[Http2Connection] = []
        self._dialling: asyncio.Future[Exception | None] | None = None
        """Done at the end of the dial under way, with its error or None; None if no dial is under way."""
        self._second_failed = False
        """True if a second connection could not be opened beside the first."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        """The queue of the requests that wait for a stream."""
        self._closed = False

    async def exchange(self, request: Request) -> Response:
        """Make one exchange.

        Any request is repeated if the host refused it unprocessed (RFC 9113 §8.7). An idempotent request is
        repeated once if a reused connection ended without a response (RFC 9110 §9.2.2).
        Raises PoolTimeoutError if no stream becomes free in time, Http1OnlyError or another FetchError.
        """
        refusals, may_repeat = 0, request.method in IDEMPOTENT_METHODS
        failed: Http2Connection | None = None
        while True:
            entered_s = mono_s()
            connection = await self._connection(request, failed)
            if not isinstance(connection, Http2Connection):
                return await connection.exchange(request)
            reused = not request.trace.opened
            if reused:
                self._stats.reused += 1
                if failed is None:
                    self._stats.pool_wait_s.add(mono_s() - entered_s)
            try:
                return await connection.exchange(request)
            except RefusedError as error:
                refusals += 1
                if refusals > MAX_FREE_RETRIES:
                    raise ConnectError(f"refused {refusals} times: {error}") from error
            except NoResponseError as error:
                if not may_repeat or not reused:
                    raise RemoteProtocolError(str(error)) from error
                may_repeat = False
            failed = connection
            request.trace.opened = False

    async def _connection(
        self, request: Request, excluded: Http2Connection | None
    ) -> Http2Connection | OtherConnection:
        """Return a connection with a free stream; open one, or wait for one, if necessary.

        excluded: the connection on which the request has just failed, used only if there is no other.
        """
        wait = _StreamWait(self._waiting, request.timeouts.pool_s)
        while not self._closed:
            free = self._with_free_stream(excluded)
            if free is not None:
                return free
            if self.http1_only:
                raise Http1OnlyError
            usable = self._usable()
            full = (
                len(usable) >= MAX_SHARED
                or self._second_failed
                or any(not connection.has_settings for connection in usable)
            )
            if self._dialling is not None:
                # Without a timeout: dialling has its own. If it is cancelled, another request dials.
                error = await asyncio.shield(self._dialling)
                if error is not None and not self._usable():
                    copy = type(error)(*error.args)  # each request raises an error of its own
                    copy.__cause__ = error.__cause__
                    raise copy
            elif not usable or not full:
                dialled = await self._dial_another(request)
                if dialled is not None:
                    return dialled
            elif (only := self._with_free_stream(None)) is not None:
                return only
            else:
                await wait.turn()
        raise ConnectError("the lane's connections were closed while the request waited for a stream")

    def _usable(self) -> list[Http2Connection]:
        return [connection for connection in self._connections if connection.usable]

    def _with_free_stream(self, excluded: Http2Connection | None) -> Http2Connection | None:
        """Return the oldest connection with a free stream, so that a second one can become idle."""
        for connection in self._connections:
            if connection is not excluded and connection.free_streams:
                return connection
        return None

    async def _dial_another(self, request: Request) -> Http2Connection | OtherConnection | None:
        """Open a connection, while other requests wait; return None if only a second one failed to open."""
        self._dialling = dialling = asyncio.get_running_loop().create_future()
        failure: Exception | None = None
        try:
            dialled = await self._dial(request, self._update)
            if isinstance(dialled, Http2Connection):
                self._second_failed = self._second_failed and bool(self._usable())
                self._connections.append(dialled)
            elif self._usable():
                dialled.close()
                raise ConnectError("the host did not select HTTP/2 on a second connection")  # noqa: TRY301
            else:
                self.http1_only = True
        except Exception as error:
            failure = error
            if not self._usable():
                raise
            self._second_failed = True
            return None
        else:
            return dialled
        finally:
            self._dialling = None
            dialling.set_result(failure)
            self._update()

    def _update(self) -> None:
        """Wake waiting requests, as a stream may be free or a connection closed."""
        self._connections = [connection for connection in self._connections if not connection.closed]
        free = sum(connection.free_streams for connection in self._connections)
        if not self._usable() and self._dialling is None:
            free = len(self._waiting)  # one of them must dial
        while free and self._waiting:
            _wake(self._waiting.popleft())
            free -= 1

    def close(self) -> None:
        """Take no more exchanges; the pool closes the connections."""
        self._closed = True
        self._update()


class _StreamWait:
    """One request's wait for a stream; a request that must wait again goes to the front of the queue."""

    def __init__(self, queue: deque[asyncio.Future[None]], timeout_s: float) -> None:
        self._queue = queue
        self._timeout_s = self._left_s = timeout_s
        self._again = False

    async def turn(self) -> None:
        """Wait for a turn. Raises PoolTimeoutError once all waits together exceed the timeout."""
        turn = asyncio.get_running_loop().create_future()
        self._queue.appendleft(turn) if self._again else self._queue.append(turn)
        self._again = True
        since_s = mono_s()
        try:
            async with asyncio.timeout(self._left_s):
                await turn
        except BaseException as error:
            if turn in self._queue:
                self._queue.remove(turn)
            elif self._queue:  # pass the turn on
                _wake(self._queue.popleft())
            if isinstance(error, TimeoutError):
                raise PoolTimeoutError(f"no stream became free within {self._timeout_s} s") from None
            raise
        self._left_s = max(0.0, self._left_s - (mono_s() - since_s))


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
