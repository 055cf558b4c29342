"""Writes the closed segments of an out folder to a WACZ file, with one index and a list of pages.

Memory is bounded, whatever the number and the size of the segments. Every call blocks.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from itertools import islice
from typing import IO, NamedTuple

from fetchfleet.worker.sink.cdxj.line import capture_of, line_of, parsed
from fetchfleet.worker.sink.cdxj.segment_index import SUFFIX
from fetchfleet.worker.sink.cdxj.sorted_lines import SortedLines
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory
from fetchfleet.worker.sink.wacz.package import Package
from fetchfleet.worker.sink.warc.compression import READ_BYTES, member, member_pieces
from fetchfleet.worker.sink.warc.records import FoundRecord, complete_records
from fetchfleet.worker.sink.warc.recovery import recover
from fetchfleet.worker.sink.warc.segment import COMPRESSED, OPEN, WRITING

INDEX = "index.cdx.gz"
BLOCK_LINES = 1024
"""The number of lines in a block of the index, which a reader decompresses at once."""

PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
PAGES_HEAD = {"format": "json-pages-1.0", "id": "pages", "title": "All Pages"}

NewFile = Callable[[], IO[bytes]]
"""Creates a temporary file for reading and writing."""


class Description(NamedTuple):
    """The description of an archive."""

    created: datetime
    """In UTC."""
    title: str | None = None
    text: str | None = None


class Found(NamedTuple):
    """The segments of an out folder, by name."""

    closed: list[str]
    still_open: list[str]
    """Those that a worker is writing."""


class Archived(NamedTuple):
    """The contents of a WACZ file."""

    records: int
    """The number of responses and revisits."""
    pages: int


def segments_of(directory: Directory) -> Found:
    """Return the segments of an out folder, after those of dead writers were recovered. Raises OSError."""
    if any(name.endswith((OPEN, WRITING)) for name in directory.names(WARC_FOLDER)):
        recover(directory)
    names = directory.names(WARC_FOLDER)
    return Found(
        [name for name in names if name.endswith((".warc", f".warc{COMPRESSED}"))],
        [name for name in names if name.endswith((f".warc{OPEN}", f".warc{COMPRESSED}{WRITING}"))],
    )


def write_archive(
    directory: Directory, names: Iterable[str], file: IO[bytes], new_file: NewFile, description: Description
) -> Archived:
    """Write the segments of these names to a WACZ file. Raises OSError or InTheWayError."""
    with ExitStack() as stack:
        package = Package(file, description.created)
        stack.callback(package.close)
        lines = SortedLines(new_file)
        stack.callback(lines.close)
        for name in names:
            _add_segment(package, directory, name, lines)
        pages = Pages(stack.enter_context(new_file()))
        index: list[bytes] = [_index_line("!meta 0", format="cdxj-gzip-1.0", filename=INDEX)]
        package.add(f"indexes/{INDEX}", _index_blocks(pages.watch(lines), index))
        package.add("indexes/index.idx", index, compress=True)
        package.add("pages/pages.jsonl", pages.lines(), compress=True)
        package.finish(description.title, description.text)
    return Archived(pages.records, pages.pages)


class Pages:
    """The pages among the records: successful responses in HTML. file: a temporary file for them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.records = 0
        self.pages = 0

    def watch(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines of the index, and collect the pages."""
        for line in lines:
            found = parsed(line)
            if found is None:
                continue
            self.records += 1
            if found.mime in PAGE_TYPES and found.status.startswith("2"):
                self.pages += 1
                time = line.split(b" ", 2)[1].decode()
                page_id = hashlib.sha256(f"{time} {found.url}".encode()).hexdigest()[:22]
                page = {"id": page_id, "url": found.url, "ts": _rfc3339(time), "title": found.url}
                self._file.write(_json_line(page))
            yield line

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the list of pages."""
        yield _json_line(PAGES_HEAD)
        self._file.seek(0)
        yield from self._file


def _add_segment(package: Package, directory: Directory, name: str, lines: SortedLines) -> None:
    """Add a segment to the package, and its lines to the index. Compresses the records if they are not."""
    file = directory.open_file(f"{WARC_FOLDER}/{name}")
    try:
        if not name.endswith(COMPRESSED):
            package.add(f"archive/{name}{COMPRESSED}", _compressed(file, name, lines))
            return
        package.add(f"archive/{name}", _blocks(file))
        if f"{name}{SUFFIX}" in directory.names(WARC_FOLDER):
            with open(directory.open_file(f"{WARC_FOLDER}/{name}{SUFFIX}"), "rb") as index:  # noqa: PTH123
                size_bytes = os.fstat(file).st_size
                for line in index:
                    _check_line(line, name, size_bytes)
                    lines.add(line)
            return
        for found in _all_records(file, name):
            _add_line(lines, found.start, found.offset, found.length, name)
    finally:
        os.close(file)


def _compressed(file: int, name: str, lines: SortedLines) -> Iterator[bytes]:
    """Yield each record of a segment as a gzip member, and add its line."""
    offset = 0
    for found in _all_records(file, name):
        length = 0
        for piece in member_pieces(b"", file, found.length, b"", found.offset):
            length += len(piece)
            yield piece
        _add_line(lines, found.start, offset, length, f"{name}{COMPRESSED}")
        offset += length


def _all_records(file: int, name: str) -> Iterator[FoundRecord]:
    """Yield the records of a closed segment. Raises OSError if it does not consist of whole records."""
    end = 0
    for found in complete_records(file):
        yield found
        end = found.offset + found.length
    if end != os.fstat(file).st_size:
        raise _damaged(name)


def _check_line(line: bytes, name: str, size_bytes: int) -> None:
    """Raise OSError if the record of an index line is not in the segment of this size."""
    found = parsed(line)
    with suppress(ValueError):
        if found is not None and int(found.offset) + found.record_bytes <= size_bytes:
            return
    raise _damaged(name)


def _damaged(name: str) -> OSError:
    problem = "is damaged, or its index is of another file; restore both, or move them away"
    return OSError(errno.EIO, problem, f"{WARC_FOLDER}/{name}")


def _add_line(lines: SortedLines, start: bytes, offset: int, length: int, name: str) -> None:
    """Add the line of a record by its start, unless it is of a type without one."""
    capture = capture_of(start)
    if capture is not None:
        lines.add(line_of(capture, offset, length, name))


def _blocks(file: int) -> Iterator[bytes]:
    offset = 0
    while block := os.pread(file, READ_BYTES, offset):
        offset += len(block)
        yield block


def _index_blocks(lines: Iterator[bytes], index: list[bytes]) -> Iterator[bytes]:
    """Yield the compressed blocks of the index, and add a line for each to the index of blocks."""
    offset = 0
    while some := list(islice(lines, BLOCK_LINES)):
        block = member(some)
        first = some[0].partition(b" {")[0].decode()
        digest = f"sha256:{hashlib.sha256(block).hexdigest()}"
        index.append(_index_line(first, offset=offset, length=len(block), digest=digest))
        offset += len(block)
        yield block


def _index_line(first: str, **values: str | int) -> bytes:
    return f"{first} {json.dumps(values)}\n".encode()


def _json_line(values: dict[str, str]) -> bytes:
    return f"{json.dumps(values)}\n".encode()


def _rfc3339(time: str) -> str:
    """Return a time in RFC 3339, from the 14 digits of an index."""
    return f"{time[:4]}-{time[4:6]}-{time[6:8]}T{time[8:10]}:{time[10:12]}:{time[12:14]}Z"
