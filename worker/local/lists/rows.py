"""The rows of a list, as the reader of a format yields them. Pure."""

from collections.abc import Iterator
from typing import IO, Protocol, Self

from fetchfleet.worker.errors import BAD_USE, CommandError

Row = tuple[int, str]
"""Number and text of a fetch: a URL or a JSON object, as on a line of a text."""


class ListError(CommandError):
    """A list cannot be read. The message names its file."""

    exit_code = BAD_USE


class ListChangedError(ListError):
    """A file of the list changed after it was checked."""


class BadRow(str):
    """The text of a row that its reader refuses."""

    __slots__ = ("error",)

    error: str
    """The error of the row, for the user."""

    def __new__(cls, text: str, error: str) -> Self:
        """Make the text, with its error."""
        row = super().__new__(cls, text)
        row.error = error
        return row


class Reader(Protocol):
    """The reader of one format."""

    noun: str
    """The unit that the numbers of its rows count, such as `line`."""

    def read(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield the rows of a file. Raises ListError."""
