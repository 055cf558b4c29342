"""Reads a list of fetches: a URL or a JSON object a line; blank lines and # lines are skipped. Pure."""

from collections.abc import Iterable, Iterator

from fetchfleet.jobs.contract.model import Fetch, decode_fetch
from fetchfleet.jobs.errors import InvalidFetchError

MAX_NAMED_ERRORS = 20
SPACE = " \t\r\n"
"""What may stand around a fetch: JSON's white space."""


class BadLinesError(InvalidFetchError):
    """Some lines are no fetches; `errors` holds (line number, what is wrong) of each."""

    def __init__(self, errors: list[tuple[int, str]]) -> None:
        self.errors = errors
        named = [f"line {number}: {what}" for number, what in errors[:MAX_NAMED_ERRORS]]
        more = len(errors) - len(named)
        super().__init__("\n".join(named + ([f"and {more} more bad lines"] if more else [])))


def read_fetches(lines: Iterable[str]) -> list[Fetch]:
    """Every fetch of a list, or BadLinesError naming each bad line: all of it is good or none is used."""
    fetches: list[Fetch] = []
    errors: list[tuple[int, str]] = []
    for number, text in _meaningful(lines):
        try:
            fetches.append(read_fetch(text))
        except InvalidFetchError as error:
            errors.append((number, str(error)))
    if errors:
        raise BadLinesError(errors)
    return fetches


def read_fetch(text: str) -> Fetch:
    """The fetch that one line stands for; raises InvalidFetchError."""
    if text.startswith("{"):
        return decode_fetch(text)
    return Fetch(url=text)


def _meaningful(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        text = line.strip(SPACE)
        if text and not text.startswith("#"):
            yield number, text
