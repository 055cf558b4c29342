"""The rows of a list, as the reader of a format yields them. Pure."""

from collections.abc import Iterator
from typing import IO, NamedTuple, Protocol, Self

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
    description: str
    """The form of a file that is not a text with a URL or a JSON object a line, for the user; else empty."""

    is_index: bool
    """True if the rows are the URLs of lists."""

    def read(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield the rows of a file. Raises ListError."""


class ListOptions(NamedTuple):
    """The options that say how a list is read."""

    format: str | None = None
    """The name of the format; None to recognise it."""
    url_column: str | None = None
    """The column of URLs in a table: its name, or its number from 1. The other columns are given so too."""
    meta_columns: tuple[str, ...] = ()
    """The columns that become `meta`; `all` for every column that has no other purpose."""
    dest_column: str | None = None
    sha256_column: str | None = None

    @property
    def names_columns(self) -> bool:
        """True if a column is named, so that the list is a table."""
        return any((self.url_column, self.meta_columns, self.dest_column, self.sha256_column))
