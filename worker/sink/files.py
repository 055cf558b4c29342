"""Where bodies go: a temporary file first, renamed into place when it is whole and checked.

At the final name there is a whole body or nothing, whatever happens in between.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiofiles

from jobs.entry import Entry
from jobs.model import Fetch
from jobs.names import path_of
from worker.fallback import Old, key_of
from worker.http.errors import (
    BadDestError,
    DigestMismatchError,
    OverlongBodyError,
    TruncatedBodyError,
)
from worker.sink import stored

BLOCK_BYTES = 512 * 1024
STALE_PART_S = 24 * 3600
STATE_FOLDER = ".fetchfleet"


class Kept(NamedTuple):
    """A body in its place; path is relative to the out folder."""

    path: str
    size_bytes: int
    sha256: str


class Expected(NamedTuple):
    """What a body must be to be kept; None or 0 where nothing is known."""

    length_bytes: int | None = None
    sha256: str | None = None
    max_bytes: int = 0


class FileSink:
    """Bodies as files under one folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.parts = out / STATE_FOLDER / "parts"
        self.stored = out / STATE_FOLDER / "stored"
        self.received_bytes = 0
        self._folders: set[Path] = set()

    def open(self) -> None:
        """Make the folders and drop parts that no living worker can still be at."""
        self.parts.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - STALE_PART_S
        for part in self.parts.iterdir():
            if part.stat().st_mtime < oldest:
                part.unlink(missing_ok=True)

    def receive(self, entry: Entry, token: int, expected: Expected, *, remember: bool = False) -> "Part":
        """A part for the body of a fetch; the lane's token keeps two owners' parts apart.

        remember: `old` is to find the body when the same is asked for again.
        """
        path = entry.fetch.dest or path_of(entry.id)
        key = key_of(entry.fetch) if remember else ""
        return Part(self, path, self.parts / f"{entry.id}.{token}", expected, key)

    async def old(self, fetch: Fetch) -> Old | None:
        """What was stored for the fetch before and is still there, or at its `dest`."""
        return await asyncio.to_thread(stored.look_up, self.out, self.stored, fetch)

    def remember(self, part: Path, path: str, key: str, sha256: str) -> None:
        """Note that the body of that key is at the path."""
        temporary = part.with_name(f"{part.name}.stored")
        stored.remember(self.stored, key, temporary, self.out / path, path, sha256)

    def place(self, part: Path, path: str) -> None:
        """Rename a part to its name; raises BadDestError or OSError when it cannot stand there."""
        final = self.out / path
        self._make_folder(final.parent)
        try:
            part.replace(final)
        except FileNotFoundError:  # somebody has removed the folder since we made it
            self._folders.discard(final.parent)
            self._make_folder(final.parent)
            part.replace(final)

    def _make_folder(self, folder: Path) -> None:
        if folder in self._folders:
            return
        # Path.resolve raises RuntimeError on a loop of links; mkdir names it as what it is.
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.out)):
            raise BadDestError(f"{folder} leads out of the out folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._folders.add(folder)


class Part:
    """A body on its way to disk. An async context manager: what is not committed is gone after it."""

    def __init__(self, sink: FileSink, path: str, temporary: Path, expected: Expected, key: str) -> None:
        self._sink = sink
        self._path = path
        self._key = key
        self._temporary = temporary
        self._expected = expected
        self._file: Any = None
        self._blocks: list[bytes] = []
        self._buffered_bytes = 0
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        if expected.length_bytes is not None:
            self._refuse_overlong(expected.length_bytes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            await self._file.close()
            self._temporary.unlink(missing_ok=True)

    async def write(self, chunk: bytes) -> None:
        """Take a chunk; large blocks go to disk off the loop. Raises OverlongBodyError."""
        self.size_bytes += len(chunk)
        self._sink.received_bytes += len(chunk)
        self._refuse_overlong(self.size_bytes)
        self._blocks.append(chunk)
        self._buffered_bytes += len(chunk)
        if self._buffered_bytes >= BLOCK_BYTES:
            await self._flush()

    async def commit(self, may_place: Callable[[], bool]) -> Kept | None:
        """Check the body and put it in its place; None, and nothing placed, once may_place says no.

        Raises TruncatedBodyError, DigestMismatchError, BadDestError or OSError.
        """
        if self._file is not None:
            await self._flush()
            await self._file.close()
        last = b"".join(self._blocks) if self._file is None else b""
        self._digest.update(last)
        self._check()
        if not may_place():
            return None
        await _to_the_end(asyncio.to_thread(self._place, last))
        self._file = None
        return Kept(self._path, self.size_bytes, self._digest.hexdigest())

    async def _flush(self) -> None:
        block = b"".join(self._blocks)
        self._blocks, self._buffered_bytes = [], 0
        if self._file is None:
            self._file = await aiofiles.open(self._temporary, "wb", buffering=0)
        await asyncio.gather(
            asyncio.to_thread(self._digest.update, block),
            self._file.write(block),
        )

    def _check(self) -> None:
        expected = self._expected
        if expected.length_bytes is not None and self.size_bytes != expected.length_bytes:
            raise TruncatedBodyError(f"{self.size_bytes} of {expected.length_bytes} bytes came")
        if expected.sha256 is not None and self._digest.hexdigest() != expected.sha256:
            raise DigestMismatchError(f"sha256 is {self._digest.hexdigest()}")

    def _place(self, whole: bytes) -> None:
        """Runs off the loop. A small body is written here, in the one hop that also renames it."""
        try:
            if self._file is None:
                self._temporary.write_bytes(whole)
            self._sink.place(self._temporary, self._path)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        if self._key:
            self._sink.remember(self._temporary, self._path, self._key, self._digest.hexdigest())

    def _refuse_overlong(self, size_bytes: int) -> None:
        if self._expected.max_bytes and size_bytes > self._expected.max_bytes:
            raise OverlongBodyError(f"{size_bytes} bytes are more than {self._expected.max_bytes}")


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Let the work end although we are cancelled: what it has put in place counts, and is told."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()
