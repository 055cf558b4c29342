"""The index of stored bodies by fetch: one JSON file for each entry, below the out folder.

Only bodies of fetches that may need them again are indexed. The modification time of an entry is the time of
its last use.
"""

import os
import threading
from concurrent.futures import Executor
from contextlib import suppress
from io import FileIO

from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.errors import BadDestError
from fetchfleet.worker.sink.body_index import MAX_ENTRY_BYTES, BodyIndex, entry_path
from fetchfleet.worker.sink.files.directory import STATE_FOLDER, Directory
from fetchfleet.worker.sink.files.open_file import hashed
from fetchfleet.worker.sink.index_entry import (
    IndexEntry,
    Validators,
    from_json,
    key_of,
    to_json,
)
from fetchfleet.worker.util.executors import HASHING, run_in, run_stoppable

STORED = f"{STATE_FOLDER}/stored"


class FileIndex(BodyIndex):
    """The index of files."""

    def __init__(self, directory: Directory, threads: Executor) -> None:
        self._directory = directory
        self._threads = threads

    async def is_unchanged(self, entry: IndexEntry) -> bool:
        """Return whether the file of an entry is still the body that was stored.

        Hashes the file if its modification time or inode differs.
        """
        found = await run_in(self._threads, self._stat, entry.path)
        if found is None or found.st_size != entry.bytes:
            return False
        if found.st_mtime_ns // 1_000_000 == entry.stored_ms and entry.inode in {0, found.st_ino}:
            return True
        return await run_stoppable(HASHING, self._has_its_digest, entry)

    def _has_its_digest(self, entry: IndexEntry, stop: threading.Event) -> bool:
        with suppress(OSError, BadDestError), FileIO(self._directory.open_file(entry.path)) as file:
            if os.fstat(file.fileno()).st_size == entry.bytes:
                digest: str = hashed(file, entry.bytes, "sha256", stop).hexdigest()
                return digest == entry.sha256
        return False

    async def size_of(self, path: str) -> int | None:
        """Return the size of a file in bytes; None if there is no such file."""
        found = await run_in(self._threads, self._stat, path)
        return None if found is None else found.st_size

    def _stat(self, path: str) -> os.stat_result | None:
        """Stat a regular file without following links.

        Returns None if it is missing or cannot be read. Also None if the out folder was moved or replaced: a
        result must not name a file in another folder.
        """
        with suppress(OSError):
            found = self._directory.stat(path)
            return found if self._directory.in_place() else None
        return None

    async def _read(self, fetch: Fetch) -> IndexEntry | None:
        return await run_in(self._threads, self._read_and_touch, fetch)

    def _read_and_touch(self, fetch: Fetch) -> IndexEntry | None:
        """Read the fetch's entry and set its time of last use."""
        with suppress(OSError, BadDestError):
            file = self._directory.open_file(entry_path(STORED, key_of(fetch)))
            try:
                entry = from_json(os.read(file, MAX_ENTRY_BYTES))
                os.utime(file)
            finally:
                os.close(file)
            return entry
        return None


def entry_of(found: os.stat_result, path: str, sha256: str, validators: Validators) -> IndexEntry:
    """Return the entry of a body. found: the stat of its file before the file had its final name."""
    return IndexEntry(
        path=path,
        bytes=found.st_size,
        sha256=sha256,
        stored_ms=found.st_mtime_ns // 1_000_000,
        inode=found.st_ino,
        **validators._asdict(),
    )


def write_entry(directory: Directory, key: str, partial: str, entry: IndexEntry) -> None:
    """Write an entry through a partial file. Ignores errors, because the body itself is stored."""
    with suppress(OSError, BadDestError):
        file = directory.create(partial)
        try:
            os.write(file, to_json(entry))
            directory.put(partial, entry_path(STORED, key))
        finally:
            os.close(file)
            directory.drop(partial)


def entry_folders(directory: Directory) -> list[str]:
    """Return the folders of index entries, relative to the out folder."""
    with suppress(OSError, BadDestError):
        return [f"{STORED}/{name}" for name in directory.names(STORED)]
    return []


def drop_unused(directory: Directory, folder: str, unused_since_s: float) -> int:
    """Remove the entries of one folder that were not used since that Unix time. Returns their number."""
    with suppress(OSError, BadDestError):
        return directory.drop_old(folder, unused_since_s)
    return 0
