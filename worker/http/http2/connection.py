"""One HTTP/2 connection: a task that reads for all its streams, and one that writes for them.

No stream touches the socket itself, so none that is cancelled, stands still or times out harms another.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from typing import Any

import httpcore2

from fetchfleet.worker.errors import FirstByteTimeoutError
from fetchfleet.worker.http.http2.headers import asked
from fetchfleet.worker.http.http2.session import Session
from fetchfleet.worker.http.http2.stream import Stream, UnansweredError
from fetchfleet.worker.http.http2.trace import Traced
from fetchfleet.worker.util.clock import mono_s

READ_BYTES = 256 * 1024
PIECE_BYTES = 256 * 1024
SEND_AHEAD_BYTES = 64 * 1024
"""Bodies wait until no more than this is on its way to the socket."""
FAREWELL_S = 0.2


class Http2Connection:
    """An open connection that spoke for HTTP/2; `start` it, and `aclose` it in the end.

    changed: called when it may have more room, or none any more.
    """

    def __init__(self, network: httpcore2.AsyncNetworkStream, changed: Callable[[], None]) -> None:
        self.closed = False
        self.idle_since_s = mono_s()
        """When the last exchange on it ended; counts where there is none."""
        self._network = network
        self._changed = changed
        self._session = Session()
        self._to_write = asyncio.Event()
        self._sending: set[Stream] = set()
        self._reads = 0
        self._stopping = False
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read and write."""
        # An empty context: what belongs to the exchange that happened to connect is not everybody's.
        loop = asyncio.get_running_loop()
        self._running = loop.create_task(self._run(), name="http2", context=Context())
        self._running.add_done_callback(lambda _: self._changed())
        self._flush()

    @property
    def room(self) -> int:
        """How many exchanges it takes now."""
        return 0 if self.closed else self._session.room

    @property
    def usable(self) -> bool:
        """Whether it may ever take another exchange."""
        return not self.closed and not self._session.draining

    @property
    def settled(self) -> bool:
        """Whether its room is what the host gives, and not yet a guess."""
        return self._session.settled

    @property
    def gone(self) -> bool:
        """Whether it is closed, and its socket too."""
        return self._running is not None and self._running.done()

    @property
    def streams(self) -> int:
        """How many exchanges it has."""
        return len(self._session.streams)

    def retire(self) -> None:
        """Take no more exchanges; close once there are none."""
        self._session.draining = True
        self._stop_if_done()

    async def aclose(self) -> None:
        """Close it, whatever is on it."""
        if self._running is not None:
            self._stop()
            await asyncio.wait([self._running])
        self._over(None)  # it may have been stopped before it began to run
        await self._network.aclose()

    async def exchange(self, request: httpcore2.Request) -> httpcore2.Response:
        """Ask, as far as the head of the answer; there is room.

        Raises RefusedError, UnansweredError, or what httpcore2's connections raise.
        """
        stream = self._open(request)
        try:
            async with Traced(request, "send_request_headers", stream.id):
                self._flush()
            async with Traced(request, "send_request_body", stream.id):
                await self._send(request, stream)
            async with Traced(request, "receive_response_headers", stream.id):
                return await self._answer(request, stream)
        except BaseException:
            self.drop(stream)
            raise

    async def piece(self, stream: Stream, wait_s: float | None) -> bytes:
        """What has come of the body, b"" at its end."""
        while True:
            piece = stream.take(PIECE_BYTES)
            if piece or stream.ended:
                return piece
            if stream.error is not None:
                raise _told(stream.error)
            await self._wait(stream, wait_s, httpcore2.ReadTimeout)

    def taken(self, stream: Stream, size_bytes: int) -> None:
        """So much of the body is done with."""
        self._session.taken(stream, size_bytes)
        self._flush()

    def drop(self, stream: Stream) -> None:
        """Nobody wants the rest of this exchange; again without harm."""
        self._sending.discard(stream)
        if stream.id in self._session.streams:
            self._session.drop(stream)
            self.idle_since_s = mono_s()
            self._flush()
            self._stop_if_done()
            self._changed()

    def _open(self, request: httpcore2.Request) -> Stream:
        fields = asked(request.method, request.url.scheme, request.url.target, request.headers)
        return self._session.open(fields, request.method, whole=not _has_body(request))

    async def _send(self, request: httpcore2.Request, stream: Stream) -> None:
        """The body of the request, for as long as the host has not ended its answer (RFC 9113 §8.1)."""
        if not _has_body(request):
            return
        wait_s = _timeout_s(request, "write")
        self._sending.add(stream)
        async with contextlib.aclosing(_pieces(request.stream)) as pieces:
            async for piece in pieces:
                if not await self._send_piece(stream, memoryview(piece), wait_s):
                    break
            else:
                self._session.send(stream, b"", last=True)
                self._flush()
        self._sending.discard(stream)

    async def _send_piece(self, stream: Stream, piece: memoryview, wait_s: float | None) -> bool:
        """Whether the host wanted all of it."""
        while piece and not stream.over and not self.closed:
            room_bytes = self._session.send_room_bytes(stream)
            if not room_bytes or self._session.unsent_bytes > SEND_AHEAD_BYTES:
                await self._wait(stream, wait_s, httpcore2.WriteTimeout)
                continue
            self._session.send(stream, piece[:room_bytes])
            self._flush()
            piece = piece[room_bytes:]
        return not piece

    async def _answer(self, request: httpcore2.Request, stream: Stream) -> httpcore2.Response:
        wait_s = _timeout_s(request, "read")
        while stream.head is None:
            if stream.error is not None:
                raise _told(stream.error)
            late = httpcore2.ReadTimeout if stream.heard else FirstByteTimeoutError
            await self._wait(stream, wait_s, late)
        extensions = {"http_version": b"HTTP/2", "network_stream": self._network, "stream_id": stream.id}
        return httpcore2.Response(
            status=stream.head.status,
            headers=stream.head.fields,
            content=Body(self, request, stream),
            extensions=extensions,
        )

    async def _wait(self, stream: Stream, wait_s: float | None, late: type[Exception]) -> None:
        """Until there is more to the stream; a connection that was silent meanwhile is doubtful."""
        stream.changed.clear()
        reads = self._reads
        try:
            async with asyncio.timeout(wait_s):
                await stream.changed.wait()
        except TimeoutError:
            if reads == self._reads:
                self._session.draining = True
            raise late(f"nothing for {wait_s} s") from None

    async def _run(self) -> None:
        writing = asyncio.create_task(self._write(), name="http2 writes")
        error: Exception | None = None
        try:
            await self._read()
        except asyncio.CancelledError:
            pass
        except Exception as caught:  # noqa: BLE001 the streams' concern, whatever it is
            error = caught
        self._over(error)
        writing.cancel()
        await asyncio.wait([writing])
        await self._part()

    def _over(self, error: Exception | None) -> None:
        if not self.closed:
            self.closed = self._stopping = True
            self._session.fail(lambda stream: _why(stream, error))
            self._changed()

    async def _read(self) -> None:
        while True:
            data = await self._network.read(READ_BYTES)
            if not data:
                return
            self._reads += 1
            before = self.room, self.usable
            try:
                self._session.receive(data)
            finally:
                self._flush()
            if self._session.draining and not self._session.streams:
                return
            if before != (self.room, self.usable):
                self._changed()

    async def _write(self) -> None:
        """An end of it is for the reader to find out: the host may have answered before it hung up."""
        with contextlib.suppress(httpcore2.WriteError):
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                while out := self._session.output():
                    await self._network.write(out)
                for stream in self._sending:
                    stream.changed.set()

    async def _part(self) -> None:
        with contextlib.suppress(httpcore2.WriteError, TimeoutError):
            self._session.part()
            async with asyncio.timeout(FAREWELL_S):
                await self._network.write(self._session.output())
        await self._network.aclose()

    def _flush(self) -> None:
        if self._session.unsent_bytes:
            self._to_write.set()

    def _stop_if_done(self) -> None:
        if self._session.draining and not self._session.streams:
            self._stop()

    def _stop(self) -> None:
        if not self._stopping and self._running is not None:
            self._stopping = True
            self._running.cancel()


