"""One HTTP/1.1 connection on a transport of the event loop: one exchange at a time."""

import asyncio
import contextlib
import math
import select
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, cast

import msgspec

from fetchfleet.worker.errors import (
    FetchError,
    FirstByteTimeoutError,
    ReadError,
    ReadTimeoutError,
    RemoteProtocolError,
    WriteTimeoutError,
)
from fetchfleet.worker.http.exchange import Request
from fetchfleet.worker.http.http1.messages import ResponseReader, request_head
from fetchfleet.worker.http.net.tls_transport import read_after_reset
from fetchfleet.worker.http.request_body import BLOCK_BYTES, FileBody, MemoryBody
from fetchfleet.worker.http.wire import GetBuffer, Header
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.util.aio import LoopBudget, peer_of
from fetchfleet.worker.util.clock import mono_s

MAX_UNREAD_BYTES = 256 * 1024
MAX_UNREAD_PIECES = 256
"""The maximum unread bytes and pieces of a body. Beyond either, reading from the socket pauses."""

_SCRATCH = memoryview(bytearray(256 * 1024))  # shared by all connections, which copy received bytes at once

CLOCK_STEP_S = 0.001  # the resolution of uvloop's clock


class Http1Connection(asyncio.BufferedProtocol):
    """A connection to a host.

    keepalive_s: the time after which an idle connection is closed.
    on_idle: called when the connection becomes idle. on_lost: called once the socket is closed.
    """

    __slots__ = (
        "_budget",
        "_buffer",
        "_closed",
        "_connected",
        "_descriptor",
        "_due_s",
        "_error",
        "_filled",
        "_keepalive_s",
        "_loop",
        "_on_idle",
        "_on_lost",
        "_paused_reading",
        "_paused_writing",
        "_poll",
        "_reader",
        "_request",
        "_timeouts",
        "_timer",
        "_timer_at_s",
        "_transport",
        "_waiter",
        "address",
        "peer",
        "response_started",
        "socket_closed",
    )

    _timeouts: Timeouts
    _transport: asyncio.Transport

    def __init__(
        self,
        budget: LoopBudget,
        keepalive_s: float,
        on_idle: Callable[["Http1Connection"], None],
        on_lost: Callable[["Http1Connection"], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = -1
        """The file descriptor of the socket."""
        self._poll = select.poll()
        self._budget = budget
        self._keepalive_s = keepalive_s
        self._on_idle = on_idle
        self._on_lost = on_lost
        self.response_started = False
        """True if a byte of the response was received, so that the host had the request (RFC 9112 §9.3.1)."""
        self.address: str | None = None
        """The IP address of the host."""
        self.peer: str | None = None
        """`ADDRESS:PORT` of the host."""
        self.socket_closed = False
        self._request: Request | None = None
        """The request whose response headers are awaited."""
        self._reader: ResponseReader | None = None
        """The reader of the response that is awaited or read; None if the connection is idle."""
        self._buffer: memoryview | None = None
        """The caller's memory for the next bytes, which belong to the body."""
        self._filled: memoryview | None = None
        """The part of the caller's memory that was filled."""
        self._waiter: asyncio.Future[None] | None = None
        """Resolved by the next event of the exchange."""
        self._error: FetchError | None = None
        """The error of the exchange. Body bytes received before it can be read first."""
        self._connected = False
        self._closed = False
        self._paused_reading = False
        self._paused_writing = False
        self._due_s = math.inf
        """The time when the current wait times out, or the idle connection is closed, by the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        """The only timer. It fires at or before `_due_s`, and is set again if it fires too early."""
        self._timer_at_s = math.inf
        """The time when the timer fires, by the loop's clock."""

    @property
    def usable(self) -> bool:
        """True if the connection is idle, and the kernel has neither unread bytes nor an end for it."""
        idle = self._reader is None and not self._closed and self._loop.time() < self._due_s
        return idle and not self._poll.poll(0)

    async def exchange(self, request: Request) -> "Http1Response":
        """Send a request, and return the response once its header section is complete.

        An error or a cancellation closes the connection at once. Raises InvalidRequestError,
        WriteTimeoutError, FirstByteTimeoutError, ReadTimeoutError, ReadError, RemoteProtocolError or
        RequestBodyError.
        """
        assert self._reader is None
        self._request, self._timeouts, self._error = request, request.timeouts, None
        request.trace.peer = self.peer
        self.response_started = False
        self._due_s = math.inf  # no longer idle
        if self._closed:
            raise ReadError("the connection was closed")
        reader = self._reader = ResponseReader(request.method)
        try:
            head = request_head(request.method, request.target, request.headers)
            if request.content is None:
                self._transport.write(head)
            else:
                await self._send(head, request.content, reader)
            while reader.head is None and self._error is None:
                await self._wait(self._timeouts.read_s)
        except BaseException:
            self.close()
            raise
        if (final := reader.head) is None:
            raise cast(FetchError, self._error)
        self._request = None
        head_of = (final.status, final.phrase, final.version, final.fields, final.by_name)
        return Http1Response(self, reader, *head_of, reader.lenient, self.address)

    async def _send(self, head: bytes, content: MemoryBody | FileBody, reader: ResponseReader) -> None:
        """Send the head and the body block by block, as the host reads them.

        After an early final response the rest is not sent, and the connection is not reused.
        """
        async with contextlib.aclosing(aiter(content)) as blocks:
            async for block in blocks:
                if head and len(block) > BLOCK_BYTES:
                    self._transport.write(head)
                    head = b""
                self._transport.write(head + block)
                head = b""
                while self._paused_writing and reader.head is None and self._error is None:
                    await self._wait(self._timeouts.write_s)
                if reader.head is not None or self._error is not None:
                    reader.reusable = False
                    return
        if head:
            self._transport.write(head)

    async def read(self, reader: ResponseReader, get_buffer: GetBuffer | None = None) -> Any:
        """Return the next piece of the body, maybe the filled part of a buffer; empty at its end."""
        while not reader.pieces:
            if reader.complete:
                return b""
            if self._error is not None:
                raise self._error
            if self._reader is not reader:
                raise ReadError("the response was closed")
            if self._resume_reading():
                continue  # the transport may have passed bytes on at once
            if get_buffer is not None and self._transport.get_extra_info("ssl_object") is None:
                self._buffer = reader.body_buffer(get_buffer)
            try:
                await self._wait(self._timeouts.read_s)
            finally:
                self._buffer, filled, self._filled = None, self._filled, None
            if filled is not None:
                return filled
        piece = reader.take()
        if self._paused_reading:
            self._resume_reading()
        return piece

    def _resume_reading(self) -> bool:
        """Resume reading from the socket if it is paused; return whether it was."""
        if paused := self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()
        return paused

    def finish(self, reader: ResponseReader) -> None:
        """End the exchange of a response: the connection becomes idle, or closes if it cannot be reused."""
        if self._reader is not reader:
            return
        self._reader = None
        if self._closed:
            return
        if not (reader.complete and reader.reusable) or self._transport.get_write_buffer_size():
            self.close()
            return
        if self._paused_reading and self._resume_reading() and self._closed:  # bytes followed the response
            return
        self._due_s = due_s = self._loop.time() + self._keepalive_s
        if due_s < self._timer_at_s:
            self._set_timer(due_s)
        self._on_idle(self)

    def close(self) -> None:
        """Close the connection at once, and fail its exchange."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reader is not None and not self._reader.complete and self._error is None:
            self._error = ReadError("the connection was closed")
        if self._connected:
            self._transport.abort()
        self._wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._connected = True
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._poll.register(self._descriptor, select.POLLIN)
        with contextlib.suppress(OSError):  # the host has closed the connection: the next read fails
            self.address = transport.get_extra_info("peername")[0]
        self.peer = peer_of(transport)
        if self._closed:
            self._loop.call_soon(self._transport.abort)  # uvloop would leave the socket open if aborted now

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 part of the interface
        """Return the memory for the next bytes."""
        return _SCRATCH if self._buffer is None else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Process the bytes that were received into the memory."""
        buffer, self._buffer = self._buffer, None
        if buffer is None or self._reader is None:
            self.data_received(_SCRATCH[:nbytes].tobytes())
            return
        self.response_started = True
        self._reader.count_buffered(nbytes)
        self._filled = buffer[:nbytes]
        self._paused_reading = True
        self._transport.pause_reading()
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Read received bytes. Bytes that arrive while the connection is idle close it."""
        reader, request = self._reader, self._request
        if reader is None or self._closed:
            self.close()
            return
        self.response_started, had_head = True, reader.head is not None
        try:
            reader.feed(data)
        except RemoteProtocolError as error:
            self._fail(error)
        if reader.unread_bytes > MAX_UNREAD_BYTES or len(reader.pieces) > MAX_UNREAD_PIECES:
            self._paused_reading = True
            self._transport.pause_reading()
        if request is None:
            self._wake()
        elif reader.head is None:
            if not self._paused_writing:  # else the write timeout applies
                self._due_s = self._loop.time() + self._timeouts.read_s
        elif not had_head:
            request.trace.head_s = mono_s()
            self._due_s = math.inf
            if self._waiter is not None and not self._waiter.done():
                self._budget.resolve(self._waiter)

    def eof_received(self) -> None:
        """Close the connection, as the host has closed its side."""
        self._end_response()
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange, after the bytes that the host sent before a reset."""
        under_tls = self._transport.get_extra_info("ssl_object") is not None
        was_reset = exc is not None and not (self._closed or under_tls)
        if was_reset and (unread := read_after_reset(self._descriptor)):
            self.data_received(unread)
        if not self._closed:
            if exc is None:
                self._end_response()
            elif self._reader is not None and not self._reader.complete:
                self._error = ReadError(str(exc) or "the connection was lost")
                self._error.__cause__ = exc
            self.close()
        self.socket_closed = True
        self._on_lost(self)

    def pause_writing(self) -> None:
        """Stop sending the request body, as the host does not read."""
        self._paused_writing = True

    def resume_writing(self) -> None:
        """Continue sending the request body."""
        self._paused_writing = False
        self._wake()

    def _end_response(self) -> None:
        if self._reader is not None and not self._closed:
            try:
                self._reader.end()
            except RemoteProtocolError as error:
                self._error = error

    def _fail(self, error: FetchError) -> None:
        self._error = error
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wait(self, limit_s: float) -> asyncio.Future[None]:
        """Return a future that the next event resolves. After `limit_s` without one, the exchange fails."""
        self._due_s = due_s = self._loop.time() + limit_s
        if due_s < self._timer_at_s:
            self._set_timer(due_s)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _set_timer(self, at_s: float) -> None:
        """Make the timer fire at this time of the loop's clock."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at_s = self._loop.call_at(at_s, self._on_timer), at_s

    def _on_timer(self) -> None:
        """Time out the current wait, or close the idle connection, once it is due."""
        self._timer, self._timer_at_s = None, math.inf
        if self._reader is not None and (self._waiter is None or self._waiter.done()):
            return  # the exchange does not wait
        if self._loop.time() < self._due_s - CLOCK_STEP_S:
            if self._due_s < math.inf:
                self._set_timer(self._due_s)
        elif self._request is not None and self._paused_writing:
            message = f"the host did not read a block of the request body within {self._timeouts.write_s} s"
            self._fail(WriteTimeoutError(message))
        elif self._reader is not None:
            error = ReadTimeoutError if self.response_started else FirstByteTimeoutError
            self._fail(error(f"received nothing within {self._timeouts.read_s} s"))
        else:
            self.close()


class Http1Response(msgspec.Struct, eq=False):
    """A response on a connection; see `Response` in exchange.py."""

    _connection: Http1Connection
    _reader: ResponseReader
    status: int
    phrase: bytes
    version: str
    headers: Sequence[Header]
    by_name: Mapping[bytes, bytes]
    lenient: bool
    address: str | None

    @property
    def ended(self) -> bool:
        """True if the whole body has been read."""
        return self._reader.complete and not self._reader.pieces

    def read(self) -> Coroutine[Any, Any, bytes]:
        """Return the next piece of the body, empty at its end."""
        return self._connection.read(self._reader)

    def receive(self, get_buffer: GetBuffer) -> Coroutine[Any, Any, bytes | memoryview]:
        """Return the next piece of the body, empty at its end; it may be in the buffer of `get_buffer`."""
        return self._connection.read(self._reader, get_buffer)

    def close(self) -> None:
        """End the exchange, complete or not. The connection stays open if it can be reused."""
        self._connection.finish(self._reader)
