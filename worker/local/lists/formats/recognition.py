"""The format of a file, from its first bytes, and the reader for it."""

import io
from collections.abc import Sequence

from fetchfleet.jobs.contract.fetch_list import NOT_TEXT
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.lists.fetch_stream import TextReader
from fetchfleet.worker.local.lists.formats import aria2, list_formats, sitemaps, tables
from fetchfleet.worker.local.lists.rows import ListOptions, Reader
from fetchfleet.worker.local.lists.sources import PARQUET

TEXT, CSV, TSV, ARIA2, SITEMAP = "text", "csv", "tsv", "aria2", "sitemap"
PARQUET_FORMAT = "parquet"
FORMATS = (TEXT, CSV, TSV, PARQUET_FORMAT, ARIA2, SITEMAP)
"""The values of `--format`."""


def reader_of(name: str, head: bytes, sample: Sequence[str], options: ListOptions) -> Reader:
    """Return the reader of a file. Raises CommandError for a format that has none.

    head: the start of the file. sample: its first lines that are not skipped, if it is a text.
    """
    form = options.format
    if form == PARQUET_FORMAT or (form is None and head.startswith(PARQUET)):
        from fetchfleet.worker.local.lists.formats.parquet import ParquetReader  # noqa: PLC0415 it imports pyarrow

        return ParquetReader(name, options)
    if NOT_TEXT.search(head) and (advice := list_formats.binary_format(head, name)):
        raise CommandError(f"{name}: nothing was enqueued\nlooks like {advice}", BAD_USE)
    root = root_of(head)
    if form == SITEMAP or (form is None and root is not None):
        return sitemaps.SitemapReader(name, root or sitemaps.SITEMAP)
    if form == ARIA2 or (form is None and not options.names_columns and aria2.is_aria2(lines_of(head))):
        return aria2.Aria2Reader()
    if form == TEXT or not sample:
        return TextReader()
    table = tables.table_of(sample, name, options)
    if table is not None:
        return tables.TableReader(name, table, options)
    if form in {CSV, TSV} or options.names_columns:
        raise CommandError(f"{name}: no column has URLs only; give it with --url-col NAME|N", BAD_USE)
    return TextReader()


def root_of(head: bytes) -> str | None:
    """Return the root element of a sitemap or sitemap index; None for any other file."""
    start = head.decode(errors="replace").lstrip("\ufeff \t\r\n")
    if not start.startswith("<"):
        return None
    found = {root: start.find(root) for root in (sitemaps.SITEMAP, sitemaps.INDEX) if f"{root}" in start}
    return min(found, key=found.__getitem__, default=None)


def lines_of(head: bytes) -> list[str]:
    """Return the first complete lines of a text with their indentation, without comments."""
    lines = io.BytesIO(head[: head.rfind(b"\n") + 1] or head).read().decode(errors="replace").splitlines()
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("#")]
