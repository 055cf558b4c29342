"""A body on its way to disk: a temporary file, its digests, its checks, its name."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiofiles

from fetchfleet.worker.errors import DigestMismatchError, OverlongBodyError, TruncatedBodyError
from fetchfleet.worker.sink.base import Expected, Kept, Place
from fetchfleet.worker.sink.files.double_buffer import Pump
from fetchfleet.worker.sink.files.takeover import SHA256, Taken, lock, worth_keeping
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import run_in

if TYPE_CHECKING:
    from fetchfleet.worker.sink.files.directory import Folders
    from fetchfleet.worker.sink.files.sink import FileSink

T = TypeVar("T")


class Part:
    """A body on its way to disk. An async context manager: what is not committed is gone after it."""

    def __init__(
        self, sink: "FileSink", place: Place, expected: Expected, taken: Taken | None = None
    ) -> None:
        self._sink = sink
        self._place = place
        self._expected = expected
        self._pump = Pump(self._take)
        self._file: Any = None
        self._on_disk = False
        self._syncing = threading.Lock()
        self._damaged = False
        self._digests = {name: hashlib.new(name) for name in (SHA256, *dict(expected.digests))}
        self.size_bytes = 0
        if expected.length_bytes is not None:
            self._refuse_overlong(expected.length_bytes)
        if taken is not None:
            self._begin_with(taken)

    @property
    def worth_keeping(self) -> bool:
        """Whether enough of it has come to be gone on with later."""
        return worth_keeping(self.size_bytes)

    def _begin_with(self, taken: Taken) -> None:
        self._file = aiofiles.threadpool.wrap(taken.file, executor=self._sink.for_blocks)
        self._on_disk = True
        self._digests = {name: taken.digests[name] for name in self._digests}
        self.size_bytes = taken.offset_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # To the end: whoever cancels us once may do so again, and a part would stay.
        if self._pump.started or self._on_disk:
            await _to_the_end(self._drop())

    async def write(self, chunk: bytes) -> None:
        """Take a chunk; large blocks go to disk off the loop. Raises OverlongBodyError or OSError."""
        self.size_bytes += len(chunk)
        self._sink.received_bytes += len(chunk)
        self._refuse_overlong(self.size_bytes)
        await self._pump.add(chunk)

    async def commit(self, may_place: Callable[[], bool]) -> Kept | None:
        """Check the body and put it in its place; None, and nothing placed, once may_place says no.

        Raises TruncatedBodyError, DigestMismatchError, BadDestError, ExistsError or OSError.
        """
        if self._large:
            await self._pump.flush()
            self._check()
            await self._close()
            placed = await _to_the_end(run_in(self._sink.for_names, self._name, may_place))
        elif self._synced:
            placed = await _to_the_end(run_in(self._sink.for_names, self._small, may_place))
        else:
            placed = await self._sink.small.do(partial(self._small, may_place))
        if not placed:
            return None
        return Kept(self._place.path, self.size_bytes, self._sha256)

    async def sync(self) -> int:
        """Bring what has come to disk for good; how many bytes that is. Raises OSError."""
        size_bytes = self.size_bytes
        await self._pump.flush()
        await run_in(self._sink.for_blocks, self._sync, self._file.fileno())
        return size_bytes

    async def keep(self) -> int:
        """Leave what has come on disk, for a later attempt; how many bytes, 0 where nothing is left.

        To the end, as all that follows a cancellation.
        """
        return await _to_the_end(self._keep())

    async def _keep(self) -> int:
        if not self._large or not self.worth_keeping:
            return 0
        try:
            await self._pump.flush()
            if self._file is None:  # it was on its way to its place
                return 0
            size_bytes = await self.sync()
            file, self._file = self._file, None
            await file.close()
        except OSError:
            return 0
        self._on_disk = False
        return size_bytes

    async def _take(self, block: bytearray) -> None:
        """A block of a large body to disk, while another thread digests it."""
        if self._file is None:
            self._file = await aiofiles.open(
                self._place.part, "wb", buffering=0, opener=self._create, executor=self._sink.for_blocks
            )
        digesting = run_in(self._sink.for_blocks, self._hash, block)
        await asyncio.gather(digesting, self._write(memoryview(block)))

    async def _write(self, left: memoryview) -> None:
        """All of it: a disk that is nearly full takes a part, and says nothing."""
        while left:
            left = left[await self._file.write(left) :]

    async def _close(self) -> None:
        """An error here is final: what did not reach the disk is not known any more."""
        file, self._file = self._file, None
        try:
            if self._synced:
                await run_in(self._sink.for_blocks, self._sync, file.fileno())
        finally:
            await file.close()

    def _sync(self, number: int) -> None:
        """Runs off the loop. The kernel tells an error once: whoever asks again is told that all is well.

        One after the other: who is cancelled does not wait for its own.
        """
        with self._syncing:
            if self._damaged:
                raise OSError(errno.EIO, "what has come did not reach the disk")
            try:
                os.fsync(number)
            except OSError:
                self._damaged = True
                raise

    def _create(self, part: str, _flags: int = 0) -> int:
        file = self._sink.folders.create(part)
        self._on_disk = True
        lock(file)  # it may be gone on with by somebody who must know whether we are still at it
        return file

    def _small(self, may_place: Callable[[], bool], at_hand: "Folders | None" = None) -> bool:
        """Runs off the loop: all there is to do for a body of less than a block, in one hop."""
        self._hash(self._pump.filling)
        self._check()
        if not may_place():
            return False
        placed = self._at_once(may_place, at_hand) if at_hand is not None else None
        return self._by_part(may_place, at_hand) if placed is None else placed

    def _at_once(self, may_place: Callable[[], bool], folders: "Folders") -> bool | None:
        """Without a temporary name; None where the disk knows no other way, or something has the name."""
        file = folders.nameless()
        if file is None:
            return None
        try:
            _write_all(file, self._pump.filling)
            if not may_place():
                return False
            return self._sink.name(file, self._place, self._sha256, folders) or None
        finally:
            os.close(file)

    def _by_part(self, may_place: Callable[[], bool], at_hand: "Folders | None") -> bool:
        file = (at_hand or self._sink.folders).create(self._place.part)
        self._on_disk = True
        try:
            _write_all(file, self._pump.filling)
            if self._synced:
                os.fsync(file)
        finally:
            os.close(file)
        return self._name(may_place, at_hand)

    def _name(self, may_place: Callable[[], bool], folders: "Folders | None" = None) -> bool:
        """Runs off the loop. Asked once more at the last moment: the process may have been stopped."""
        if not may_place():
            return False
        self._sink.place(self._place, self._sha256, folders)
        self._on_disk = False
        return True

    async def _drop(self) -> None:
        await self._pump.rest()
        with suppress(OSError):  # it has been told, or came too late to matter
            if self._file is not None:
                await self._file.close()
        with suppress(OSError):
            if self._on_disk:
                await run_in(self._sink.for_names, self._sink.folders.drop, self._place.part)

    def _hash(self, block: bytes | bytearray) -> None:
        for digest in self._digests.values():
            digest.update(block)

    @property
    def _large(self) -> bool:
        """Whether it is on disk block by block, and not yet in memory only."""
        return self._pump.started or self._file is not None

    @property
    def _sha256(self) -> str:
        return self._digests[SHA256].hexdigest()

    @property
    def _synced(self) -> bool:
        return self._place.durability != "none"

    def _check(self) -> None:
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


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Let the work end although we are cancelled: what it has put in place counts, and is told."""
    task = asyncio.create_task(work)
    await aio.end_of(task)
    return task.result()


def _write_all(file: int, whole: bytearray) -> None:
    """A disk that is nearly full takes a part, and says nothing."""
    left = memoryview(whole)
    while left:
        left = left[os.write(file, left) :]
