"""One exchange: a request, its response as a fetch sees it, and the timings of an attempt."""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Timings
from fetchfleet.worker.errors import BadAnswerError, FetchError, RemoteProtocolError
from fetchfleet.worker.http.http1.messages import UNTIL_CLOSE, body_length
from fetchfleet.worker.http.request_body import FileBody, MemoryBody
from fetchfleet.worker.http.wire import Header, Room, Wire
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.util.clock import mono_s

DISCARD_BYTES = 64 * 1024
DISCARD_S = 0.5
"""An unwanted body is read up to these bounds, so that its connection can be reused."""

MIN_STATUS, MAX_STATUS = 200, 599
"""The status codes of a final response (RFC 9110 §15)."""

FIRST_COUNTS = frozenset(
    {
        *("content-type", "date", "last-modified", "location", "retry-after"),
        *("ratelimit-remaining", "ratelimit-reset", "x-ratelimit-remaining", "x-ratelimit-reset"),
    }
)
"""Fields that are not lists. Of several lines the first non-empty one counts, as in browsers."""

MUST_AGREE = frozenset({"content-range", "etag"})
"""Fields that are not lists and describe the stored bytes. Lines that differ make them unusable."""

UNUSABLE = ""
"""The value of a field that is present and unusable."""


class Trace:
    """The timings of an attempt, in monotonic seconds; those of its last exchange count."""

    __slots__ = ("connect_s", "entry", "head_s", "lenient", "opened", "started_s")

    def __init__(self, entry: Entry | None = None) -> None:
        self.entry = entry
        """The fetch of the attempt, for the log."""
        self.started_s = mono_s()
        self.connect_s = 0.0
        """The time that opening a connection took, its TLS handshake included."""
        self.head_s: float | None = None
        """When the response headers were complete."""
        self.opened = False
        """True if the last exchange opened a connection; else it reused one."""
        self.lenient = False
        """True if only a lenient reading made sense of the headers of a response."""

    @property
    def latency_ms(self) -> float | None:
        """The time from the request to the response headers, without the time spent on connecting."""
        if self.head_s is None:
            return None
        return max(0.0, self.head_s - self.started_s - self.connect_s) * 1000


def timings_of(trace: Trace | None, total_ms: int) -> Timings:
    """Return where the time went; trace: of the last attempt, None if there was none."""
    ran_ms = (mono_s() - trace.started_s) * 1000 if trace else 0.0
    answered = trace is not None and trace.head_s is not None
    return Timings(
        queue_ms=round(max(0.0, total_ms - ran_ms), 1),
        connect_ms=round(trace.connect_s * 1000, 1) if trace and answered else None,
        ttfb_ms=round((trace.head_s - trace.started_s) * 1000, 1) if trace and trace.head_s else None,
        total_ms=float(total_ms),
    )


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request as it goes out."""

    method: str
    scheme: str
    """`http` or `https`."""
    host: str
    """As it is dialled, and named in the TLS handshake: in lower case, an IPv6 address without brackets."""
    port: int
    target: bytes
    """The path and the query."""
    headers: Sequence[Header]
    """All of them, in the order and the case in which they are sent, Host and Content-Length included."""
    content: MemoryBody | FileBody | None
    timeouts: Timeouts
    trace: Trace
    """The timings of the attempt, which the connection fills in."""


class Response(Protocol):
    """A response whose header section is complete. Call `close` at its end, however it ends."""

    status: int
    phrase: bytes
    version: str
    """`HTTP/1.1`, `HTTP/1.0` or `HTTP/2`."""
    headers: Sequence[Header]
    """In the order and the case in which they were sent."""
    by_name: Mapping[bytes, bytes]
    """The value of each field by its name in lower case; several lines joined by a comma."""
    lenient: bool
    """True if only a lenient reading made sense of the header section."""
    address: str | None
    """The host's address, if known."""

    @property
    def ended(self) -> bool:
        """True if the whole body has been read, so that `read` would return no more."""

    def read(self) -> Coroutine[Any, Any, bytes]:
        """Return the next piece of the body, of any size; empty at its end.

        Raises ReadError, ReadTimeoutError or RemoteProtocolError.
        """

    def receive(self, room: Room) -> Coroutine[Any, Any, bytes | memoryview]:
        """Return the next piece of the body, like `read`; it may have been received into the room.

        That saves a large body from being copied. The room is asked for only if it can be used.
        """

    def close(self) -> None:
        """End the exchange, complete or not; a second call does nothing.

        The connection is kept if the response was read to its end and nothing about it is in doubt.
        """


