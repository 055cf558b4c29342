"""A hostile, scriptable HTTP/1.1 origin that records what it saw: the judge of our politeness.

Raw asyncio and no HTTP library, so that it can break the protocol on purpose. Every time in here
is `time.monotonic`, which all processes of one machine read alike.

An `Origin` listens, a `Behaviour` answers an `Exchange`, and every request becomes a `Seen`.
The ready behaviours are at the end; most take a `then`, so that they compose.
"""

import asyncio
import hashlib
import itertools
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Self

Header = tuple[str, str]
Headers = Sequence[Header]
Window = tuple[float, float]
Behaviour = Callable[["Exchange"], Awaitable[None]]

REASONS = {status.value: status.phrase for status in HTTPStatus}
LINGER_0 = struct.pack("ii", 1, 0)
HEAD_LIMIT_BYTES = 1 << 20
BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it was seen; `finished_s` is infinite while its answer is under way.

    status: of the answer, None as long as there is none.
    """

    method: str
    target: str
    version: str
    headers: tuple[Header, ...]
    connection: int
    arrived_s: float
    finished_s: float = math.inf
    body: bytes = b""
    aborted: bool = False
    status: int | None = None


class Exchange:
    """One request, and the pen to answer it with."""

    def __init__(self, request: Seen, writer: asyncio.StreamWriter, windows: list[Window]) -> None:
        self.request = request
        self.windows = windows
        self.status: int | None = None
        self.keep_alive = _asks_to_stay(request)
        self.ended = False
        self._writer = writer

    async def send_head(self, status: int, headers: Headers = (), reason: str | None = None) -> None:
        """Writes the status line and exactly these headers."""
        await self.raw(self._head(status, headers, reason))

    async def send(self, data: bytes) -> None:
        """Writes a piece of the body; nothing when the request was a HEAD."""
        if self.request.method != "HEAD":
            await self.raw(data)

    async def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        """Writes a whole, well-formed answer, with its Content-Length."""
        if _is_bodyless(status):
            await self.send_head(status, headers)
            return
        head = self._head(status, (*headers, ("Content-Length", str(len(body)))))
        await self.raw(head if self.request.method == "HEAD" else head + body)

    async def raw(self, data: bytes) -> None:
        """Writes bytes as they are, and waits until the kernel has taken the last of them."""
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        """Ends the answer here, politely: the client reads an end of file."""
        self.ended, self.keep_alive = True, False
        self._writer.close()

    def abort(self) -> None:
        """Ends the answer here with a TCP reset."""
        self.ended, self.keep_alive = True, False
        line: socket.socket = self._writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self._writer.transport.abort()

    def _head(self, status: int, headers: Headers, reason: str | None = None) -> bytes:
        self.status = status
        self.keep_alive = self.keep_alive and _lets_stay(status, headers)
        farewell = () if self.keep_alive else (("Connection", "close"),)
        return head_bytes(status, (*headers, *farewell), reason)


def head_bytes(status: int, headers: Headers, reason: str | None = None) -> bytes:
    """An answer's status line and headers, as bytes on the wire."""
    reason = REASONS.get(status, "Unknown") if reason is None else reason
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {reason}\r\n{fields}\r\n".encode("latin-1")


def parse_head(head: bytes, connection: int, arrived_s: float) -> Seen:
    """The request that this head announces; ValueError when it is not one."""
    request_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, version = request_line.split(" ")
    fields = (line.partition(":") for line in lines)
    headers = tuple((name.lower(), value.strip()) for name, _, value in fields)
    return Seen(method, target, version, headers, connection, arrived_s)


def _header(request: Seen, name: str) -> str | None:
    """The first header of this (lower-case) name."""
    return next((value for known, value in request.headers if known == name), None)


def _asks_to_stay(request: Seen) -> bool:
    asked = (_header(request, "connection") or "").lower()
    return asked == "keep-alive" if request.version == "HTTP/1.0" else asked != "close"


def _lets_stay(status: int, headers: Headers) -> bool:
    """Whether the client can tell where such an answer ends without the connection ending."""
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
    """asyncio's streams, which also tell at once when the client hangs up, read or not."""

    def __init__(self, connection: "_Connection") -> None:
        super().__init__(asyncio.StreamReader(HEAD_LIMIT_BYTES), connection.open)
        self._connection = connection

    def eof_received(self) -> bool | None:
        # A client that closed only its sending half counts as gone: ours never does that.
        self._connection.hang_up()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.hang_up()
        self._connection.lost.set()
        super().connection_lost(exc)


