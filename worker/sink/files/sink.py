"""Where bodies go: a temporary file first, renamed into place when it is whole and checked.

At the final name there is a whole body or nothing, whatever happens in between.
"""

import errno
import os
import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fetchfleet.jobs.contract.entry import Entry, PartNote
from fetchfleet.jobs.contract.field_checks import REPLACE
from fetchfleet.jobs.contract.ids import path_of
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.base import Care, Expected, Note, Place
from fetchfleet.worker.sink.disk_space import Refusals, Space, refused
from fetchfleet.worker.sink.files import index
from fetchfleet.worker.sink.files.cleanup import drop_stale_parts
from fetchfleet.worker.sink.files.directory import PARTS, Folders
from fetchfleet.worker.sink.files.partial import Part
from fetchfleet.worker.sink.files.small_batch import Small
from fetchfleet.worker.sink.files.takeover import Taken, take
from fetchfleet.worker.sink.index_entry import Old, Record, key_of, usable
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.executors import HASHING, run_in, run_stoppable

if TYPE_CHECKING:
    from fetchfleet.worker.sink.base import Came

THREADS = 8
"""For blocks of large bodies, and as many for small ones and names: neither waits for the other, and nobody
who asks a resolver waits for either."""


TRIAL = bytes(4096)


class FileSink:
    """Bodies as files under one folder; open() first, close() at the end."""

    keeps_heads = False

    def __init__(self, out: Path) -> None:
        self.out = out
        self.parts = out / PARTS
        self.folders = Folders(out)
        self.received_bytes = 0
        self._trial = f"trial.{secrets.token_hex(8)}"
        self.refusals = Refusals()
        self._tried = self.refusals
        self.for_blocks = ThreadPoolExecutor(THREADS, thread_name_prefix="blocks")
        self.for_names = ThreadPoolExecutor(THREADS, thread_name_prefix="names")
        self.small = Small(self.folders, self.for_names, THREADS)

    def open(self) -> None:
        """Make the folders and drop parts that no living worker can still be at; raises OSError."""
        self.folders.open()
        try:
            with self.folders.way(PARTS):
                drop_stale_parts(self.folders)
        except InTheWayError as error:
            raise OSError(errno.ENOTDIR, f"the out folder cannot be used, remove this: {error}") from None

    def close(self) -> None:
        """Let go of the out folder; again without harm."""
        for threads in (self.for_blocks, self.for_names):
            threads.shutdown(wait=False)
        self.folders.close()

    def refusal(self, fetch: Fetch) -> str | None:  # noqa: ARG002 others do less
        """None: everything that a fetch may ask for is done."""
        return None

    def receive(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        care: Care | None = None,
        taken: Taken | None = None,
        came: "Came | None" = None,  # noqa: ARG002 a file is its body alone
    ) -> Part:
        """A part for the body of a fetch; the lane's token keeps two owners' parts apart.

        taken: the half of it that is there.
        """
        fetch, care = entry.fetch, care or Care()
        place = Place(
            part_of(entry.id, token),
            fetch.dest or path_of(entry.id),
            None if care.remember is None else Note(key_of(fetch), care.remember),
            care.durability,
            replace=fetch.if_exists == REPLACE,
        )
        return Part(self, place, expected, taken)

    def take(self, fetch_id: str, note: PartNote, token: int, stop: threading.Event) -> Taken | None:
        """The half body of a note, ours from now on; None if this disk does not have it. Blocks."""
        there, ours = part_of(fetch_id, note.token), part_of(fetch_id, token)
        return take(self.folders, there, ours, note.offset_bytes, stop)

    def forget(self, fetch_id: str, note: PartNote) -> Future[None]:
        """The half body of a note is wanted no more; it goes in a thread: a large one takes a while."""
        return self.for_names.submit(self._forget, part_of(fetch_id, note.token))

    def _forget(self, part: str) -> None:
        with suppress(OSError, InTheWayError):
            self.folders.drop(part)

    async def old(self, fetch: Fetch) -> Old | None:
        """What was stored for the fetch before and is still there, or at its `dest`."""
        found = await run_in(self.for_names, index.look_up, self.folders, fetch)
        if not isinstance(found, Record):
            return found
        return index.old_of(found) if await self.holds(found) else None

    async def size_of(self, path: str) -> int | None:
        """Of the file at a path; None where there is none, or the disk does not say."""
        with suppress(OSError):
            found = await run_in(self.for_names, self.folders.stat, path)
            return found.st_size if found else None
        return None

    async def known(self, fetch: Fetch) -> Record | None:
        """What was stored before, is as it was, and is where the fetch would have it."""
        record = await run_in(self.for_names, index.recorded, self.folders, fetch)
        if record is None or not usable(fetch, record):
            return None
        return record if await self.holds(record) else None

    async def holds(self, record: Record) -> bool:
        """Whether what was stored is still as it was."""
        untouched = await run_in(self.for_names, index.untouched, self.folders, record)
        if untouched is not None:
            return untouched
        return await run_stoppable(HASHING, index.has_its_digest, self.folders, record)

    async def at_dest(self, fetch: Fetch) -> Old | None:
        """What is at the fetch's own `dest`."""
        found, record = await run_in(self.for_names, index.at_dest, self.folders, fetch)
        return index.old_of(record) if record is not None and await self.holds(record) else found

    async def space(self) -> Space:
        """What room there is for bodies; raises OSError."""
        found = await run_in(self.for_names, os.statvfs, self.folders.root)
        refuses = mono_s() < self.refusals.until_s
        if not refuses and self.refusals != self._tried:
            tried = self.refusals
            refuses = not await run_in(self.for_names, self._takes)
            self._tried = self._tried if refuses else tried
        return Space(
            free_bytes=found.f_bavail * found.f_frsize,
            free_files=found.f_favail if found.f_files else None,
            read_only=bool(found.f_flag & os.ST_RDONLY),
            refuses=refuses,
        )

    def refused(self) -> None:
        """The disk did not take a body: the next look at its room tries whether it takes anything."""
        self.refusals = refused(self.refusals, mono_s())

    def _takes(self) -> bool:
        """Whether the disk takes a small file for good."""
        try:
            file = self.folders.create(self._trial)
            try:
                os.write(file, TRIAL)
                os.fsync(file)
            finally:
                os.close(file)
                self.folders.drop(self._trial)
        except (OSError, InTheWayError):
            return False
        return True

    def place(self, place: Place, sha256: str, folders: Folders | None = None) -> None:
        """Give a part its name; raises BadDestError, ExistsError or OSError when it cannot stand there.

        folders: those at hand, if others than the sink's.
        """
        folders = folders or self.folders
        # Before it has its name: by then another fetch's body may be at that.
        found = folders.stat(f"{PARTS}/{place.part}") if place.note is not None else None
        folders.put(place.part, place.path, replace=place.replace, sync=place.durability == "full")
        self._placed(place, sha256, found, folders)

    def name(self, file: int, place: Place, sha256: str, folders: Folders) -> bool:
        """Give a nameless file its name; False where that needs a part. Raises BadDestError or OSError."""
        found = os.fstat(file) if place.note is not None else None
        if not folders.name(file, place.path):
            return False
        self._placed(place, sha256, found, folders)
        return True

    def _placed(self, place: Place, sha256: str, found: os.stat_result | None, folders: Folders) -> None:
        if place.note is not None and found is not None:
            record = index.record_of(found, place.path, sha256, place.note.validators)
            index.remember(folders, place.note.key, f"{place.part}.stored", record)
        if self.refusals.in_a_row:
            self.refusals = self._tried = Refusals()


def part_of(fetch_id: str, token: int) -> str:
    """The temporary name of a body."""
    return f"{fetch_id}.{token}"
