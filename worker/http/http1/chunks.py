"""The chunked transfer coding (RFC 9112 §7.1). Pure.

It is strict where readers could disagree on the end of a chunk: a line ends with CR and LF, a size is
hexadecimal digits alone. Extensions and trailers have no meaning here.
"""

import re

from fetchfleet.worker.errors import RemoteProtocolError

MAX_LINE_BYTES = 4096

_SIZE = rb"(0*+[1-9A-Fa-f][0-9A-Fa-f]{0,14}+|0++)"
_EXTENSION = rb"[ \t]*+(?:;[\t\x20-\x7e\x80-\xff]*+)?+"
_SIZE_BEGUN = rb"[0-9A-Fa-f]*+" + _EXTENSION + rb"\r?+"

_FIRST = re.compile(_SIZE + _EXTENSION + rb"\r\n"), re.compile(_SIZE_BEGUN)
_NEXT = re.compile(rb"\r\n" + _SIZE + _EXTENSION + rb"\r\n"), re.compile(rb"\r?+|\r\n" + _SIZE_BEGUN)
"""The line before a chunk, the end of the chunk before it included; and what it may begin with."""

_TRAILERS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")


class ChunkedBody:
    """Reads a body that is sent in chunks."""

    __slots__ = ("_before", "_left_bytes", "_lines", "ended", "unclean_end")

    def __init__(self) -> None:
        self._lines = _FIRST
        self._left_bytes = 0
        """The bytes that the current chunk still lacks."""
        self._before = b""
        """The part of a line that has come."""
        self.ended = False
        """Whether the last chunk has come. The body is complete then, whatever follows (RFC 9112 §8)."""
        self.unclean_end = False
        """Whether the message did not end plainly behind the last chunk, with whole trailers or none."""

    def feed(self, data: bytes, pieces: list[bytes]) -> None:
        """Add the data of the chunks to `pieces`. Raises RemoteProtocolError at a line that is no size."""
        data, self._before, at = self._before + data, b"", 0
        while True:
            if self._left_bytes:
                piece = data[at : at + self._left_bytes]
                pieces.append(piece)
                at += len(piece)
                self._left_bytes -= len(piece)
                if self._left_bytes:
                    return
            whole, begun = self._lines
            line = whole.match(data, at)
            line_bytes = (len(data) if line is None else line.end()) - at
            if line_bytes > MAX_LINE_BYTES or (line is None and begun.fullmatch(data, at) is None):
                raise RemoteProtocolError(f"no size of a chunk: {data[at : at + 100]!r}")
            if line is None:
                self._before = data[at:]
                return
            at, self._lines = line.end(), _NEXT
            self._left_bytes = int(line[1], 16)
            if not self._left_bytes:
                self.ended = True
                self.unclean_end = _TRAILERS.fullmatch(data, at) is None
                return
