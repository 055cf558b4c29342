"""One HTTP exchange: the request, the response, and the timings of an attempt."""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.result import Timings
from fetchfleet.worker.errors import BadAnswerError, FetchError, RemoteProtocolError
from fetchfleet.worker.http.http1.messages import UNTIL_CLOSE, body_length
from fetchfleet.worker.http.request_body import FileBody, MemoryBody
from fetchfleet.worker.http.wire import GetBuffer, Header, Wire
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.util.clock import mono_s

DISCARD_BYTES = 64 * 1024
DISCARD_S = 0.5
"""The bounds within which an unneeded body is read to its end, so that the connection can be reused."""

MAX_CONTENT_TYPE_BYTES = 100
"""The length to which a Content-Type is shortened in results and logs."""

MIN_STATUS, MAX_STATUS = 200, 599
"""The range of the status code of a final response (RFC 9110 §15)."""

FIRST_LINE_FIELDS = frozenset(
    {
        *("content-type", "date", "last-modified", "location", "retry-after"),
        *("ratelimit-remaining", "ratelimit-reset", "x-ratelimit-remaining", "x-ratelimit-reset"),
    }
)
"""Fields that are not lists. The first non-empty of several lines is used, as in browsers."""

EQUAL_LINES_FIELDS = frozenset({"content-range", "etag"})
"""Fields that are not lists and describe the stored bytes. They are unusable if their lines differ."""

UNUSABLE = ""
"""The value of an unusable field, as opposed to an absent one."""


class Trace:
    """The record of an attempt on the wire, with times in monotonic seconds.

    An exchange overwrites what it sets, so the values are those of the last one.
    """

    __slots__ = (
        "connect_s",
        "dns_s",
        "entry",
        "head_s",
        "lenient",
        "opened",
        "peer",
        "response",
        "started_s",
        "tls_s",
    )

    def __init__(self, entry: Entry | None = None) -> None:
        self.entry = entry
        """The fetch of the attempt, for the log."""
        self.started_s = mono_s()
        """The time when the attempt started."""
        self.connect_s = 0.0
        """The time that the last new connection took to open, including its TLS handshake."""
        self.dns_s: float | None = None
        """The part of it for the name resolution; None for an address."""
        self.tls_s: float | None = None
        """The part of it for the TLS handshake."""
        self.head_s: float | None = None
        """The time when the response headers were complete."""
        self.opened = False
        """True if the last exchange opened a connection, false if it reused one."""
        self.peer: str | None = None
        """`ADDRESS:PORT` of the host; None if the last exchange has no connection."""
        self.response: Response | None = None
        """The response of the last exchange."""
        self.lenient = False
        """True if only the lenient parser accepted the headers of a response."""

    @property
    def latency_ms(self) -> float | None:
        """The time from the start to the response headers, without opening a connection."""
        if self.head_s is None:
            return None
        return max(0.0, self.head_s - self.started_s - self.connect_s) * 1000


def timings_of(trace: Trace | None, total_ms: int) -> Timings:
    """Return the timings of a result. trace: of the last attempt, None if there was none."""
    ran_ms = (mono_s() - trace.started_s) * 1000 if trace else 0.0
    answered = trace is not None and trace.head_s is not None
    return Timings(
        queue_ms=round(max(0.0, total_ms - ran_ms), 1),
        connect_ms=round(trace.connect_s * 1000, 1) if trace and answered else None,
        ttfb_ms=round((trace.head_s - trace.started_s) * 1000, 1) if trace and trace.head_s else None,
        total_ms=float(total_ms),
    )


def content_type_of(trace: Trace | None) -> str | None:
    """Return the Content-Type of the last response for results and logs; None without one.

    trace: of the last attempt, None if there was none.
    """
    response = trace.response if trace is not None else None
    value = response.by_name.get(b"content-type") if response is not None else None
    return None if value is None else _shown_type(value)


