"""Stores each body as a file: complete and checked before it has its final name.

At the final name there is a whole body or nothing, at any moment.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.field_checks import IfExists
from fetchfleet.jobs.contract.ids import path_of
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import BadDestError, ExistsError
from fetchfleet.worker.sink.base import Expected, HttpExchange, ResumePoint, StorageOptions
from fetchfleet.worker.sink.files.buffered_body import BatchTimings, BufferedBody, SmallBatch
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, Directory
from fetchfleet.worker.sink.files.index import BodyIndex, entry_of, remember
from fetchfleet.worker.sink.files.out_folder import THREADS, OutFolder
from fetchfleet.worker.sink.files.partial_file import PartialFile, write_all
from fetchfleet.worker.sink.files.takeover import Takeovers
from fetchfleet.worker.sink.index_entry import StoredAt, key_of
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import run_in

RESUME_MIN_BYTES = 512 * 1024
"""A smaller partial file is fetched again sooner than it is looked after."""


class FileSink:
    """Bodies as files under one folder; open() first, close() at the end."""

    keeps_heads = False

    def __init__(self, out: Path, timings: BatchTimings | None = None) -> None:
        self.disk = OutFolder(out)
        self.stored = BodyIndex(self.disk.directory, self.disk.for_names)
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
        exchange: HttpExchange | None = None,  # noqa: ARG002 see Sink
    ) -> "FileWriter":
        """Return a writer for the body of a fetch; the lane's token keeps two owners' partial files apart."""
        return FileWriter(self.disk, self._small, entry, token, expected, options or StorageOptions(), resume)


class FileWriter(BufferedBody):
    """A body that becomes a file."""

    def __init__(
        self,
        disk: OutFolder,
        small: SmallBatch,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions,
        resume: ResumePoint | None,
    ) -> None:
        super().__init__(disk, entry.id, token, expected, resume)
        self._small = small
        self._fetch = entry.fetch
        self._options = options
        self._may_place: Callable[[], bool] = bool

    @property
    def resumable(self) -> bool:
        """True if enough bytes have come to resume the body later."""
        return self.size_bytes >= RESUME_MIN_BYTES

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Check the body and give it its name. Returns None, with no file, once may_place returns False.

        Raises TruncatedBodyError, DigestMismatchError, BadDestError, ExistsError or OSError.
        """
        self._may_place = may_place
        if self._partial is None:
            if self._options.durability == "none":
                self._small.add(self, self._store)
                return await self.wait()
            return await aio.run_to_end(run_in(self._disk.for_names, self._store_synced))
        await self.drain()
        await self._partial.written()
        return await aio.run_to_end(self._finish(self._partial, self._checked()))

    async def _finish(self, large: PartialFile, sha256: str) -> StoredAt | None:
        """Close the partial file and give it its name."""
        await large.close(synced=self._options.durability != "none")
        directory = self._disk.directory
        placed = await run_in(self._disk.for_names, self._place, directory, large.opening, sha256)
        large.on_disk = placed is None
        return placed

    async def keep(self) -> int:
        """Leave the bytes so far for a later attempt; returns their number, 0 if none are left."""
        if self._partial is None or not self.resumable:
            return 0
        return await aio.run_to_end(self._keep(self._partial))

    async def _keep(self, large: PartialFile) -> int:
        try:
            await self.drain()
            await large.written()
            if not large.is_open:  # commit has closed it
                return 0
            await large.close(synced=True)
        except OSError:
            return 0
        large.on_disk = False
        return self.size_bytes

    def _store(self, directory: Directory) -> StoredAt | None:
        """Store a body that is in memory and needs no sync; runs off the loop.

        It has no name until it is complete, if the disk supports that.
        """
        sha256 = self._checked()
        if not self._may_place():
            return None
        file = directory.nameless()
        if file is not None:
            try:
                if os.writev(file, self._pieces) == self.size_bytes:  # a nearly full disk takes a part
                    if not self._may_place():
                        return None
                    found = os.fstat(file) if self._options.remember is not None else None
                    path = self._fetch.dest or path_of(self._fetch_id)
                    if directory.name(file, path):
                        return self._placed(directory, directory.opening, path, sha256, found)
            finally:
                os.close(file)
        return self._store_partial(directory, sha256)

    def _store_synced(self) -> StoredAt | None:
        """Store a body that is in memory, and sync it; runs off the loop."""
        sha256 = self._checked()
        return self._store_partial(self._disk.directory, sha256) if self._may_place() else None

    def _store_partial(self, directory: Directory, sha256: str) -> StoredAt | None:
        """Store a body that is in memory by way of a partial file; runs off the loop."""
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
        """Give the partial file its name; runs off the loop.

        may_place is asked again here: the process may have been stopped in between.
        """
        if not self._may_place():
            return None
        partial, path = self._partial_name(), self._fetch.dest or path_of(self._fetch_id)
        # Read before the rename: afterwards another fetch's body may have the name.
        indexed = self._options.remember is not None
        found = directory.stat(f"{PARTIAL_FILES}/{partial}") if indexed else None
        replace, full = self._fetch.if_exists == IfExists.REPLACE, self._options.durability == "full"
        try:
            directory.put(partial, path, replace=replace, sync=full)
        except (OSError, BadDestError, ExistsError):  # which says nothing of the fetch in another folder
            directory.confirm(opening)
            raise
        directory.confirm(opening)
        return self._placed(directory, opening, path, sha256, found)

    def _placed(
        self, directory: Directory, opening: int, path: str, sha256: str, found: os.stat_result | None
    ) -> StoredAt:
        """Index the body, and note that the disk takes files."""
        if self._options.remember is not None and found is not None:
            directory.confirm(opening)
            entry = entry_of(found, path, sha256, self._options.remember)
            remember(directory, key_of(self._fetch), f"{self._partial_name()}.stored", entry)
        if self._disk.refusals.in_a_row:
            self._disk.accepted()
        return StoredAt(path, self.size_bytes, sha256)
