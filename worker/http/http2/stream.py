"""One exchange on a connection: what has come of its answer and is not yet taken."""

import asyncio

import httpcore2

from fetchfleet.worker.http.http2.headers import Head

MAX_INTERIM = 100
"""So many interim heads (1xx, RFC 9110 §15.2) are waited through; no host has more to say."""


class RefusedError(Exception):
    """The host says that it has not begun this request (RFC 9113 §8.7): any may be made again."""


class UnansweredError(Exception):
    """The connection ended before a frame of an answer came; nobody knows whether the host saw it."""


class Stream:
    """What came of one answer; what waits to be taken is bounded by the window that it is given."""

    def __init__(self, stream_id: int, method: bytes, window_bytes: int) -> None:
        self.id = stream_id
        self.method = method
        self.head: Head | None = None
        self.heard = False
        """Whether anything came of an answer, if only an interim head."""
        self.ended = False
        self.error: Exception | None = None
        """Told once what had come before is taken."""
        self.owed_bytes = 0
        """Taken, and not yet given back as window."""
        self.window_bytes = window_bytes
        """So much more may come."""
        self.changed = asyncio.Event()
        """Set when there is more to it."""
        self._interim = 0
        self._came_bytes = 0
        self._waiting = bytearray()

    @property
    def over(self) -> bool:
        """Whether nothing more can come."""
        return self.ended or self.error is not None

    def interim_came(self) -> None:
        """An interim head; raises httpcore2.RemoteProtocolError for one too many."""
        self.heard = True
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise httpcore2.RemoteProtocolError(f"more than {MAX_INTERIM} interim heads")

    def head_came(self, head: Head) -> None:
        """The head of the answer."""
        self.heard, self.head = True, head
        self.changed.set()

    def data_came(self, data: bytes, size_bytes: int) -> None:
        """A piece of the body, which took so much of the window.

        Raises httpcore2.RemoteProtocolError for more than was announced, allowed or asked for.
        """
        self.window_bytes -= size_bytes
        self.owed_bytes += size_bytes - len(data)
        self._came_bytes += len(data)
        if self.head is None or self.window_bytes < 0:
            raise httpcore2.RemoteProtocolError("a body before its head, or beyond its window")
        expected_bytes = self.head.length_bytes
        if expected_bytes is not None and self._came_bytes > expected_bytes:
            raise httpcore2.RemoteProtocolError(f"more than the {expected_bytes} bytes announced")
        self._waiting += data
        self.changed.set()

    def end_came(self) -> None:
        """The answer is whole; raises httpcore2.RemoteProtocolError where it cannot be."""
        expected_bytes = self.head.length_bytes if self.head else None
        if self.head is None:
            raise httpcore2.RemoteProtocolError("an end without a head")
        if expected_bytes is not None and self._came_bytes != expected_bytes:
            raise httpcore2.RemoteProtocolError(f"{self._came_bytes} of {expected_bytes} bytes came")
        self.ended = True
        self.changed.set()

    def fail(self, error: Exception) -> None:
        """Nothing more comes; the first reason counts, and none after the end."""
        if not self.over:
            self.error = error
            self.changed.set()

    def credit(self) -> int:
        """What is owed, which is owed no more."""
        owed_bytes, self.owed_bytes = self.owed_bytes, 0
        self.window_bytes += owed_bytes
        return owed_bytes

    def take(self, max_bytes: int) -> bytes:
        """What has come of the body, at most so much of it."""
        piece = bytes(self._waiting[:max_bytes])
        del self._waiting[:max_bytes]
        return piece