class _Connection:
    """Serves one client, request after request, until either side has had enough."""

    def __init__(self, origin: "Origin", number: int) -> None:
        self.lost = asyncio.Event()
        self._origin = origin
        self._number = number
        self._is_client_gone = False
        self._exchange: Exchange | None = None

    def open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Without a buffer of ours, "written" means that the kernel has it.
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
            self._exchange.ended = True  # by us: the client is not to blame
        self._writer.transport.abort()
        self._serving.cancel()
        await asyncio.wait([self._serving])
        await self.lost.wait()

    async def _serve(self) -> None:
        try:
            while await self._serve_one():
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left: its request is recorded as aborted
        except Exception as fault:  # noqa: BLE001 - whatever it is, the test must fail for it
            self._origin.faults.append(fault)
        finally:
            self._writer.close()
            await self.lost.wait()

    async def _serve_one(self) -> bool:
        """Answers the next request, and says whether another may follow."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        request = parse_head(head, self._number, time.monotonic())
        self._exchange = exchange = Exchange(request, self._writer, self._origin.windows)
        place = self._origin.begin(request)
        try:
            await self._answer(exchange, place)
        finally:
            aborted = self._is_client_gone and not exchange.ended
            self._origin.finish(place, exchange.status, aborted=aborted)
            exchange.ended = True
        return exchange.keep_alive

    async def _answer(self, exchange: Exchange, place: int) -> None:
        body = await _read_body(self._reader, exchange.request)
        exchange.request = self._origin.amend(place, body)
        await self._origin.behaviour(exchange)
        exchange.ended = True


class Origin:
    """A listening origin and its record; `behaviour` may be swapped while it runs."""

    _server: asyncio.Server
    _address: tuple[str, int]

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[Seen] = []
        self.windows: list[Window] = []
        self.faults: list[Exception] = []
        self.connections_opened = 0
        self.in_progress = 0
        self.high_water = 0
        self._connections: set[_Connection] = set()

    @classmethod
    async def start(cls, host: str = "127.0.0.11", port: int = 0, *, behaviour: Behaviour) -> Self:
        """A new origin, listening; port 0 picks a free one."""
        origin = cls(behaviour)
        loop = asyncio.get_running_loop()
        origin._server = await loop.create_server(origin._accept, host, port, backlog=4096)
        origin._address = origin._server.sockets[0].getsockname()
        return origin

    @classmethod
    @asynccontextmanager
    async def serving(cls, host: str, behaviour: Behaviour, port: int = 0) -> AsyncIterator[Self]:
        """An origin for the length of a block."""
        origin = await cls.start(host, port, behaviour=behaviour)
        try:
            yield origin
        finally:
            await origin.stop()

    async def stop(self) -> None:
        """Closes everything, and raises what went wrong in a behaviour or in a client's grammar."""
        self._server.close()
        while self._connections:
            await asyncio.gather(*(connection.stop() for connection in self._connections))
        await self._server.wait_closed()
        if self.faults:
            raise ExceptionGroup("the origin met faults", self.faults)

    def url(self, path: str = "/") -> str:
        """The address of a path here."""
        host, port = self._address
        return f"http://{host}:{port}{path}"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._address[1]

    @staticmethod
    def header(seen: Seen, name: str) -> str | None:
        """The first header of this name in any case, or None."""
        return _header(seen, name.lower())

    def begin(self, request: Seen) -> int:
        """Records a request that has arrived, and gives its place in the record."""
        self.requests.append(request)
        self.in_progress += 1
        self.high_water = max(self.high_water, self.in_progress)
        return len(self.requests) - 1

    def amend(self, place: int, body: bytes) -> Seen:
        """Adds to the record the body of a request, once it is all here."""
        if body:
            self.requests[place] = replace(self.requests[place], body=body)
        return self.requests[place]

    def finish(self, place: int, status: int | None, *, aborted: bool) -> None:
        """Records the end of an answer, and its status if it had one."""
        self.in_progress -= 1
        self.requests[place] = replace(
            self.requests[place], finished_s=time.monotonic(), aborted=aborted, status=status
        )

    def keep(self, connection: _Connection, serving: asyncio.Task[None]) -> None:
        """Remembers a connection for as long as it is served."""
        self._connections.add(connection)
        serving.add_done_callback(lambda _: self._connections.discard(connection))

    def _accept(self) -> _Watched:
        self.connections_opened += 1
        return _Watched(_Connection(self, self.connections_opened))


