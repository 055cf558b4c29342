"""Parts that outlive their attempt: who writes one has it locked, whoever takes one over looks at that first.

A worker that stood still may still have a part open, and write into it when it wakes. Its lock (`flock`, of
the open file) ends with its process or with its closing, however it comes to its end.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from typing import Any, NamedTuple

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.files.directory import PARTS, Folders

READ_BYTES = 1 << 20
SHA256 = "sha256"


class Taken(NamedTuple):
    """Half a body that is ours now: open at its end, locked, and hashed up to there."""

    file: FileIO
    folders: Folders
    part: str
    offset_bytes: int
    digests: dict[str, Any]
    """What hashlib makes of it, by name: sha256, and what was asked for since."""

    def close(self) -> None:
        """It may be taken again."""
        self.file.close()

    def drop(self) -> None:
        """It is of no use any more."""
        self.folders.drop(self.part)
        self.file.close()

    def hash_by(self, names: Iterable[str], stop: threading.Event) -> None:
        """Have it hashed by these too; reads the file again for those that are new. Raises OSError."""
        for name in set(names) - self.digests.keys():
            self.digests[name] = hashed(self.file, self.offset_bytes, name, stop)


def lock(number: int) -> bool:
    """Whether the open file is ours alone now; where a file system knows no locks nothing is."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def take(folders: Folders, there: str, ours: str, offset_bytes: int, stop: threading.Event) -> Taken | None:
    """The part as it was at the offset, under our own name; None if it is not to be had. Blocks.

    One that is too short to be what was noted is removed. stop: set to have it left as it is, soon.
    """
    try:
        file = FileIO(folders.open_part(there), "r+")
    except (OSError, InTheWayError):
        return None
    taken: Taken | None = None
    try:
        if lock(file.fileno()) and _is_still(file, folders, there):
            taken = _taken(file, folders, there, ours, offset_bytes, stop)
    except OSError:
        with suppress(OSError):  # a disk that does not give it back will not take more of it either
            folders.drop(there)
    finally:
        if taken is None:
            file.close()
    return taken


def worth_keeping(size_bytes: int) -> bool:
    """Whether so much of a body is gone on with rather than had again."""
    return size_bytes >= RESUME_MIN_BYTES


def _is_still(file: FileIO, folders: Folders, there: str) -> bool:
    """Nobody has taken or removed it between our opening and our locking it."""
    found = folders.stat(f"{PARTS}/{there}")
    return found is not None and os.path.samestat(os.fstat(file.fileno()), found)


def _taken(
    file: FileIO, folders: Folders, there: str, ours: str, offset_bytes: int, stop: threading.Event
) -> Taken | None:
    if os.fstat(file.fileno()).st_size < offset_bytes:
        folders.drop(there)
        return None
    file.truncate(offset_bytes)
    digest = hashed(file, offset_bytes, SHA256, stop)
    if stop.is_set():
        return None
    folders.rename_part(there, ours)
    return Taken(file, folders, ours, offset_bytes, {SHA256: digest})


def hashed(file: FileIO, size_bytes: int, algorithm: str, stop: threading.Event) -> Any:
    """All of the file in blocks; it stands at its end then."""
    digest = hashlib.new(algorithm)
    file.seek(0)
    left_bytes = size_bytes
    while left_bytes and not stop.is_set():
        block = file.read(min(READ_BYTES, left_bytes))
        if not block:
            raise OSError(f"{file.name!r} is shorter than it was")
        digest.update(block)
        left_bytes -= len(block)
    return digest


RESUME_MIN_BYTES = 512 * 1024
"""Less than this is had again sooner than it is looked after."""
