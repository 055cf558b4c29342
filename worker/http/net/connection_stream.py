"""One layer over each connection of a worker: limits, fairness and counts, whatever lies below (TCP or TLS).

The HTTP/1.1 parser bounds the header section of one response, but not the number of interim responses
(1xx, RFC 9110 §15.2) before it. Without the bound of this module, a host that sends only those would keep a
worker busy for the whole timeout of the attempt.
"""

import ssl
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

import httpcore2

from fetchfleet.worker.errors import FirstByteTimeoutError
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.field_lines import HEAD_END, HTTP1, PLAIN_HEAD, FramingError, repaired
from fetchfleet.worker.http.net.loop_budget import LoopBudget
from fetchfleet.worker.util.clock import mono_s

MAX_HEAD_BYTES = 512 * 1024
"""Larger than the largest accepted header section plus one read of the body."""

MAX_HELD_BYTES = 100 * 1024
"""The longest head that is repaired: the parser refuses one of this length that has not ended."""

# State of the exchange that runs in this task. A context variable, because a connection does not know
# which exchange reads from it.
_head_left_bytes: ContextVar[int | None] = ContextVar("head_left_bytes", default=None)
_dialled: ContextVar[bool] = ContextVar("dialled", default=False)

_DIALLING = "connection.connect_tcp.started"
_AWAITING_HEAD = "http11.receive_response_headers.started"
_HEAD_COMPLETE = "http11.receive_response_headers.complete"

HEAD_EVENTS = frozenset({_DIALLING, _AWAITING_HEAD, _HEAD_COMPLETE})
"""The trace events that `follow_head` needs."""


def begin_exchange() -> None:
    """Reset the state of the exchange that runs in this task."""
    _head_left_bytes.set(None)
    _dialled.set(False)


def follow_head(event: str) -> None:
    """Follow one of HEAD_EVENTS: bytes count against the limit while response headers are awaited."""
    if event == _DIALLING:
        _dialled.set(True)
    elif event == _AWAITING_HEAD:
        _head_left_bytes.set(MAX_HEAD_BYTES)
    elif event == _HEAD_COMPLETE:
        _head_left_bytes.set(None)


def reused_without_response() -> bool:
    """Return whether the exchange reused a connection and received no byte of a response."""
    return not _dialled.get() and _head_left_bytes.get() == MAX_HEAD_BYTES


class ConnectionStream(httpcore2.AsyncNetworkStream):
    """A connection to a host, counted as open until it is closed."""

    def __init__(
        self, stream: httpcore2.AsyncNetworkStream, stats: ConnectionStats, loop_budget: LoopBudget
    ) -> None:
        self._stream = stream
        self._stats = stats
        self._loop_budget = loop_budget
        self._closed = False
        self._held = bytearray()
        """The part of a head that has come."""
        self._odd_head = False
        """Whether a head was odd, so that the connection must not be reused."""
        stats.opened += 1

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 httpcore2's
        """Return the next bytes, empty at the end; of a head, without odd field lines.

        Raises httpcore2.RemoteProtocolError when a header section does not end within MAX_HEAD_BYTES or its
        framing is in doubt, FirstByteTimeoutError when no byte of a response arrives in time, and the errors
        of the stream below.
        """
        while True:
            try:
                data = await self._stream.read(max_bytes, timeout)
            except httpcore2.ReadTimeout:
                if _head_left_bytes.get() == MAX_HEAD_BYTES:
                    raise FirstByteTimeoutError(f"received nothing within {timeout} s") from None
                raise
            left_bytes = _head_left_bytes.get()
            if left_bytes is not None:
                if len(data) > left_bytes:
                    raise httpcore2.RemoteProtocolError(f"no response headers within {MAX_HEAD_BYTES} bytes")
                _head_left_bytes.set(left_bytes - len(data))
            await self._loop_budget.take()
            if left_bytes is None or (not self._held and PLAIN_HEAD.match(data)):
                return data
            if (ready := self._of_head(data)) is not None:
                return ready

    def _of_head(self, data: bytes) -> bytes | None:
        """Return the bytes of a head that can be parsed, None to wait for more; empty at the end."""
        begin = max(0, len(self._held) - len(b"\n\r"))
        self._held += data
        if self._held.startswith((b"\r", b"\n")):  # empty lines before a head mean nothing
            self._odd_head = True
            self._held[:] = self._held.lstrip(b"\r\n")
            if not self._held and data:
                return None
        end = HEAD_END.search(self._held, begin)
        head_bytes = len(self._held) if end is None else end.end()
        ready, left = bytes(self._held), b""
        if data and head_bytes <= MAX_HELD_BYTES:
            if end is None and self._held.startswith(HTTP1):
                return None
            try:
                ready, left, odd = repaired(ready)
            except FramingError as error:
                raise httpcore2.RemoteProtocolError(str(error)) from error
            self._odd_head = self._odd_head or odd
        self._held[:] = left
        return ready if ready or not data else None

    def write(self, buffer: bytes, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Send all of it."""
        return self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._stats.closed += 1
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2's signature
    ) -> httpcore2.AsyncNetworkStream:
        """Continue this connection under TLS; close it if the handshake fails or is cancelled.

        httpcore2 closes it on errors only: a cancelled handshake would leave its socket open.
        """
        began_s = mono_s()
        try:
            self._stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self.aclose()
            raise
        self._stats.tls_s.add(mono_s() - began_s)
        return self

    def get_extra_info(self, info: str) -> Any:
        """Return the information of the stream below, or `odd_head`: whether to close after this response."""
        return self._odd_head if info == "odd_head" else self._stream.get_extra_info(info)
