"""Behaviours of an origin that serves ranges, correctly or not, and truncates bodies."""

import hashlib
import re
from collections.abc import Callable, Iterable

from tools.origin.server import Exchange, Header, Origin, Seen

RangeResponse = tuple[int, list[Header], bytes]
"""Status, header fields without Content-Length, and content."""

_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")


def body_of(size_bytes: int) -> bytes:
    """Return a body in which all blocks differ, so that a misplaced block is detected."""
    words = (size_bytes + 31) // 32
    return b"".join(hashlib.sha256(number.to_bytes(8)).digest() for number in range(words))[:size_bytes]


def range_of(seen: Seen) -> str | None:
    """Return the Range field of the request."""
    return Origin.header(seen, "Range")


def span_of(seen: Seen) -> tuple[int, int]:
    """Return the first offset and the end of the requested range; an end of -1 is that of the body."""
    first, _, last = (range_of(seen) or "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), int(last or -2) + 1


class RangedBody:
    """Serve a body, and ranges of it (RFC 9110 §14) while the validator matches If-Range."""

    def __init__(
        self,
        body: bytes,
        headers: Iterable[Header] = (("ETag", '"one"'),),
        breaks: Iterable[int] = (),
        respond_to_range: Callable[[int, int], RangeResponse] | None = None,
        ends: Callable[[Exchange], None] = Exchange.close,
    ) -> None:
        self.body = body
        self.headers = list(headers)
        self.breaks = list(breaks)
        """The nth response ends after breaks[n] bytes, by `ends`. Later responses are complete."""
        self.respond_to_range = respond_to_range
        """Makes the response to a range from its start and the total length, whatever If-Range says."""
        self.ends = ends
        self.sent_bytes: list[int] = []
        """The size of each response's content, in bytes, truncated or not."""

    async def __call__(self, x: Exchange) -> None:
        """Send one response, complete or truncated."""
        status, headers, content = self._response(x)
        self.sent_bytes.append(len(content))
        length = ("Content-Length", str(len(content)))
        at = self.breaks.pop(0) if self.breaks else len(content)
        await x.send_head(status, [*headers, length])
        for start in range(0, min(at, len(content)), 1 << 16):
            await x.send(content[start : min(at, start + (1 << 16))])
        if at < len(content):
            self.ends(x)

    def _response(self, x: Exchange) -> RangeResponse:
        asked, total = self._asked(x), len(self.body)
        if asked is None:
            return 200, self.headers, self.body
        start, end = asked
        if self.respond_to_range is not None:
            return self.respond_to_range(start, total)
        if start >= total:
            return 416, [("Content-Range", f"bytes */{total}"), *self.headers], b""
        content_range = ("Content-Range", f"bytes {start}-{end - 1}/{total}")
        return 206, [content_range, *self.headers], self.body[start:end]

    def _asked(self, x: Exchange) -> tuple[int, int] | None:
        """Return the start and the end of the requested range, None for the whole body."""
        found = _RANGE.fullmatch(range_of(x.request) or "")
        current = {None, *(value for name, value in self.headers if name in {"ETag", "Last-Modified"})}
        if found is None or (
            self.respond_to_range is None and Origin.header(x.request, "If-Range") not in current
        ):
            return None
        total = len(self.body)
        return int(found[1]), min(int(found[2]) + 1, total) if found[2] else total
