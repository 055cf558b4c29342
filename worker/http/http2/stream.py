"""One stream of a connection: the state of its response, and the body bytes that are not yet read."""

import asyncio

from fetchfleet.worker.errors import RemoteProtocolError
from fetchfleet.worker.http.http2.headers import ResponseHead

MAX_INTERIM = 100
"""The maximum number of interim responses (1xx, RFC 9110 §15.2) before the final one."""

SMALL_BYTES = 1024
"""A smaller piece of a body is joined with the next one: many small pieces would use much memory."""


class RefusedError(Exception):
    """The host has not processed the request, so any request may be repeated (RFC 9113 §8.7)."""


class NoResponseError(Exception):
    """The connection ended before any frame of a response; the host may have processed the request."""


class Stream:
    """The state of one response; its unread body is bounded by the window of the stream."""

    def __init__(self, stream_id: int, method: str, window_bytes: int) -> None:
        self.id = stream_id
        self.method = method
        self.head: ResponseHead | None = None
        self.response_started = False
        """True if any part of a response was received, even an interim one."""
        self.ended = False
        """True if the response is complete."""
        self.error: Exception | None = None
        """Raised after the body bytes received before it are read."""
        self.owed_bytes = 0
        """Bytes that were read and are not yet returned to the window."""
        self.window_bytes = window_bytes
        """The number of bytes that the host may send."""
        self.waiter: asyncio.Future[bool] | None = None
        """The future that the exchange awaits: true for a change, false after a timeout."""
        self.timeout_at_s = 0.0
        """The time when the wait times out, by the loop's clock."""
        self.unread: list[bytes] = []
        """The pieces of the body that are not yet read."""
        self._interim = 0
        self._received_bytes = 0

    @property
    def done(self) -> bool:
        """True if the response is complete or has failed: nothing more can arrive."""
        return self.ended or self.error is not None

    def receive_interim(self) -> None:
        """Count an interim response. Raises RemoteProtocolError if there are more than MAX_INTERIM."""
        self.response_started = True
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise RemoteProtocolError(f"received more than {MAX_INTERIM} interim responses")
        self.notify()

    def receive_head(self, head: ResponseHead) -> None:
        """Set the header section of the response."""
        self.response_started, self.head = True, head
        self.notify()

    def receive_data(self, data: bytes, size_bytes: int) -> None:
        """Add a piece of the body, which used `size_bytes` of the window.

        Raises RemoteProtocolError if the body exceeds the window or the declared length.
        """
        self.window_bytes -= size_bytes
        self.owed_bytes += size_bytes - len(data)
        self._received_bytes += len(data)
        if self.head is None or self.window_bytes < 0:
            raise RemoteProtocolError("received DATA before the headers, or beyond the window")
        expected_bytes = self.head.length_bytes
        if expected_bytes is not None and self._received_bytes > expected_bytes:
            raise RemoteProtocolError(f"received more than the declared {expected_bytes} bytes")
        if not data:  # an empty piece would mark the end of the body
            return
        if self.unread and len(self.unread[-1]) < SMALL_BYTES:
            self.unread[-1] += data
        else:
            self.unread.append(data)
        self.notify()

    def receive_end(self) -> None:
        """End the response. Raises RemoteProtocolError if it is incomplete."""
        expected_bytes = self.head.length_bytes if self.head else None
        if self.head is None:
            raise RemoteProtocolError("received the end of a response without headers")
        if expected_bytes is not None and self._received_bytes != expected_bytes:
            raise RemoteProtocolError(f"received {self._received_bytes} of {expected_bytes} bytes")
        self.ended = True
        self.notify()

    def fail(self, error: Exception) -> None:
        """End the stream with an error, unless it is done."""
        if not self.done:
            self.error = error
            self.notify()

    def credit(self) -> int:
        """Return the number of owed bytes, and add them to the window."""
        owed_bytes, self.owed_bytes = self.owed_bytes, 0
        self.window_bytes += owed_bytes
        return owed_bytes

    def take(self) -> bytes:
        """Return the body bytes received since the last call."""
        piece = self.unread[0] if len(self.unread) == 1 else b"".join(self.unread)
        self.unread.clear()
        return piece

    def notify(self, *, in_time: bool = True) -> None:
        """Wake the exchange if it waits. in_time: false for a timeout."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(in_time)
