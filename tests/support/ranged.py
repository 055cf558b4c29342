"""A host that serves ranges correctly or incorrectly, and truncates bodies on demand."""

import hashlib
import re
from collections.abc import Callable, Iterable

from tools.origin.server import Exchange, Header, Origin, Seen

Twisted = tuple[int, list[Header], bytes]
"""Status, header fields without Content-Length, and content."""

_FROM = re.compile(r"bytes=([0-9]+)-")


def body_of(size_bytes: int) -> bytes:
    """Return a body in which all blocks differ, so that a misplaced one is detected."""
    words = (size_bytes + 31) // 32
    return b"".join(hashlib.sha256(number.to_bytes(8)).digest() for number in range(words))[:size_bytes]


def range_of(seen: Seen) -> str | None:
    """Return the Range field of the request."""
    return Origin.header(seen, "Range")


class Ranged:
    """A body with ranges (RFC 9110 §14) while its validator matches If-Range.

    breaks: the nth response ends after breaks[n] bytes, by `ends`; later ones are whole. twist: makes the
    response to a range from its start and the total length, whatever If-Range says.
    """

    def __init__(
        self,
        body: bytes,
        headers: Iterable[Header] = (("ETag", '"one"'),),
        breaks: Iterable[int] = (),
        twist: Callable[[int, int], Twisted] | None = None,
        ends: Callable[[Exchange], None] = Exchange.close,
    ) -> None:
        self.body = body
        self.headers = list(headers)
        self.breaks = list(breaks)
        self.twist = twist
        self.ends = ends
        self.sent_bytes: list[int] = []

    async def __call__(self, x: Exchange) -> None:
        """Send one response, whole or truncated."""
        status, headers, content = self._answer(x)
        self.sent_bytes.append(len(content))
        length = ("Content-Length", str(len(content)))
        at = self.breaks.pop(0) if self.breaks else len(content)
        await x.send_head(status, [*headers, length])
        for start in range(0, min(at, len(content)), 1 << 16):
            await x.send(content[start : min(at, start + (1 << 16))])
        if at < len(content):
            self.ends(x)

    def _answer(self, x: Exchange) -> Twisted:
        start, total = self._start(x), len(self.body)
        if start is None:
            return 200, self.headers, self.body
        if self.twist is not None:
            return self.twist(start, total)
        if start >= total:
            return 416, [("Content-Range", f"bytes */{total}"), *self.headers], b""
        content_range = ("Content-Range", f"bytes {start}-{total - 1}/{total}")
        return 206, [content_range, *self.headers], self.body[start:]

    def _start(self, x: Exchange) -> int | None:
        found = _FROM.fullmatch(range_of(x.request) or "")
        current = {value for name, value in self.headers if name in {"ETag", "Last-Modified"}}
        if found is None or (self.twist is None and Origin.header(x.request, "If-Range") not in current):
            return None
        return int(found[1])
