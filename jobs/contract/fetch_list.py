"""Reads a list of fetches: a URL or a JSON object a line; blank lines and # lines are skipped. Pure."""

from collections.abc import Iterable

from fetchfleet.jobs.contract.model import Fetch, decode_fetch
from fetchfleet.jobs.errors import InvalidFetchError

MAX_NAMED_ERRORS = 20
SPACE = " \t\r\n"
"""JSON's white space, which may surround a fetch."""


class BadLinesError(InvalidFetchError):
    """Some lines are not fetches; `errors` has the line number and the error of each."""

    def __init__(self, errors: list[tuple[int, str]]) -> None:
        self.errors = errors
        named = [f"line {number}: {what}" for number, what in errors[:MAX_NAMED_ERRORS]]
        more = len(errors) - len(named)
        super().__init__("\n".join(named + ([f"and {more} more bad lines"] if more else [])))


def read_fetches(lines: Iterable[str]) -> list[Fetch]:
    """Return every fetch of a list; raise BadLinesError, which names every bad line."""
    fetches: list[Fetch] = []
    errors: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip(SPACE)
        if not text or text.startswith("#"):
            continue
        try:
            fetches.append(read_fetch(text))
        except InvalidFetchError as error:
            errors.append((number, str(error)))
    if errors:
        raise BadLinesError(errors)
    return fetches


def read_fetch(text: str) -> Fetch:
    """Return the fetch of one line; raises InvalidFetchError."""
    if text.startswith("{"):
        return decode_fetch(text)
    return Fetch(url=text)
