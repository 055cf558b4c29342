"""The out folder of a sink: its threads, free space, refused writes and upkeep."""

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
"""The size of each of the two thread pools: names do not wait for blocks, nor DNS lookups for either."""

TEST_BLOCK = bytes(4096)
"""The content of the test file."""

STALE_S = 24 * 3600
"""Time since the last write after which a partial file is removed."""

SWEEP_EVERY_S = 3600.0
"""The time between two sweeps of partial files."""

UNUSED_S = 30 * 24 * 3600
"""Time since the last use after which an index entry is removed."""

PAUSE_S = 1.0
"""The pause between two folders of the index."""


class OutFolder:
    """The out folder of a sink. Call open() first, and close() at the end."""

    def __init__(self, out: Path) -> None:
        self.path = out
        self.partial_folder = out / PARTIAL_FILES
        self.directory = Directory(out)
        self.received_bytes = 0
        self.refusals = Refusals()
        self.own_folders = ["", PARTIAL_FILES]
        """The folders to which every worker writes, relative to the out folder."""
        self.after_open: list[Callable[[Directory], None]] = []
        """Called with a newly opened out folder, before bodies are stored there. They may raise OSError."""
        self.before_replace: list[Callable[[], None]] = []
        """Called before another folder replaces the open out folder."""
        self._refused_by: OSError | None = None
        """The latest error of a body or of the test file."""
        self._tested = self.refusals
        """The value of `refusals` at the latest successful test."""
        self._device_below: int | None = None
        """See `_device_below`."""
        self._test_file = f"trial.{secrets.token_hex(8)}"
        self.for_blocks = ThreadPoolExecutor(THREADS, thread_name_prefix="blocks")
        """Threads that write the blocks of large bodies."""
        self.for_names = ThreadPoolExecutor(THREADS, thread_name_prefix="names")
        """Threads that store small bodies and give names."""

    def open(self) -> None:
        """Create the folders and remove stale partial files. Raises OSError if a folder is not writable."""
        self.directory.open()
        self._device_below = _device_below(self.path)
        self._prepare(self.directory)

    def _prepare(self, directory: Directory) -> None:
        try:
            with directory.chain(PARTIAL_FILES):
                _drop_stale(directory)
            for prepare in self.after_open:
                prepare(directory)
            directory.check_permission(self.own_folders)
        except InTheWayError as error:
            raise OSError(errno.ENOTDIR, f"the out folder cannot be used: {error}; remove it") from None

    def close(self) -> None:
        """Release the out folder; a second call does nothing."""
        for threads in (self.for_blocks, self.for_names):
            threads.shutdown(wait=False)
        self.directory.close()

    async def space(self) -> Space:
        """Return the free space. Opens the folder at the out folder's path again if it was replaced.

        Writes a test file if the disk has refused a body since the last one. Raises OSError.
        """
        opening = self.directory.opening
        found, displaced = await run_in(self.for_names, self._check_place)
        if displaced is not None:
            return _space(found, displaced, displaced=True)
        if self.directory.opening != opening:
            self.accepted()
        refuses = mono_s() < self.refusals.until_s
        if not refuses and self.refusals != self._tested:
            tested, error = self.refusals, await run_in(self.for_names, self._write_test_file)
            refuses = error is not None
            self._tested = self._tested if refuses else tested
            self._refused_by = error or self._refused_by
        reopened = str(self.path) if self.directory.opening != opening else ""
        return _space(found, self._refused_by if refuses else None, refuses=refuses, reopened=reopened)

    def _check_place(self) -> tuple[os.statvfs_result, OSError | None]:
        """Return the file system's state, and why the folder at the path cannot be used; None if it is used.

        If the path leads to another folder, that folder is prepared and replaces the open one.
        """
        directory, reason = self.directory, None
        if directory.in_place():
            directory.displaced = False
        else:
            directory.displaced = True
            other = Directory(self.path)
            try:
                other.open(make=not os.fstat(directory.root).st_nlink)  # 0 links: it was removed
                if os.fstat(other.root).st_dev == self._device_below:
                    raise OSError(errno.ENODEV, "its file system is no longer mounted")  # noqa: TRY301
                self._prepare(other)
                for call in self.before_replace:
                    call()
                directory.replace_by(other)
            except OSError as error:
                reason = OSError(error.errno, f"{directory.out_of_place().strerror}: {error.strerror}")
            finally:
                other.close()
        return os.statvfs(directory.root), reason

    def _write_test_file(self) -> OSError | None:
        """Write and sync a small file, and check the permissions. Returns the error, None on success."""
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
        """Count a body whose write failed. The next `space` checks with a test file if writes work."""
        self._refused_by = error
        self.refusals = refused(self.refusals, mono_s())

    def accepted(self) -> None:
        """Reset the count of refused bodies after a successful write."""
        self.refusals = self._tested = Refusals()

    def remove_partial_file(self, fetch_id: str, note: PartialNote) -> Future[None]:
        """Remove the partial file of a note, in a thread."""

        def drop() -> None:
            with suppress(OSError, InTheWayError):
                self.directory.drop(partial_name(fetch_id, note.token))

        return self.for_names.submit(drop)

    async def sweep_partial_files(self, every_s: float = SWEEP_EVERY_S) -> None:
        """Remove stale partial files every `every_s`, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            with suppress(OSError, InTheWayError):
                await asyncio.to_thread(_drop_stale, self.directory)

    async def sweep_index(self) -> None:
        """Remove index entries that were not used for 30 days, once. Keeps the bodies."""
        for folder in await asyncio.to_thread(index.entry_folders, self.directory):
            await asyncio.to_thread(index.drop_unused, self.directory, folder, time.time() - UNUSED_S)
            await asyncio.sleep(PAUSE_S)


def _device_below(folder: Path) -> int | None:
    """Return the device that holds the mount point of the folder's file system; None for the root's."""
    folders = [folder, *folder.resolve().parents]
    own, *devices = (found.stat().st_dev for found in folders)
    return next((device for device in devices if device != own), None)


def _drop_stale(directory: Directory) -> None:
    """Remove partial files that were not written to for a day. Raises InTheWayError or OSError."""
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
