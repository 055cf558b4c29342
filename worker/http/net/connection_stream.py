"""How much may come before the head of an answer is whole, and whether anything of it has come.

The parser below us bounds one head, but not how many interim ones (1xx, RFC 9110 §15.2) come before the
last: without a bound of ours a host that sends nothing else has a worker's processor for the attempt's total.
"""

from contextvars import ContextVar
from typing import Any

import httpcore2

from fetchfleet.worker.errors import FirstByteTimeoutError
from fetchfleet.worker.http.net.stream_wrapper import Over
from fetchfleet.worker.http.net.turns import Turns

MAX_HEAD_BYTES = 512 * 1024
"""More than the largest response head that is accepted plus one read of the body."""

_DIALS = "connection.connect_tcp.started"
_AWAITED = "http11.receive_response_headers.started"
_COME = "http11.receive_response_headers.complete"

# Of the exchange that runs in this task. A context, since a connection does not know whose answer it reads.
_left_bytes: ContextVar[int | None] = ContextVar("left_bytes", default=None)
_connected: ContextVar[bool] = ContextVar("connected", default=False)


def begins() -> None:
    """An exchange begins."""
    _left_bytes.set(None)
    _connected.set(False)


EVENTS = frozenset({_DIALS, _AWAITED, _COME})
"""What `saw` follows of httpcore2's trace."""


def saw(event: str) -> None:
    """A connection is made, a head is being waited for, or it has come."""
    if event == _DIALS:
        _connected.set(True)
    elif event == _AWAITED:
        _left_bytes.set(MAX_HEAD_BYTES)
    elif event == _COME:
        _left_bytes.set(None)


def unheard() -> bool:
    """Whether the exchange took a connection that was there, and not a byte came of an answer."""
    return not _connected.get() and _left_bytes.get() == MAX_HEAD_BYTES


def _came(size_bytes: int) -> None:
    left_bytes = _left_bytes.get()
    if left_bytes is None:
        return
    if size_bytes > left_bytes:
        raise httpcore2.RemoteProtocolError(f"no head of an answer within {MAX_HEAD_BYTES} bytes")
    _left_bytes.set(left_bytes - size_bytes)


class Counted(Over):
    """A connection that counts what it reads of a head, and goes on with what has come in its turn."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, turns: Turns) -> None:
        super().__init__(stream)
        self._turns = turns

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 httpcore2's
        """As the connection does.

        Raises httpcore2.RemoteProtocolError for a head without an end, FirstByteTimeoutError for one without
        a beginning.
        """
        try:
            data = await super().read(max_bytes, timeout)
        except httpcore2.ReadTimeout:
            if _left_bytes.get() == MAX_HEAD_BYTES:
                raise FirstByteTimeoutError(f"nothing came within {timeout} s") from None
            raise
        _came(len(data))
        await self._turns.next()
        return data

    async def start_tls(self, *how: Any, **named: Any) -> httpcore2.AsyncNetworkStream:
        """What comes through it is counted likewise."""
        return Counted(await super().start_tls(*how, **named), self._turns)
