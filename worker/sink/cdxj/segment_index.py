"""The index of one segment, a sorted file beside it. Every call blocks."""

import os
from contextlib import suppress
from typing import IO

from fetchfleet.worker.errors import BadDestError, ExistsError, InTheWayError
from fetchfleet.worker.sink.cdxj.line import Capture, line_of
from fetchfleet.worker.sink.cdxj.sorted_lines import SortedLines
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory

SUFFIX = ".cdxj"
"""The suffix of an index, after the name of its segment."""

TEMPORARY = ".new"
"""The suffix of an index that is being written. The folder of segments may be a file system of its own."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

_ERRORS = (OSError, InTheWayError, BadDestError, ExistsError)


class SegmentIndex:
    """Collects the lines of a segment, and saves them sorted. Call `close` at the end.

    An error of the disk costs the index, not the segment: the index can be made from it again.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name
        self._runs = 0
        self._lines = SortedLines(self._new_file)
        self._complete = True

    def add(self, capture: Capture | None, offset: int, length: int) -> None:
        """Add a record. One without a capture has no line."""
        if capture is not None and self._complete:
            try:
                self._lines.add(line_of(capture, offset, length, self._name))
            except _ERRORS:
                self._complete = False
                self._lines.close()

    def save(self) -> None:
        """Write the index beside the segment, under its final name at once and synced. Ignores errors."""
        if not self._complete:
            return
        name = f"{self._name}{SUFFIX}"
        temporary = f"{name}{TEMPORARY}"
        with suppress(*_ERRORS), self._directory.chain(WARC_FOLDER) as chain:
            folder = chain[-1]
            with suppress(FileNotFoundError):  # that of a writer which died
                os.unlink(temporary, dir_fd=folder)
            number = os.open(temporary, _NEW, 0o666, dir_fd=folder)
            try:
                with open(number, "wb") as file:  # noqa: PTH123 a descriptor
                    file.writelines(self._lines)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(temporary, dir_fd=folder)
                raise

    def close(self) -> None:
        """Remove the temporary files."""
        self._lines.close()

    def _new_file(self) -> IO[bytes]:
        """Create a temporary file without a name."""
        self._runs += 1
        name = f"{self._name}{SUFFIX}.{self._runs}"
        os.close(self._directory.create(name))
        try:
            return open(self._directory.open_partial(name), "w+b")  # noqa: PTH123 a descriptor
        finally:
            self._directory.drop(name)