class Body:
    """The body of an answer."""

    def __init__(self, connection: Http2Connection, request: httpcore2.Request, stream: Stream) -> None:
        self._connection = connection
        self._request = request
        self._stream = stream
        self._closed = False

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Piece by piece; what is taken makes room for more."""
        wait_s = _timeout_s(self._request, "read")
        try:
            async with Traced(self._request, "receive_response_body", self._stream.id):
                while piece := await self._connection.piece(self._stream, wait_s):
                    yield piece
                    self._connection.taken(self._stream, len(piece))
        except BaseException:
            self._connection.drop(self._stream)
            raise

    async def aclose(self) -> None:
        """Done with it, whole or not."""
        if not self._closed:
            self._closed = True
            self._connection.drop(self._stream)
            async with Traced(self._request, "response_closed", self._stream.id):
                pass


def _has_body(request: httpcore2.Request) -> bool:
    return any(name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in request.headers)


async def _pieces(content: Any) -> AsyncGenerator[bytes, None]:
    async for piece in content:
        yield piece


def _timeout_s(request: httpcore2.Request, which: str) -> float | None:
    timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
    return timeouts.get(which)


def _why(stream: Stream, error: Exception | None) -> Exception:
    """What the end of a connection means for a stream; unheard, it may have come too late to be seen."""
    lost = error is None or isinstance(error, httpcore2.ReadError)
    if lost and not stream.heard:
        return UnansweredError(str(error or "the host hung up without an answer"))
    return error or httpcore2.RemoteProtocolError("the host hung up")


def _told(error: Exception) -> Exception:
    """The error for one stream: many share the one of their connection, and each raises its own."""
    return type(error)(*error.args)
