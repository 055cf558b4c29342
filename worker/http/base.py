"""The exchange behind a small port: a request goes out, a status, headers and chunks come back."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.worker.http.connection_stats import Traffic
from fetchfleet.worker.http.httpx_engine import head_limit
from fetchfleet.worker.http.wire import Wire
from fetchfleet.worker.policy.model import LanePolicy, Timeouts
from fetchfleet.worker.util.clock import mono_s

DISCARD_BYTES = 64 * 1024
DISCARD_S = 0.5
"""A body that nobody wants is read up to here, so that its connection can be used again."""

MIN_STATUS, MAX_STATUS = 200, 599
"""What else stands there is no answer (RFC 9110 §15)."""

MAX_LENGTH_DIGITS = 18

_CONNECTED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})
_OF_CONCERN = _CONNECTED | head_limit.EVENTS


class Trace:
    """When the stages of an attempt came, monotonic seconds; the last exchange's count."""

    def __init__(self, entry: Entry | None = None) -> None:
        self.entry = entry
        """Whose attempt it is, for the log."""
        self.started_s = mono_s()
        self.connect_s = 0.0
        self.head_s: float | None = None
        self.opened = False
        """Whether the last exchange made a connection of its own; else it took one that was there."""
        self._connecting_s = 0.0
        self._traffic: Traffic | None = None
        self._handed_over_s: float | None = None

    @property
    def latency_ms(self) -> float | None:
        """From the request to the head of its answer, without the time that connecting took."""
        if self.head_s is None:
            return None
        return max(0.0, self.head_s - self.started_s - self.connect_s) * 1000

    async def __call__(self, event: str, _info: Mapping[str, Any]) -> None:
        """httpcore2's trace hook; most of what it tells is of no concern."""
        if self._handed_over_s is not None:
            self._has_connection(event)
        if event not in _OF_CONCERN:
            return
        head_limit.saw(event)
        if event == "connection.connect_tcp.started":
            self.opened = True
            self._connecting_s = mono_s()
        elif event in _CONNECTED:
            self.connect_s = mono_s() - self._connecting_s

    def begins(self, traffic: Traffic) -> None:
        """An exchange begins, one of that traffic's."""
        self.opened = False
        self._traffic = traffic

    def handed_over(self) -> None:
        """The request is its pool's, which has a connection for it or not."""
        self._handed_over_s = mono_s()

    def _has_connection(self, first_event: str) -> None:
        assert self._handed_over_s is not None
        if self._traffic is not None:
            reused = first_event != "connection.connect_tcp.started"
            self._traffic.waited(mono_s() - self._handed_over_s, reused=reused)
        self._handed_over_s = None

    def head_came(self) -> None:
        """The head of an answer is here."""
        self.head_s = mono_s()


class Answer(Protocol):
    """What an engine brings back; valid inside the engine's context."""

    @property
    def status(self) -> int:
        """The status code."""

    def header(self, name: str) -> str | None:
        """The field's value, its lines joined with a comma; None if it is absent."""

    @property
    def length_bytes(self) -> int | None:
        """The Content-Length of the body that is to come, None if it is not known."""

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection ends the body (RFC 9112 §6.3, last case)."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it was sent."""

    async def discard(self) -> None:
        """Read a small body away, to keep the connection."""

    def wire(self) -> Wire:
        """The heads as they were sent."""


class Engine(Protocol):
    """Makes exchanges."""

    def open(
        self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace
    ) -> AbstractAsyncContextManager[Answer]:
        """One exchange on the lane's connections; raises httpx.TransportError, FetchError or OSError."""


KEEPALIVE_EXPIRY_S = 30.0
"""So long a connection may be idle."""


class Pools(Protocol):
    """Connections by lane: `open` before the first request of a lane, `close` after the last."""

    @abstractmethod
    def open(self, lane: str, policy: LanePolicy) -> None:
        """Begin the lane's stay."""

    @abstractmethod
    def heed(self, lane: str, policy: LanePolicy) -> None:
        """The lane's policy is another: connections that are made from now on go by its ports."""

    @abstractmethod
    async def close(self, lane: str) -> None:
        """Close the lane's connections; nothing if it has none."""

    @asynccontextmanager
    async def opened(self, lane: str, policy: LanePolicy) -> AsyncIterator[str]:
        """A stay for the length of a block."""
        self.open(lane, policy)
        try:
            yield lane
        finally:
            await self.close(lane)
