"""The header section of a request, as bytes. Pure."""

import re
from collections.abc import Sequence
from functools import lru_cache

from fetchfleet.worker.errors import InvalidRequestError
from fetchfleet.worker.http.wire import Header

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e\x80-\xff]++ HTTP/1\.1\r\n")
_FIELD_LINE = re.compile(_TOKEN + rb": [\t\x20-\x7e\x80-\xff]*+\r\n")


def request_head(method: str, target: bytes, fields: Sequence[Header]) -> bytes:
    """Return the header section. Raises InvalidRequestError for what could be read as something else."""
    line = b"%b %b HTTP/1.1\r\n" % (method.encode(), target)
    if _REQUEST_LINE.fullmatch(line) is None:
        raise InvalidRequestError(f"no request line: {line[:100]!r}")
    return line + _field_lines(tuple(fields))


@lru_cache(maxsize=1024)
def _field_lines(fields: tuple[Header, ...]) -> bytes:
    """Return the lines, and the empty one. Most requests to a host have the same."""
    lines = [b"%b: %b\r\n" % field for field in fields]
    for line in lines:
        if _FIELD_LINE.fullmatch(line) is None:
            raise InvalidRequestError(f"no field line: {line[:100]!r}")
    return b"".join([*lines, b"\r\n"])
