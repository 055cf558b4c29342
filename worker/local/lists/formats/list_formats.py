"""The format of a file that is not a list of fetches, and the command that converts it. Pure."""

import re
import shlex
from collections.abc import Sequence

from fetchfleet.jobs.contract.fetch_list import NOT_TEXT
from fetchfleet.worker.local.lists.formats.tables import usually

_UTF_32_BYTES = 4

_JSON_ARRAY = re.compile(r"""\[\s*(?:["{[\]]|$)""")

_COMPRESSED = {
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"\x04\x22\x4d\x18": ("LZ4", "lz4 -dc"),
}
_DOCUMENTS = {
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
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
        return "looks like HTML or XML, but not like a sitemap; give its URLs, one a line"
    return None


def legacy_encoding(file: str) -> str:
    """Return the remedy for a text with bytes that are not UTF-8."""
    return (
        "the list is not UTF-8; convert it from its encoding, which may be Windows-1252: "
        f"iconv -f WINDOWS-1252 -t UTF-8 {_shell_name(file)} > urls.txt"
    )


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
        if units and usually(
            lambda unit, place=place: bool(unit[place]) and unit.count(0) == len(unit) - 1, units
        ):
            return encoding
    return None


def _shell_name(file: str) -> str:
    """Return the file name, quoted for a shell; FILE for standard input."""
    return "FILE" if file == "-" else shlex.quote(file)
