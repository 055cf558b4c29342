"""The out folder on its disk, shared by both sinks: its threads, free space, refused writes and upkeep."""

import asyncio
import errno
import os
import secrets
import time
from collections.abc import Callable
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

TEST_BLOCK = bytes(4096)

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
        self.when_opened: list[Callable[[Directory], None]] = []
        """What a sink does in an out folder before it stores bodies there. Raises OSError."""
        self.when_left: list[Callable[[], None]] = []
        """What a sink does before another folder takes the place of the out folder."""
        self._refused_by: OSError | None = None
        """The latest error of a refused body, or of the trial."""
        self._tried = self.refusals
        self._device_below: int | None = None
        self._test_file = f"trial.{secrets.token_hex(8)}"
        self.for_blocks = ThreadPoolExecutor(THREADS, thread_name_prefix="blocks")
        """Threads for the blocks of large bodies."""
        self.for_names = ThreadPoolExecutor(THREADS, thread_name_prefix="names")
        """Threads for small bodies and for names."""

    def open(self) -> None:
        """Create the folders and remove stale partial files. Raises OSError if one cannot be written to."""
        self.directory.open()
        self._device_below = _device_below(self.path)
        self._prepare(self.directory)

    def _prepare(self, directory: Directory) -> None:
        try:
            with directory.chain(PARTIAL_FILES):
                _drop_stale(directory)
            for prepare in self.when_opened:
                prepare(directory)
            directory.check_permission(self.own_folders)
        except InTheWayError as error:
            raise OSError(errno.ENOTDIR, f"the out folder cannot be used, remove this: {error}") from None

    def close(self) -> None:
        """Release the out folder; a second call does nothing."""
        for threads in (self.for_blocks, self.for_names):
            threads.shutdown(wait=False)
        self.directory.close()

    async def space(self) -> Space:
        """Return the free space, and look whether the out folder is in its place. Raises OSError."""
        opening = self.directory.opening
        found, displaced = await run_in(self.for_names, self._look)
        if displaced is not None:
            return _space(found, displaced, displaced=True)
        if self.directory.opening != opening:
            self.accepted()
        refuses = mono_s() < self.refusals.until_s
        if not refuses and self.refusals != self._tried:
            tried, error = self.refusals, await run_in(self.for_names, self._try_to_write)
            refuses = error is not None
            self._tried = self._tried if refuses else tried
            self._refused_by = error or self._refused_by
        reopened = str(self.path) if self.directory.opening != opening else ""
        return _space(found, self._refused_by if refuses else None, refuses=refuses, reopened=reopened)

    def _look(self) -> tuple[os.statvfs_result, OSError | None]:
        """Return the state of the file system, and why the folder at the path cannot be used; None if it is.

        Another folder that has the path now is prepared like the first and takes its place.
        """
        directory, why = self.directory, None
        if directory.in_place():
            directory.displaced = False
        else:
            directory.displaced = True
            other = Directory(self.path)
            try:
                other.open(make=not os.fstat(directory.root).st_nlink)  # it was removed
                if os.fstat(other.root).st_dev == self._device_below:
                    raise OSError(errno.ENODEV, "its file system is not mounted any more")  # noqa: TRY301
                self._prepare(other)
                for leave in self.when_left:
                    leave()
                directory.replace_by(other)
            except OSError as error:
                why = OSError(error.errno, f"{directory.out_of_place().strerror}: {error.strerror}")
            finally:
                other.close()
        return os.statvfs(directory.root), why

    def _try_to_write(self) -> OSError | None:
        """Write and sync a small file, and check the permissions; return the error, None if all is well."""
        try:
            file = self.directory.create(self._test_file)
            try:
                os.write(file, TEST_BLOCK)
                os.fsync(file)
            finally:
                os.close(file)
                self.directory.drop(self._test_file)
            self.directory.check_permission(self.own_folders)
        except OSError as error:
            return error
        except InTheWayError as error:
            return OSError(errno.ENOTDIR, str(error))
        return None

    async def may_not_write(self) -> bool:
        """Return whether the worker lacks the permission to write to its own folders."""
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
                await asyncio.to_thread(_drop_stale, self.directory)

    async def sweep_index(self) -> None:
        """Remove index entries that no fetch has asked for in a month: once, folder by folder.

        The bodies themselves stay.
        """
        for below in await asyncio.to_thread(index.below, self.directory):
            await asyncio.to_thread(index.sweep, self.directory, below, time.time() - UNUSED_S)
            await asyncio.sleep(PAUSE_S)


def _device_below(folder: Path) -> int | None:
    """Return the device on which the folder's file system is mounted; None for the root's file system."""
    folders = [folder, *folder.resolve().parents]
    own, *devices = (found.stat().st_dev for found in folders)
    return next((below for below in devices if below != own), None)


def _drop_stale(directory: Directory) -> None:
    """Remove partial files not written to for a day. Raises InTheWayError and OSError."""
    directory.drop_old(PARTIAL_FILES, time.time() - STALE_S)


def _space(
    found: os.statvfs_result,
    error: OSError | None,
    *,
    refuses: bool = False,
    displaced: bool = False,
    reopened: str = "",
) -> Space:
    return Space(
        free_bytes=found.f_bavail * found.f_frsize,
        free_files=found.f_favail if found.f_files else None,
        read_only=bool(found.f_flag & os.ST_RDONLY),
        refuses=refuses,
        error=None if error is None else str(error),
        displaced=displaced,
        reopened=reopened,
        disk_at_fault=error is None or (not displaced and fault_of(error) is FileFault.DISK),
    )
