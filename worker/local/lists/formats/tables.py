"""Tables of URLs in text: CSV, TSV, and columns with another delimiter. Pure."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import msgspec

from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES
from fetchfleet.jobs.contract.fetch_list import bounded, error_of
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.local.lists.rows import BadRow, ListError, ListOptions, Row

ALL = "all"
"""The value of `--meta-cols` for every column that has no other purpose."""
DELIMITERS = "\t,;|"
NO_DELIMITER = "\x1f"
"""The delimiter of a table with one column, whose URLs may contain commas."""

MAX_ROW_CHARS = 4 * MAX_FETCH_BYTES
"""The longest row. It may have columns that no fetch needs."""

_SHOWN_CHARS = 60
_MAX_LINE_CHARS = 4000
_USUAL_SHARE = 0.9
_URL = re.compile(r"""["']?https?://[^\s"']+["']?""", re.IGNORECASE)
_NAME = re.compile(r"[\w -]+")
_SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)
"""The line that gives Excel the delimiter of the rows below."""


class TableForm(NamedTuple):
    """The form of a table."""

    delimiter: str
    place: int
    """The index of the column of URLs, from 0."""
    header: Sequence[str] | None
    """The names of its columns; None if it has no header."""
    skip: int = 0
    """The number of rows before the first URL."""

    @property
    def description(self) -> str:
        """The form, for the user."""
        kinds = {"\t": "TSV", ",": "CSV", " ": "columns with spaces between them", NO_DELIMITER: "a column"}
        kind = kinds.get(self.delimiter, f"CSV with {self.delimiter!r}")
        name = f" ({self.header[self.place][:_SHOWN_CHARS]!a})" if self.header else ""
        return f"{kind}: its URLs are in column {self.place + 1}{name}"


class Columns(NamedTuple):
    """The columns of a table that are read, by index from 0."""

    url: int
    dest: int | None
    sha256: int | None
    meta: dict[str, int]
    """By name."""


class TableReader:
    """The reader of one table."""

    noun = "line"
    is_index = False

    def __init__(self, name: str, table: TableForm, options: ListOptions) -> None:
        """name: of the file. Raises ListError for a column that the table lacks."""
        self._name = name
        self._table = table
        self._columns = columns_of(name, table.header, table.place, options)
        self.description = table.description

    def read(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield the rows."""
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        skipped, line, row_chars = 0, 1, 0

        def lines() -> Iterator[str]:
            nonlocal row_chars
            for line in bounded(text):
                row_chars += len(line)
                if row_chars > MAX_ROW_CHARS:
                    raise csv.Error(f"a row is longer than {MAX_ROW_CHARS:,} characters")
                yield line

        csv.field_size_limit(MAX_FETCH_BYTES)
        rows = csv.reader(lines(), delimiter=self._table.delimiter, skipinitialspace=True)
        try:
            for row in rows:
                row_chars = 0
                number, line = line, rows.line_num + 1
                if not any(map(str.strip, row)) or row[0].startswith("#"):
                    continue
                if skipped < self._table.skip:
                    skipped += 1
                    continue
                yield number, self._text_of(row)
        except csv.Error as error:
            raise ListError(f"{self._name}: line {line}: {error}") from None

    def _text_of(self, row: list[str]) -> str:
        columns = self._columns
        if len(row) <= columns.url:
            return BadRow(
                self._table.delimiter.join(row),
                f"has {len(row)} columns; the URLs are in column {columns.url + 1}",
            )

        def cell(place: int | None) -> str | None:
            return row[place].strip() or None if place is not None and place < len(row) else None

        meta = {name: row[place] for name, place in columns.meta.items() if place < len(row)}
        return fetch_text(cell(columns.url) or "", cell(columns.dest), cell(columns.sha256), meta)


def fetch_text(url: str, dest: str | None, sha256: str | None, meta: dict[str, Any]) -> str:
    """Return the fetch of a row as a line of a text list."""
    if dest is None and sha256 is None and not meta and url[:4].lower() == "http":
        return url
    fields = {"url": url, "dest": dest, "sha256": sha256, "meta": meta or None}
    try:
        return msgspec.json.encode(
            {name: value for name, value in fields.items() if value is not None}
        ).decode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
        text = " ".join(map(str, (url, dest or "", *meta.values())))
        return BadRow(text, error_of(text, InvalidFetchError(str(error))))


