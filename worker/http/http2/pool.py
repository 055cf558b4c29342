"""An origin's HTTP/2 connections, shared by its exchanges.

A second connection is made when the first has no room; never a third. Connections that the host is closing,
or that have fallen silent, take no new exchange and do not count.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.worker.errors import ConnectError, PoolTimeoutError, RemoteProtocolError
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.exchange import Request, Response
from fetchfleet.worker.http.http2.connection import Http2Connection
from fetchfleet.worker.http.http2.stream import NoResponseError, RefusedError
from fetchfleet.worker.util.clock import mono_s

MAX_SHARED = 2
"""The most connections to an origin."""
MAX_FREE_RETRIES = 3
"""How often a request that its host has not begun is repeated at once before it fails."""


class Http1OnlyError(Exception):
    """The host selected HTTP/1.1: requests go over connections of their own."""


class OtherConnection(Protocol):
    """An HTTP/1.1 connection."""

    async def exchange(self, request: Request) -> Response:
        """Make one exchange."""

    def close(self) -> None:
        """Close it."""


class SharedConnections:
    """All exchanges with an origin that is expected to support HTTP/2.

    dial: opens a connection in the protocol that the host selects, and is given what it calls when its room
    may have changed.
    """

    def __init__(
        self,
        dial: Callable[[Request, Callable[[], None]], Awaitable[Http2Connection | OtherConnection]],
        stats: ConnectionStats,
    ) -> None:
        self.http1_only = False
        """True if the host turned out not to support HTTP/2."""
        self._dial = dial
        self._stats = stats
        self._connections: list[Http2Connection] = []
        self._dialling: asyncio.Future[Exception | None] | None = None
        self._alone = False
        """Whether the host rejected a second connection beside the first."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def exchange(self, request: Request) -> Response:
        """Make one exchange; raises PoolTimeoutError if no stream is free in time.

        A request is repeated if the host has not begun it, whatever it is (RFC 9113 §8.7), and once if the
        connection ended while it was sent, if it is idempotent (RFC 9110 §9.2.2). Raises Http1OnlyError, or
        the errors of a connection.
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
        self, request: Request, other_than: Http2Connection | None
    ) -> Http2Connection | OtherConnection:
        """Return a connection with room; open one, or wait for one, if necessary."""
        place = _PlaceInLine(self._waiting, request.timeouts.pool_s)
        while not self._closed:
            found = self._with_room(other_than)
            if found is not None:
                return found
            if self.http1_only:
                raise Http1OnlyError
            usable = self._usable()
            full = len(usable) >= MAX_SHARED or self._alone or any(not each.settled for each in usable)
            if self._dialling is not None:
                # Without a timeout: dialling has its own. If it is cancelled, another request dials.
                error = await asyncio.shield(self._dialling)
                if error is not None and not self._usable():
                    own = type(error)(*error.args)  # each request raises an error of its own
                    own.__cause__ = error.__cause__
                    raise own
            elif not usable or not full:
                made = await self._dial_another(request)
                if made is not None:
                    return made
            elif (last := self._with_room(None)) is not None:
                return last
            else:
                await place.wait()
        raise ConnectError("closed while a request waited")

    def _usable(self) -> list[Http2Connection]:
        return [connection for connection in self._connections if connection.usable]

    def _with_room(self, other_than: Http2Connection | None) -> Http2Connection | None:
        """Return the oldest connection with room, so that a second one falls idle when it is not needed."""
        for connection in self._connections:
            if connection is not other_than and connection.room:
                return connection
        return None

    async def _dial_another(self, request: Request) -> Http2Connection | OtherConnection | None:
        """Open a connection; return None if the first one must suffice.

        Other requests wait for the outcome.
        """
        self._dialling = dialling = asyncio.get_running_loop().create_future()
        failure: Exception | None = None
        try:
            made = await self._dial(request, self._update)
            if isinstance(made, Http2Connection):
                self._alone = self._alone and bool(self._usable())
                self._connections.append(made)
            elif self._usable():
                made.close()
                raise ConnectError("the second connection did not select HTTP/2")  # noqa: TRY301
            else:
                self.http1_only = True
        except Exception as error:
            failure = error
            if not self._usable():
                raise
            self._alone = True
            return None
        else:
            return made
        finally:
            self._dialling = None
            dialling.set_result(failure)
            self._update()

    def _update(self) -> None:
        """Wake waiting requests: there may be more room, or one connection less."""
        self._connections = [connection for connection in self._connections if not connection.closed]
        free = sum(connection.room for connection in self._connections)
        if not self._usable() and self._dialling is None:
            free = len(self._waiting)  # one of them must dial
        while free and self._waiting:
            _wake(self._waiting.popleft())
            free -= 1

    def close(self) -> None:
        """Take no more exchanges; the pool closes the connections."""
        self._closed = True
        self._update()


class _PlaceInLine:
    """One request's wait for a stream; a request that must wait again goes to the front."""

    def __init__(self, line: deque[asyncio.Future[None]], timeout_s: float) -> None:
        self._line = line
        self._timeout_s = self._left_s = timeout_s
        self._again = False

    async def wait(self) -> None:
        """Wait for a turn; raises PoolTimeoutError once all waits exceed the timeout."""
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
                raise PoolTimeoutError(f"no stream became free within {self._timeout_s} s") from None
            raise
        self._left_s = max(0.0, self._left_s - (mono_s() - since_s))


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
