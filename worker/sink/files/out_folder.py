"""The out folder on its disk, shared by both sinks: its threads, free space, refused writes and upkeep."""

import asyncio
import errno
import os
import secrets
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fetchfleet.jobs.contract.entry import PartialNote
from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.disk_space import Refusals, Space, refused
from fetchfleet.worker.sink.files import index
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, Directory, partial_name
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.executors import run_in
from fetchfleet.worker.util.file_errors import FileFault, fault_of

THREADS = 8
"""In each of the two pools. Neither waits for the other, and DNS lookups wait for neither."""

TRIAL = bytes(4096)

STALE_S = 24 * 3600
"""Age of a partial file that is removed."""

SWEEP_EVERY_S = 3600.0

UNUSED_S = 30 * 24 * 3600
"""Age of an index entry that is removed."""

PAUSE_S = 1.0
"""Between two folders of the index."""


class OutFolder:
    """The out folder; open() first, close() at the end."""

    def __init__(self, out: Path) -> None:
        self.path = out
        self.partial_folder = out / PARTIAL_FILES
        self.directory = Directory(out)
        self.received_bytes = 0
        self.refusals = Refusals()
        self.own_folders = ["", PARTIAL_FILES]
        """The folders that every worker writes to, relative to the out folder."""
        self._refused_by: OSError | None = None
        """The latest error of a refused body, or of the trial."""
        self._tried = self.refusals
        self._trial = f"trial.{secrets.token_hex(8)}"
        self.for_blocks = ThreadPoolExecutor(THREADS, thread_name_prefix="blocks")
        """Threads for the blocks of large bodies."""
        self.for_names = ThreadPoolExecutor(THREADS, thread_name_prefix="names")
        """Threads for small bodies and for names."""

    def open(self) -> None:
        """Create the folders and remove stale partial files. Raises OSError if one cannot be written to."""
        self.directory.open()
        try:
            with self.directory.chain(PARTIAL_FILES):
                self._drop_stale()
            self.directory.check_permission(self.own_folders)
        except InTheWayError as error:
            raise OSError(errno.ENOTDIR, f"the out folder cannot be used, remove this: {error}") from None

    def close(self) -> None:
        """Release the out folder; a second call does nothing."""
        for threads in (self.for_blocks, self.for_names):
            threads.shutdown(wait=False)
        self.directory.close()

    async def space(self) -> Space:
        """Return the free space. Raises OSError."""
        found = await run_in(self.for_names, os.statvfs, self.directory.root)
        refuses = mono_s() < self.refusals.until_s
        if not refuses and self.refusals != self._tried:
            tried, error = self.refusals, await run_in(self.for_names, self._try_to_write)
            refuses = error is not None
            self._tried = self._tried if refuses else tried
            self._refused_by = error or self._refused_by
        error = self._refused_by if refuses else None
        return Space(
            free_bytes=found.f_bavail * found.f_frsize,
            free_files=found.f_favail if found.f_files else None,
            read_only=bool(found.f_flag & os.ST_RDONLY),
            refuses=refuses,
            error=None if error is None else str(error),
            disk_at_fault=error is None or fault_of(error) is FileFault.DISK,
        )

    def _try_to_write(self) -> OSError | None:
        """Write and sync a small file, and check the permissions; return the error, None if all is well."""
        try:
            self.directory.reopen_if_removed()
            file = self.directory.create(self._trial)
            try:
                os.write(file, TRIAL)
                os.fsync(file)
            finally:
                os.close(file)
                self.directory.drop(self._trial)
            self.directory.check_permission(self.own_folders)
        except OSError as error:
            return error
        except InTheWayError as error:
            return OSError(errno.ENOTDIR, str(error))
        return None

    async def may_not_write(self) -> bool:
        """Whether the worker lacks the permission to write to its own folders."""
        try:
            await run_in(self.for_names, self.directory.check_permission, self.own_folders)
        except (OSError, InTheWayError):
            return True
        return False

    def refused(self, error: OSError) -> None:
        """Count a body that the disk did not take; the next `space` checks that the disk takes anything."""
        self._refused_by = error
        self.refusals = refused(self.refusals, mono_s())

    def accepted(self) -> None:
        """Reset the count of refused bodies: the disk has taken one."""
        self.refusals = self._tried = Refusals()

    def forget(self, fetch_id: str, note: PartialNote) -> Future[None]:
        """Remove the partial file of a note in a thread: a large one takes a while."""

        def drop() -> None:
            with suppress(OSError, InTheWayError):
                self.directory.drop(partial_name(fetch_id, note.token))

        return self.for_names.submit(drop)

    async def sweep_partial_files(self, every_s: float = SWEEP_EVERY_S) -> None:
        """Remove stale partial files again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            with suppress(OSError, InTheWayError):
                await asyncio.to_thread(self._drop_stale)

    def _drop_stale(self) -> None:
        """Remove partial files not written to for a day. Raises InTheWayError and OSError."""
        self.directory.drop_old(PARTIAL_FILES, time.time() - STALE_S)

    async def sweep_index(self) -> None:
        """Remove index entries that no fetch has asked for in a month: once, folder by folder.

        The bodies themselves stay.
        """
        for below in await asyncio.to_thread(index.below, self.directory):
            await asyncio.to_thread(index.sweep, self.directory, below, time.time() - UNUSED_S)
            await asyncio.sleep(PAUSE_S)
