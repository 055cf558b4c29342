"""Reads a list of fetches: a URL or a JSON object a line; blank lines and # lines are skipped. Pure."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from fetchfleet.jobs.contract.field_checks import Dests
from fetchfleet.jobs.contract.model import Fetch, decode_fetch
from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.jobs.errors import InvalidFetchError

MAX_NAMED_ERRORS = 20
SAMPLE_LINES = 50
SPACE = " \t\r\n"
"""JSON's white space, which may surround a fetch."""

NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]|\A(?:\xff\xfe|\xfe\xff)")
"""Bytes that a list in UTF-8 does not have: controls, and at the start the marks of UTF-16 and UTF-32."""

_BYTE_ORDER_MARK = "\ufeff"  # also within a list that was joined from several files
_STRAY_BYTE = re.compile("[\udc80-\udcff]")  # as the error handler `surrogateescape` decodes it


class BadLine(NamedTuple):
    """A line that is no fetch; number counts from 1, skipped lines included."""

    number: int
    text: str
    error: str


class FetchList(NamedTuple):
    """The fetches of a list, its bad lines, and the first SAMPLE_LINES lines that are not skipped."""

    fetches: list[Fetch]
    bad_lines: list[BadLine]
    sample: list[str]


class BadLinesError(InvalidFetchError):
    """Some lines are not fetches; `errors` has the line number and the error of each."""

    def __init__(self, errors: list[tuple[int, str]]) -> None:
        self.errors = errors
        named = [f"line {number}: {shown(what)}" for number, what in errors[:MAX_NAMED_ERRORS]]
        more = len(errors) - len(named)
        super().__init__("\n".join(named + ([f"and {more} more bad lines"] if more else [])))


def parse_list(lines: Iterable[str]) -> FetchList:
    """Return the fetches and the bad lines of a list; bytes that are no UTF-8 come as lone surrogates.

    A line whose dest an earlier line has is a bad line (`Dests`).
    """
    fetches, bad_lines, sample = found = FetchList([], [], [])
    dests = Dests("line")
    for number, line in enumerate(lines, start=1):
        text = line.lstrip(_BYTE_ORDER_MARK).strip()
        if not text or text.startswith("#"):
            continue
        if len(sample) < SAMPLE_LINES:
            sample.append(text)
        try:
            fetch = read_fetch(text)
            if fetch.dest is not None:
                dests.add(number, fetch.dest, fetch.if_exists, fetch.key)
        except InvalidFetchError as error:
            what = str(error)
            if stray := _STRAY_BYTE.search(text):
                what = f"byte 0x{ord(stray[0]) - 0xDC00:02X} at position {stray.start()} is not UTF-8"
                what = what if text.startswith("{") else f"url: {what}"
            bad_lines.append(BadLine(number, text, what))
        else:
            fetches.append(fetch)
    return found


def read_fetches(lines: Iterable[str]) -> list[Fetch]:
    """Return every fetch of a list; raise BadLinesError, which names every bad line."""
    fetches, bad_lines, _ = parse_list(lines)
    if bad_lines:
        raise BadLinesError([(line.number, line.error) for line in bad_lines])
    return fetches


def read_fetch(text: str) -> Fetch:
    """Return the fetch of one line; raises InvalidFetchError."""
    if text.startswith("{"):
        return decode_fetch(text)
    return Fetch(url=text)