@lru_cache(maxsize=256)
def _shown_type(content_type: bytes) -> str:
    """Return the value, shortened and without secrets. Cached, as most responses have one of a few."""
    return redact.text(content_type[:MAX_CONTENT_TYPE_BYTES].decode("latin-1"))


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request as it is sent."""

    method: str
    scheme: str
    """`http` or `https`."""
    host: str
    """The host to dial, also the TLS server name: in lower case, an IPv6 address without brackets."""
    port: int
    target: bytes
    """The path and the query."""
    headers: Sequence[Header]
    """All headers in order, Host and Content-Length included. HTTP/1.1 keeps the case of their names."""
    content: MemoryBody | FileBody | None
    timeouts: Timeouts
    trace: Trace
    """The timings of the attempt, which pool and connection set."""


class Response(Protocol):
    """A response whose header section is complete. The caller calls `close` after success or failure."""

    status: int
    phrase: bytes
    version: str
    """`HTTP/1.1`, `HTTP/1.0` or `HTTP/2`."""
    headers: Sequence[Header]
    """All headers, in the order and the case in which they were sent."""
    by_name: Mapping[bytes, bytes]
    """The value of each field by its name in lower case; several lines are joined with a comma."""
    lenient: bool
    """True if only the lenient parser accepted the header section."""
    address: str | None
    """The IP address of the host, if known."""

    @property
    def ended(self) -> bool:
        """True if the whole body has been read."""

    def read(self) -> Coroutine[Any, Any, bytes]:
        """Return the next piece of the body, of any size; empty at its end.

        Raises ReadError, ReadTimeoutError or RemoteProtocolError.
        """

    def receive(self, get_buffer: GetBuffer) -> Coroutine[Any, Any, bytes | memoryview]:
        """Return the next piece of the body, like `read`, or the filled part of the buffer of `get_buffer`.

        The buffer saves a copy of a large body. `get_buffer` is called only if the buffer can be used.
        """

    def close(self) -> None:
        """End the exchange, complete or not; a second call does nothing.

        The connection is reused only if the response was read to its end and is unambiguous.
        """


def value_of(name: str, lines: Sequence[str]) -> str:
    """Return the value of a field with at least one line (RFC 9110 §5.3). Pure.

    The lines of a list are joined, and those of Content-Length, as its check needs all of them.
    name: in lower case.
    """
    if len(lines) == 1:
        return lines[0]
    if name in FIRST_LINE_FIELDS:
        return next((line for line in lines if line), "")
    if name in EQUAL_LINES_FIELDS:
        return lines[0] if len(set(lines)) == 1 else UNUSABLE
    return ", ".join(lines)


class Answer:
    """A response as a fetch uses it. The caller calls `close` after success or failure.

    Field values are decoded as ISO 8859-1, one character for each byte. url: of the request.
    Raises BadAnswerError, and closes the response, if the status is not that of a final response.
    """

    __slots__ = ("_by_name", "_request", "_response", "_url", "read", "status")

    def __init__(self, url: str, request: Request, response: Response) -> None:
        self.status = response.status
        self._url = url
        self._request = request
        self._response = response
        self._by_name = response.by_name
        self.read = response.read
        """Returns the next piece of the body as it was sent, empty at its end."""
        trace = request.trace
        trace.response = response
        if response.lenient:
            trace.lenient = True
        if not MIN_STATUS <= self.status <= MAX_STATUS:
            self.close()
            raise BadAnswerError(f"{self.status} is not the status of a final response")

    @property
    def ended(self) -> bool:
        """True if the whole body has been read."""
        return self._response.ended

    def receive(self, get_buffer: GetBuffer) -> Coroutine[Any, Any, bytes | memoryview]:
        """Return the next piece, like `read`, or the filled part of the buffer of `get_buffer`."""
        return self._response.receive(get_buffer)

    def close(self) -> None:
        """End the exchange, complete or not; a second call does nothing."""
        self._response.close()
        if self._request.content is not None:
            self._request.content.close()

    def header(self, name: str) -> str | None:
        """Return the value of a field, None if it is absent; see `value_of`. name: in lower case."""
        value = self._by_name.get(name.encode("ascii"))
        if value is None:
            return None
        if len(self._by_name) < len(self._response.headers):
            return value_of(name, self.values(name))
        return value.decode("latin-1")

    def values(self, name: str) -> Sequence[str]:
        """Return the value of each line of the field. name: in lower case."""
        lowered = name.encode("ascii")
        headers = self._response.headers
        return [value.decode("latin-1") for sent_name, value in headers if sent_name.lower() == lowered]

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Return whether the response has one of the fields. names: in lower case."""
        return not names.isdisjoint(self._by_name)

    @property
    def length_bytes(self) -> int | None:
        """The declared length of the body, None if unknown (RFC 9112 §6.3).

        Raises BadAnswerError if Content-Length is malformed, or contradicts Transfer-Encoding or the status.
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
        """Read a small body and drop it, so that the connection can be reused. Errors are ignored."""
        if self.ended:
            return
        read_bytes = 0
        with contextlib.suppress(FetchError, TimeoutError):
            if (self.length_bytes or 0) > DISCARD_BYTES:
                return
            async with asyncio.timeout(DISCARD_S):
                while read_bytes <= DISCARD_BYTES and (piece := await self.read()):
                    read_bytes += len(piece)

    def wire(self) -> Wire:
        """Return the raw headers of request and response, without the pseudo-headers of HTTP/2."""
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
