"""The interface of an engine: a request goes out; a status, headers and the chunks of a body come back."""

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import httpx

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.worker.errors import BadAnswerError
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.net.connection_stream import HEAD_EVENTS, follow_head
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.http.wire import Header, Wire
from fetchfleet.worker.policy.model import LanePolicy, Timeouts
from fetchfleet.worker.util.clock import mono_s

DISCARD_BYTES = 64 * 1024
DISCARD_S = 0.5
"""An unwanted body is read up to these bounds, so that its connection can be reused."""

MIN_STATUS, MAX_STATUS = 200, 599
"""The status codes of a final response (RFC 9110 §15)."""

MAX_LENGTH_DIGITS = 18

KEEPALIVE_EXPIRY_S = 30.0
"""An idle connection is closed after this time."""

_CONNECTED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})
_TRACE_EVENTS = _CONNECTED | HEAD_EVENTS


class EventTrace(Trace):
    """The timings of an attempt, taken from the events of httpcore2."""

    def __init__(self, entry: Entry | None = None) -> None:
        super().__init__(entry)
        self._connecting_s = 0.0
        self._stats: ConnectionStats | None = None
        self._entered_pool_s: float | None = None

    async def __call__(self, event: str, _info: Mapping[str, Any]) -> None:
        """Take one event of httpcore2's `trace` extension; most are ignored."""
        if self._entered_pool_s is not None:  # the first event of an exchange: it has a connection, or dials
            if self._stats is not None:
                self._stats.pool_wait_s.add(mono_s() - self._entered_pool_s)
                if event != "connection.connect_tcp.started":
                    self._stats.reused += 1
            self._entered_pool_s = None
        if event not in _TRACE_EVENTS:
            return
        follow_head(event)
        if event == "connection.connect_tcp.started":
            self.opened = True
            self._connecting_s = mono_s()
        elif event in _CONNECTED:
            self.connect_s = mono_s() - self._connecting_s

    def start_exchange(self, stats: ConnectionStats) -> None:
        """Record that an exchange begins, to be counted in `stats`."""
        self.opened = False
        self._stats = stats

    def enter_pool(self) -> None:
        """Record that the pool has the request."""
        self._entered_pool_s = mono_s()

    def head_received(self) -> None:
        """Record that the response headers are complete."""
        self.head_s = mono_s()


class Answer(Protocol):
    """A response, valid inside the engine's context."""

    @property
    def status(self) -> int:
        """The status code."""

    def header(self, name: str) -> str | None:
        """Return the field's value, one character for each byte, by the rules of `value_of`; None if absent.

        name: in lower case.
        """

    def values(self, name: str) -> Sequence[str]:
        """Return the value of each line of the field, one character for each byte. name: in lower case."""

    @property
    def length_bytes(self) -> int | None:
        """The Content-Length of the body that follows, None if unknown."""

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection ends the body (RFC 9112 §6.3, last case)."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it was sent."""

    async def discard(self) -> None:
        """Read and drop a small body, so that the connection can be reused."""

    def wire(self) -> Wire:
        """Return the request and the response headers as they were sent."""


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


class FramedAnswer:
    """The response headers and their meaning, for any engine. fields: as they were sent.

    Values are decoded as ISO 8859-1: one character for each byte, whatever the other fields hold.
    """

    def __init__(self, status: int, method: str, fields: Iterable[Header], *, is_http1: bool) -> None:
        self.status = status
        self._bodyless = method == "HEAD"
        self._is_http1 = is_http1
        self._lines: dict[str, list[str]] = {}
        for name, value in fields:
            self._lines.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def header(self, name: str) -> str | None:
        """Return the field's value, one character for each byte, by the rules of `value_of`; None if absent.

        name: in lower case.
        """
        lines = self._lines.get(name)
        return None if lines is None else value_of(name, lines)

    def values(self, name: str) -> Sequence[str]:
        """Return the value of each line of the field, one character for each byte. name: in lower case."""
        return self._lines.get(name, ())

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it was sent."""
        raise NotImplementedError

    def check_status(self) -> None:
        """Raise BadAnswerError if the status is not one of a final response."""
        if not MIN_STATUS <= self.status <= MAX_STATUS:
            raise BadAnswerError(f"{self.status} is not the status of a final response")

    @property
    def length_bytes(self) -> int | None:
        """The Content-Length of the body that follows, None if unknown.

        Raises BadAnswerError if it is malformed, or if it contradicts Transfer-Encoding or the status
        (RFC 9112 §6.3). A Content-Length that was sent twice with one value counts once (RFC 9110 §8.6).
        """
        if self._bodyless:
            return 0
        value, chunked = self.header("content-length"), self.header("transfer-encoding") is not None
        length_bytes = None
        if value is not None:
            lengths = {one.strip(" \t") for one in value.split(",")}
            length = lengths.pop()
            is_number = length.isascii() and length.isdecimal() and len(length) <= MAX_LENGTH_DIGITS
            if lengths or not is_number:
                raise BadAnswerError(f"Content-Length {value[:100]!r}")
            length_bytes = int(length)
        if self.status == 204 and (chunked or length_bytes):
            raise BadAnswerError("204 with a body")
        if chunked and length_bytes is not None:
            raise BadAnswerError("both Content-Length and Transfer-Encoding")
        return length_bytes

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection ends the body (RFC 9112 §6.3, last case)."""
        framed = self._bodyless or self.status in {204, 205, 304} or self.header("content-length") is not None
        chunked = (self.header("transfer-encoding") or "").lower().endswith("chunked")
        return self._is_http1 and not framed and not chunked

    async def discard(self) -> None:
        """Read and drop a small body, so that the connection can be reused; a broken one is no error."""
        seen = 0
        with contextlib.suppress(httpx.TransportError, TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                async for chunk in self.chunks():
                    seen += len(chunk)
                    if seen > DISCARD_BYTES:
                        return


class Engine(Protocol):
    """Makes exchanges."""

    def open(
        self, request: Hop, lane: str, timeouts: Timeouts, trace: EventTrace
    ) -> AbstractAsyncContextManager[Answer]:
        """Make one exchange on the lane's connections; raises httpx.TransportError, FetchError or OSError."""


class Pools(Protocol):
    """Connections by lane: call `open` before the first request of a lane, `close` after the last."""

    @abstractmethod
    def open(self, lane: str, host: str, policy: LanePolicy) -> None:
        """Prepare for the lane's requests: its connections are made to this host only, under its policy."""

    @abstractmethod
    def apply_policy(self, lane: str, policy: LanePolicy) -> None:
        """Apply a changed policy: its ports count for the connections made from now on."""

    @abstractmethod
    async def close(self, lane: str) -> None:
        """Close the lane's connections; does nothing if it has none."""

    @asynccontextmanager
    async def opened(self, lane: str, host: str, policy: LanePolicy) -> AsyncIterator[str]:
        """Open the lane for the length of a block, then close it."""
        self.open(lane, host, policy)
        try:
            yield lane
        finally:
            await self.close(lane)
