"""Behaviours of an origin that serves ranges, correctly or not, and truncates bodies."""

import hashlib
import re
from collections.abc import Callable, Iterable

from tools.origin.server import Exchange, Header, Origin, Seen

RangeResponse = tuple[int, list[Header], bytes]
"""Status, header fields without Content-Length, and content."""

_OPEN_RANGE = re.compile(r"bytes=([0-9]+)-")


def body_of(size_bytes: int) -> bytes:
    """Return a body in which all blocks differ, so that a misplaced block is detected."""
    words = (size_bytes + 31) // 32
    return b"".join(hashlib.sha256(number.to_bytes(8)).digest() for number in range(words))[:size_bytes]


def range_of(seen: Seen) -> str | None:
    """Return the Range field of the request."""
    return Origin.header(seen, "Range")


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
        start, total = self._start(x), len(self.body)
        if start is None:
            return 200, self.headers, self.body
        if self.respond_to_range is not None:
            return self.respond_to_range(start, total)
        if start >= total:
            return 416, [("Content-Range", f"bytes */{total}"), *self.headers], b""
        content_range = ("Content-Range", f"bytes {start}-{total - 1}/{total}")
        return 206, [content_range, *self.headers], self.body[start:]

    def _start(self, x: Exchange) -> int | None:
        found = _OPEN_RANGE.fullmatch(range_of(x.request) or "")
        current = {value for name, value in self.headers if name in {"ETag", "Last-Modified"}}
        if found is None or (
            self.respond_to_range is None and Origin.header(x.request, "If-Range") not in current
        ):
            return None
        return int(found[1])
