"""The format of a file, from its first bytes, and the reader for it."""

from collections.abc import Sequence
from typing import NamedTuple

from fetchfleet.jobs.contract.fetch_list import NOT_TEXT
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.lists import list_formats
from fetchfleet.worker.local.lists.fetch_stream import TextReader
from fetchfleet.worker.local.lists.rows import Reader


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


def reader_of(name: str, head: bytes, sample: Sequence[str]) -> Reader:
    """Return the reader of a file. Raises CommandError for a format that has none."""
    if NOT_TEXT.search(head) and (advice := list_formats.binary_format(head, name)):
        raise CommandError(f"{name}: nothing was enqueued\nlooks like {advice}", BAD_USE)
    if list_formats.url_column(sample) is not None:
        raise CommandError(f"{name}: nothing was enqueued\n{list_formats.text_format(sample, name)}", BAD_USE)
    return TextReader()
