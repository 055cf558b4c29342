"""The request and response heads of an exchange as they went over the wire. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

Header = tuple[bytes, bytes]


class Wire(NamedTuple):
    """One request and the head of its answer; address: where the answer came from, if that is known.

    version: `HTTP/1.1`, `HTTP/1.0` or `HTTP/2`. Headers are in the order and the case in which they came.
    """

    url: str
    method: str
    target: bytes
    request_headers: Sequence[Header]
    version: str
    status: int
    phrase: bytes
    headers: Sequence[Header]
    address: str | None = None
