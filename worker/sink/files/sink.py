"""Stores each body as a file, which gets its final name once it is complete and checked.

Readers therefore find a complete body at the final name, or nothing.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.ids import path_of
from fetchfleet.worker.errors import BadDestError, ExistsError
from fetchfleet.worker.sink.base import Expected, HttpExchange, ResumePoint, StorageOptions
from fetchfleet.worker.sink.files.body_name import BodyName, Content, Place
from fetchfleet.worker.sink.files.buffered_body import BatchTimings, BufferedBody, SmallBatch
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, Directory
from fetchfleet.worker.sink.files.index import FileIndex, entry_of, write_entry
from fetchfleet.worker.sink.files.out_folder import THREADS, OutFolder
from fetchfleet.worker.sink.files.partial_file import PartialFile, write_all
from fetchfleet.worker.sink.files.takeover import Takeovers
from fetchfleet.worker.sink.index_entry import StoredAt, key_of
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import HASHING, run_in


class FileSink:
    """Stores bodies as files below one folder. Call open() first, and close() at the end."""

    stores_head_responses = False
    store = None

    def __init__(self, out: Path, timings: BatchTimings | None = None) -> None:
        self.disk = OutFolder(out)
        self.stored = FileIndex(self.disk.directory, self.disk.for_names)
        self.partial_files = Takeovers(self.disk)
        self._small = SmallBatch(self.disk.directory, self.disk.for_names, THREADS, timings)

    def open(self) -> None:
        """Create the folders and remove stale partial files. Raises OSError."""
        self.disk.open()

    def close(self) -> None:
        """Release the out folder; a second call does nothing."""
        self.disk.close()

    def refusal(self, fetch: Fetch) -> str | None:  # noqa: ARG002 see Sink
        """Return None: every option of a fetch is supported."""
        return None

    def writer(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions | None = None,
        resume: ResumePoint | None = None,
        exchange: HttpExchange | None = None,
    ) -> "FileWriter":
        """Return a writer for the body of a fetch. token: the lane's token; see Sink."""
        fetch, options = entry.fetch, options or StorageOptions()
        may_share = fetch.name is not None or fetch.if_exists == IfExists.SUFFIX
        name = BodyName(entry, exchange) if may_share else None
        return FileWriter(self.disk, self._small, entry, token, expected, options, resume, name)


class FileWriter(BufferedBody):
    """Writes one body to a file."""

    def __init__(
        self,
        disk: OutFolder,
        small: SmallBatch,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions,
        resume: ResumePoint | None,
        name: BodyName | None,
    ) -> None:
        super().__init__(disk, entry.id, token, expected, resume)
        self._name = name
        """Chooses among several paths; None if the body has one."""
        self._small = small
        self._fetch = entry.fetch
        self._options = options
        self._may_place: Callable[[], bool] = bool

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Check the body and give it its final name. Returns None without a file if may_place returns False.

        Raises TruncatedBodyError, DigestMismatchError, BadDestError, ExistsError or OSError.
        """
        self._may_place = may_place
        if self._partial is None:
            if self._options.durability == "none":
                self._small.add(self, self._store)
                return await self.result_to_end()
            return await aio.run_to_end(run_in(self._disk.for_names, self._store, self._disk.directory))
        await self.drain()
        await self._partial.written()
        return await aio.run_to_end(self._finish(self._partial, self._checked()))

    async def _finish(self, large: PartialFile, sha256: str) -> StoredAt | None:
        """Close the partial file and give it its final name."""
        await large.close(synced=self._options.durability != "none")
        may_hash = self._name is not None and self._name.suffixes
        threads = HASHING if may_hash else self._disk.for_names
        placed = await run_in(threads, self._place, self._disk.directory, large.opening, sha256)
        large.on_disk = placed is None
        return placed

    def _store(self, directory: Directory) -> StoredAt | None:
        """Check a body in memory and give it its final name. Runs off the loop.

        Without a sync, it is written to an unnamed file (O_TMPFILE) if the file system supports that.
        """
        sha256 = self._checked()
        if not self._may_place():
            return None
        opening, place, file = directory.opening, None, None
        if self._name is not None:
            place = self._name.existing(directory, self._content(sha256))
        if place is None and self._options.durability == "none":
            file = directory.create_unnamed()
        if file is not None:
            try:
                if os.writev(file, self._pieces) == self.size_bytes:  # else the disk is nearly full
                    if not self._may_place():
                        return None
                    place, opening = self._link(directory, file, sha256), directory.opening
            finally:
                os.close(file)
        if place is None:
            return self._store_partial(directory, sha256)
        return self._placed(directory, opening, place, sha256)

    def _link(self, directory: Directory, file: int, sha256: str) -> Place | None:
        """Give an unnamed file a name of the body. Returns None on an error, or if no name is free."""
        if self._name is not None:
            return self._name.link(directory, file, self._content(sha256))
        path, found = self._path(), os.fstat(file) if self._options.remember is not None else None
        return Place(path, found) if directory.name(file, path) else None

    def _path(self) -> str:
        """Return the only path of a body without a BodyName."""
        return self._fetch.dest or path_of(self._fetch_id)

    def _content(self, sha256: str) -> Content:
        return Content(self.size_bytes, sha256, self._options.durability)

    def _store_partial(self, directory: Directory, sha256: str) -> StoredAt | None:
        """Store a body from memory through a partial file. Runs off the loop."""
        opening, name, placed = self._disk.directory.opening, self._partial_name(), None
        file = directory.create(name)
        try:
            try:
                write_all(file, self._pieces)
                if self._options.durability != "none":
                    os.fsync(file)
            finally:
                os.close(file)
            placed = self._place(directory, opening, sha256)
        finally:
            if placed is None:
                with suppress(OSError, BadDestError):
                    directory.drop(name)
        return placed

    def _place(self, directory: Directory, opening: int, sha256: str) -> StoredAt | None:
        """Give the partial file its final name. Runs off the loop.

        Calls may_place again, because the process may have been suspended since the last call.
        """
        if not self._may_place():
            return None
        partial = self._partial_name()
        # Stat before the rename: afterwards another fetch may replace the file.
        indexed = self._options.remember is not None
        found = directory.stat(f"{PARTIAL_FILES}/{partial}") if indexed else None
        replace, full = self._fetch.on_existing is IfExists.REPLACE, self._options.durability == "full"
        try:
            if self._name is None:
                place = Place(self._path(), found)
                directory.put(partial, place.path, replace=replace, sync=full)
            else:
                place = self._name.put(directory, partial, self._content(sha256))
                place = place._replace(stat=place.stat or found)
        except (OSError, BadDestError, ExistsError):
            directory.confirm(opening)  # the error of a replaced out folder takes precedence
            raise
        directory.confirm(opening)
        return self._placed(directory, opening, place, sha256)

    def _placed(self, directory: Directory, opening: int, place: Place, sha256: str) -> StoredAt:
        """Index the body, reset the count of refused bodies, and return the body's place."""
        if self._options.remember is not None and place.stat is not None:
            directory.confirm(opening)
            entry = entry_of(place.stat, place.path, sha256, self._options.remember)
            write_entry(directory, key_of(self._fetch), f"{self._partial_name()}.stored", entry)
        if self._disk.refusals.in_a_row:
            self._disk.accepted()
        return StoredAt(place.path, self.size_bytes, sha256)
