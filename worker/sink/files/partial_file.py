"""The partial file of a large body, which is written block by block."""

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
from fetchfleet.worker.sink.files.open_file import READ_BYTES, lock
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import run_in

MAX_BLOCKS = 512
"""Pieces in one writev(2); Linux accepts 1024 (IOV_MAX)."""

HASH_BYTES = 4 << 20
"""The most bytes that are read back and hashed after one block, as the next one waits for it."""

Block = bytes | bytearray | memoryview


class PartialFile:
    """A partial file. One block is hashed and written while the next one is received.

    digests: hash objects, updated with every block. reserved_bytes: the offset of the body in the file.
    """

    def __init__(
        self,
        disk: OutFolder,
        name: str,
        digests: Mapping[str, Any],
        resume: ResumePoint | None = None,
        reserved_bytes: int = 0,
    ) -> None:
        self.name = name
        self.on_disk = resume is not None
        """The file exists under its temporary name, and `drop` removes it."""
        self.opening = disk.directory.opening
        """The `opening` of the file's out folder."""
        self._disk = disk
        self._digests = digests
        self._reserved_bytes = reserved_bytes
        self._file: HashedFile | None = None
        self._writing: aio.Pending[None] | None = None
        """The outcome of the latest block."""
        self._syncing = threading.Lock()
        self._damaged = False
        """A sync has failed, so the bytes on disk are unknown."""
        self.whole_bytes = 0
        """The bytes from the start of the file of which none is missing, if blocks have offsets."""
        if resume is not None:
            self._file = HashedFile(os.dup(resume.file.fileno()), self._digests)  # dup(2) shares the lock
            resume.close()

    @property
    def is_open(self) -> bool:
        """True until the file is closed, from the first block or the resume point."""
        return self._file is not None

    @property
    def unhashed_bytes(self) -> int:
        """The bytes before `whole_bytes` that the digests do not include yet."""
        return 0 if self._file is None else max(0, self.whole_bytes - self._file.hashed_bytes)

    def start(self, block: list[Block], at: int | None = None) -> None:
        """Begin to write a block in a thread. Call `written` before the next block.

        at: the offset of the block, if it is not the next one. It is hashed once `whole_bytes` includes it.
        """
        writing: aio.Pending[None] = aio.Pending()
        self._writing = writing
        loop = asyncio.get_running_loop()
        try:
            self._disk.for_blocks.submit(self._write_and_report, block, at, writing, loop)
        except RuntimeError as error:  # the threads have been shut down
            writing.set_error(error)

    async def written(self) -> None:
        """Wait until the latest block is written. Raises its error."""
        if self._writing is not None:
            await self._writing.result()

    def _write_and_report(
        self,
        block: list[Block],
        at: int | None,
        writing: aio.Pending[None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Write a block, and report the outcome. Runs off the loop."""
        try:
            self._write(block, at)
        except BaseException as error:  # noqa: BLE001 the block's own error, of any kind
            writing.set_error(error)
        else:
            writing.set_result(None)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(writing.notify)

    def _write(self, block: list[Block], at: int | None) -> None:
        directory = self._disk.directory
        if directory.displaced or directory.opening != self.opening:
            raise directory.out_of_place()
        if self._file is None:
            self._file = HashedFile(self._create(), self._digests)
            self._file.seek(self._reserved_bytes)
        if at is None:
            self._file.writelines(block)
        else:
            write_all_at(self._file.fileno(), block, at)
            self._file.hash_written(min(self.whole_bytes, self._file.hashed_bytes + HASH_BYTES))

    def _create(self) -> int:
        file = self._disk.directory.create(self.name)
        self.on_disk = True
        lock(file)  # prevents a takeover while this attempt writes
        return file

    async def sync(self) -> None:
        """Wait until every block is written, and sync the file to disk. Raises OSError."""
        await self.written()
        assert self._file is not None
        await run_in(self._disk.for_blocks, self._sync, self._file.fileno())

    def _sync(self, number: int) -> None:
        """Sync the file. Runs off the loop.

        The kernel reports a lost write to one fsync(2) only, so a failure is repeated to later calls. Calls
        are serialized, because the call of a cancelled caller continues.
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
        """Close the file, after a sync if `synced`. After an error the bytes on disk are unknown."""
        file = self._file
        assert file is not None
        try:
            if synced:
                await self.sync()
        finally:
            self._file = None
            await wrap(file, executor=self._disk.for_blocks).close()

    async def drop(self) -> None:
        """Close and remove the file after the latest block is written. Ignores errors."""
        with suppress(Exception):
            await self.written()
        with suppress(OSError):
            if self._file is not None:
                await wrap(self._file, executor=self._disk.for_blocks).close()
        with suppress(OSError):
            if self.on_disk:
                await run_in(self._disk.for_names, self._disk.directory.drop, self.name)


class HashedFile(FileIO):
    """A file that updates the hash objects in `digests` with the bytes written to it."""

    def __init__(self, file: int, digests: Mapping[str, Any]) -> None:
        super().__init__(file, "wb")
        self._digests = digests

    def writelines(self, blocks: Iterable[Any]) -> None:
        """Write all bytes of the blocks and hash them."""
        blocks = list(blocks)
        write_all(self.fileno(), blocks)
        for digest in self._digests.values():
            for block in blocks:
                digest.update(block)

    @property
    def hashed_bytes(self) -> int:
        """The bytes from the start of the file that the digests include, and the offset of `writelines`."""
        return self.tell()

    def hash_written(self, up_to: int) -> None:
        """Read the bytes after `hashed_bytes` up to this offset, and hash them. Raises OSError."""
        at = self.hashed_bytes
        while at < up_to:
            block = os.pread(self.fileno(), min(READ_BYTES, up_to - at), at)
            if not block:
                raise OSError(errno.EIO, f"the partial file ends before byte {up_to}, which was written")
            for digest in self._digests.values():
                digest.update(block)
            at += len(block)
        self.seek(at)


def write_all_at(file: int, blocks: Sequence[Block], at: int) -> None:
    """Write every byte at an offset. Repeats pwritev(2), which writes fewer bytes on a nearly full disk."""
    while blocks:
        some, blocks = blocks[:MAX_BLOCKS], blocks[MAX_BLOCKS:]
        written_bytes = os.pwritev(file, some, at)
        at += written_bytes
        left_bytes = sum(map(len, some)) - written_bytes
        if left_bytes:
            blocks = [b"".join(some)[-left_bytes:], *blocks]


def write_all(file: int, blocks: Sequence[Block]) -> None:
    """Write every byte. Repeats writev(2), which writes fewer bytes on a nearly full disk."""
    while blocks:
        some, blocks = blocks[:MAX_BLOCKS], blocks[MAX_BLOCKS:]
        left_bytes = sum(map(len, some)) - os.writev(file, some)
        if left_bytes:
            rest = b"".join(some)[-left_bytes:]
            blocks = [rest, *blocks]
