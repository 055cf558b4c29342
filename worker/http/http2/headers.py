"""Header sections of HTTP/2 requests and responses. Pure.

This module checks responses in place of h2. h2 would end the connection after a malformed one; RFC 9113
§8.1.1 only requires the end of the stream.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fetchfleet.worker.http.wire import Header

_CONNECTION_FIELDS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
"""Fields of an HTTP/1.1 connection, forbidden in HTTP/2 (RFC 9113 §8.2.2)."""
_NOT_SENT = _CONNECTION_FIELDS | {b"host", b"te"}
"""Fields of the request that are left out. `:authority` replaces Host."""
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_NOT_IN_A_VALUE = re.compile(rb"[\0\r\n]")
_STATUS = re.compile(rb"[1-9][0-9]{2}")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_BODYLESS = frozenset({204, 205, 304})


class MalformedHeadersError(Exception):
    """A response whose header section violates RFC 9113 §8."""


class ResponseHead(NamedTuple):
    """The status and the header fields of a response."""

    status: int
    fields: list[Header]
    length_bytes: int | None
    """The length of the body, None if it is not declared."""


def request_fields(method: str, scheme: str, target: bytes, fields: Sequence[Header]) -> list[Header]:
    """Return the header section of a request; its Host field becomes `:authority`."""
    lowered = [(name.lower(), value) for name, value in fields]
    authority = next(value for name, value in lowered if name == b"host")
    pseudo = [
        (b":method", method.encode()),
        (b":authority", authority),
        (b":scheme", scheme.encode()),
        (b":path", target),
    ]
    return pseudo + [field for field in lowered if field[0] not in _NOT_SENT]


def parse_response(fields: Iterable[Header], method: str) -> ResponseHead:
    """Parse the header section of the response to a request of the method. Raises MalformedHeadersError."""
    statuses: list[bytes] = []
    regular: list[Header] = []
    for name, value in fields:
        if name == b":status" and not regular:
            statuses.append(value)
            continue
        if not _NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value) or name in _CONNECTION_FIELDS:
            raise MalformedHeadersError(f"invalid header field {name[:100]!r}")
        regular.append((name, value))
    if len(statuses) != 1 or not _STATUS.fullmatch(statuses[0]):
        raise MalformedHeadersError(f"expected one valid :status, got {statuses}")
    status = int(statuses[0])
    # All Content-Length values must be the same number (RFC 9110 §8.6). The response has it once afterwards.
    lengths = {
        part.strip() for name, value in regular if name == b"content-length" for part in value.split(b",")
    }
    length_bytes = None
    if lengths:
        if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            raise MalformedHeadersError("malformed or conflicting Content-Length")
        length_bytes = int(lengths.pop())
        regular = [field for field in regular if field[0] != b"content-length"]
        regular.append((b"content-length", str(length_bytes).encode()))
    return ResponseHead(status, regular, 0 if method == "HEAD" or status in _BODYLESS else length_bytes)
