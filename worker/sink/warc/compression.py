"""Compression of records: each record is a gzip member of its own (WARC 1.1, annex D).

Readers can therefore start at any record.
"""

import os
import zlib
from collections.abc import Iterable, Iterator

from fetchfleet.worker.sink.files.partial_file import Block

LEVEL = 4
"""Three times as fast as zlib's default, 6, for 5% more bytes: 33 and 10 MB/s of English text on one core."""

GZIP_FORMAT = 16 + zlib.MAX_WBITS
"""The argument of zlib for a gzip member."""

MAGIC = b"\x1f\x8b"
"""The first bytes of a gzip member (RFC 1952, section 2.3.1)."""

READ_BYTES = 256 * 1024


def member(blocks: Iterable[Block]) -> bytes:
    """Return the gzip member of the blocks."""
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP_FORMAT)
    pieces = [compressor.compress(block) for block in blocks]
    return b"".join([*pieces, compressor.flush()])


def member_pieces(
    before: Block, file: int, size_bytes: int, after: Block, offset: int = 0
) -> Iterator[bytes]:
    """Yield the gzip member of a block, `size_bytes` of a file and another block, in pieces.

    Reads and yields at most READ_BYTES at once, with empty pieces between. Raises OSError.
    """
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP_FORMAT)
    yield compressor.compress(before)
    done_bytes = 0
    while done_bytes < size_bytes:
        block = os.pread(file, min(READ_BYTES, size_bytes - done_bytes), offset + done_bytes)
        if not block:
            raise OSError(f"the partial file ends after {done_bytes} of {size_bytes} bytes")
        done_bytes += len(block)
        yield compressor.compress(block)
    yield compressor.compress(after)
    yield compressor.flush()
