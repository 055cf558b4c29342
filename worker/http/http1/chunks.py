"""The chunked transfer coding (RFC 9112 §7.1). Pure.

The reader is strict wherever readers could disagree on the end of a chunk: a line ends with CR and LF, and a
size has hexadecimal digits only. Extensions and trailers are ignored.
"""

import re

from fetchfleet.worker.errors import RemoteProtocolError

MAX_LINE_BYTES = 4096

_SIZE = rb"(0*+[1-9A-Fa-f][0-9A-Fa-f]{0,14}+|0++)"
_EXTENSION = rb"[ \t]*+(?:;[\t\x20-\x7e\x80-\xff]*+)?+"
_PARTIAL_SIZE = rb"[0-9A-Fa-f]*+" + _EXTENSION + rb"\r?+"

_FIRST_LINE = re.compile(_SIZE + _EXTENSION + rb"\r\n"), re.compile(_PARTIAL_SIZE)
_NEXT_LINE = re.compile(rb"\r\n" + _SIZE + _EXTENSION + rb"\r\n"), re.compile(rb"\r?+|\r\n" + _PARTIAL_SIZE)
"""The line before a chunk, with the CR LF after the previous chunk; and the beginnings of such a line."""

_TRAILERS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")


class ChunkedBody:
    """The reader of a body in chunks."""

    __slots__ = ("_left_bytes", "_line", "_partial_line", "ended", "unclean_end")

    def __init__(self) -> None:
        self._line = _FIRST_LINE
        """The patterns of the next line."""
        self._left_bytes = 0
        """The missing bytes of the current chunk."""
        self._partial_line = b""
        self.ended = False
        """True if the last chunk was received. The body is then complete, whatever follows (RFC 9112 §8)."""
        self.unclean_end = False
        """True if other bytes follow the last chunk than complete trailers and the end of the message."""

    def feed(self, data: bytes, pieces: list[bytes]) -> None:
        """Add the data of the chunks to `pieces`. Raises RemoteProtocolError if a size is malformed."""
        data, self._partial_line, at = self._partial_line + data, b"", 0
        while True:
            if self._left_bytes:
                piece = data[at : at + self._left_bytes]
                pieces.append(piece)
                at += len(piece)
                self._left_bytes -= len(piece)
                if self._left_bytes:
                    return
            complete, beginning = self._line
            line = complete.match(data, at)
            line_bytes = (len(data) if line is None else line.end()) - at
            if line_bytes > MAX_LINE_BYTES or (line is None and beginning.fullmatch(data, at) is None):
                raise RemoteProtocolError(f"malformed chunk size: {data[at : at + 100]!r}")
            if line is None:
                self._partial_line = data[at:]
                return
            at, self._line = line.end(), _NEXT_LINE
            self._left_bytes = int(line[1], 16)
            if not self._left_bytes:
                self.ended = True
                self.unclean_end = _TRAILERS.fullmatch(data, at) is None
                return
