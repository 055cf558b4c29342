"""Splits a body into JSON Lines (https://jsonlines.org) and checks each. Pure.

A record is a JSON value on a line of its own. Blank lines are skipped. A line may end with CRLF, and the last
line needs no end.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

SPACE = b" \t\r"

MAX_NESTING = 800
"""How deep a record may nest: less than any supported interpreter can parse, so that all agree."""

_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)

_check = msgspec.json.Decoder(msgspec.Raw).decode


class BadLineError(Exception):
    """A line is not JSON; `line` is its number, from 1, with blank lines counted."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line


class CutLineError(Exception):
    """The last line is not JSON, and the body may be truncated."""


class JsonLinesChecker:
    """Checks the records of a body as it comes; `count` is their number so far.

    A line longer than `max_line_bytes` is a bad line.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self.count = 0
        self._lines = 0
        self._max_line_bytes = max_line_bytes
        self._begun: list[bytes] = []
        self._begun_bytes = 0

    def feed(self, block: bytes) -> None:
        """Check the next bytes of the body, cut anywhere. Raises BadLineError."""
        end = block.rfind(b"\n")
        if end >= 0:
            first = block.index(b"\n")
            self._end_begun(block[:first])
            if first < end:
                for line in block[first + 1 : end].split(b"\n"):
                    self._check_line(line)
            block = block[end + 1 :]
        self._begun.append(block)
        self._begun_bytes += len(block)
        # One more byte may be the CR of a CRLF.
        if self._begun_bytes > self._max_line_bytes + 1:
            raise self._too_long()

    def finish(self, *, whole: bool = True) -> None:
        """Check the last line. Raises BadLineError.

        whole: the body is known to be complete. Otherwise a bad last line raises CutLineError.
        """
        try:
            self._end_begun(b"")
        except BadLineError:
            if whole:
                raise
            raise CutLineError(f"the body ends in the middle of line {self._lines}") from None

    def _end_begun(self, end: bytes) -> None:
        """Check the line that has begun, with its end."""
        line = b"".join((*self._begun, end))
        self._begun, self._begun_bytes = [], 0
        self._check_line(line)

    def _check_line(self, line: bytes) -> None:
        self._lines += 1
        record = line.strip(SPACE)
        if not record:
            return
        if len(line.removesuffix(b"\r")) > self._max_line_bytes:
            raise self._too_long(0)
        if len(record) > MAX_NESTING and _is_nested_deeply(record):
            raise BadLineError(self._lines, f"is nested deeper than {MAX_NESTING} levels")
        try:
            if not record.isascii():
                record.decode()
            _check(record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadLineError(self._lines, f"is no JSON: {error}") from None
        self.count += 1

    def _too_long(self, begun: int = 1) -> BadLineError:
        return BadLineError(self._lines + begun, f"is longer than {self._max_line_bytes} bytes")


def _is_nested_deeply(record: bytes) -> bool:
    """Return whether arrays and objects nest deeper than MAX_NESTING."""
    if record.count(b"[") + record.count(b"{") <= MAX_NESTING:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(record):
        match token[0]:
            case b"[" | b"{":
                depth += 1
                if depth > MAX_NESTING:
                    return True
            case b"]" | b"}":
                depth -= 1
    return False


def records_in(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the records of a checked body, without the white space around them."""
    for line in lines:
        record = line.strip(b" \t\r\n")
        if record:
            yield record
