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
        self._file: Any = None
        self._writing: asyncio.Task[None] | None = None
        self._syncing = threading.Lock()
        self._damaged = False
        if resume is not None:
            self._file = self._wrapped(os.dup(resume.file.fileno()))  # with the lock
            resume.close()

    @property
    def is_open(self) -> bool:
        """True if more can be written to it."""
        return self._file is not None

    def start(self, block: list[Block]) -> None:
        """Begin to write a block; call `written` before the next one."""
        self._writing = asyncio.create_task(self._take(block), name="block")

    async def written(self) -> None:
        """Wait until every block is written. Raises the error of any of them."""
        if self._writing is not None:
            await asyncio.wait([self._writing])  # instead of awaiting it: a cancellation must not reach it
            self._writing.result()

    async def _take(self, block: list[Block]) -> None:
        directory = self._disk.directory
        if directory.displaced or directory.opening != self.opening:
            raise directory.out_of_place()
        if self._file is None:
            self._file = self._wrapped(await run_in(self._disk.for_blocks, self._create))
        await self._file.writelines(block)

    def _create(self) -> int:
        file = self._disk.directory.create(self.name)
        self.on_disk = True
        lock(file)  # a later attempt must see that this one still writes
        return file

    def _wrapped(self, file: int) -> Any:
        return wrap(HashedFile(file, self._digests), executor=self._disk.for_blocks)

    async def sync(self) -> None:
        """Wait until every block is written, and sync the file to disk. Raises OSError."""
        await self.written()
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
        try:
            if synced:
                await self.sync()
        finally:
            self._file = None
            await file.close()

    async def drop(self) -> None:
        """Close and remove the file, once no block is being written; errors are of no use any more."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            if not self._writing.cancelled():
                self._writing.exception()  # mark as retrieved
        with suppress(OSError):
            if self._file is not None:
                await self._file.close()
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
