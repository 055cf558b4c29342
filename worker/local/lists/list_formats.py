"""The format of a file that is not a list of fetches, and the command that converts it. Pure."""

import csv
import re
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fetchfleet.jobs.contract.fetch_list import NOT_TEXT

_SHOWN_CHARS = 60
_MAX_LINE_CHARS = 4000
_USUAL_SHARE = 0.9
_UTF_32_BYTES = 4

_URL = re.compile(r"""["']?https?://[^\s"']+["']?""", re.IGNORECASE)
_WORD = re.compile(r"[\w .-]+")
_JSON_ARRAY = re.compile(r"""\[\s*(?:["{[\]]|$)""")
_SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)
"""The line that gives Excel the delimiter of the rows below."""

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -dc"),
    b"\x04\x22\x4d\x18": ("LZ4", "lz4 -dc"),
}
_DOCUMENTS = {
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF": "a PDF",
}
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class Column(NamedTuple):
    """The column of a table that contains URLs."""

    delimiter: str
    place: int
    """Its index, from 0."""
    header: str | None
    """Its name in the first row; None if the table has no header."""
    skip: int = 0
    """The number of rows before the first URL."""
    padded: bool = False
    """True if spaces follow a delimiter."""


def binary_format(head: bytes, file: str) -> str | None:
    """Return the format of a file and the remedy, from its first bytes; None if they may be UTF-8 text."""
    if not NOT_TEXT.search(head):
        return None
    source = _shell_name(file)
    for magic, (name, command) in _COMPRESSED.items():
        if head.startswith(magic):
            return f"a {name} file; unpack it first: {command} {source} > urls.txt"
    if head.startswith(b"PK\x03\x04"):
        if b"[Content_Types].xml" in head or b"xl/" in head or b"opendocument" in head:
            return "a spreadsheet; save the column of URLs as text (CSV with one column), in UTF-8"
        return f"a zip archive; unpack it first: unzip -p {source} > urls.txt"
    for magic, name in _DOCUMENTS.items():
        if head.startswith(magic):
            return f"{name}; export the URLs as text in UTF-8, one a line"
    encoding = _encoding(head)
    if encoding is not None:
        return f"text in {encoding}; convert it first: iconv -f {encoding} -t UTF-8 {source} > urls.txt"
    if b"\x00" in head:
        return f"a binary file: byte {head.index(0)} is NUL; give URLs or JSON in UTF-8, one a line"
    return None


def text_format(sample: Sequence[str], file: str) -> str | None:
    """Return the format of a text and the remedy, from its first lines; None if it may be a list.

    sample: lines that are not blank, stripped of white space.
    """
    source = _shell_name(file)
    column = url_column(sample)
    if column is not None:
        return _table_advice(column, source)
    first = sample[0] if sample else ""
    if first.startswith('{"id":') and '"outcome":' in first:
        return f"looks like a report; to fetch what failed: fetchfleet run --only-failed {source}"
    if _JSON_ARRAY.match(first):
        program = (
            "import json,sys; [print(x if type(x) is str else json.dumps(x)) for x in json.load(sys.stdin)]"
        )
        return (
            f'looks like a JSON array; write an element a line: python3 -c "{program}" < {source} > urls.txt'
        )
    if first == "{":
        return "looks like JSON over several lines; write each fetch as one line"
    if first.startswith("<"):
        return "looks like HTML or XML; give its URLs, one a line"
    if len(sample) > 1 and _WORD.fullmatch(first) and all(_URL.fullmatch(line) for line in sample[1:]):
        return f"has a header line, {first[:_SHOWN_CHARS]!a}; remove it: tail -n +2 {source} > urls.txt"
    return None


def legacy_encoding(file: str) -> str:
    """Return the remedy for a text with bytes that are not UTF-8."""
    return (
        "the list is not UTF-8; convert it from its encoding, which may be Windows-1252: "
        f"iconv -f WINDOWS-1252 -t UTF-8 {_shell_name(file)} > urls.txt"
    )


def _table_advice(column: Column, source: str) -> str:
    """Return the format of a table, and the command that prints its URLs."""
    kinds = {"\t": "TSV (tabs)", ",": "CSV", " ": "columns with spaces between them"}
    kind = kinds.get(column.delimiter, f"CSV with {column.delimiter!r}")
    name = f" ({column.header[:_SHOWN_CHARS]!a})" if column.header else ""
    delimiter = "" if column.delimiter == "," else f", delimiter={column.delimiter!r}"
    delimiter += ", skipinitialspace=True" if column.padded else ""
    skip = f"[{column.skip}:]" if column.skip else ""
    return (
        f"looks like {kind}: its URLs are in column {column.place + 1}{name}; write them one a line:\n"
        f'python3 -c "import csv,sys; [print(row[{column.place}]) for row in'
        f' list(csv.reader(sys.stdin{delimiter})){skip} if len(row) > {column.place}]" < {source} > urls.txt'
    )


def url_column(sample: Sequence[str]) -> Column | None:
    """Return the column of URLs if the lines are rows of a table. sample: as for `text_format`."""
    if not sample or sample[0].startswith(("{", "[", "<")):
        return None
    stated = _SEPARATOR_LINE.fullmatch(sample[0])
    lines = [line[:_MAX_LINE_CHARS] for line in (sample if stated is None else sample[1:])]
    for delimiter in "\t,;| " if stated is None else stated[1]:
        try:
            rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True)) or [[""]]
        except csv.Error:
            continue
        width = len(rows[0])
        quoted = (
            width == 1 and delimiter == "," and _usually(lambda line: line[:1] == line[-1:] == '"', lines)
        )
        if not quoted and (width == 1 or not _usually(lambda row, width=width: len(row) == width, rows)):
            continue
        for place in range(width):
            cells = [row[place] if place < len(row) else "" for row in rows]
            header = None if _URL.match(cells[0]) else cells[0]
            urls = cells if header is None else cells[1:]
            if not urls or not _usually(_is_url, urls) or "/" in (header or ""):
                continue
            # Without a header, a line such as `http://h/a,b` may be a URL or a row. If lines contain spaces,
            # they are not URLs.
            spaced = any(" " in line or '"' in line for line in lines)
            is_table = header is not None or delimiter == "\t" or spaced
            if place > 0 or (is_table and delimiter != " "):
                padded = any(f"{delimiter} " in line for line in lines)
                skip = (header is not None) + (stated is not None)
                return Column(delimiter, place, header, skip, padded)
    return None


def _is_url(cell: str) -> bool:
    return _URL.match(cell) is not None


def _usually(test: Callable[..., bool], items: Sequence[object]) -> bool:
    """Return whether the test holds for nearly all items."""
    return sum(map(test, items)) >= _USUAL_SHARE * len(items)


def _encoding(head: bytes) -> str | None:
    """Return the encoding of a UTF-16 or UTF-32 text, from its byte order mark or the places of its NULs."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    for encoding in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        unit = _UTF_32_BYTES if "32" in encoding else 2
        # The characters of a URL are ASCII, so the other bytes of a unit are zero.
        units = [head[at : at + unit] for at in range(0, len(head) - unit + 1, unit)]
        place = unit - 1 if encoding.endswith("BE") else 0
        if units and _usually(
            lambda unit, place=place: bool(unit[place]) and unit.count(0) == len(unit) - 1, units
        ):
            return encoding
    return None


def _shell_name(file: str) -> str:
    """Return the file name, quoted for a shell; FILE for standard input."""
    return "FILE" if file == "-" else shlex.quote(file)