def columns_of(name: str, header: Sequence[str] | None, url: int, options: ListOptions) -> Columns:
    """Return the columns that the options name. url: the place of the URLs. Raises ListError."""

    def place(option: str, column: str) -> int:
        return place_of(name, header, option, column)

    dest = None if options.dest_column is None else place("--dest-col", options.dest_column)
    sha256 = None if options.sha256_column is None else place("--sha256-col", options.sha256_column)
    if options.meta_columns == (ALL,):
        if header is None:
            raise ListError(f"{name}: --meta-cols all: the table has no header with the names of its columns")
        others = {title: index for index, title in enumerate(header) if index not in {url, dest, sha256}}
        return Columns(url, dest, sha256, others)
    places = {column: place("--meta-cols", column) for column in options.meta_columns}
    meta = {header[index] if header else column: index for column, index in places.items()}
    return Columns(url, dest, sha256, meta)


def place_of(name: str, header: Sequence[str] | None, option: str, column: str) -> int:
    """Return the index of a column, given by name or number. Raises ListError."""
    if header is not None and column in header:
        return header.index(column)
    if column.isdecimal() and 0 < int(column) <= (len(header) if header is not None else 10_000):
        return int(column) - 1
    names = ", ".join(f"{title[:_SHOWN_CHARS]!a}" for title in (header or [])[:20])
    has = f"its columns are {names}" if header else "it has no header; give the number of a column"
    raise ListError(f"{name}: {option} {column}: no such column; {has}")


def table_of(sample: Sequence[str], name: str, options: ListOptions) -> TableForm | None:
    """Return the form of a table, from its first lines; None if they are not one.

    sample: lines that are not blank, stripped. Raises ListError if `--url-col` names no column.
    """
    stated = _SEPARATOR_LINE.fullmatch(sample[0]) if sample else None
    lines, delimiter = (sample, None) if stated is None else (sample[1:], stated[1])
    if options.url_column is None:
        table = _table_of_urls(lines, delimiter)
    else:
        first = lines[0] if lines else ""
        table = _table_with_column(options.url_column, first, delimiter)
        if table is None:
            column = f"--url-col {options.url_column}"
            raise ListError(f"{name}: {column}: no such column in the first line, {first[:200]!a}")
    return table if table is None or stated is None else table._replace(skip=table.skip + 1)


def _table_with_column(column: str, first_line: str, delimiter: str | None) -> TableForm | None:
    """Return the form of a table whose first line has the column of URLs, given by name or number."""
    for candidate in delimiter or DELIMITERS + NO_DELIMITER:
        row = next(csv.reader([first_line], delimiter=candidate, skipinitialspace=True), [])
        has_number = column.isdecimal() and 0 < int(column) <= len(row)
        if column in row:
            place = row.index(column)
        elif has_number and (len(row) > 1 or candidate == NO_DELIMITER):
            place = int(column) - 1
        else:
            continue
        has_header = not is_url(row[place])
        return TableForm(candidate, place, row if has_header else None, int(has_header))
    return None


def _table_of_urls(lines: Sequence[str], delimiter: str | None) -> TableForm | None:
    """Return the form of a table if the lines are its rows, and one column clearly has URLs."""
    lines = [line[:_MAX_LINE_CHARS] for line in lines]
    if delimiter is not None:
        return _delimited(lines, delimiter)
    if not lines or lines[0].startswith(("{", "[", "<")):
        return None
    for candidate in f"{DELIMITERS} ":
        table = _delimited(lines, candidate)
        if table is not None:
            return table
    if len(lines) > 1 and _NAME.fullmatch(lines[0]) and all(map(_URL.fullmatch, lines[1:])):
        return TableForm(NO_DELIMITER, 0, lines[:1], 1)
    return None


def _delimited(lines: Sequence[str], delimiter: str) -> TableForm | None:
    """Return the form of a table with this delimiter; None if the lines are not its rows."""
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True)) or [[""]]
    except csv.Error:
        return None
    width = len(rows[0])
    quoted = width == 1 and delimiter == "," and usually(lambda line: line[:1] == line[-1:] == '"', lines)
    if not quoted and (width == 1 or not usually(lambda row: len(row) == width, rows)):
        return None
    for place in range(width):
        cells = [row[place] if place < len(row) else "" for row in rows]
        has_header = _URL.match(cells[0]) is None
        urls = cells[1:] if has_header else cells
        if not urls or not usually(is_url, urls) or (has_header and "/" in cells[0]):
            continue
        # Without a header, a line such as `http://h/a,b` may be a URL or a row. If lines contain spaces, they
        # are not URLs.
        spaced = any(" " in line or '"' in line for line in lines)
        is_table = has_header or delimiter == "\t" or spaced
        if place > 0 or (is_table and delimiter != " "):
            return TableForm(delimiter, place, rows[0] if has_header else None, int(has_header))
    return None


def is_url(cell: str) -> bool:
    """Return whether a cell is a URL."""
    return _URL.match(cell) is not None


def usually(test: Callable[..., bool], items: Sequence[object]) -> bool:
    """Return whether the test holds for nearly all items."""
    return sum(map(test, items)) >= _USUAL_SHARE * len(items)
