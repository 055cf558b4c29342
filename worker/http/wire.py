"""The request and the response headers of an exchange, as they were sent. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fetchfleet.worker.errors import RemoteProtocolError

Header = tuple[bytes, bytes]

CHUNKED = -1
"""The body is sent in chunks."""

UNTIL_CLOSE = -2
"""The body ends with the connection."""

MAX_LENGTH_DIGITS = 18


def by_name(fields: Sequence[Header]) -> dict[bytes, bytes]:
    """Return the value of each field by its name in lower case; several lines are joined by a comma."""
    named = {name.lower(): value for name, value in fields}
    if len(named) < len(fields):
        named.clear()
        for sent, value in fields:
            name = sent.lower()
            named[name] = named[name] + b"," + value if name in named else value
    return named


def body_length(named: Mapping[bytes, bytes]) -> int:
    """Return the length of a body that follows these fields, CHUNKED or UNTIL_CLOSE (RFC 9112 §6.3).

    A Content-Length that was sent twice with one value counts once (RFC 9110 §8.6).
    Raises RemoteProtocolError if two readers could disagree.
    """
    coding, value = named.get(b"transfer-encoding"), named.get(b"content-length")
    if coding is not None:
        if value is not None:
            raise RemoteProtocolError("both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise RemoteProtocolError(f"Transfer-Encoding {coding[:100]!r}")
        return CHUNKED
    if value is None:
        return UNTIL_CLOSE
    if value.isdigit() and len(value) <= MAX_LENGTH_DIGITS:
        return int(value)
    lengths = {length.strip(b" \t") for length in value.split(b",")}
    length = lengths.pop()
    if lengths or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        raise RemoteProtocolError(f"Content-Length {value[:100]!r}")
    return int(length)


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
