"""A hostile, scriptable HTTP/1.1 origin that records every request.

It uses asyncio without an HTTP library, so that it can violate the protocol. Times are from `time.monotonic`,
whose clock all processes of a machine share.

An `Origin` listens, a `Behaviour` responds to an `Exchange`, and every request is recorded as a `Seen`.
"""

import asyncio
import math
import socket
import struct
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Self

Header = tuple[str, str]
Headers = Sequence[Header]
Window = tuple[float, float]
"""Start and end of a period in which the host asked the client to back off."""
Behaviour = Callable[["Exchange"], Awaitable[None]]

REASONS = {status.value: status.phrase for status in HTTPStatus}
LINGER_0 = struct.pack("ii", 1, 0)
HEAD_LIMIT_BYTES = 1 << 20
BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Seen:
    """One recorded request."""

    method: str
    target: str
    version: str
    headers: tuple[Header, ...]
    """Names are in lower case."""
    connection: int
    """The number of the connection, from 1."""
    arrived_s: float
    finished_s: float = math.inf
    """The time when the response was complete; infinite while it is being sent."""
    body: bytes = b""
    aborted: bool = False
    """True if the client closed the connection before the response was complete."""
    status: int | None = None
    """The status of the response, None before it is sent."""


class Exchange:
    """One request, and the methods to respond to it."""

    def __init__(self, request: Seen, writer: asyncio.StreamWriter, windows: list[Window]) -> None:
        self.request = request
        self.windows = windows
        self.status: int | None = None
        self.keep_alive = _wants_keep_alive(request)
        self.ended = False
        self._writer = writer

    async def send_head(self, status: int, headers: Headers = (), reason: str | None = None) -> None:
        """Write the status line and exactly these header fields."""
        await self.raw(self._head(status, headers, reason))

    async def send(self, data: bytes) -> None:
        """Write a piece of the body, except in response to HEAD."""
        if self.request.method != "HEAD":
            await self.raw(data)

    async def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        """Write a complete, well-formed response with Content-Length."""
        if _is_bodyless(status):
            await self.send_head(status, headers)
            return
        head = self._head(status, (*headers, ("Content-Length", str(len(body)))))
        await self.raw(head if self.request.method == "HEAD" else head + body)

    async def raw(self, data: bytes) -> None:
        """Write bytes as they are; wait until the kernel has accepted them."""
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        """End the response and close the connection; the client reads an end of file."""
        self.ended, self.keep_alive = True, False
        self._writer.close()

    def abort(self) -> None:
        """End the response with a TCP reset."""
        self.ended, self.keep_alive = True, False
        tcp: socket.socket = self._writer.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self._writer.transport.abort()

    def _head(self, status: int, headers: Headers, reason: str | None = None) -> bytes:
        self.status = status
        self.keep_alive = self.keep_alive and _allows_keep_alive(status, headers)
        closing = () if self.keep_alive else (("Connection", "close"),)
        return head_bytes(status, (*headers, *closing), reason)


def head_bytes(status: int, headers: Headers, reason: str | None = None) -> bytes:
    """Return the status line and header fields as bytes."""
    reason = REASONS.get(status, "Unknown") if reason is None else reason
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {reason}\r\n{fields}\r\n".encode("latin-1")


def parse_head(head: bytes, connection: int, arrived_s: float) -> Seen:
    """Parse a request header; raise ValueError if it is malformed."""
    request_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, version = request_line.split(" ")
    fields = (line.partition(":") for line in lines)
    headers = tuple((name.lower(), value.strip()) for name, _, value in fields)
    return Seen(method, target, version, headers, connection, arrived_s)


def _header(request: Seen, name: str) -> str | None:
    """Return the first field with this lower-case name."""
    return next((value for known, value in request.headers if known == name), None)


def _wants_keep_alive(request: Seen) -> bool:
    option = (_header(request, "connection") or "").lower()
    return option == "keep-alive" if request.version == "HTTP/1.0" else option != "close"


def _allows_keep_alive(status: int, headers: Headers) -> bool:
    """Return whether the response is framed, so that the connection can stay open."""
    named = {name.lower(): value.lower() for name, value in headers}
    is_framed = _is_bodyless(status) or not named.keys().isdisjoint({"content-length", "transfer-encoding"})
    return is_framed and named.get("connection") != "close"


def _is_bodyless(status: int) -> bool:
    return status < HTTPStatus.OK or status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}


async def _read_body(reader: asyncio.StreamReader, request: Seen) -> bytes:
    if (_header(request, "transfer-encoding") or "").lower() == "chunked":
        return b"".join([chunk async for chunk in _read_chunks(reader)])
    return await reader.readexactly(int(_header(request, "content-length") or 0))


async def _read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size_bytes := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size_bytes + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers


class _Watched(asyncio.StreamReaderProtocol):
    """asyncio's stream protocol, which also reports the client's close at once."""

    def __init__(self, connection: "_Connection") -> None:
        super().__init__(asyncio.StreamReader(HEAD_LIMIT_BYTES), connection.open)
        self._connection = connection

    def eof_received(self) -> bool | None:
        # A half-closed connection counts as closed: the worker never half-closes.
        self._connection.hang_up()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.hang_up()
        self._connection.lost.set()
        super().connection_lost(exc)


