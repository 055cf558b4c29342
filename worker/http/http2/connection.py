"""One HTTP/2 connection on a transport of the event loop.

A stream that is cancelled, stalls or times out does not affect other streams. A connection has one timer and
no task.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from fetchfleet.worker.errors import (
    FetchError,
    FirstByteTimeoutError,
    ReadError,
    ReadTimeoutError,
    RemoteProtocolError,
    WriteTimeoutError,
)
from fetchfleet.worker.http.exchange import Request
from fetchfleet.worker.http.http1.messages import by_name
from fetchfleet.worker.http.http2.headers import ResponseHead, request_fields
from fetchfleet.worker.http.http2.stream import NoResponseError, RefusedError, Stream
from fetchfleet.worker.http.request_body import FileBody, MemoryBody
from fetchfleet.worker.http.wire import GetBuffer, Header
from fetchfleet.worker.util.aio import LoopBudget, peer_of
from fetchfleet.worker.util.clock import mono_s

GOAWAY_TIMEOUT_S = 0.2
"""The maximum time for sending GOAWAY before the connection is aborted."""
TIMER_TOLERANCE_S = 0.002
"""The tolerance for timers of the loop, which may fire too early."""


class Http2Connection(asyncio.Protocol):
    """A connection on which HTTP/2 was negotiated.

    changed: called when the number of free streams may have changed, or the connection has closed.
    lost: called once the socket is closed.
    """

    def __init__(
        self,
        budget: LoopBudget,
        keepalive_s: float,
        changed: Callable[[], None],
        lost: Callable[["Http2Connection"], None],
    ) -> None:
        from fetchfleet.worker.http.http2.session import Session  # noqa: PLC0415 it loads h2: most workers need none

        self.closed = False
        self._budget = budget
        self._keepalive_s = keepalive_s
        self._changed = changed
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._address: str | None = None
        self._peer: str | None = None
        self._session = Session()
        self._sending: set[Stream] = set()
        self._writes_are_paused = False
        self._reads = 0
        self._idle_since_s = self._loop.time()
        """The time when the last exchange ended, by the loop's clock. Valid while the connection is idle."""
        self._timer: asyncio.TimerHandle | None = None
        """Fires at or before the first timeout of a waiting stream, or the end of an idle connection."""
        self._timer_at_s = 0.0
        """The time when the timer fires, by the loop's clock."""

    @property
    def free_streams(self) -> int:
        """The number of further exchanges that the connection takes now."""
        return self._session.free_streams if self.usable else 0

    @property
    def usable(self) -> bool:
        """True if the connection may take another exchange, now or after another one ends."""
        if self.closed or self._session.draining:
            return False
        return bool(self._session.streams) or self._loop.time() < self._idle_since_s + self._keepalive_s

    @property
    def has_settings(self) -> bool:
        """True if the host has sent its settings, which state the number of streams that it allows."""
        return self._session.has_settings

    async def exchange(self, request: Request) -> "Http2Response":
        """Send a request, and return its response once the headers are complete.

        The caller has checked `free_streams`. Raises RefusedError, NoResponseError or a FetchError.
        """
        request.trace.peer = self._peer
        if self.closed:  # the host's first bytes closed it
            raise RefusedError("the host closed the connection")
        content = request.content
        fields = request_fields(request.method, request.scheme, request.target, request.headers)
        stream = self._session.open(fields, request.method, has_body=content is not None)
        try:
            self._flush()
            if content is not None:
                await self._send_body(content, stream, request.timeouts.write_s)
            while stream.head is None:
                timeout_error = ReadTimeoutError if stream.response_started else FirstByteTimeoutError
                await self._wait(stream, request.timeouts.read_s, timeout_error)
            request.trace.head_s = mono_s()
            await self._budget.take()
        except BaseException:
            self.drop(stream)
            raise
        return Http2Response(self, stream, stream.head, request.timeouts.read_s, self._address)

    async def _send_body(self, content: MemoryBody | FileBody, stream: Stream, timeout_s: float) -> None:
        """Send the request body, or less if the host ends its response early (RFC 9113 §8.1)."""
        self._sending.add(stream)
        blocks: Any = aiter(content)
        async with contextlib.aclosing(blocks):
            async for block in blocks:
                unsent = memoryview(block)
                while unsent and not stream.done and not self.closed:
                    sendable_bytes = 0 if self._writes_are_paused else self._session.sendable_bytes(stream)
                    if not sendable_bytes:
                        await self._wait(stream, timeout_s, WriteTimeoutError)
                        continue
                    self._session.send(stream, unsent[:sendable_bytes])
                    self._flush()
                    unsent = unsent[sendable_bytes:]
                if unsent:  # the host does not read the rest
                    break
            else:
                self._session.send(stream, b"", last=True)
                self._flush()
        self._sending.discard(stream)

    async def read(self, stream: Stream, timeout_s: float) -> bytes:
        """Return the next piece of the response body, b"" at its end, and return its window to the host."""
        while not stream.unread and not stream.ended:
            await self._wait(stream, timeout_s, ReadTimeoutError)
        piece = stream.take()
        self._session.return_window(stream, len(piece))
        self._flush()
        return piece

    async def _wait(self, stream: Stream, timeout_s: float, timeout_error: type[FetchError]) -> None:
        """Wait for a change of the stream. Raises its error, or `timeout_error` after `timeout_s`.

        A connection that received nothing in that time takes no more exchanges.
        """
        if (error := stream.error) is not None:
            raise type(error)(*error.args) from error.__cause__  # a copy, as streams may share the error
        reads = self._reads
        stream.waiter = self._loop.create_future()
        stream.timeout_at_s = self._loop.time() + timeout_s
        self._set_timer(stream.timeout_at_s)
        try:
            in_time = await stream.waiter
        finally:
            stream.waiter = None
        if not in_time:
            if reads == self._reads:
                self._session.draining = True
            raise timeout_error(f"no progress within {timeout_s} s")

    def drop(self, stream: Stream) -> None:
        """Forget an exchange, complete or not; a second call does nothing."""
        self._sending.discard(stream)
        if stream.id in self._session.streams:
            self._session.drop(stream)
            stream.fail(ReadError("the response was closed"))
            self._flush()
            if not self._session.streams:
                self._idle_since_s = self._loop.time()
                self._set_timer(self._idle_since_s + self._keepalive_s)
            self._close_if_done()
            self._changed()

    def close(self) -> None:
        """Fail the exchanges, send GOAWAY and close; a second call does nothing."""
        self._end(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface (RFC 9113 §3.4)."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if peer else None
        self._peer = peer_of(transport)
        self._flush()
        self._set_timer(self._idle_since_s + self._keepalive_s)

    def data_received(self, data: bytes) -> None:
        """Process received bytes, of any streams; a violation of the protocol ends the connection."""
        if self.closed:
            return
        self._reads += 1
        before = self.free_streams, self.usable
        try:
            self._session.receive(data)
        except RemoteProtocolError as error:
            self._end(error)
            return
        self._flush()
        self._close_if_done()
        if before != (self.free_streams, self.usable):
            self._changed()

    def eof_received(self) -> None:
        """Close the connection, as the host has closed its side."""
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchanges that have not ended."""
        if exc is not None:
            error = ReadError(str(exc) or type(exc).__name__)
            error.__cause__ = exc
            exc = error
        self._end(exc)
        if self._timer is not None:
            self._timer.cancel()
        self._lost(self)

    def pause_writing(self) -> None:
        """Buffer outgoing frames, as the host does not read."""
        self._writes_are_paused = True

    def resume_writing(self) -> None:
        """Send the buffered frames, and wake the exchanges that send a body."""
        self._writes_are_paused = False
        self._flush()
        for stream in self._sending:
            stream.notify()

    def _flush(self) -> None:
        if self._session.unsent_bytes and not self._writes_are_paused:
            self._transport.write(self._session.output())

    def _close_if_done(self) -> None:
        if self._session.draining and not self._session.streams:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        """Fail all streams and close the connection. error: None if either side closed it."""
        if self.closed:
            return

        def error_of(stream: Stream) -> Exception:
            # Without any part of a response, the host may have closed before it received the request.
            if (error is None or isinstance(error, ReadError)) and not stream.response_started:
                return NoResponseError(str(error or "the host closed the connection without a response"))
            return error or RemoteProtocolError("the host closed the connection")

        self.closed = True
        self._session.fail(error_of)
        self._session.send_goaway()
        self._flush()
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport.get_write_buffer_size():
            self._timer = self._loop.call_later(GOAWAY_TIMEOUT_S, self._transport.abort)
        self._changed()

    def _set_timer(self, at_s: float) -> None:
        """Make the timer fire at this time of the loop's clock, or keep an earlier one."""
        if self.closed or (self._timer is not None and self._timer_at_s <= at_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at_s = self._loop.call_at(at_s, self._on_timer), at_s

    def _on_timer(self) -> None:
        """Time out the waits that have lasted too long, or close a connection that was idle for too long."""
        self._timer = None
        now_s = self._loop.time() + TIMER_TOLERANCE_S
        waiting = [stream for stream in self._session.streams.values() if stream.waiter is not None]
        for stream in waiting:
            if stream.timeout_at_s <= now_s:
                stream.notify(in_time=False)
            else:
                self._set_timer(stream.timeout_at_s)
        if not self._session.streams:
            idle_until_s = self._idle_since_s + self._keepalive_s
            if idle_until_s <= now_s:
                self._end(None)
            else:
                self._set_timer(idle_until_s)


class Http2Response:
    """A response whose headers are complete."""

    phrase = b""
    version = "HTTP/2"
    lenient = False

    def __init__(
        self,
        connection: Http2Connection,
        stream: Stream,
        head: ResponseHead,
        read_s: float,
        address: str | None,
    ) -> None:
        self.status = head.status
        self.headers: Sequence[Header] = head.fields
        self.by_name: Mapping[bytes, bytes] = by_name(head.fields)
        self.address = address
        self._connection = connection
        self._stream = stream
        self._read_s = read_s

    @property
    def ended(self) -> bool:
        """True if the whole body has been read."""
        return self._stream.ended and not self._stream.unread

    async def read(self) -> bytes:
        """Return the next piece of the body, empty at its end.

        Raises ReadError, ReadTimeoutError or RemoteProtocolError.
        """
        return await self._connection.read(self._stream, self._read_s)

    async def receive(self, get_buffer: GetBuffer) -> bytes:  # noqa: ARG002 frames interleave the data
        """Return the next piece of the body, like `read`."""
        return await self.read()

    def close(self) -> None:
        """End the exchange, complete or not; a second call does nothing."""
        self._connection.drop(self._stream)
