"""Splits a body into JSON Lines (https://jsonlines.org) and checks each. Pure.

Each record is a JSON value on one line. Blank lines are skipped. A line may end with CRLF. The last line may
lack its line break.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

SPACE = b" \t\r"

MAX_NESTING = 800
"""The deepest nesting of a record. Every supported Python version can parse this depth, so all agree."""

_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)

_check = msgspec.json.Decoder(msgspec.Raw).decode


class BadLineError(Exception):
    """A line is too long, nested too deeply, or not JSON."""

    def __init__(self, line: int, fault: str) -> None:
        super().__init__(f"line {line}: {fault}")
        self.line = line
        """The number of the line, from 1, including blank lines."""


class CutLineError(Exception):
    """The last line is invalid, and the body may be truncated."""


class JsonLinesChecker:
    """Checks the records of a body while it is received."""

    def __init__(self, max_line_bytes: int) -> None:
        """max_line_bytes: the longest line, without its line break."""
        self.count = 0
        """The number of records so far."""
        self._lines = 0
        self._max_line_bytes = max_line_bytes
        self._partial: list[bytes] = []
        """The pieces of the current line, whose end has not been received."""
        self._partial_bytes = 0

    def feed(self, block: bytes) -> None:
        """Check the next bytes of the body, split anywhere. Raises BadLineError."""
        end = block.rfind(b"\n")
        if end >= 0:
            first = block.index(b"\n")
            self._end_line(block[:first])
            if first < end:
                for line in block[first + 1 : end].split(b"\n"):
                    self._check_line(line)
            block = block[end + 1 :]
        self._partial.append(block)
        self._partial_bytes += len(block)
        # The last byte may be the CR of a CRLF.
        if self._partial_bytes > self._max_line_bytes + 1:
            raise self._too_long(self._lines + 1)

    def finish(self, *, complete: bool = True) -> None:
        """Check the last line. Raises BadLineError.

        complete: the body is known to be complete. Otherwise an invalid last line raises CutLineError.
        """
        try:
            self._end_line(b"")
        except BadLineError:
            if complete:
                raise
            raise CutLineError(f"the body ends within line {self._lines}") from None

    def _end_line(self, rest: bytes) -> None:
        """Check the current line, given the rest of it."""
        line = b"".join((*self._partial, rest))
        self._partial, self._partial_bytes = [], 0
        self._check_line(line)

    def _check_line(self, line: bytes) -> None:
        self._lines += 1
        record = line.strip(SPACE)
        if not record:
            return
        if len(line.removesuffix(b"\r")) > self._max_line_bytes:
            raise self._too_long(self._lines)
        if len(record) > MAX_NESTING and _is_nested_deeply(record):
            raise BadLineError(self._lines, f"is nested deeper than {MAX_NESTING} levels")
        try:
            if not record.isascii():
                record.decode()
            _check(record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadLineError(self._lines, f"is not JSON: {error}") from None
        self.count += 1

    def _too_long(self, line: int) -> BadLineError:
        return BadLineError(line, f"is longer than {self._max_line_bytes} bytes (max_line_bytes)")


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
    """Yield the records of a checked body, stripped of white space. Blank lines are skipped."""
    for line in lines:
        record = line.strip(b" \t\r\n")
        if record:
            yield record
