"""Stores each body as a file: complete and checked before it has its final name.

At the final name there is a whole body or nothing, at any moment.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.field_checks import IfExists
from fetchfleet.jobs.contract.ids import path_of
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import BadDestError, ExistsError
from fetchfleet.worker.sink.base import Expected, HttpExchange, ResumePoint, StorageOptions, StoredAt
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, Directory, partial_name
from fetchfleet.worker.sink.files.index import BodyIndex, entry_of, remember
from fetchfleet.worker.sink.files.out_folder import THREADS, OutFolder
from fetchfleet.worker.sink.files.partial import PartialFile, to_the_end, write_all
from fetchfleet.worker.sink.files.small_batch import BatchTimings, SmallBatch
from fetchfleet.worker.sink.files.takeover import Takeovers
from fetchfleet.worker.sink.index_entry import Validators, key_of
from fetchfleet.worker.util.executors import run_in

RESUME_MIN_BYTES = 512 * 1024
"""A smaller partial file is fetched again sooner than it is looked after."""


class Placement(NamedTuple):
    """The final name of a body, and how the body gets it."""

    path: str
    replace: bool
    """Whether the body replaces a file that has the name."""
    durability: str
    index_key: str | None
    """None: the body is not indexed."""
    validators: Validators


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

    def receive(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions | None = None,
        resume: ResumePoint | None = None,
        exchange: HttpExchange | None = None,  # noqa: ARG002 see Sink
    ) -> "FileWriter":
        """Return a writer for the body of a fetch; the lane's token keeps two owners' partial files apart."""
        fetch, options = entry.fetch, options or StorageOptions()
        placement = Placement(
            fetch.dest or path_of(entry.id),
            fetch.if_exists == IfExists.REPLACE,
            options.durability,
            None if options.remember is None else key_of(fetch),
            options.remember or Validators(),
        )
        return FileWriter(self.disk, self._small, partial_name(entry.id, token), placement, expected, resume)


class FileWriter(PartialFile):
    """A body that becomes a file."""

    def __init__(
        self,
        disk: OutFolder,
        small: SmallBatch,
        name: str,
        placement: Placement,
        expected: Expected,
        resume: ResumePoint | None,
    ) -> None:
        super().__init__(disk, name, expected, synced=placement.durability != "none", resume=resume)
        self._small = small
        self._placement = placement

    @property
    def worth_keeping(self) -> bool:
        """Whether enough bytes have come to resume the body later."""
        return self.size_bytes >= RESUME_MIN_BYTES

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Check the body and give it its name. Returns None, with no file, once may_place returns False.

        Raises TruncatedBodyError, DigestMismatchError, BadDestError, ExistsError or OSError.
        """
        if self._blocks is not None:
            await self._blocks.flush()
            self._check()
            await self._close()
            placed = await to_the_end(run_in(self._disk.for_names, self._place, may_place))
        elif self._synced:
            placed = await to_the_end(run_in(self._disk.for_names, self._store, may_place))
        else:
            placed = await self._small.do(partial(self._store, may_place))
        return StoredAt(self._placement.path, self.size_bytes, self._sha256) if placed else None

    async def keep(self) -> int:
        """Leave the bytes so far for a later attempt; returns their number, 0 if none are left."""

        async def keep() -> int:
            if self._blocks is None or not self.worth_keeping:
                return 0
            try:
                await self._blocks.flush()
                if self._file is None:  # commit has closed it
                    return 0
                size_bytes = await self.sync()
                file, self._file = self._file, None
                await file.close()
            except OSError:
                return 0
            self._on_disk = False
            return size_bytes

        return await to_the_end(keep())

    def _store(self, may_place: Callable[[], bool], at_hand: Directory | None = None) -> bool:
        """Store a body smaller than a block; runs off the loop, in one hop.

        at_hand: the folder that a batch has open; then the file has no name until it is complete.
        """
        self._hash(self._memory)
        self._check()
        if not may_place():
            return False
        self._opening = self._disk.directory.opening
        file = at_hand.nameless() if at_hand is not None else None
        if at_hand is not None and file is not None:
            try:
                write_all(file, [self._memory])
                if not may_place():
                    return False
                found = os.fstat(file) if self._placement.index_key is not None else None
                if at_hand.name(file, self._placement.path):
                    self._placed(found, at_hand)
                    return True
            finally:
                os.close(file)
        file = (at_hand or self._disk.directory).create(self._partial_name)
        self._on_disk = True
        try:
            write_all(file, [self._memory])
            if self._synced:
                os.fsync(file)
        finally:
            os.close(file)
        return self._place(may_place, at_hand)

    def _place(self, may_place: Callable[[], bool], at_hand: Directory | None = None) -> bool:
        """Give the partial file its name; runs off the loop.

        may_place is asked again here: the process may have been stopped in between.
        """
        if not may_place():
            return False
        placement, directory = self._placement, at_hand or self._disk.directory
        # Read before the rename: afterwards another fetch's body may have the name.
        indexed = placement.index_key is not None
        found = directory.stat(f"{PARTIAL_FILES}/{self._partial_name}") if indexed else None
        full = placement.durability == "full"
        try:
            directory.put(self._partial_name, placement.path, replace=placement.replace, sync=full)
        except (OSError, BadDestError, ExistsError):  # which says nothing of the fetch in another folder
            directory.confirm(self._opening)
            raise
        self._on_disk = False
        self._placed(found, directory)
        return True

    def _placed(self, found: os.stat_result | None, directory: Directory) -> None:
        """Check that the body is where its result says, index it, and note that the disk takes files."""
        directory.confirm(self._opening)
        path, key = self._placement.path, self._placement.index_key
        if key is not None and found is not None:
            entry = entry_of(found, path, self._sha256, self._placement.validators)
            remember(directory, key, f"{self._partial_name}.stored", entry)
        if self._disk.refusals.in_a_row:
            self._disk.accepted()
