"""The complete records at the start of a segment, compressed or not. Every call blocks."""

import errno
import os
import threading
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from fetchfleet.worker.sink.warc.compression import GZIP_FORMAT, MAGIC, READ_BYTES
from fetchfleet.worker.sink.warc.record_format import END, MAX_HEAD_BYTES, block_bytes

FIRST_READ_BYTES = 16 * 1024
"""The first read of a record. Most are smaller, and zlib copies the bytes after a member."""

MAX_START_BYTES = 2 * MAX_HEAD_BYTES
"""Enough for the head of a record and the head of its HTTP message."""


class FoundRecord(NamedTuple):
    """A complete record of a segment."""

    offset: int
    """Its position in the file."""
    length: int
    """Its size in the file: that of its gzip member, if it is compressed."""
    start: bytes
    """The first bytes of the record, without compression: its head, and the start of its block."""


def complete_records(file: int, stop: threading.Event | None = None) -> Iterator[FoundRecord]:
    """Yield the records of a segment up to the first incomplete or malformed one.

    Raises OSError, which is InterruptedError once `stop` is set.
    """
    next_record = _next_member if os.pread(file, len(MAGIC), 0) == MAGIC else _next_plain
    stop, offset = stop or threading.Event(), 0
    while (found := next_record(file, offset, stop)) is not None:
        yield found
        offset += found.length


def start_at(file: int, offset: int) -> bytes:
    """Return the start of the record at an offset, with its head. Raises OSError or zlib.error."""
    start = os.pread(file, FIRST_READ_BYTES, offset)
    if start.startswith(MAGIC):
        return zlib.decompressobj(GZIP_FORMAT).decompress(start, MAX_START_BYTES)
    return start


def _next_plain(file: int, offset: int, stop: threading.Event) -> FoundRecord | None:
    """Return the uncompressed record at an offset; None if it is incomplete."""
    _check(stop)
    start = os.pread(file, FIRST_READ_BYTES, offset)
    if start.count(END) < 2:  # the heads of the record and of its HTTP message
        start = os.pread(file, MAX_START_BYTES, offset)
    sizes = block_bytes(start)
    if sizes is None or os.pread(file, len(END), offset + sum(sizes)) != END:
        return None
    length = sum(sizes) + len(END)
    return FoundRecord(offset, length, start[:length])


def _next_member(file: int, offset: int, stop: threading.Event) -> FoundRecord | None:
    """Return the record in the gzip member at an offset; None if it is incomplete or malformed."""
    decompressor = zlib.decompressobj(GZIP_FORMAT)
    start, end, size_bytes, read_to = b"", b"", 0, offset
    while not decompressor.eof:
        _check(stop)
        compressed = decompressor.unconsumed_tail
        if not compressed:
            compressed = os.pread(file, READ_BYTES if read_to > offset else FIRST_READ_BYTES, read_to)
            read_to += len(compressed)
            if not compressed:
                return None
        try:
            piece = decompressor.decompress(compressed, READ_BYTES)
        except zlib.error:  # includes a wrong checksum
            return None
        size_bytes += len(piece)
        start += piece[: MAX_START_BYTES - len(start)]
        end = (end + piece[-len(END) :])[-len(END) :]
    sizes = block_bytes(start)
    if sizes is None or sum(sizes) + len(END) != size_bytes or end != END:
        return None
    length = read_to - len(decompressor.unused_data) - offset
    return FoundRecord(offset, length, start)


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise InterruptedError(errno.EINTR, "the segment was not read to its end")
