"""The index of stored bodies by their fetch, in files beside the bodies.

Only bodies of fetches that may need them again are indexed. An entry's modification time says when a fetch
last asked for it.
"""

import os
import threading
from concurrent.futures import Executor
from contextlib import suppress
from io import FileIO

from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import BadDestError
from fetchfleet.worker.sink.files.directory import STATE_FOLDER, Directory
from fetchfleet.worker.sink.files.open_file import hashed
from fetchfleet.worker.sink.index_entry import (
    IndexEntry,
    StoredBody,
    Validators,
    fits,
    from_json,
    key_of,
    to_json,
    usable,
)
from fetchfleet.worker.util.executors import HASHING, run_in, run_stoppable

STORED = f"{STATE_FOLDER}/stored"

MAX_ENTRY_BYTES = 128 * 1024
"""A longer file is not an index entry."""


class BodyIndex:
    """Bodies stored before, found by their fetch: see StoredBodies."""

    def __init__(self, directory: Directory, threads: Executor) -> None:
        self._directory = directory
        self._threads = threads

    async def find(self, fetch: Fetch) -> StoredBody | None:
        """Return the file at the fetch's `dest`, else the unchanged body indexed for the fetch."""
        at_dest, entry = await run_in(self._threads, self._look_up, fetch)
        indexed_there = at_dest is not None and entry is not None and entry.path == at_dest.path
        if at_dest is not None and not indexed_there and fits(fetch, at_dest.size_bytes, None):
            return at_dest
        if entry is None or not fits(fetch, entry.bytes, entry.sha256) or not await self.unchanged(entry):
            return None
        return _body_of(entry)

    async def known(self, fetch: Fetch) -> IndexEntry | None:
        """Return the index entry of an unchanged body that is where the fetch would store it."""
        entry = await run_in(self._threads, self._read, fetch)
        if entry is None or not usable(fetch, entry):
            return None
        return entry if await self.unchanged(entry) else None

    async def unchanged(self, entry: IndexEntry) -> bool:
        """Return whether the file of an entry is still the body that was stored.

        If its modification time or inode differs, the digest decides.
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

    async def at_dest(self, fetch: Fetch) -> StoredBody | None:
        """Return the file at the fetch's `dest`; its digest is known if it is the indexed body."""
        at_dest, entry = await run_in(self._threads, self._look_up, fetch)
        if at_dest is None or entry is None or entry.path != at_dest.path:
            return at_dest
        return _body_of(entry) if await self.unchanged(entry) else at_dest

    def _look_up(self, fetch: Fetch) -> tuple[StoredBody | None, IndexEntry | None]:
        """Return the file at the fetch's `dest`, and the fetch's entry."""
        found = self._stat(fetch.dest) if fetch.dest is not None else None
        if fetch.dest is None or found is None:
            return None, self._read(fetch)
        return StoredBody(path=fetch.dest, size_bytes=found.st_size, sha256=None), self._read(fetch)

    async def size_of(self, path: str) -> int | None:
        """Return the size of a file in bytes, None if there is no such file."""
        found = await run_in(self._threads, self._stat, path)
        return None if found is None else found.st_size

    def _stat(self, path: str) -> os.stat_result | None:
        """Stat a file without following links; a disk that does not answer counts as no file.

        So does one in a folder that is no longer the out folder: a result must not name it.
        """
        with suppress(OSError):
            found = self._directory.stat(path)
            return found if self._directory.in_place() else None
        return None

    def _read(self, fetch: Fetch) -> IndexEntry | None:
        """Read the fetch's entry and note that it was asked for."""
        with suppress(OSError, BadDestError):
            file = self._directory.open_file(_path_of(key_of(fetch)))
            try:
                entry = from_json(os.read(file, MAX_ENTRY_BYTES))
                os.utime(file)
            finally:
                os.close(file)
            return entry
        return None


def entry_of(found: os.stat_result, path: str, sha256: str, validators: Validators) -> IndexEntry:
    """Return the entry of a body. found: its file, read before another body can have its name."""
    return IndexEntry(
        path=path,
        bytes=found.st_size,
        sha256=sha256,
        stored_ms=found.st_mtime_ns // 1_000_000,
        inode=found.st_ino,
        **validators._asdict(),
    )


def remember(directory: Directory, key: str, part: str, entry: IndexEntry) -> None:
    """Write an entry by way of a partial file. A failure is ignored: the body itself is stored."""
    with suppress(OSError, BadDestError):
        file = directory.create(part)
        try:
            os.write(file, to_json(entry))
            directory.put(part, _path_of(key))
        finally:
            os.close(file)
            directory.drop(part)


def below(directory: Directory) -> list[str]:
    """Return the folders that hold index entries."""
    with suppress(OSError, BadDestError):
        return [f"{STORED}/{name}" for name in directory.names(STORED)]
    return []


def sweep(directory: Directory, folder: str, oldest_s: float) -> int:
    """Remove the entries of one folder not asked for since that Unix time; returns their number."""
    with suppress(OSError, BadDestError):
        return directory.drop_old(folder, oldest_s)
    return 0


def _body_of(entry: IndexEntry) -> StoredBody:
    return StoredBody(path=entry.path, size_bytes=entry.bytes, sha256=entry.sha256)


def _path_of(key: str) -> str:
    return f"{STORED}/{key[:2]}/{key}.json"
