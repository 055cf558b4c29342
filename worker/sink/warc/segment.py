"""The segment that is being written. Every call blocks.

The writer of a segment holds a lock (`flock`) on it while it is open. An unlocked one has no writer.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.cdxj.segment_index import SegmentIndex
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.files.partial_file import Block, write_all
from fetchfleet.worker.util.clock import mono_s

OPEN = ".open"
"""The suffix of an uncompressed segment that is being written."""

WRITING = ".writing"
"""The suffix of a compressed one. Workers of version 0.1 would recover every `.open` file as uncompressed."""

COMPRESSED = ".gz"
"""The end of a compressed segment's name, and of a compressed record's temporary file."""

PARTIAL = ".warc"
"""The suffix of the partial file of a large body, which its writer locks and no later attempt resumes."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class Segment:
    """A new segment that begins with the given record.

    partial: a locked partial file to make the segment of; its first bytes are overwritten. Raises
    FileExistsError if the name exists, InTheWayError or OSError.
    """

    def __init__(self, directory: Directory, name: str, begin: bytes, partial: str | None = None) -> None:
        self._directory = directory
        self._opening = directory.opening
        self._open_name = open_name(name)
        self._name_synced = False
        self.path = f"{WARC_FOLDER}/{name}"
        self.opened_s = mono_s()
        self.size_bytes = 0
        self.first_record_bytes = 0
        self.broken = False
        """The bytes on disk are unknown. Append nothing more."""
        self.index = SegmentIndex(directory, name)
        with directory.chain(WARC_FOLDER) as chain:
            for taken in (name, self._open_name):
                with suppress(FileNotFoundError):  # a list of the folder would have every segment
                    os.stat(taken, dir_fd=chain[-1], follow_symlinks=False)
                    raise FileExistsError(errno.EEXIST, f"{taken} exists already")
            if partial is None:
                self._file = os.open(self._open_name, _NEW, 0o666, dir_fd=chain[-1])
            else:
                self._file = directory.open_partial(partial)
            try:
                if partial is not None:
                    directory.put(partial, f"{WARC_FOLDER}/{self._open_name}")
                elif lock(self._file) is False or not self._has_name():
                    raise FileExistsError(errno.EEXIST, f"{self._open_name}: another worker recovers it")
                self.append([begin])
                self.first_record_bytes = self.size_bytes
            except (OSError, InTheWayError):
                self.discard()
                raise

    @property
    def gone(self) -> bool:
        """True if the segment, or a folder of its path, was moved, removed or replaced."""
        in_place = self._opening == self._directory.opening and self._directory.in_place()
        return not in_place or not self._has_name()

    def _has_name(self) -> bool:
        found = self._directory.stat(f"{WARC_FOLDER}/{self._open_name}")
        return found is not None and os.path.samestat(found, os.fstat(self._file))

    def append(self, blocks: Sequence[Block]) -> None:
        """Append all blocks. On OSError none is appended."""
        with self._whole_or_nothing():
            write_all(self._file, blocks)

    def append_file(
        self, before: Sequence[Block], file: int, offset: int, size_bytes: int, after: Block
    ) -> None:
        """Append some blocks, `size_bytes` of a file, and another block. On OSError none is appended."""
        with self._whole_or_nothing():
            write_all(self._file, before)
            done = 0
            while done < size_bytes:
                copied = os.sendfile(self._file, file, offset + done, size_bytes - done)
                if not copied:
                    raise OSError(f"the partial file ends after {done} of {size_bytes} bytes")
                done += copied
            write_all(self._file, [after])

    def append_around(self, before: Sequence[Block], size_bytes: int, after: Block) -> None:
        """Append some blocks, the `size_bytes` that are in the file after them, and another block.

        On OSError the file is truncated before the blocks.
        """
        with self._whole_or_nothing():
            write_all(self._file, before)
            os.lseek(self._file, size_bytes, os.SEEK_CUR)
            write_all(self._file, [after])

    def sync(self, *, name: bool) -> None:
        """Sync the segment to disk; name: its name too. An error breaks it, since fsync reports it once."""
        try:
            os.fdatasync(self._file)
            if name and not self._name_synced:
                with self._directory.chain(WARC_FOLDER) as chain:
                    for folder in chain:
                        os.fsync(folder)
                self._name_synced = True
        except OSError:
            self.broken = True
            raise

    def cut(self, size_bytes: int) -> None:
        """Truncate the segment to an earlier size; a failure breaks it."""
        try:
            os.ftruncate(self._file, size_bytes)
            self.size_bytes = os.lseek(self._file, size_bytes, os.SEEK_SET)
        except OSError:
            self.broken = True

    def close(self) -> None:
        """Index, name and close the segment. The next start recovers a broken one."""
        with suppress(OSError, InTheWayError):
            if not self.broken and self._has_name():
                self.index.save()
                give_name(self._directory, self._open_name)
        self.index.close()
        with suppress(OSError):
            os.close(self._file)

    def discard(self) -> None:
        """Remove the segment. Ignores errors."""
        self.index.close()
        with suppress(OSError):
            os.close(self._file)
        with suppress(OSError, InTheWayError), self._directory.chain(WARC_FOLDER) as chain:
            os.unlink(self._open_name, dir_fd=chain[-1])

    @contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        """Truncate the segment to its previous size if the block raises."""
        try:
            yield
        except BaseException:
            self.cut(self.size_bytes)
            raise
        self.size_bytes = os.lseek(self._file, 0, os.SEEK_CUR)


def open_name(name: str) -> str:
    """Return the name of a segment while it is written. name: when it is closed."""
    return name + (WRITING if name.endswith(COMPRESSED) else OPEN)


def final_name(name: str) -> str:
    """Return the name of a segment when it is closed."""
    return name.removesuffix(OPEN).removesuffix(WRITING)


def give_name(directory: Directory, name: str) -> None:
    """Rename a segment to its final name. Segment has checked that no other file has it."""
    with directory.chain(WARC_FOLDER) as chain:
        os.rename(name, final_name(name), src_dir_fd=chain[-1], dst_dir_fd=chain[-1])
