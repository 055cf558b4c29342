"""One HTTP/2 connection: a task that reads for all its streams, and one that writes for them.

No stream touches the socket itself. A stream that is cancelled, stalls or times out harms no other.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from typing import Any

import httpcore2

from fetchfleet.worker.errors import FirstByteTimeoutError
from fetchfleet.worker.http.http2.headers import request_fields
from fetchfleet.worker.http.http2.session import Session
from fetchfleet.worker.http.http2.stream import Stream, UnansweredError
from fetchfleet.worker.http.http2.trace import TraceStage
from fetchfleet.worker.util.clock import mono_s

READ_BYTES = 256 * 1024
PIECE_BYTES = 256 * 1024
SEND_AHEAD_BYTES = 64 * 1024
"""Request bodies wait while more than this is on its way to the socket."""
FAREWELL_S = 0.2
"""The time that sending GOAWAY may take."""


class Http2Connection:
    """An open connection on which HTTP/2 was negotiated. Call `start` first, `aclose` at the end.

    changed: called when its room may have changed, or it has closed.
    """

    def __init__(self, network: httpcore2.AsyncNetworkStream, changed: Callable[[], None]) -> None:
        self.closed = False
        self.idle_since_s = mono_s()
        """When its last exchange ended; meaningful while it has none."""
        self._network = network
        self._changed = changed
        self._session = Session()
        self._to_write = asyncio.Event()
        self._sending: set[Stream] = set()
        self._reads = 0
        self._stopping = False
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start reading and writing."""
        # An empty context: the context variables of the exchange that dialled are not for all exchanges.
        loop = asyncio.get_running_loop()
        self._running = loop.create_task(self._run(), name="http2", context=Context())
        self._running.add_done_callback(lambda _: self._changed())
        self._flush()

    @property
    def room(self) -> int:
        """How many more exchanges it takes now."""
        return 0 if self.closed else self._session.room

    @property
    def usable(self) -> bool:
        """Whether it may take another exchange, now or later."""
        return not self.closed and not self._session.draining

    @property
    def settled(self) -> bool:
        """Whether its room is what the host has declared, and not a guess."""
        return self._session.settled

    @property
    def gone(self) -> bool:
        """Whether it and its socket are closed."""
        return self._running is not None and self._running.done()

    @property
    def streams(self) -> int:
        """How many exchanges run on it."""
        return len(self._session.streams)

    async def exchange(self, request: httpcore2.Request) -> httpcore2.Response:
        """Send a request, and return its response once the headers are complete; there must be room.

        Raises RefusedError, UnansweredError, or the errors of httpcore2's connections.
        """
        has_body = any(
            name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in request.headers
        )
        fields = request_fields(request.method, request.url.scheme, request.url.target, request.headers)
        stream = self._session.open(fields, request.method, whole=not has_body)
        try:
            async with TraceStage(request, "send_request_headers", stream.id):
                self._flush()
            async with TraceStage(request, "send_request_body", stream.id):
                if has_body:
                    await self._send_body(request, stream)
            async with TraceStage(request, "receive_response_headers", stream.id):
                timeout_s = _timeout_s(request, "read")
                while stream.head is None:
                    late = httpcore2.ReadTimeout if stream.heard else FirstByteTimeoutError
                    await self._wait(stream, timeout_s, late)
        except BaseException:
            self.drop(stream)
            raise
        return httpcore2.Response(
            status=stream.head.status,
            headers=stream.head.fields,
            content=Http2Body(self, request, stream),
            extensions={
                "http_version": b"HTTP/2",
                "network_stream": self._network,
                "stream_id": stream.id,
            },
        )

    async def _send_body(self, request: httpcore2.Request, stream: Stream) -> None:
        """Send the request body, until the host has ended its response (RFC 9113 §8.1)."""
        content: Any = request.stream
        timeout_s = _timeout_s(request, "write")
        self._sending.add(stream)
        async with contextlib.aclosing(aiter(content)) as pieces:
            async for whole_piece in pieces:
                piece = memoryview(whole_piece)
                while piece and not stream.over and not self.closed:
                    room_bytes = self._session.send_room_bytes(stream)
                    if not room_bytes or self._session.unsent_bytes > SEND_AHEAD_BYTES:
                        await self._wait(stream, timeout_s, httpcore2.WriteTimeout)
                        continue
                    self._session.send(stream, piece[:room_bytes])
                    self._flush()
                    piece = piece[room_bytes:]
                if piece:  # the host does not want the rest
                    break
            else:
                self._session.send(stream, b"", last=True)
                self._flush()
        self._sending.discard(stream)

    async def piece(self, stream: Stream, timeout_s: float | None) -> bytes:
        """Return the next piece of the response body, b"" at its end."""
        while True:
            piece = stream.take(PIECE_BYTES)
            if piece or stream.ended:
                return piece
            await self._wait(stream, timeout_s, httpcore2.ReadTimeout)

    async def _wait(self, stream: Stream, timeout_s: float | None, late: type[Exception]) -> None:
        """Wait for a change of the stream; raises its error, or `late` after the timeout.

        If the whole connection was silent meanwhile, it takes no more exchanges.
        """
        if (error := stream.error) is not None:
            raise type(error)(*error.args)  # a new one: many streams share the error of their connection
        stream.changed.clear()
        reads = self._reads
        try:
            async with asyncio.timeout(timeout_s):
                await stream.changed.wait()
        except TimeoutError:
            if reads == self._reads:
                self._session.draining = True
            raise late(f"no progress within {timeout_s} s") from None

    def taken(self, stream: Stream, size_bytes: int) -> None:
        """Return window to the host for bytes of the body that were read."""
        self._session.taken(stream, size_bytes)
        self._flush()

    def drop(self, stream: Stream) -> None:
        """Forget an exchange, complete or not; a second call does nothing."""
        self._sending.discard(stream)
        if stream.id in self._session.streams:
            self._session.drop(stream)
            self.idle_since_s = mono_s()
            self._flush()
            self._stop_if_done()
            self._changed()

    def retire_if_idle_since(self, moment_s: float) -> None:
        """Take no more exchanges, if it has had none since that moment, and close."""
        if not self.streams and self.idle_since_s < moment_s:
            self._session.draining = True
            self._stop_if_done()

    async def aclose(self) -> None:
        """Close the connection and fail its exchanges."""
        if self._running is not None:
            self._stop()
            await asyncio.wait([self._running])
        self._end(None)  # the task may have been cancelled before it started
        await self._network.aclose()

    async def _run(self) -> None:
        """Read until the connection ends, then fail its streams, say goodbye and close the socket."""
        writing = asyncio.create_task(self._write(), name="http2 writes")
        error: Exception | None = None
        try:
            while data := await self._network.read(READ_BYTES):
                self._reads += 1
                before = self.room, self.usable
                try:
                    self._session.receive(data)
                finally:
                    self._flush()
                if self._session.draining and not self._session.streams:
                    break
                if before != (self.room, self.usable):
                    self._changed()
        except asyncio.CancelledError:
            pass
        except Exception as caught:  # noqa: BLE001 the streams raise it, whatever it is
            error = caught
        self._end(error)
        writing.cancel()
        await asyncio.wait([writing])
        with contextlib.suppress(httpcore2.WriteError, TimeoutError):
            self._session.part()
            async with asyncio.timeout(FAREWELL_S):
                await self._network.write(self._session.output())
        await self._network.aclose()

    async def _write(self) -> None:
        # The reader detects a closed connection: the host may have responded before it hung up.
        with contextlib.suppress(httpcore2.WriteError):
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                while out := self._session.output():
                    await self._network.write(out)
                for stream in self._sending:
                    stream.changed.set()

    def _end(self, error: Exception | None) -> None:
        """Fail all streams with the error that ended the connection; None: it was closed by either side."""
        if self.closed:
            return

        def error_of(stream: Stream) -> Exception:
            # Without any part of a response, the request may have arrived too late to be seen.
            if (error is None or isinstance(error, httpcore2.ReadError)) and not stream.heard:
                return UnansweredError(str(error or "the host closed the connection without a response"))
            return error or httpcore2.RemoteProtocolError("the host closed the connection")

        self.closed = self._stopping = True
        self._session.fail(error_of)
        self._changed()

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


class Http2Body:
    """The body of a response."""

    def __init__(self, connection: Http2Connection, request: httpcore2.Request, stream: Stream) -> None:
        self._connection = connection
        self._request = request
        self._stream = stream
        self._closed = False

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Yield it piece by piece; a piece that was read makes room for more."""
        timeout_s = _timeout_s(self._request, "read")
        try:
            async with TraceStage(self._request, "receive_response_body", self._stream.id):
                while piece := await self._connection.piece(self._stream, timeout_s):
                    yield piece
                    self._connection.taken(self._stream, len(piece))
        except BaseException:
            self._connection.drop(self._stream)
            raise

    async def aclose(self) -> None:
        """End the exchange, complete or not."""
        if not self._closed:
            self._closed = True
            self._connection.drop(self._stream)
            async with TraceStage(self._request, "response_closed", self._stream.id):
                pass


def _timeout_s(request: httpcore2.Request, which: str) -> float | None:
    timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
    return timeouts.get(which)
