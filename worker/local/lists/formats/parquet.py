"""Parquet files with a column of URLs (extra `parquet`)."""

from collections.abc import Iterator
from typing import IO, Any

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.lists.formats.tables import columns_of, fetch_text, is_url, place_of, usually
from fetchfleet.worker.local.lists.rows import ListError, ListOptions, Row

BATCH_ROWS = 2048
SAMPLE_ROWS = 50
TEXTS = frozenset({"string", "large_string", "dictionary<values=string, indices=int32, ordered=0>"})
"""The types of columns that are searched for URLs."""
BUFFER_BYTES = 1 << 20
"""The bytes of a column that are read at once."""


class ParquetReader:
    """The reader of one Parquet file. Only the columns in use are read."""

    noun = "row"
    description = "Parquet"
    is_index = False

    def __init__(self, name: str, options: ListOptions) -> None:
        self._name = name
        self._options = options

    def read(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield the rows. Raises ListError, and CommandError without the extra."""
        try:
            import pyarrow as pa  # noqa: PLC0415 few lists are Parquet
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ImportError:
            raise CommandError(
                f"{self._name}: reading Parquet needs: pip install 'fetchfleet[parquet]'", BAD_USE
            ) from None
        try:
            with pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False) as table:
                yield from self._rows(table)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two for a value
            raise ListError(f"{self._name}: not a valid Parquet file: {str(error)[:200]}") from None

    def _rows(self, table: Any) -> Iterator[Row]:
        header = table.schema_arrow.names
        named = self._options.url_column
        url = (
            url_place(self._name, table)
            if named is None
            else place_of(self._name, header, "--url-col", named)
        )
        columns = columns_of(self._name, header, url, self._options)
        places = {url, columns.dest, columns.sha256, *columns.meta.values()} - {None}
        names = [header[place] for place in places if place is not None]
        number = 0
        if doubled := [name for name in names if header.count(name) > 1]:
            raise ListError(f"{self._name}: several columns are named {doubled[0][:60]!a}; rename them")
        for batch in table.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
            values = {name: in_microseconds(batch.column(name)).to_pylist() for name in names}
            for index in range(batch.num_rows):
                number += 1
                row = {name: values[name][index] for name in names}
                yield (
                    number,
                    fetch_text(
                        url_text(row[header[url]]),
                        _text(row, header, columns.dest),
                        _text(row, header, columns.sha256),
                        {name: row[header[place]] for name, place in columns.meta.items()},
                    ),
                )


def in_microseconds(column: Any) -> Any:
    """Return a column of times in nanoseconds with microseconds, the precision of Python."""
    import pyarrow as pa  # noqa: PLC0415

    kind = column.type
    if getattr(kind, "unit", None) != "ns":
        return column
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz), safe=False)
    return column.cast(pa.time64("us") if pa.types.is_time(kind) else pa.duration("us"), safe=False)


def url_text(cell: Any) -> str:
    """Return the text of a URL; older writers store texts as bytes."""
    return cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell or "")


def url_place(name: str, table: Any) -> int:
    """Return the place of the only column with URLs, or of the one named url. Raises ListError."""
    header = table.schema_arrow.names
    types = [str(kind) for kind in table.schema_arrow.types]
    texts = [
        title for title, kind in zip(header, types, strict=True) if kind in TEXTS and header.count(title) == 1
    ]
    batch = next(table.iter_batches(SAMPLE_ROWS, columns=texts, use_threads=False), None)
    found = []
    for title in texts:
        if batch is None:
            break
        cells = [cell for cell in batch.column(title).to_pylist() if cell]
        if cells and usually(is_url, cells):
            found.append(title)
    named = [title for title in found if title.lower() == "url"]
    chosen = named if len(named) == 1 else found
    if len(chosen) != 1:
        columns = ", ".join(found or header)[:500]
        raise ListError(f"{name}: give the column of URLs with --url-col NAME; the file has {columns}")
    return int(header.index(chosen[0]))


def _text(row: dict[str, Any], header: list[str], place: int | None) -> str | None:
    value = None if place is None else row[header[place]]
    if isinstance(value, bytes):
        return value.hex()
    return None if value is None else str(value)