def value_of(name: str, lines: Sequence[str]) -> str:
    """Return the value of a field with at least one line (RFC 9110 §5.3). Pure.

    name: in lower case. Only the lines of a list are joined, and those of Content-Length, whose check needs
    all of them.
    """
    if len(lines) == 1:
        return lines[0]
    if name in FIRST_COUNTS:
        return next((line for line in lines if line), "")
    if name in MUST_AGREE:
        return lines[0] if len(set(lines)) == 1 else UNUSABLE
    return ", ".join(lines)


class Answer:
    """A response whose head is complete. Call `close` at its end, however it ends.

    Raises BadAnswerError, and closes the response, if the status is not one of a final response.
    url: of the request. Values are decoded as ISO 8859-1: one character for each byte, whatever the other
    fields hold.
    """

    __slots__ = ("_by_name", "_request", "_response", "_url", "read", "status")

    def __init__(self, url: str, request: Request, response: Response) -> None:
        self.status = response.status
        self._url = url
        self._request = request
        self._response = response
        self._by_name = response.by_name
        self.read = response.read
        """Returns the next piece of the body as it was sent; empty at its end."""
        if response.lenient:
            request.trace.lenient = True
        if not MIN_STATUS <= self.status <= MAX_STATUS:
            self.close()
            raise BadAnswerError(f"{self.status} is not the status of a final response")

    @property
    def ended(self) -> bool:
        """True if the whole body has been read."""
        return self._response.ended

    def receive(self, room: Room) -> Coroutine[Any, Any, bytes | memoryview]:
        """Return the next piece, like `read`; it may have been received into the room."""
        return self._response.receive(room)

    def close(self) -> None:
        """End the exchange, complete or not; a second call does nothing."""
        self._response.close()
        if self._request.content is not None:
            self._request.content.close()

    def header(self, name: str) -> str | None:
        """Return the field's value by the rules of `value_of`; None if absent. name: in lower case."""
        value = self._by_name.get(name.encode("ascii"))
        if value is None:
            return None
        if len(self._by_name) < len(self._response.headers):
            return value_of(name, self.values(name))
        return value.decode("latin-1")

    def values(self, name: str) -> Sequence[str]:
        """Return the value of each line of the field. name: in lower case."""
        wanted = name.encode("ascii")
        return [value.decode("latin-1") for sent, value in self._response.headers if sent.lower() == wanted]

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Return whether the response has one of the fields. names: in lower case."""
        return not names.isdisjoint(self._by_name)

    @property
    def length_bytes(self) -> int | None:
        """The Content-Length of the body that follows, None if unknown.

        Raises BadAnswerError if it is malformed, or if it contradicts Transfer-Encoding or the status
        (RFC 9112 §6.3).
        """
        if self._request.method == "HEAD":
            return 0
        try:
            length = body_length(self._by_name)
        except RemoteProtocolError as error:
            raise BadAnswerError(str(error)) from error
        if self.status == 204 and length not in {0, UNTIL_CLOSE}:
            raise BadAnswerError("204 with a body")
        return length if length >= 0 else None

    @property
    def ends_with_connection(self) -> bool:
        """True if only the end of the connection ends the body (RFC 9112 §6.3, last case)."""
        if b"content-length" in self._by_name or b"transfer-encoding" in self._by_name:
            return False
        bodyless = self._request.method == "HEAD" or self.status in {204, 205, 304}
        return not bodyless and self._response.version.startswith("HTTP/1")

    async def discard(self) -> None:
        """Read and drop a small body, so that the connection can be reused; a broken one is no error."""
        if self.ended:
            return
        seen = 0
        with contextlib.suppress(FetchError, TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while seen <= DISCARD_BYTES and (piece := await self.read()):
                    seen += len(piece)

    def wire(self) -> Wire:
        """Return the request and the response headers as they were sent, without HTTP/2's pseudo-headers."""
        request, response = self._request, self._response
        return Wire(
            url=self._url,
            method=request.method,
            target=request.target,
            request_headers=request.headers,
            version=response.version,
            status=response.status,
            phrase=response.phrase,
            headers=response.headers,
            address=response.address,
        )
