"""The upload of a body from its spooled file: one request, or parts of a multipart upload."""

import asyncio
import mmap
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import NamedTuple

from fetchfleet.worker.errors import OverlongBodyError
from fetchfleet.worker.sink.objects.store import MAX_PUT_BYTES, ObjectStore, StoreError, allowed_s
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.executors import run_in

PUT_BYTES = 64 << 20
"""A larger body is uploaded in parts."""

PART_BYTES = 16 << 20
"""The smallest part; stores require 5 MiB."""

MAX_PARTS = 9_999
"""Stores allow 10,000; one is for the rest."""

BUDGET_BYTES = 128 << 20
"""The memory that the uploads of a worker share. The bodies of small ones are in memory anyway."""

ABORT_S = 2.0
"""The time for a stopped upload to remove its parts."""


class UploadBudget:
    """Bytes of memory that uploads share, in the order of their requests."""

    def __init__(self, free_bytes: int = BUDGET_BYTES) -> None:
        self._total_bytes = self._free_bytes = free_bytes
        self._turn = asyncio.Lock()
        self._returned = asyncio.Event()

    @asynccontextmanager
    async def taken(self, wanted_bytes: int) -> AsyncIterator[None]:
        """Wait for the bytes, or for all bytes if fewer exist, and hold them."""
        wanted_bytes = min(wanted_bytes, self._total_bytes)
        async with self._turn:
            while self._free_bytes < wanted_bytes:
                self._returned.clear()
                await self._returned.wait()
            self._free_bytes -= wanted_bytes
        try:
            yield
        finally:
            self._free_bytes += wanted_bytes
            self._returned.set()


class Target(NamedTuple):
    """The object that an upload makes."""

    path: str
    attributes: Mapping[str, str]
    create: bool
    """Raise ExistsError if the object exists."""


class SpooledBody(NamedTuple):
    """The open file of a body in the spool."""

    file: int
    size_bytes: int
    threads: Executor
    """The threads that read it."""

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the body. Raises OSError if the file has fewer."""
        return await run_in(self.threads, _read, self.file, offset, size_bytes)


class FencedError(Exception):
    """The lane was lost before the upload was complete."""


async def upload(
    store: ObjectStore,
    target: Target,
    spooled: SpooledBody,
    budget: UploadBudget,
    may_place: Callable[[], bool],
) -> str | None:
    """Store a body of the spool as an object. Returns its ETag.

    Raises FencedError if `may_place` returns False before the object is complete; nothing is stored then.
    Also raises OSError (StoreError included), ExistsError, BadDestError or OverlongBodyError.
    """
    size_bytes = spooled.size_bytes
    if size_bytes <= PUT_BYTES:
        async with budget.taken(size_bytes):
            return await _put(store, target, await spooled.read(0, size_bytes), may_place)
    if not target.create:
        parts = PartUpload(store, target, spooled, may_place)
        async with budget.taken(2 * parts.part_bytes):
            return await parts.run()
    # A condition needs a single request. The mapped file is not in the worker's own memory.
    if size_bytes > MAX_PUT_BYTES:
        raise OverlongBodyError(
            f"{size_bytes} bytes; with if_exists, a store takes {MAX_PUT_BYTES} bytes at most"
        )
    async with budget.taken(size_bytes):
        mapped = mmap.mmap(spooled.file, size_bytes, access=mmap.ACCESS_READ)
        return await _put(store, target, mapped, may_place)


async def _put(
    store: ObjectStore, target: Target, body: bytes | mmap.mmap, may_place: Callable[[], bool]
) -> str | None:
    if not may_place():
        raise FencedError
    return await store.put(target.path, body, target.attributes, create=target.create)


class PartUpload:
    """A multipart upload. Its last request, which makes the object, follows a check of the lease.

    All parts but the last have one size. The last one has less than MAX_PARTS bytes. Only it and the request
    that completes the upload follow the check.
    """

    def __init__(
        self, store: ObjectStore, target: Target, spooled: SpooledBody, may_place: Callable[[], bool]
    ) -> None:
        self._store = store
        self._target = target
        self._spooled = spooled
        self._may_place = may_place
        self._stopped = False
        """The next part raises, so that the upload is aborted."""
        self._ends = False
        """The check has passed: the upload is not aborted any more, but its connection is closed."""
        self._progress_s = mono_s()
        self.part_bytes = spooled.size_bytes // min(max(spooled.size_bytes // PART_BYTES, 1), MAX_PARTS)

    async def run(self) -> str | None:
        """Upload the file. Returns the ETag. Cancellation stops the upload: no object is made."""
        target = self._target
        sending = asyncio.create_task(
            self._store.put_parts(target.path, self._parts(), self.part_bytes, target.attributes),
            name="upload",
        )
        allowed = allowed_s(self.part_bytes)
        try:
            while not sending.done():
                await asyncio.wait([sending], timeout=allowed)
                if not sending.done() and mono_s() - self._progress_s >= allowed:
                    raise StoreError(f"{self._store.url}: no response in time")
            return sending.result()
        finally:
            self._stopped = True
            try:
                if not self._ends and not sending.done():
                    await asyncio.wait([sending], timeout=ABORT_S)
            finally:
                await aio.end(sending)

    async def _parts(self) -> AsyncIterator[bytes]:
        """Yield the parts. obstore asks for the next part when it has taken the previous one."""
        size_bytes = self._spooled.size_bytes
        whole = size_bytes - size_bytes % self.part_bytes
        for offset in range(0, whole, self.part_bytes):
            yield await self._part(offset, self.part_bytes)
        yield b""  # is taken when the parts before it are stored
        if self._stopped or not self._may_place():
            raise FencedError
        self._ends, self._progress_s = True, mono_s()
        if whole < size_bytes:
            yield await self._part(whole, size_bytes - whole)

    async def _part(self, offset: int, size_bytes: int) -> bytes:
        if self._stopped:
            raise FencedError
        self._progress_s = mono_s()
        return await self._spooled.read(offset, size_bytes)


def _read(file: int, offset: int, size_bytes: int) -> bytes:
    """Read bytes of a file. Runs off the loop. Raises OSError if it has fewer."""
    pieces = []
    while size_bytes:
        piece = os.pread(file, size_bytes, offset)
        if not piece:
            raise OSError("a spooled body is shorter than it was")
        pieces.append(piece)
        offset, size_bytes = offset + len(piece), size_bytes - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
