"""What a request sends along, in blocks: each has its own write timeout, and the length is always said."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fetchfleet.jobs.contract.body_checks import inline
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.errors import BodyFileChangedError, NoBodyFileError, UnreadableBodyFileError
from fetchfleet.worker.util.executors import SENDING, run_in


class Upload:
    """An open file; every iteration begins at its first byte."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._reading: asyncio.Task[bytes] | None = None
        self._found = os.fstat(descriptor)
        self.length_bytes = self._found.st_size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The file in blocks; the last one only once it is known that the file is still the same.

        Raises BodyFileChangedError or UnreadableBodyFileError.
        """
        at = 0
        while at < self.length_bytes:
            wanted = min(FILE_BLOCK_BYTES, self.length_bytes - at)
            self._reading = asyncio.create_task(run_in(SENDING, self._read, at, wanted))
            block = await asyncio.shield(self._reading)
            at += len(block)
            yield block

    def close(self) -> None:
        """Close the file, as soon as nobody reads in it: its number may be another file's by then."""
        if self._reading is None or self._reading.done():
            os.close(self._descriptor)
        else:
            self._reading.add_done_callback(self._read_in_vain)

    def _read_in_vain(self, reading: asyncio.Task[bytes]) -> None:
        os.close(self._descriptor)
        if not reading.cancelled():
            reading.exception()

    def _read(self, at: int, wanted: int) -> bytes:
        """Runs off the loop."""
        try:
            block = os.pread(self._descriptor, wanted, at)
            now = os.fstat(self._descriptor)
        except OSError as error:
            raise _unreadable(self._path, error) from None
        if not block or (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise BodyFileChangedError(f"body_file {self._path!r}: was changed while it was sent")
        return block


BLOCK_BYTES = 64 * 1024

Header = tuple[str, str]


def own_headers(user_agent: str) -> tuple[Header, ...]:
    """What every request says, unless it has a word of its own on it."""
    # Bodies are kept as sent: a length and a digest are of what the host has.
    return (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", user_agent))


class Blocks:
    """Bytes at hand; every iteration begins at the first."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length_bytes = len(body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """One block after the other."""
        for at in range(0, len(self._body), BLOCK_BYTES):
            yield self._body[at : at + BLOCK_BYTES]


@asynccontextmanager
async def content_of(request: Hop, in_folder: Path | None) -> AsyncIterator[Blocks | Upload | None]:
    """What the request sends, None for nothing; raises NoBodyFileError or UnreadableBodyFileError."""
    if request.body_file is not None:
        async with opened(in_folder, request.body_file) as upload:
            yield upload
    else:
        body = inline(request.body, request.body_base64)
        yield None if body is None else Blocks(body)


def framing_of(content: Blocks | Upload | None) -> tuple[Header, ...]:
    """The header that says how long it is: never chunked, which many hosts do not take (RFC 9112 §6.2)."""
    return () if content is None else (("Content-Length", str(content.length_bytes)),)


FILE_BLOCK_BYTES = 256 * 1024


# The file, or the way to it, is at fault; every other error of the disk is nobody's.
_NOT_THERE = frozenset(
    {errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EPERM}
)


@asynccontextmanager
async def opened(folder: Path | None, path: str) -> AsyncIterator[Upload]:
    """The file at that path below the folder; raises NoBodyFileError or UnreadableBodyFileError."""
    if folder is None:
        raise NoBodyFileError(
            f"body_file {path!r}: this worker has no in folder; start it with --in or FETCHFLEET_IN"
        )
    opening = asyncio.create_task(run_in(SENDING, _open, folder, path))
    try:
        upload = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_opened_in_vain)
        raise
    try:
        yield upload
    finally:
        upload.close()


def _opened_in_vain(opening: asyncio.Task[Upload]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _open(folder: Path, path: str) -> Upload:
    """Runs off the loop. Step by step from the folder's descriptor, so that no link leads out of it."""
    try:
        descriptor = _descend(folder, path)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise _unreadable(path, error) from None
        raise NoBodyFileError(f"body_file {path!r}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoBodyFileError(f"body_file {path!r}: is no regular file")
    return Upload(path, descriptor)


def _unreadable(path: str, error: OSError) -> UnreadableBodyFileError:
    return UnreadableBodyFileError(f"body_file {path!r}: {error.strerror}")


def _descend(folder: Path, path: str) -> int:
    *folders, name = path.split("/")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(part, flags, dir_fd=at)
            os.close(at)
            at = below
        # Without O_NONBLOCK a pipe would keep the thread until somebody writes to it.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
