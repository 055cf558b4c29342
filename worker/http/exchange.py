"""One exchange on a connection: a request and its response, whatever the version of HTTP and the engine."""

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from fetchfleet.worker.http.request_body import Blocks, Upload
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.http.wire import Header
from fetchfleet.worker.policy.model import Timeouts


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
    content: Blocks | Upload | None
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
    """Their values, as wire.py joins them."""
    lenient: bool
    """Whether only a lenient reading made sense of the header section."""
    address: str | None
    """The host's address, if known."""

    @property
    def ended(self) -> bool:
        """Whether the whole body has been read, so that `read` would return no more."""

    def read(self) -> Coroutine[Any, Any, bytes]:
        """Return the next piece of the body, of any size; empty at its end.

        Raises ReadError, ReadTimeoutError or RemoteProtocolError.
        """

    def receive(self, room: memoryview) -> Coroutine[Any, Any, bytes | memoryview]:
        """Return the next piece of the body, like `read`; it may have been received into the room.

        That saves a large body from being copied. The room must not be empty.
        """

    def close(self) -> None:
        """End the exchange, complete or not; a second call does nothing.

        The connection is kept if the response was read to its end and nothing about it is in doubt.
        """
