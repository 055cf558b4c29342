"""Recovers the segments of dead writers, and removes their partial files. Every call blocks."""

import os
import threading
from contextlib import suppress

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.cdxj.line import capture_of
from fetchfleet.worker.sink.cdxj.segment_index import SegmentIndex
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, WARC_FOLDER, Directory
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.warc.records import complete_records
from fetchfleet.worker.sink.warc.segment import COMPRESSED, OPEN, PARTIAL, WRITING, final_name, give_name


class BackgroundRecovery:
    """Recovers segments in a thread, because a large segment takes longer than a start may."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, directory: Directory) -> None:
        """Start the thread."""
        arguments = directory, self._stop
        self._thread = threading.Thread(target=recover, args=arguments, name="warc recovery", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. The segment that it reads stays as it is, for the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def recover(directory: Directory, stop: threading.Event | None = None) -> None:
    """Truncate the segments of dead writers after their last complete record; index and name them.

    Removes the partial files of dead writers first. Ignores errors. Returns once `stop` is set.
    """
    for name in _names(directory, PARTIAL_FILES, (PARTIAL, f"{PARTIAL}{COMPRESSED}")):
        with suppress(OSError, InTheWayError):
            _drop_partial(directory, name)
    for name in _names(directory, WARC_FOLDER, (OPEN, WRITING)):
        with suppress(OSError, InTheWayError):
            _recover(directory, name, stop)


def _names(directory: Directory, folder: str, suffixes: tuple[str, ...]) -> list[str]:
    with suppress(OSError, InTheWayError):
        return [name for name in directory.names(folder) if name.endswith(suffixes)]
    return []


def _drop_partial(directory: Directory, name: str) -> None:
    """Remove a partial file unless its writer is alive, and so has a lock on it."""
    file = directory.open_partial(name)
    try:
        named = directory.stat(f"{PARTIAL_FILES}/{name}") if lock(file) else None
        if named is not None and os.path.samestat(os.fstat(file), named):
            directory.drop(name)
    finally:
        os.close(file)


def _recover(directory: Directory, name: str, stop: threading.Event | None) -> None:
    opening = directory.opening
    with directory.chain(WARC_FOLDER) as chain:
        file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=chain[-1])
        try:
            named = os.stat(name, dir_fd=chain[-1], follow_symlinks=False) if lock(file) else None
            if named is None or not os.path.samestat(os.fstat(file), named):
                return  # its writer is alive, or has renamed it
            if _truncate_and_index(directory, opening, file, final_name(name), stop):
                give_name(directory, name)
            else:
                os.unlink(name, dir_fd=chain[-1])
        finally:
            os.close(file)


def _truncate_and_index(
    directory: Directory, opening: int, file: int, name: str, stop: threading.Event | None
) -> int:
    """Truncate a segment after its last complete record, and save its index. Returns its size in bytes."""
    size_bytes, index = 0, SegmentIndex(directory, name)
    try:
        for found in complete_records(file, stop):
            index.add(capture_of(found.start), found.offset, found.length)
            size_bytes = found.offset + found.length
        os.ftruncate(file, size_bytes)
        os.fsync(file)
        directory.confirm(opening)  # the index belongs into the folder of the segment
        if size_bytes:
            index.save()
    finally:
        index.close()
    return size_bytes
