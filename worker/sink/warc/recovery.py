"""Recovers the segments of dead writers. Every call blocks."""

import os
from contextlib import suppress

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.cdxj.segment_index import SegmentIndex
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.warc.records import complete_records
from fetchfleet.worker.sink.warc.segment import OPEN, WRITING, final_name, give_name


def recover(directory: Directory) -> None:
    """Truncate the segments of dead writers after their last complete record; index and name them.

    Raises OSError, or InTheWayError if the folder of segments cannot be created.
    """
    with directory.chain(WARC_FOLDER):
        pass
    for name in directory.names(WARC_FOLDER):
        if not name.endswith((OPEN, WRITING)):
            continue
        with suppress(OSError, InTheWayError), directory.chain(WARC_FOLDER) as chain:
            file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=chain[-1])
            try:
                named = os.stat(name, dir_fd=chain[-1], follow_symlinks=False) if lock(file) else None
                if named is None or not os.path.samestat(os.fstat(file), named):
                    continue  # its writer is alive, or has renamed it
                if _truncate_and_index(directory, file, final_name(name)):
                    give_name(directory, name)
                else:
                    os.unlink(name, dir_fd=chain[-1])
            finally:
                os.close(file)


def _truncate_and_index(directory: Directory, file: int, name: str) -> int:
    """Truncate a segment after its last complete record, and save its index. Returns its size in bytes."""
    size_bytes, index = 0, SegmentIndex(directory, name)
    try:
        for found in complete_records(file):
            index.add(found.start, found.offset, found.length)
            size_bytes = found.offset + found.length
        os.ftruncate(file, size_bytes)
        os.fsync(file)
        if size_bytes:
            index.save()
    finally:
        index.close()
    return size_bytes
