"""One exchange on a connection: the part of its response that has arrived and is not yet read."""

import asyncio

from fetchfleet.worker.errors import RemoteProtocolError
from fetchfleet.worker.http.http2.headers import ResponseHead

MAX_INTERIM = 100
"""The most interim responses (1xx, RFC 9110 §15.2) that are accepted before the final one."""

SMALL_BYTES = 1024
"""A piece of a body that is smaller is put together with the next."""


class RefusedError(Exception):
    """The host has not begun this request (RFC 9113 §8.7): any request may be repeated."""


class NoResponseError(Exception):
    """The connection ended before any frame of a response; the host may have seen the request."""


class Stream:
    """The state of one response; its unread body is bounded by the window of the stream."""

    def __init__(self, stream_id: int, method: str, window_bytes: int) -> None:
        self.id = stream_id
        self.method = method
        self.head: ResponseHead | None = None
        self.response_started = False
        """Whether any part of a response came, if only an interim one."""
        self.ended = False
        self.error: Exception | None = None
        """Raised once the body received before it is read."""
        self.owed_bytes = 0
        """Read, and not yet returned to the host as window."""
        self.window_bytes = window_bytes
        """How much more the host may send."""
        self.waiter: asyncio.Future[bool] | None = None
        """The future that the exchange awaits: true for a change, false if it is too late."""
        self.late_at_s = 0.0
        """When it is too late, on the loop's clock."""
        self.unread: list[bytes] = []
        """The part of the body that has arrived and is not yet read."""
        self._interim = 0
        self._received_bytes = 0

    @property
    def over(self) -> bool:
        """True if nothing more can arrive."""
        return self.ended or self.error is not None

    def receive_interim(self) -> None:
        """Count an interim response; raises RemoteProtocolError after MAX_INTERIM of them."""
        self.response_started = True
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise RemoteProtocolError(f"more than {MAX_INTERIM} interim responses")
        self.notify()

    def receive_head(self, head: ResponseHead) -> None:
        """Take the header section of the response."""
        self.response_started, self.head = True, head
        self.notify()

    def receive_data(self, data: bytes, size_bytes: int) -> None:
        """Take a piece of the body, which used `size_bytes` of the window.

        Raises RemoteProtocolError if it exceeds the window or the declared length.
        """
        self.window_bytes -= size_bytes
        self.owed_bytes += size_bytes - len(data)
        self._received_bytes += len(data)
        if self.head is None or self.window_bytes < 0:
            raise RemoteProtocolError("DATA before the headers, or beyond the window")
        expected_bytes = self.head.length_bytes
        if expected_bytes is not None and self._received_bytes > expected_bytes:
            raise RemoteProtocolError(f"more than the declared {expected_bytes} bytes")
        if not data:  # an empty frame, or padding alone, is no end
            return
        if self.unread and len(self.unread[-1]) < SMALL_BYTES:  # else many small pieces would use much memory
            self.unread[-1] += data
        else:
            self.unread.append(data)
        self.notify()

    def receive_end(self) -> None:
        """End the response; raises RemoteProtocolError if it is incomplete."""
        expected_bytes = self.head.length_bytes if self.head else None
        if self.head is None:
            raise RemoteProtocolError("a response without headers")
        if expected_bytes is not None and self._received_bytes != expected_bytes:
            raise RemoteProtocolError(f"received {self._received_bytes} of {expected_bytes} bytes")
        self.ended = True
        self.notify()

    def fail(self, error: Exception) -> None:
        """End the stream with an error; only the first counts, and none after the end."""
        if not self.over:
            self.error = error
            self.notify()

    def credit(self) -> int:
        """Return the bytes owed to the host, and add them to the window."""
        owed_bytes, self.owed_bytes = self.owed_bytes, 0
        self.window_bytes += owed_bytes
        return owed_bytes

    def take(self) -> bytes:
        """Read all of the body that has arrived."""
        piece = self.unread[0] if len(self.unread) == 1 else b"".join(self.unread)
        self.unread.clear()
        return piece

    def notify(self, *, in_time: bool = True) -> None:
        """Wake the exchange, if it waits."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(in_time)
