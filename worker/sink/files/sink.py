"""Stores each body as a file: complete and checked before it has its final name.

At the final name there is a whole body or nothing, at any moment.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.field_checks import IfExists
from fetchfleet.jobs.contract.ids import path_of
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import BadDestError, ExistsError
from fetchfleet.worker.sink.base import Expected, HttpExchange, ResumePoint, StorageOptions
from fetchfleet.worker.sink.files.buffered_body import BufferedBody, PartialFile, write_all
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, Directory, partial_name
from fetchfleet.worker.sink.files.index import BodyIndex, entry_of, remember
from fetchfleet.worker.sink.files.out_folder import THREADS, OutFolder
from fetchfleet.worker.sink.files.small_batch import BatchTimings, SmallBatch
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
        super().__init__(disk, partial_name(entry.id, token), expected, resume)
        self._small = small
        self._fetch = entry.fetch
        self._path = entry.fetch.dest or path_of(entry.id)
        self._options = options

    @property
    def worth_keeping(self) -> bool:
        """Whether enough bytes have come to resume the body later."""
        return self.size_bytes >= RESUME_MIN_BYTES

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Check the body and give it its name. Returns None, with no file, once may_place returns False.

        Raises TruncatedBodyError, DigestMismatchError, BadDestError, ExistsError or OSError.
        """
        if self._partial is None:
            store = partial(self._store, may_place)
            if self._options.durability == "none":
                return await self._small.do(store)
            return await aio.to_the_end(run_in(self._disk.for_names, store, self._disk.directory))
        await self.drain()
        await self._partial.written()
        return await aio.to_the_end(self._finish(self._partial, self._checked(), may_place))

    async def _finish(
        self, large: PartialFile, sha256: str, may_place: Callable[[], bool]
    ) -> StoredAt | None:
        """Close the partial file and give it its name."""
        await large.close(synced=self._options.durability != "none")
        directory = self._disk.directory
        placed = await run_in(self._disk.for_names, self._place, may_place, directory, large.opening, sha256)
        large.on_disk = placed is None
        return placed

    async def keep(self) -> int:
        """Leave the bytes so far for a later attempt; returns their number, 0 if none are left."""
        if self._partial is None or not self.worth_keeping:
            return 0
        return await aio.to_the_end(self._keep(self._partial))

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

    def _store(self, may_place: Callable[[], bool], directory: Directory) -> StoredAt | None:
        """Store a body that is in memory; runs off the loop, in one hop.

        It has no name until it is complete, if it needs no sync and the disk supports that.
        """
        self._hash()
        sha256 = self._checked()
        if not may_place():
            return None
        opening, synced = self._disk.directory.opening, self._options.durability != "none"
        file = None if synced else directory.nameless()
        if file is not None:
            try:
                write_all(file, self._pieces)
                if not may_place():
                    return None
                found = os.fstat(file) if self._options.remember is not None else None
                if directory.name(file, self._path):
                    return self._placed(directory, opening, sha256, found)
            finally:
                os.close(file)
        file = directory.create(self._partial_name)
        placed = None
        try:
            try:
                write_all(file, self._pieces)
                if synced:
                    os.fsync(file)
            finally:
                os.close(file)
            placed = self._place(may_place, directory, opening, sha256)
        finally:
            if placed is None:
                with suppress(OSError, BadDestError):
                    directory.drop(self._partial_name)
        return placed

    def _place(
        self, may_place: Callable[[], bool], directory: Directory, opening: int, sha256: str
    ) -> StoredAt | None:
        """Give the partial file its name; runs off the loop.

        may_place is asked again here: the process may have been stopped in between.
        """
        if not may_place():
            return None
        # Read before the rename: afterwards another fetch's body may have the name.
        indexed = self._options.remember is not None
        found = directory.stat(f"{PARTIAL_FILES}/{self._partial_name}") if indexed else None
        replace, full = self._fetch.if_exists == IfExists.REPLACE, self._options.durability == "full"
        try:
            directory.put(self._partial_name, self._path, replace=replace, sync=full)
        except (OSError, BadDestError, ExistsError):  # which says nothing of the fetch in another folder
            directory.confirm(opening)
            raise
        directory.confirm(opening)
        return self._placed(directory, opening, sha256, found)

    def _placed(
        self, directory: Directory, opening: int, sha256: str, found: os.stat_result | None
    ) -> StoredAt:
        """Index the body, and note that the disk takes files."""
        if self._options.remember is not None and found is not None:
            directory.confirm(opening)
            entry = entry_of(found, self._path, sha256, self._options.remember)
            remember(directory, key_of(self._fetch), f"{self._partial_name}.stored", entry)
        if self._disk.refusals.in_a_row:
            self._disk.accepted()
        return StoredAt(self._path, self.size_bytes, sha256)
