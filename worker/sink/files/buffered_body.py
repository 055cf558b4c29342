"""A body on its way to disk: in memory while it is smaller than a block, then in a partial file.

It has digests and checks, but no final name: the sinks give it one.
"""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from typing import Any

from aiofiles.threadpool import wrap

from fetchfleet.worker.errors import DigestMismatchError, OverlongBodyError, TruncatedBodyError
from fetchfleet.worker.sink.base import Expected, ResumePoint
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import run_in

SHA256 = "sha256"

BLOCK_BYTES = 384 * 1024
"""A body of fewer bytes stays in memory until it is complete."""

ROOM_BYTES = BLOCK_BYTES + 256 * 1024
"""A block that pieces are received into: what is left of it before it is full takes a large piece."""

JOINED_BYTES = 4096
"""Smaller pieces are joined, because each one in a list has the overhead of an object."""

MAX_BLOCKS = 512
"""Blocks per writev(2); the kernel takes at most 1024 (IOV_MAX)."""

Block = bytes | bytearray | memoryview


class BufferedBody:
    """See BodyWriter. At most two blocks are in memory: one is written while the next one fills."""

    def __init__(
        self, disk: OutFolder, partial_name: str, expected: Expected, resume: ResumePoint | None = None
    ) -> None:
        self.size_bytes = 0
        self._disk = disk
        self._partial_name = partial_name
        self._expected = expected
        self._pieces: list[Block] = []
        """The pieces of the body that are in memory."""
        self._filled_bytes = 0
        self._room: memoryview | None = None
        """What is left of the block that pieces are received into."""
        self._blocks: tuple[memoryview | None, memoryview | None] = (None, None)
        """That block, and the one that is being written."""
        self._partial: PartialFile | None = None
        """Takes the body block by block, once it has reached a block."""
        self._digests: dict[str, Any] = {SHA256: hashlib.sha256()}
        if resume is not None:
            self.size_bytes = resume.offset_bytes
            self._digests = {name: resume.digests[name] for name in (SHA256, *dict(expected.digests))}
            self._partial = PartialFile(disk, partial_name, self._digests, resume)
        elif expected.digests:
            self._digests.update((name, hashlib.new(name)) for name, _ in expected.digests if name != SHA256)
        if expected.max_bytes and expected.length_bytes is not None:
            self._refuse_overlong(expected.length_bytes)

    @property
    def full(self) -> bool:
        """Whether a block is in memory: call `drain` before the next write."""
        return self._filled_bytes >= BLOCK_BYTES

    @property
    def room(self) -> memoryview | None:
        """Where the next piece may be received, if the body is a large one."""
        if self._room is None and self._partial is not None:
            self._room = self._blocks[0] or memoryview(bytearray(ROOM_BYTES))
            self._blocks = self._room, self._blocks[1]
        return self._room

    def write(self, piece: bytes | memoryview) -> None:
        """Add a piece; a memoryview is the beginning of `room`. Raises OverlongBodyError."""
        size_bytes = len(piece)
        self.size_bytes += size_bytes
        self._disk.received_bytes += size_bytes
        self._filled_bytes += size_bytes
        if self._expected.max_bytes:
            self._refuse_overlong(self.size_bytes)
        if isinstance(piece, memoryview):
            assert self._room is not None
            self._room = self._room[size_bytes:]
            self._pieces.append(piece)
        elif size_bytes >= JOINED_BYTES:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))

    async def drain(self) -> None:
        """Hand what is in memory to the disk, once the block before is written. Raises OSError."""
        if self._partial is None:
            self._partial = PartialFile(self._disk, self._partial_name, self._digests)
        await self._partial.written()
        if self._pieces:
            block, self._pieces, self._filled_bytes = self._pieces, [], 0
            self._blocks, self._room = self._blocks[::-1], None
            self._partial.start(block)

    async def sync(self) -> int:
        """Sync the bytes so far to disk; returns their number. Raises OSError."""
        size_bytes = self.size_bytes
        await self.drain()
        assert self._partial is not None
        await self._partial.sync()
        return size_bytes

    async def aclose(self) -> None:
        """Remove the body unless it was committed or kept, even if the caller is cancelled meanwhile."""
        if self._partial is not None:
            await aio.to_the_end(self._partial.drop())

    def _hash(self) -> None:
        """Hash a body that is in memory; runs off the loop."""
        for digest in self._digests.values():
            for piece in self._pieces:
                digest.update(piece)

    def _checked(self) -> str:
        """Return the sha256 of the whole body. Raises TruncatedBodyError or DigestMismatchError."""
        expected = self._expected
        if expected.length_bytes is not None and self.size_bytes != expected.length_bytes:
            raise TruncatedBodyError(f"{self.size_bytes} of {expected.length_bytes} bytes came")
        sha256: str = self._digests[SHA256].hexdigest()
        if expected.sha256 is not None and sha256 != expected.sha256:
            raise DigestMismatchError(f"sha256 is {sha256}")
        for name, digest in expected.digests:
            if self._digests[name].digest() != digest:
                raise DigestMismatchError(f"the host says {name} {digest.hex()}; sha256 is {sha256}")
        return sha256

    def _refuse_overlong(self, size_bytes: int) -> None:
        if self._expected.max_bytes and size_bytes > self._expected.max_bytes:
            raise OverlongBodyError(f"{size_bytes} bytes are more than {self._expected.max_bytes}")


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
        """Whether more can be written to it."""
        return self._file is not None

    def start(self, block: list[Block]) -> None:
        """Begin to write a block; call `written` before the next one."""
        self._writing = asyncio.create_task(self._take(block), name="block")

    async def written(self) -> None:
        """Wait until every block is written. Raises the error of any of them."""
        if self._writing is not None:
            await asyncio.wait([self._writing])  # instead of awaiting it: our cancellation must not reach it
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
    at = 0
    while at < len(blocks):
        written = os.writev(file, blocks[at : at + MAX_BLOCKS])
        while at < len(blocks) and written >= len(blocks[at]):
            written -= len(blocks[at])
            at += 1
        if written:
            blocks, at = [memoryview(blocks[at])[written:], *blocks[at + 1 :]], 0