class _Connection:
    """Serves one connection until either side closes it."""

    def __init__(self, origin: "Origin", number: int) -> None:
        self.lost = asyncio.Event()
        self._origin = origin
        self._number = number
        self._is_client_gone = False
        self._exchange: Exchange | None = None

    def open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Without a user-space buffer, a finished write means that the kernel has the data.
        writer.transport.set_write_buffer_limits(high=0)
        self._reader, self._writer = reader, writer
        self._serving = asyncio.create_task(self._serve())
        self._origin.keep(self, self._serving)

    def hang_up(self) -> None:
        self._is_client_gone = True
        if self._exchange is not None and not self._exchange.ended:
            self._serving.cancel()

    async def stop(self) -> None:
        if self._exchange is not None:
            self._exchange.ended = True  # the origin ends it, so the request does not count as aborted
        self._writer.transport.abort()
        self._serving.cancel()
        await asyncio.wait([self._serving])
        await self.lost.wait()

    async def _serve(self) -> None:
        try:
            while await self._serve_one():
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client closed the connection: the request is recorded as aborted
        except Exception as fault:  # noqa: BLE001 any error fails the test
            self._origin.faults.append(fault)
        finally:
            self._writer.close()
            await self.lost.wait()

    async def _serve_one(self) -> bool:
        """Serve the next request; return whether another may follow."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        request = parse_head(head, self._number, time.monotonic())
        self._exchange = exchange = Exchange(request, self._writer, self._origin.windows)
        index = self._origin.begin(request)
        try:
            await self._answer(exchange, index)
        finally:
            aborted = self._is_client_gone and not exchange.ended
            self._origin.finish(index, exchange.status, aborted=aborted)
            exchange.ended = True
        return exchange.keep_alive

    async def _answer(self, exchange: Exchange, index: int) -> None:
        body = await _read_body(self._reader, exchange.request)
        exchange.request = self._origin.add_body(index, body)
        await self._origin.behaviour(exchange)
        exchange.ended = True


class Origin:
    """A listening origin, and its record of requests. A test may change `behaviour` at any time."""

    _server: asyncio.Server
    _address: tuple[str, int]

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[Seen] = []
        self.windows: list[Window] = []
        self.faults: list[Exception] = []
        """Errors of behaviours and of malformed requests."""
        self.connections_opened = 0
        self.in_progress = 0
        self.high_water = 0
        """Peak of concurrent requests."""
        self._connections: set[_Connection] = set()

    @classmethod
    async def start(cls, host: str = "127.0.0.11", port: int = 0, *, behaviour: Behaviour) -> Self:
        """Start an origin; port 0 picks a free port."""
        origin = cls(behaviour)
        loop = asyncio.get_running_loop()
        origin._server = await loop.create_server(origin._accept, host, port, backlog=4096)
        origin._address = origin._server.sockets[0].getsockname()
        return origin

    @classmethod
    @asynccontextmanager
    async def serving(cls, host: str, behaviour: Behaviour, port: int = 0) -> AsyncIterator[Self]:
        """Yield a running origin."""
        origin = await cls.start(host, port, behaviour=behaviour)
        try:
            yield origin
        finally:
            await origin.stop()

    async def stop(self) -> None:
        """Close everything; raise the errors of behaviours and of malformed requests."""
        self._server.close()
        while self._connections:
            await asyncio.gather(*(connection.stop() for connection in self._connections))
        await self._server.wait_closed()
        if self.faults:
            raise ExceptionGroup("errors in the origin", self.faults)

    def url(self, path: str = "/") -> str:
        """Return the URL of a path."""
        host, port = self._address
        return f"http://{host}:{port}{path}"

    @property
    def port(self) -> int:
        """The port that the origin listens on."""
        return self._address[1]

    @staticmethod
    def header(seen: Seen, name: str) -> str | None:
        """Return the first field with this name, in any case, or None."""
        return _header(seen, name.lower())

    def begin(self, request: Seen) -> int:
        """Record a request; return its index in the record."""
        self.requests.append(request)
        self.in_progress += 1
        self.high_water = max(self.high_water, self.in_progress)
        return len(self.requests) - 1

    def add_body(self, index: int, body: bytes) -> Seen:
        """Add the complete body of a request to the record; return the record of the request."""
        if body:
            self.requests[index] = replace(self.requests[index], body=body)
        return self.requests[index]

    def finish(self, index: int, status: int | None, *, aborted: bool) -> None:
        """Record the end of an exchange. status: of the response, None if none was sent."""
        self.in_progress -= 1
        self.requests[index] = replace(
            self.requests[index], finished_s=time.monotonic(), aborted=aborted, status=status
        )

    def keep(self, connection: _Connection, serving: asyncio.Task[None]) -> None:
        """Track a connection while it is served."""
        self._connections.add(connection)
        serving.add_done_callback(lambda _: self._connections.discard(connection))

    def _accept(self) -> _Watched:
        self.connections_opened += 1
        return _Watched(_Connection(self, self.connections_opened))


def requests_inside(windows: Iterable[Window], seen: Iterable[Seen], slack_s: float = 0.0) -> list[Seen]:
    """Return the requests inside a window. slack_s: allowance for requests in transit."""
    spans = [(from_s + slack_s, until_s) for from_s, until_s in windows]
    return [
        request for request in seen if any(from_s < request.arrived_s < until_s for from_s, until_s in spans)
    ]
