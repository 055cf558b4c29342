"""An HTTP/1.1 connection: one exchange at a time, on a transport of the event loop."""

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
from fetchfleet.worker.http.net.tls_transport import left_by_reset
from fetchfleet.worker.http.request_body import BLOCK_BYTES, FileBody, MemoryBody
from fetchfleet.worker.http.wire import Header, Room
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.util.aio import LoopBudget
from fetchfleet.worker.util.clock import mono_s

MAX_UNREAD_BYTES = 256 * 1024
MAX_UNREAD_PIECES = 256
"""Beyond either, the connection is not read from until its response is."""

_SCRATCH = memoryview(bytearray(256 * 1024))  # for any connection, which copies its bytes at once

CLOCK_STEP_S = 0.001  # the clock of uvloop counts milliseconds


class Http1Connection(asyncio.BufferedProtocol):
    """A connection; `connection_made` gives it the transport.

    keepalive_s: how long it may be idle. idle: called when it is idle again. lost: called when it is closed.
    """

    __slots__ = (
        "_budget",
        "_closed",
        "_descriptor",
        "_due_s",
        "_error",
        "_idle",
        "_keepalive_s",
        "_look_s",
        "_loop",
        "_lost",
        "_made",
        "_paused_reading",
        "_paused_writing",
        "_poll",
        "_reader",
        "_received",
        "_request",
        "_room",
        "_timeouts",
        "_timer",
        "_transport",
        "_waiter",
        "address",
        "gone",
        "response_started",
    )

    _timeouts: Timeouts
    _transport: asyncio.Transport

    def __init__(
        self,
        budget: LoopBudget,
        keepalive_s: float,
        idle: Callable[["Http1Connection"], None],
        lost: Callable[["Http1Connection"], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = -1
        """Of the socket."""
        self._poll = select.poll()
        self._budget = budget
        self._keepalive_s = keepalive_s
        self._idle = idle
        self._lost = lost
        self.response_started = False
        """Whether a byte of a response to the last request has come.

        If none had when the exchange failed, and the connection had been idle, the host may have closed it
        before it received the request (RFC 9112 §9.3.1).
        """
        self.address: str | None = None
        """The host's."""
        self.gone = False
        """True if its socket is closed."""
        self._request: Request | None = None
        """The request whose response headers are awaited."""
        self._reader: ResponseReader | None = None
        """Of the response that is awaited or read; None if the connection is idle."""
        self._room: memoryview | None = None
        """Where the next bytes go, which are the body's."""
        self._received: memoryview | None = None
        """The part of the room that was filled."""
        self._waiter: asyncio.Future[None] | None = None
        """Resolved when the exchange may go on: its one wait, for whatever event."""
        self._error: FetchError | None = None
        """Why the exchange failed. What has come of the body can be read first."""
        self._made = False
        """Whether it has its transport."""
        self._closed = False
        self._paused_reading = False
        self._paused_writing = False
        self._due_s = math.inf
        """When the wait under way, or the idle connection, has lasted too long, by the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        """One for all waits: it fires at or before `_due_s`, and is set again if that is later."""
        self._look_s = math.inf
        """When it fires, by the loop's clock."""

    @property
    def usable(self) -> bool:
        """True if it is idle, and the kernel knows of neither bytes nor an end that came meanwhile."""
        idle = self._reader is None and not self._closed and self._loop.time() < self._due_s
        return idle and not self._poll.poll(0)

    async def exchange(self, request: Request) -> "Http1Response":
        """Send a request, and return the response once its header section is complete.

        If this fails or is cancelled, the connection is closed at once. Raises InvalidRequestError,
        WriteTimeoutError, FirstByteTimeoutError, ReadTimeoutError, ReadError, RemoteProtocolError or
        RequestBodyError.
        """
        assert self._reader is None
        self._request, self._timeouts, self._error = request, request.timeouts, None
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
        """Send the head and the content, block by block as the host takes them.

        A final response may come before the end: the rest is not sent, and the connection not used again.
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

    async def read(self, reader: ResponseReader, room: Room | None = None) -> Any:
        """Return what has come of the body, empty at its end; or part of the room, with no more received."""
        while not reader.pieces:
            if reader.complete:
                return b""
            if self._error is not None:
                raise self._error
            if self._reader is not reader:
                raise ReadError("the response was closed")
            if self._resume_reading():
                continue  # the transport may have passed something on at once
            if room is not None and self._transport.get_extra_info("ssl_object") is None:
                self._room = reader.part_of(room)
            try:
                await self._wait(self._timeouts.read_s)
            finally:
                self._room, received, self._received = None, self._received, None
            if received is not None:
                return received
        piece = reader.take()
        if self._paused_reading:
            self._resume_reading()
        return piece

    def _resume_reading(self) -> bool:
        """Resume it if it is paused; return whether it was."""
        if paused := self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()
        return paused

    def finish(self, reader: ResponseReader) -> None:
        """End the exchange of that response; the connection is idle then, or closed."""
        if self._reader is not reader:
            return
        self._reader = None
        if self._closed:
            return
        if not (reader.complete and reader.reusable) or self._transport.get_write_buffer_size():
            self.close()
            return
        if self._paused_reading and self._resume_reading() and self._closed:  # by bytes behind the response
            return
        self._due_s = due_s = self._loop.time() + self._keepalive_s
        if due_s < self._look_s:
            self._look_at(due_s)
        self._idle(self)

    def close(self) -> None:
        """Close it at once; an exchange that goes on fails."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reader is not None and not self._reader.complete and self._error is None:
            self._error = ReadError("the connection was closed")
        if self._made:
            self._transport.abort()
        self._wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._made = True
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._poll.register(self._descriptor, select.POLLIN)
        with contextlib.suppress(OSError):  # the host has closed the connection: the next read fails
            self.address = transport.get_extra_info("peername")[0]
        if self._closed:
            self._loop.call_soon(self._transport.abort)  # uvloop would leave the socket open now

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 the loop's guess
        """Return where the loop may put the next bytes."""
        return _SCRATCH if self._room is None else self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that the loop has put there."""
        room, self._room = self._room, None
        if room is None or self._reader is None:
            self.data_received(_SCRATCH[:nbytes].tobytes())
            return
        self.response_started = True
        self._reader.skip(nbytes)
        self._received = room[:nbytes]
        self._paused_reading = True
        self._transport.pause_reading()
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Read what has come; nothing may come while the connection is idle."""
        reader, request = self._reader, self._request
        if reader is None or self._closed:
            self.close()
            return
        self.response_started, had_head = True, reader.head is not None
        try:
            reader.feed(data)
        except RemoteProtocolError as error:
            self._fail(error)
        if reader.held_bytes > MAX_UNREAD_BYTES or len(reader.pieces) > MAX_UNREAD_PIECES:
            self._paused_reading = True
            self._transport.pause_reading()
        if request is None:
            self._wake()
        elif reader.head is None:
            if not self._paused_writing:  # else the host must first take the request in time
                self._due_s = self._loop.time() + self._timeouts.read_s
        elif not had_head:
            request.trace.head_s = mono_s()
            self._due_s = math.inf
            if self._waiter is not None and not self._waiter.done():
                self._budget.resolve(self._waiter)

    def eof_received(self) -> None:
        """Take the host's end of the connection, which ends it in both directions."""
        self._end()
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection, from either side; first what the host sent before it was reset."""
        under_tls = self._transport.get_extra_info("ssl_object") is not None
        if exc is not None and not (self._closed or under_tls) and (left := left_by_reset(self._descriptor)):
            self.data_received(left)
        if not self._closed:
            if exc is None:
                self._end()
            elif self._reader is not None and not self._reader.complete:
                self._error = ReadError(str(exc) or "the connection broke")
                self._error.__cause__ = exc
            self.close()
        self.gone = True
        self._lost(self)

    def pause_writing(self) -> None:
        """Note that the host does not take what was sent."""
        self._paused_writing = True

    def resume_writing(self) -> None:
        """Go on with sending."""
        self._paused_writing = False
        self._wake()

    def _end(self) -> None:
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
        """Return a future that is done with the next event; the exchange fails if none comes in that time."""
        self._due_s = due_s = self._loop.time() + limit_s
        if due_s < self._look_s:
            self._look_at(due_s)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _look_at(self, moment_s: float) -> None:
        """Let the timer fire at that moment, earlier than it would."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._look_s = self._loop.call_at(moment_s, self._look), moment_s

    def _look(self) -> None:
        """Look whether the wait, or the idle connection, has lasted too long."""
        self._timer, self._look_s = None, math.inf
        if self._reader is not None and (self._waiter is None or self._waiter.done()):
            return  # nothing is waited for
        if self._loop.time() < self._due_s - CLOCK_STEP_S:
            if self._due_s < math.inf:
                self._look_at(self._due_s)
        elif self._request is not None and self._paused_writing:
            late = f"a piece of the request was not taken within {self._timeouts.write_s} s"
            self._fail(WriteTimeoutError(late))
        elif self._reader is not None:
            error = ReadTimeoutError if self.response_started else FirstByteTimeoutError
            self._fail(error(f"received nothing within {self._timeouts.read_s} s"))
        else:
            self.close()


class Http1Response(msgspec.Struct, eq=False):
    """The response of an exchange on a connection, as exchange.py describes it."""

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
        """Return what has come of the body, once there is some; empty at its end."""
        return self._connection.read(self._reader)

    def receive(self, room: Room) -> Coroutine[Any, Any, bytes | memoryview]:
        """Return what has come of the body, or comes into the room; empty at its end."""
        return self._connection.read(self._reader, room)

    def close(self) -> None:
        """End the exchange: the connection is idle if the whole response has come, else it is closed."""
        self._connection.finish(self._reader)
