"""A body on its way to disk: in memory while it is smaller than a block, then in a partial file.

It has digests and checks, but no final name: the sinks give it one.
"""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar

import aiofiles

from fetchfleet.worker.errors import DigestMismatchError, OverlongBodyError, TruncatedBodyError
from fetchfleet.worker.sink.base import Expected, ResumePoint
from fetchfleet.worker.sink.files.double_buffer import BLOCK_BYTES, DoubleBuffer
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import run_in

SHA256 = "sha256"

MAX_BLOCKS = 512
"""Blocks per writev(2); the kernel takes at most 1024 (IOV_MAX)."""

Block = bytes | bytearray | memoryview

T = TypeVar("T")


class PartialFile:
    """A body on its way to disk. An async context manager: leaving it removes an uncommitted body."""

    def __init__(
        self,
        disk: OutFolder,
        name: str,
        expected: Expected,
        *,
        synced: bool,
        resume: ResumePoint | None = None,
    ) -> None:
        self.size_bytes = 0
        self._disk = disk
        self._partial_name = name
        self._expected = expected
        self._synced = synced
        self._memory = bytearray()
        """The body, until it has reached a block."""
        self._blocks: DoubleBuffer | None = None
        """Takes the body from then on, block by block."""
        self._file: Any = None
        self._opening = disk.directory.opening
        """Of the out folder that the body goes to."""
        self._on_disk = False
        """The partial file exists, and is removed on exit."""
        self._syncing = threading.Lock()
        self._damaged = False
        if resume is None:
            self._digests = {name: hashlib.new(name) for name in (SHA256, *dict(expected.digests))}
        else:
            self._digests = {name: resume.digests[name] for name in (SHA256, *dict(expected.digests))}
            self._file = aiofiles.threadpool.wrap(resume.file, executor=disk.for_blocks)
            self._on_disk = True
            self._blocks = DoubleBuffer(self._take)
            self.size_bytes = resume.offset_bytes
        if expected.length_bytes is not None:
            self._refuse_overlong(expected.length_bytes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._blocks is not None or self._on_disk:
            await to_the_end(self._drop())

    async def write(self, chunk: bytes) -> None:
        """Add a chunk; blocks go to disk off the loop. Raises OverlongBodyError or OSError."""
        self.size_bytes += len(chunk)
        self._disk.received_bytes += len(chunk)
        self._refuse_overlong(self.size_bytes)
        if self._blocks is not None:
            await self._blocks.add(chunk)
            return
        self._memory += chunk
        if len(self._memory) >= BLOCK_BYTES:
            self._blocks, whole = DoubleBuffer(self._take), self._memory
            self._memory = bytearray()
            await self._blocks.add(whole)

    async def sync(self) -> int:
        """Sync the bytes so far to disk; returns their number. Raises OSError."""
        size_bytes = self.size_bytes
        if self._blocks is not None:
            await self._blocks.flush()
        await run_in(self._disk.for_blocks, self._sync, self._file.fileno())
        return size_bytes

    async def _take(self, block: bytearray) -> None:
        """Write a block while another thread hashes it."""

        def create(name: str, _flags: int = 0) -> int:
            file = self._disk.directory.create(name)
            self._on_disk = True
            lock(file)  # a later attempt must see that this one still writes
            return file

        directory = self._disk.directory
        if directory.displaced or directory.opening != self._opening:
            raise directory.out_of_place()
        if self._file is None:
            self._file = await aiofiles.open(
                self._partial_name, "wb", buffering=0, opener=create, executor=self._disk.for_blocks
            )
        hashing = run_in(self._disk.for_blocks, self._hash, block)
        await asyncio.gather(hashing, self._write(memoryview(block)))

    async def _write(self, left: memoryview) -> None:
        """Write every byte: on a nearly full disk write(2) takes a part without an error."""
        while left:
            left = left[await self._file.write(left) :]

    async def _close(self) -> None:
        """Close the partial file; an error here is final, because the bytes on disk are unknown then."""
        file, self._file = self._file, None
        try:
            if self._synced:
                await run_in(self._disk.for_blocks, self._sync, file.fileno())
        finally:
            await file.close()

    def _sync(self, number: int) -> None:
        """Sync the partial file; runs off the loop.

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

    async def _drop(self) -> None:
        if self._blocks is not None:
            await self._blocks.abandon()
        with suppress(OSError):  # reported before, or of no use any more
            if self._file is not None:
                await self._file.close()
        with suppress(OSError):
            if self._on_disk:
                await run_in(self._disk.for_names, self._disk.directory.drop, self._partial_name)

    def _hash(self, block: bytes | bytearray) -> None:
        for digest in self._digests.values():
            digest.update(block)

    @property
    def _sha256(self) -> str:
        return self._digests[SHA256].hexdigest()

    def _check(self) -> None:
        """Raise TruncatedBodyError or DigestMismatchError if the body is not as expected."""
        expected = self._expected
        if expected.length_bytes is not None and self.size_bytes != expected.length_bytes:
            raise TruncatedBodyError(f"{self.size_bytes} of {expected.length_bytes} bytes came")
        sha256 = self._sha256
        if expected.sha256 is not None and sha256 != expected.sha256:
            raise DigestMismatchError(f"sha256 is {sha256}")
        for name, digest in expected.digests:
            if self._digests[name].digest() != digest:
                raise DigestMismatchError(f"the host says {name} {digest.hex()}; sha256 is {sha256}")

    def _refuse_overlong(self, size_bytes: int) -> None:
        if self._expected.max_bytes and size_bytes > self._expected.max_bytes:
            raise OverlongBodyError(f"{size_bytes} bytes are more than {self._expected.max_bytes}")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run the work to its end even if the caller is cancelled, once or repeatedly; returns its result."""
    task = asyncio.create_task(work)
    await aio.end_of(task)
    return task.result()


def write_all(file: int, blocks: Sequence[Block]) -> None:
    """Write every byte: on a nearly full disk write(2) takes a part without an error."""
    for at in range(0, len(blocks), MAX_BLOCKS):
        left = [memoryview(block) for block in blocks[at : at + MAX_BLOCKS]]
        while left:
            written = os.writev(file, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]
