"""The request and the response headers of an exchange, as they were sent. Pure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Header = tuple[bytes, bytes]

Room = Callable[[], memoryview | None]
"""Returns memory that the next piece of a body may be received into, None for none."""


class Wire(NamedTuple):
    """One request, and the headers of its response, in the order and the case in which they were sent."""

    url: str
    method: str
    target: bytes
    request_headers: Sequence[Header]
    version: str
    """`HTTP/1.1`, `HTTP/1.0` or `HTTP/2`."""
    status: int
    phrase: bytes
    headers: Sequence[Header]
    address: str | None = None
    """The host's address, if known."""
