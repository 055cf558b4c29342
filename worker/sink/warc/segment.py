"""One WARC segment that is being written, and those whose writer has died. Everything here blocks.

A segment is locked (`flock`) by who writes it, for as long as it is open. What nobody has locked has nobody.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.files.directory import Folders
from fetchfleet.worker.sink.files.open_file import Block, lock, write_all
from fetchfleet.worker.sink.warc.record_format import END, MAX_HEAD_BYTES, block_bytes
from fetchfleet.worker.util.clock import mono_s

FOLDER = "warc"
OPEN = ".open"
FEW_BYTES = 2048
"""Most heads are shorter."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class Segment:
    """A new segment, which begins with that record.

    Raises FileExistsError where one has that name, other OSErrors and InTheWayError.
    """

    def __init__(self, folders: Folders, name: str, begin: bytes) -> None:
        self._folders = folders
        self._name = name
        self._named_for_good = False
        self.path = f"{FOLDER}/{name}"
        self.opened_s = mono_s()
        self.size_bytes = 0
        self.broken = False
        """Whether nobody knows any more what the disk has of it: nothing is appended then."""
        with folders.way(FOLDER) as way:
            if name in os.listdir(way[-1]):  # noqa: PTH208 - by descriptor
                raise FileExistsError(errno.EEXIST, f"{self.path} is there")
            self._file = os.open(name + OPEN, _NEW, 0o666, dir_fd=way[-1])
            try:
                lock(self._file)
                self.append([begin])
            except OSError:
                os.close(self._file)
                with suppress(OSError):
                    os.unlink(name + OPEN, dir_fd=way[-1])
                raise

    @property
    def gone(self) -> bool:
        """Whether somebody has removed it: what is appended would be nowhere."""
        return os.fstat(self._file).st_nlink == 0

    def append(self, blocks: Sequence[Block]) -> None:
        """All of them, or nothing and OSError."""
        with self._whole_or_nothing():
            write_all(self._file, blocks)

    def append_file(self, before: Sequence[Block], file: int, size_bytes: int) -> None:
        """The blocks, so much of the file from its start, and the end of a record; or nothing and OSError."""
        with self._whole_or_nothing():
            write_all(self._file, before)
            _copy(file, self._file, size_bytes)
            write_all(self._file, [END])

    def sync(self, *, name: bool) -> None:
        """Bring it to the disk, with its name if wanted; an error is final: it is told once."""
        try:
            os.fdatasync(self._file)
            if name and not self._named_for_good:
                self._sync_name()
        except OSError:
            self.broken = True
            raise

    def cut(self, size_bytes: int) -> None:
        """As it was when it was so long; it is broken if that cannot be."""
        try:
            os.ftruncate(self._file, size_bytes)
            self.size_bytes = os.lseek(self._file, size_bytes, os.SEEK_SET)
        except OSError:
            self.broken = True

    def close(self) -> None:
        """It has its name; one that is broken, or whose name cannot be, is left to a later start."""
        with suppress(OSError, InTheWayError):
            if not self.broken:
                _give_name(self._folders, self._name + OPEN)
        with suppress(OSError):
            os.close(self._file)

    def _sync_name(self) -> None:
        with self._folders.way(FOLDER) as way:
            for folder in way:
                os.fsync(folder)
        self._named_for_good = True

    @contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        """What is written in this block counts if it ends well, else it is cut off again."""
        try:
            yield
        except BaseException:
            self.cut(self.size_bytes)
            raise
        self.size_bytes = os.lseek(self._file, 0, os.SEEK_CUR)


def recover(folders: Folders) -> None:
    """Cut the segments of dead writers to their last whole record and give them their names.

    Raises InTheWayError where no folder for segments can be, and OSError.
    """
    with folders.way(FOLDER):
        pass
    for name in folders.names(FOLDER):
        if name.endswith(OPEN):
            with suppress(OSError, InTheWayError):
                _recover_one(folders, name)


def whole_bytes(file: int) -> int:
    """How much of a segment is whole records, counted from its start."""
    size_bytes = os.fstat(file).st_size
    whole = 0
    while True:
        found = block_bytes(os.pread(file, FEW_BYTES, whole))
        found = found or block_bytes(os.pread(file, MAX_HEAD_BYTES, whole))
        if found is None:
            return whole
        ends = whole + sum(found)
        if ends + len(END) > size_bytes or os.pread(file, len(END), ends) != END:
            return whole
        whole = ends + len(END)


def _recover_one(folders: Folders, name: str) -> None:
    with folders.way(FOLDER) as way:
        file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=way[-1])
        try:
            ours = lock(file) and os.path.samestat(
                os.fstat(file), os.stat(name, dir_fd=way[-1], follow_symlinks=False)
            )
            if not ours:
                return
            whole = whole_bytes(file)
            os.ftruncate(file, whole)
            os.fsync(file)
            if whole:
                _give_name(folders, name)
            else:
                os.unlink(name, dir_fd=way[-1])
        finally:
            os.close(file)


def _give_name(folders: Folders, name: str) -> None:
    """Its own, which nothing has had: see Segment."""
    with folders.way(FOLDER) as way:
        os.rename(name, name.removesuffix(OPEN), src_dir_fd=way[-1], dst_dir_fd=way[-1])


def _copy(source: int, to: int, size_bytes: int) -> None:
    done = 0
    while done < size_bytes:
        copied = os.sendfile(to, source, done, size_bytes - done)
        if not copied:
            raise OSError("a part is shorter than what came")
        done += copied
