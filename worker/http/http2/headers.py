"""The heads of requests and answers over HTTP/2. Pure.

Checked here and not by h2, which ends the whole connection for the fault of one answer, where RFC 9113 §8.1.1
has its stream alone at fault.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Field = tuple[bytes, bytes]

# Of one connection, so none of HTTP/2's (RFC 9113 §8.2.2); and Host, which is :authority there.
_NOT_SENT = frozenset(
    {b"connection", b"host", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)
_OF_A_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_NOT_IN_A_VALUE = re.compile(rb"[\0\r\n]")
_STATUS = re.compile(rb"[1-9][0-9]{2}")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_BODYLESS = frozenset({204, 205, 304})


class BadHeadError(Exception):
    """An answer's head that breaks RFC 9113 §8."""


class Head(NamedTuple):
    """The head of an answer; length_bytes is that of the body to come, None if it is not told."""

    status: int
    fields: list[Field]
    length_bytes: int | None


def asked(method: bytes, scheme: bytes, target: bytes, fields: Sequence[Field]) -> list[Field]:
    """The request's head; the Host among its fields is where it goes."""
    lowered = [(name.lower(), value) for name, value in fields]
    authority = next(value for name, value in lowered if name == b"host")
    pseudo = [(b":method", method), (b":authority", authority), (b":scheme", scheme), (b":path", target)]
    return pseudo + [field for field in lowered if field[0] not in _NOT_SENT]


def answered(fields: Iterable[Field], method: bytes) -> Head:
    """The answer's head; raises BadHeadError."""
    statuses: list[bytes] = []
    plain: list[Field] = []
    for name, value in fields:
        if name == b":status" and not plain:
            statuses.append(value)
        else:
            plain.append(_checked(name, value))
    if len(statuses) != 1 or not _STATUS.fullmatch(statuses[0]):
        raise BadHeadError(f"no status: {statuses}")
    status = int(statuses[0])
    length_bytes = _length_bytes(plain)
    if length_bytes is not None:  # said once, however often it was
        plain = [field for field in plain if field[0] != b"content-length"]
        plain.append((b"content-length", str(length_bytes).encode()))
    return Head(status, plain, 0 if method == b"HEAD" or status in _BODYLESS else length_bytes)


def _checked(name: bytes, value: bytes) -> Field:
    if not _NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value) or name in _OF_A_CONNECTION:
        raise BadHeadError(f"not a field of an answer: {name[:100]!r}")
    return name, value


def _length_bytes(fields: Iterable[Field]) -> int | None:
    """All that is said of it must be the same (RFC 9110 §8.6)."""
    told = {part.strip() for name, value in fields if name == b"content-length" for part in value.split(b",")}
    if not told:
        return None
    if len(told) > 1 or not all(_LENGTH.fullmatch(part) for part in told):
        raise BadHeadError("not one Content-Length")
    return int(told.pop())
