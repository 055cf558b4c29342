"""Parser of lists of fetches: a URL or a JSON object a line. Blank lines and # lines are skipped. Pure."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TextIO

from fetchfleet.jobs.contract.checks.field_checks import Dests
from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES, Fetch, decode_fetch
from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.jobs.contract.urls import UrlError
from fetchfleet.jobs.errors import InvalidFetchError

MAX_NAMED_ERRORS = 20
SAMPLE_LINES = 50
SPACE = " \t\r\n"
"""White space of JSON, which may surround a fetch."""

NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]|\A(?:\xff\xfe|\xfe\xff)")
"""Bytes that are not in a UTF-8 list: control characters, and a UTF-16 or UTF-32 byte order mark."""

_BYTE_ORDER_MARK = "\ufeff"  # at the start of any line: files may have been concatenated
_STRAY_BYTE = re.compile("[\udc80-\udcff]")  # an invalid byte, decoded with the error handler surrogateescape


class BadLine(NamedTuple):
    """A line that is not a valid fetch."""

    number: int
    """Line number, from 1; skipped lines count."""
    text: str
    error: str


class FetchList(NamedTuple):
    """The content of a list."""

    fetches: list[Fetch]
    bad_lines: list[BadLine]
    sample: list[str]
    """The first SAMPLE_LINES lines that are not skipped."""


class BadLinesError(InvalidFetchError):
    """Some lines are not valid fetches. The message names the first MAX_NAMED_ERRORS of them."""

    def __init__(self, errors: list[tuple[int, str]]) -> None:
        self.errors = errors
        """Line number and error of each invalid line."""
        named = [f"line {number}: {shown(error)}" for number, error in errors[:MAX_NAMED_ERRORS]]
        more = len(errors) - len(named)
        super().__init__("\n".join(named + ([f"and {more} more bad lines"] if more else [])))


def parse_list(lines: Iterable[str]) -> FetchList:
    """Return the fetches and the bad lines of a list, decoded with the error handler `surrogateescape`.

    A line with the dest of an earlier line is a bad line, with the exceptions of `Dests`.
    """
    fetches, bad_lines, sample = parsed = FetchList([], [], [])
    dests = Dests("line")
    for number, text in numbered(lines):
        if len(sample) < SAMPLE_LINES:
            sample.append(text)
        try:
            fetch = read_fetch(text)
            if fetch.dest is not None:
                dests.add(number, fetch.dest, fetch.if_exists, fetch.key)
        except InvalidFetchError as error:
            bad_lines.append(BadLine(number, text, error_of(text, error)))
        else:
            fetches.append(fetch)
    return parsed


def bounded(file: TextIO) -> Iterator[str]:
    """Yield the lines of a text. Of one that is longer than any fetch, only the start."""
    limit = MAX_FETCH_BYTES + 2
    while line := file.readline(limit):
        yield line
        while len(line) == limit and not line.endswith(("\n", "\r")):
            line = file.readline(limit)


def numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield each line that is not skipped, stripped of white space, with its number from 1."""
    for number, line in enumerate(lines, start=1):
        text = line.lstrip(_BYTE_ORDER_MARK).strip()
        if text and not text.startswith("#"):
            yield number, text


def error_of(text: str, error: InvalidFetchError | UrlError) -> str:
    """Return the error of a bad line. A byte that is not UTF-8 is named in place of its consequences."""
    if stray := _STRAY_BYTE.search(text):
        message = f"byte 0x{ord(stray[0]) - 0xDC00:02X} at position {stray.start()} is not UTF-8"
        return message if text.startswith("{") else f"url: {message}"
    return f"url: {error}" if isinstance(error, UrlError) else str(error)


def read_fetches(lines: Iterable[str]) -> list[Fetch]:
    """Return the fetches of a list. Raises BadLinesError if a line is bad."""
    fetches, bad_lines, _ = parse_list(lines)
    if bad_lines:
        raise BadLinesError([(line.number, line.error) for line in bad_lines])
    return fetches


def read_fetch(text: str) -> Fetch:
    """Return the fetch of one line. Raises InvalidFetchError."""
    if text.startswith("{"):
        return decode_fetch(text)
    return Fetch(url=text)
