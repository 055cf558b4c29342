"""Splits a body into JSON Lines (https://jsonlines.org) and checks each. Pure.

A record is any JSON value on a line of its own. Blank lines are none; a line may end with CRLF, and the last
need not end.
"""

from collections.abc import Iterable, Iterator

import msgspec

SPACE = b" \t\r"

_check = msgspec.json.Decoder(msgspec.Raw).decode


class BadLineError(Exception):
    """A line that is no JSON; `line` is its number, from 1, blank lines counted."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line


class CutLineError(Exception):
    """The last line is no JSON, and nothing says that the body is whole."""


class Records:
    """Checks records as their body comes; `count` says how many there have been.

    max_line_bytes: a longer line is a bad one.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self.count = 0
        self._lines = 0
        self._max_line_bytes = max_line_bytes
        self._begun: list[bytes] = []
        self._begun_bytes = 0

    def feed(self, block: bytes) -> None:
        """The next bytes of the body, cut anywhere; raises BadLineError."""
        end = block.rfind(b"\n")
        if end >= 0:
            first = block.index(b"\n")
            self._end_begun(block[:first])
            if first < end:
                self._check_all(block[first + 1 : end])
            block = block[end + 1 :]
        self._begun.append(block)
        self._begun_bytes += len(block)
        # One more may be the CR of a CRLF.
        if self._begun_bytes > self._max_line_bytes + 1:
            raise self._too_long()

    def finish(self, *, whole: bool = True) -> None:
        """The body has ended; raises BadLineError.

        whole: it is known to have come to its end; else a bad last line without an end raises CutLineError.
        """
        try:
            self._end_begun(b"")
        except BadLineError:
            if whole:
                raise
            raise CutLineError(f"the body ends in the middle of line {self._lines}") from None

    def _end_begun(self, end: bytes) -> None:
        """The line that has begun ends so."""
        line = b"".join((*self._begun, end))
        self._begun, self._begun_bytes = [], 0
        self._check_one(line)

    def _check_all(self, lines: bytes) -> None:
        for line in lines.split(b"\n"):
            self._check_one(line)

    def _check_one(self, line: bytes) -> None:
        self._lines += 1
        record = line.strip(SPACE)
        if not record:
            return
        if len(line.removesuffix(b"\r")) > self._max_line_bytes:
            raise self._too_long(0)
        try:
            if not record.isascii():
                record.decode()
            _check(record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadLineError(self._lines, f"is no JSON: {error}") from None
        self.count += 1

    def _too_long(self, begun: int = 1) -> BadLineError:
        return BadLineError(self._lines + begun, f"is longer than {self._max_line_bytes} bytes")


def records_in(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The records of a body that has been checked, each without what is around it on its line."""
    for line in lines:
        record = line.strip(b" \t\r\n")
        if record:
            yield record