def requests_inside(windows: Iterable[Window], seen: Iterable[Seen], slack_s: float = 0.0) -> list[Seen]:
    """Those that arrived inside a window; the slack forgives what was already on its way."""
    spans = [(from_s + slack_s, until_s) for from_s, until_s in windows]
    return [
        request for request in seen if any(from_s < request.arrived_s < until_s for from_s, until_s in spans)
    ]


# Behaviours that answer well.


def ok(body: bytes | Callable[[str], bytes] = b"ok", headers: Headers = ()) -> Behaviour:
    """Answers 200 with a body, or with what the callable makes of the target."""

    async def answer(x: Exchange) -> None:
        await x.respond(200, headers, body(x.request.target) if callable(body) else body)

    return answer


def status(code: int, headers: Headers = (), body: bytes = b"") -> Behaviour:
    """Answers with this status."""

    async def answer(x: Exchange) -> None:
        await x.respond(code, headers, body)

    return answer


OK = ok()
NOT_FOUND = status(404)


def redirect(location: str | Callable[[str], str], code: int = 302) -> Behaviour:
    """Sends the client elsewhere; a callable makes the location from the target."""

    async def answer(x: Exchange) -> None:
        where = location(x.request.target) if callable(location) else location
        await x.respond(code, [("Location", where)])

    return answer


def set_cookie(*cookies: str, body: bytes = b"ok") -> Behaviour:
    """Answers 200 with one Set-Cookie header for each cookie ("name=value; Path=/")."""
    return ok(body, [("Set-Cookie", cookie) for cookie in cookies])


def chunked(chunks: Iterable[bytes]) -> Behaviour:
    """Answers 200 in these chunks, none of them empty."""
    pieces = tuple(chunks)

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Transfer-Encoding", "chunked")])
        for piece in pieces:
            await x.send(_chunk(piece))
        await x.send(_chunk(b""))

    return answer


def big(size_bytes: int) -> "Big":
    """Answers 200 with a deterministic body of any size; `.sha256` says what to expect."""
    return Big(size_bytes)


@dataclass(frozen=True)
class Big:
    """The behaviour of `big`."""

    size_bytes: int

    @property
    def sha256(self) -> str:
        """The body's digest in hex, computed once for each size."""
        return _big_sha256(self.size_bytes)

    async def __call__(self, x: Exchange) -> None:
        """Streams the body, block by block."""
        await x.send_head(200, [("Content-Length", str(self.size_bytes))])
        for block in _blocks(self.size_bytes):
            await x.send(block)


# Behaviours that ask for patience.


def retry_after(wait: float | str, code: int = 429) -> Behaviour:
    """Asks the client to wait so many seconds, or what a header text says; records the window."""
    text = wait if isinstance(wait, str) else f"{wait:.10g}"

    async def answer(x: Exchange) -> None:
        asked_s = time.monotonic()
        await x.respond(code, [("Retry-After", text)])
        if (wait_s := _wait_s(text)) is not None:
            x.windows.append((time.monotonic(), asked_s + wait_s))

    return answer


def throttle_window(after_n: int, retry_after_s: float, then: Behaviour = OK) -> Behaviour:
    """Serves the first `after_n` requests of every second, and throttles the others with a 429."""
    throttle = retry_after(retry_after_s)
    arrivals: Counter[int] = Counter()

    async def answer(x: Exchange) -> None:
        second = int(x.request.arrived_s)
        arrivals[second] += 1
        await (throttle if arrivals[second] > after_n else then)(x)

    return answer


def latency(for_s: float, then: Behaviour = OK) -> Behaviour:
    """Waits before it answers."""

    async def answer(x: Exchange) -> None:
        await asyncio.sleep(for_s)
        await then(x)

    return answer


def slow(chunk: bytes, every_s: float, total_chunks: int) -> Behaviour:
    """Trickles a whole body, one chunk at a time."""

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Content-Length", str(len(chunk) * total_chunks))])
        for _ in range(total_chunks):
            await asyncio.sleep(every_s)
            await x.send(chunk)

    return answer


# Behaviours that fail.


