"""Files of results as a table: CSV, Parquet and SQLite."""

import csv
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES
from fetchfleet.jobs.contract.safe_text import shown_lines
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.output.table import Kind, ReportColumn, line_of

MAX_CELL_CHARS = 4 * MAX_FETCH_BYTES
"""The longest cell of CSV that is read. `meta` may fill its fetch, and quotes and escapes make it longer."""

Write = Callable[[Sequence[list[Any]]], None]
"""A function that writes rows, given as one list of values for each column."""

FORMULA = re.compile("'*(?:[=@\uff1d\uff20]|[-+\uff0d\uff0b](?![0-9.,]*\\Z))")
"""A text that a spreadsheet would evaluate, or one that looks like such a text after it was quoted."""


@contextmanager
def writing(ending: str, path: Path, columns: Sequence[ReportColumn]) -> Iterator[Write]:
    """Write a file in the format with this ending. Raises CommandError, OSError."""
    try:
        with _FILES[ending](path, columns) as write:
            yield write
    except sqlite3.Error as error:
        raise CommandError(str(error)) from None


@contextmanager
def csv_file(path: Path, columns: Sequence[ReportColumn]) -> Iterator[Write]:
    """Write CSV by RFC 4180, in UTF-8 with a header. A spreadsheet evaluates none of its cells."""

    def write(values: Sequence[list[Any]]) -> None:
        cells = [_cells(column.kind, of) for column, of in zip(columns, values, strict=True)]
        rows.writerows(zip(*cells, strict=True))

    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([column.name for column in columns])
        yield write


def _cells(kind: Kind, values: list[Any]) -> list[Any]:
    if kind is Kind.BOOL:
        return [value if value is None else "true" if value else "false" for value in values]
    if kind is Kind.TEXT:
        return [value if value is None else quoted(shown_lines(value)) for value in values]
    return values


def quoted(text: str) -> str:
    """Return the text of a cell that no spreadsheet evaluates."""
    return f"'{text}" if FORMULA.match(text) else text


def unquoted(cell: str) -> str:
    """Return the text of a cell that `quoted` has made."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


@contextmanager
def parquet_file(path: Path, columns: Sequence[ReportColumn]) -> Iterator[Write]:
    """Write Parquet, with a row group for each call."""
    import pyarrow as pa  # noqa: PLC0415 slow, and an extra
    from pyarrow import parquet  # noqa: PLC0415

    types = {
        Kind.BOOL: pa.bool_(),
        Kind.INT: pa.int64(),
        Kind.FLOAT: pa.float64(),
        Kind.TEXT: pa.string(),
    }
    schema = pa.schema([(column.name, types[column.kind]) for column in columns])

    def write(values: Sequence[list[Any]]) -> None:
        arrays = [pa.array(of, types[column.kind]) for column, of in zip(columns, values, strict=True)]
        file.write_batch(pa.record_batch(arrays, schema=schema))

    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        yield write


@contextmanager
def sqlite_file(path: Path, columns: Sequence[ReportColumn]) -> Iterator[Write]:
    """Write a SQLite database with the table `results`. The last result of an ID counts."""
    names = ", ".join(
        f"{_name(column.name)} {_SQLITE_TYPES[column.kind]}{' PRIMARY KEY' * (column.name == 'id')}"
        for column in columns
    )
    insert = f"INSERT OR REPLACE INTO results VALUES ({', '.join('?' * len(columns))})"  # noqa: S608

    def write(values: Sequence[list[Any]]) -> None:
        database.executemany(insert, zip(*values, strict=True))

    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = OFF")  # the file has another name until it is complete
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"CREATE TABLE results ({names})")
        database.execute("BEGIN")
        yield write
        database.execute("CREATE INDEX results_by_outcome ON results (outcome, reason)")
        database.execute("COMMIT")


_SQLITE_TYPES = {Kind.BOOL: "BOOLEAN", Kind.INT: "INTEGER", Kind.FLOAT: "REAL", Kind.TEXT: "TEXT"}


def lines_in(option: str, report: Path, ending: str) -> Iterator[bytes]:
    """Yield the results of a file as JSON Lines. Raises CommandError."""
    try:
        for row in _READERS[ending](report):
            yield line_of(row)
    except (sqlite3.Error, csv.Error, ValueError) as error:  # pyarrow raises ValueError
        raise CommandError(f"{option} {report}: not a report ({error})", BAD_USE) from None


def _csv_rows(report: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_CELL_CHARS)
    with report.open(encoding="utf-8-sig", newline="") as file:  # a spreadsheet may have written a BOM
        rows = csv.DictReader(file, strict=True)
        if "id" not in (rows.fieldnames or ()):
            raise ValueError("it has no column id")
        for row in rows:
            if None in row:
                raise ValueError(f"line {rows.line_num} has more cells than the header")
            yield {name: unquoted(cell) for name, cell in row.items() if cell}


def _parquet_rows(report: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet  # noqa: PLC0415

    with parquet.ParquetFile(report) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _sqlite_rows(report: Path) -> Iterator[dict[str, Any]]:
    with closing(sqlite3.connect(report)) as database:
        database.row_factory = sqlite3.Row
        yield from map(dict, database.execute("SELECT * FROM results ORDER BY rowid"))


_READERS = {"csv": _csv_rows, "parquet": _parquet_rows, "sqlite": _sqlite_rows}
_FILES = {"csv": csv_file, "parquet": parquet_file, "sqlite": sqlite_file}


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
