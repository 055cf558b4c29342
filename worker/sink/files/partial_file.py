"""A large body on its way to disk: a partial file that grows block by block."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from typing import Any

from aiofiles.threadpool import wrap

from fetchfleet.worker.sink.base import ResumePoint
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import run_in

MAX_BLOCKS = 512
"""Blocks per writev(2); the kernel takes at most 1024 (IOV_MAX)."""

Block = bytes | bytearray | memoryview


class PartialFile:
    """A partial file that grows block by block: one is hashed and written while the next one is received.

    digests: hash objects that are fed with all of its bytes.
    """

    def __init__(
        self, disk: OutFolder, name: str, digests: Mapping[str, Any], resume: ResumePoint | None = None
    ) -> None:
        self.name = name
        self.on_disk = resume is not None
        """The partial file exists, and is removed by `drop`."""
        self.opening = disk.directory.opening
        """Of the out folder that the file is in."""
        self._disk = disk
        self._digests = digests
        self._file: HashedFile | None = None
        self._writing: aio.Pending[None] | None = None
        """The block that was started last."""
        self._syncing = threading.Lock()
        self._damaged = False
        if resume is not None:
            self._file = HashedFile(os.dup(resume.file.fileno()), self._digests)  # with the lock
            resume.close()

    @property
    def is_open(self) -> bool:
        """True if more can be written to it."""
        return self._file is not None

    def start(self, block: list[Block]) -> None:
        """Begin to write a block in a thread; call `written` before the next one."""
        writing: aio.Pending[None] = aio.Pending()
        self._writing = writing
        loop = asyncio.get_running_loop()
        try:
            self._disk.for_blocks.submit(self._take, block, writing, loop)
        except RuntimeError as error:  # the threads have been shut down
            writing.set_error(error)

    async def written(self) -> None:
        """Wait until every block is written. Raises the error of any of them."""
        if self._writing is not None:
            await self._writing.outcome()

    def _take(self, block: list[Block], writing: aio.Pending[None], loop: asyncio.AbstractEventLoop) -> None:
        """Write a block, and report the outcome; runs off the loop."""
        try:
            self._write(block)
        except BaseException as error:  # noqa: BLE001 the block's own error, of any kind
            writing.set_error(error)
        else:
            writing.set_result(None)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(writing.notify)

    def _write(self, block: list[Block]) -> None:
        directory = self._disk.directory
        if directory.displaced or directory.opening != self.opening:
            raise directory.out_of_place()
        if self._file is None:
            self._file = HashedFile(self._create(), self._digests)
        self._file.writelines(block)

    def _create(self) -> int:
        file = self._disk.directory.create(self.name)
        self.on_disk = True
        lock(file)  # a later attempt must see that this one still writes
        return file

    async def sync(self) -> None:
        """Wait until every block is written, and sync the file to disk. Raises OSError."""
        await self.written()
        assert self._file is not None
        await run_in(self._disk.for_blocks, self._sync, self._file.fileno())

    def _sync(self, number: int) -> None:
        """Sync the file; runs off the loop.

        The kernel reports a lost write once, to one fsync(2). So a damaged file stays damaged, and calls take
        turns: a cancelled caller does not wait for its own.
        """
        with self._syncing:
            if self._damaged:
                raise OSError(errno.EIO, "an earlier sync of this body failed")
            try:
                os.fsync(number)
            except OSError:
                self._damaged = True
                raise

    async def close(self, *, synced: bool) -> None:
        """Close the file; an error here is final, because the bytes on disk are unknown then."""
        file = self._file
        assert file is not None
        try:
            if synced:
                await self.sync()
        finally:
            self._file = None
            await wrap(file, executor=self._disk.for_blocks).close()

    async def drop(self) -> None:
        """Close and remove the file, once no block is being written; errors are of no use any more."""
        with suppress(Exception):
            await self.written()
        with suppress(OSError):
            if self._file is not None:
                await wrap(self._file, executor=self._disk.for_blocks).close()
        with suppress(OSError):
            if self.on_disk:
                await run_in(self._disk.for_names, self._disk.directory.drop, self.name)


class HashedFile(FileIO):
    """A file that hashes what is written to it. digests: hash objects, by any name."""

    def __init__(self, file: int, digests: Mapping[str, Any]) -> None:
        super().__init__(file, "wb")
        self._digests = digests

    def writelines(self, blocks: Iterable[Any]) -> None:
        """Write and hash all bytes of the blocks."""
        blocks = list(blocks)
        write_all(self.fileno(), blocks)
        for digest in self._digests.values():
            for block in blocks:
                digest.update(block)


def write_all(file: int, blocks: Sequence[Block]) -> None:
    """Write every byte: on a nearly full disk write(2) takes a part without an error."""
    while blocks:
        some, blocks = blocks[:MAX_BLOCKS], blocks[MAX_BLOCKS:]
        left_bytes = sum(map(len, some)) - os.writev(file, some)
        if left_bytes:
            rest = b"".join(some)[-left_bytes:]
            blocks = [rest, *blocks]