def fail_for(
    for_s: float, code: int, then: Behaviour = OK, clock: Callable[[], float] = time.monotonic
) -> Behaviour:
    """Fails until so long after the first request, then heals."""
    failing = status(code)
    heals_s: float | None = None

    async def answer(x: Exchange) -> None:
        nonlocal heals_s
        heals_s = clock() + for_s if heals_s is None else heals_s
        await (failing if clock() < heals_s else then)(x)

    return answer


def fail_times(n: int, code: int, then: Behaviour = OK) -> Behaviour:
    """Fails the first n requests, then heals."""
    return sequence(*[status(code)] * n, then)


def truncated(body: bytes, declared_bytes: int) -> Behaviour:
    """Promises more than it sends, then closes."""

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Content-Length", str(declared_bytes))])
        await x.send(body)
        x.close()

    return answer


def cut_chunked(body: bytes) -> Behaviour:
    """Sends one whole chunk, then closes without the last one that would end the body."""

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Transfer-Encoding", "chunked")])
        await x.send(_chunk(body))
        x.close()

    return answer


def stall_headers(for_s: float) -> Behaviour:
    """Says nothing for so long, then closes without an answer."""

    async def answer(x: Exchange) -> None:
        await asyncio.sleep(for_s)
        x.close()

    return answer


def held(may_end: asyncio.Event, then: Behaviour = OK) -> Behaviour:
    """Says nothing until it is let go."""

    async def answer(x: Exchange) -> None:
        await may_end.wait()
        await then(x)

    return answer


class HalfBody:
    """Sends half of a body, and the other half once it is let go."""

    def __init__(self, half_bytes: int = 1 << 20) -> None:
        self.go_on = asyncio.Event()
        self._half = b"x" * half_bytes

    async def __call__(self, x: Exchange) -> None:
        """One body in two halves."""
        await x.send_head(200, [("Content-Length", str(2 * len(self._half)))])
        await x.send(self._half)
        await self.go_on.wait()
        await x.send(self._half)


def garbage(raw: bytes) -> Behaviour:
    """Sends these bytes instead of HTTP, then closes."""

    async def answer(x: Exchange) -> None:
        await x.raw(raw)
        x.close()

    return answer


def reset_after(n_bytes: int) -> Behaviour:
    """Sends a head and so many bytes of its body, then resets the connection."""

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Content-Length", str(n_bytes + 1))])
        await x.send(b"x" * n_bytes)
        x.abort()

    return answer


async def silent(_: Exchange) -> None:
    """Hears the request, and says nothing."""
    await asyncio.Event().wait()


async def unframed(x: Exchange) -> None:
    """A body that only the end of the connection ends."""
    await x.send_head(200)
    await x.send(b"until the end")
    x.close()


async def reset(x: Exchange) -> None:
    """Resets the connection without a byte of an answer."""
    x.abort()


# Behaviours that choose among others.


def sequence(*behaviours: Behaviour) -> Behaviour:
    """The nth request gets the nth behaviour, and the last one repeats."""
    turns = itertools.chain(behaviours, itertools.repeat(behaviours[-1]))

    async def answer(x: Exchange) -> None:
        await next(turns)(x)

    return answer


def by_path(routes: Mapping[str, Behaviour], otherwise: Behaviour = NOT_FOUND) -> Behaviour:
    """The longest prefix of the target chooses."""
    prefixes = sorted(routes, key=len, reverse=True)

    async def answer(x: Exchange) -> None:
        prefix = next(filter(x.request.target.startswith, prefixes), None)
        await (otherwise if prefix is None else routes[prefix])(x)

    return answer


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _wait_s(retry_after_text: str) -> float | None:
    """How long a Retry-After asks for; None when it says nothing that can be understood."""
    with suppress(ValueError):
        return float(retry_after_text)
    with suppress(ValueError):
        return parsedate_to_datetime(retry_after_text).timestamp() - time.time()
    return None


def _blocks(size_bytes: int) -> Iterator[bytes]:
    """The big body in blocks, each begun by its own number so that none can stand for another."""
    filler = bytes(range(256)) * (BLOCK_BYTES // 256)
    for number, start in enumerate(range(0, size_bytes, BLOCK_BYTES)):
        block = number.to_bytes(8) + filler[8:]
        yield block[: size_bytes - start]


@lru_cache
def _big_sha256(size_bytes: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(size_bytes):
        digest.update(block)
    return digest.hexdigest()
