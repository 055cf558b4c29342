"""The raw headers of an exchange, in the order and the case in which they were sent. Pure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Header = tuple[bytes, bytes]

GetBuffer = Callable[[], memoryview | None]
"""Returns the memory for the next piece of a body; None to receive the piece as bytes."""


class Wire(NamedTuple):
    """A request without its body, and the header section of its response, as they were sent."""

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
    """The IP address of the host, if known."""
