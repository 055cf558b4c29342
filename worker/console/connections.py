"""The connections of clients: one that stalls is closed, so that it keeps no other client out."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_S = 10.0
"""The time in which the head of a request must arrive, from its first byte or the start of the connection."""
UNREAD_S = 300.0
"""The time after which a connection is closed if its client reads nothing of a response."""


class Connection(H11Protocol):
    """A connection. uvicorn limits only the time between a response and the next request."""

    _awaits_head: asyncio.TimerHandle | None = None
    _is_unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._awaits_head = self._abort_after(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timers."""
        _cancel(self._awaits_head)
        _cancel(self._is_unread)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, also if a client still sends the body of an answered request."""
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            _cancel(self._awaits_head)
            self._awaits_head = None
        elif self._awaits_head is None and not self.transport.is_closing():
            self._awaits_head = self._abort_after(HEAD_S)

    def pause_writing(self) -> None:
        """Wait until the client reads: the response fills the buffers."""
        super().pause_writing()
        self._is_unread = self._abort_after(UNREAD_S)

    def resume_writing(self) -> None:
        """Continue the response."""
        _cancel(self._is_unread)
        super().resume_writing()

    def _abort_after(self, delay_s: float) -> asyncio.TimerHandle:
        return self.loop.call_later(delay_s, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
