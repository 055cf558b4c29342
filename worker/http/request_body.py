"""Request bodies, sent in blocks, each with its own write timeout. The length is always declared."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from fetchfleet.jobs.contract.checks.body_checks import inline
from fetchfleet.jobs.contract.checks.field_checks import relative_path
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.errors import BodyFileChangedError, NoBodyFileError, UnreadableBodyFileError
from fetchfleet.worker.util.executors import SENDING, run_in
from fetchfleet.worker.util.file_errors import FINAL, FileFault, fault_of

BLOCK_BYTES = 64 * 1024
FILE_BLOCK_BYTES = 256 * 1024

_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

_NO_FILE = frozenset({errno.ENOENT, errno.ENXIO})
"""The errors of opening a path without a file, or with a Unix socket."""


def default_headers(user_agent: str) -> tuple[tuple[str, str], ...]:
    """Return the headers of every request; headers of the fetch replace them."""
    # No content coding: the length and the digest are those of the stored bytes.
    return (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", user_agent))


class MemoryBody:
    """A request body in memory. Every iteration starts at the first byte."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length_bytes = len(body)

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Yield the body block by block."""
        for at in range(0, len(self._body), BLOCK_BYTES):
            yield self._body[at : at + BLOCK_BYTES]

    def close(self) -> None:
        """Do nothing; the counterpart of `FileBody.close`."""


class FileBody:
    """A request body in an open file. Every iteration starts at the first byte."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._reading: asyncio.Task[bytes] | None = None
        """The last read, in a thread."""
        self._opened = os.fstat(descriptor)
        """The state of the file when it was opened."""
        self.length_bytes = self._opened.st_size

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Yield the file block by block, each after a check that the file is unchanged.

        Raises BodyFileChangedError or UnreadableBodyFileError.
        """

        def read(offset: int, size: int) -> bytes:
            try:
                block = os.pread(self._descriptor, size, offset)
                now = os.fstat(self._descriptor)
            except OSError as error:
                raise _unreadable(self._path, error) from None
            if not block or (now.st_size, now.st_mtime_ns) != (
                self._opened.st_size,
                self._opened.st_mtime_ns,
            ):
                raise BodyFileChangedError(f"body_file {self._path!r}: changed while it was sent")
            return block

        offset = 0
        while offset < self.length_bytes:
            size = min(FILE_BLOCK_BYTES, self.length_bytes - offset)
            self._reading = asyncio.create_task(run_in(SENDING, read, offset, size))
            block = await asyncio.shield(self._reading)
            offset += len(block)
            yield block

    def close(self) -> None:
        """Close the file once no thread reads it: the descriptor may be reused for another file."""

        def close_after(reading: asyncio.Task[bytes]) -> None:
            os.close(self._descriptor)
            if not reading.cancelled():
                reading.exception()  # mark as retrieved, so that asyncio does not log it

        if self._reading is None or self._reading.done():
            os.close(self._descriptor)
        else:
            self._reading.add_done_callback(close_after)


async def open_content(request: Hop, in_folder: Path | None) -> MemoryBody | FileBody | None:
    """Open the body of a request, which the caller closes; return None if it has none.

    Raises NoBodyFileError or UnreadableBodyFileError.
    """
    if not request.has_body:
        return None
    if request.body_file is None:
        body = inline(request.body, request.body_base64)
        return None if body is None else MemoryBody(body)
    if in_folder is None:
        raise NoBodyFileError(
            f"body_file {request.body_file!r}: this worker has no in folder; "
            "start it with --in or FETCHFLEET_IN"
        )

    def close_unused(opening: asyncio.Task[FileBody]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()

    opening = asyncio.create_task(run_in(SENDING, _open, in_folder, request.body_file))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close_unused)
        raise


def framing_headers(method: str, content: MemoryBody | FileBody | None) -> tuple[tuple[str, str], ...]:
    """Return the Content-Length header, for a POST, PUT or PATCH without a body too (RFC 9110 §8.6).

    Chunked is never used, as hosts reject it (RFC 9112 §6.2).
    """
    if content is not None:
        return (("Content-Length", str(content.length_bytes)),)
    return (("Content-Length", "0"),) if method in _METHODS_WITH_BODY else ()


def _open(folder: Path, path: str) -> FileBody:
    """Open a file below the folder, in a thread.

    Each name of the path is opened relative to the folder before it. `..` and symbolic links are refused.
    """
    try:
        relative_path("body_file", path, "in")
    except InvalidFetchError as error:
        raise NoBodyFileError(str(error)) from None
    *folder_names, name = path.split("/")
    try:
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:  # every file of the folder would fail, so this one is not at fault
        raise _unreadable(f"{folder}/{path}", error) from None
    try:
        try:
            for folder_name in folder_names:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                child = os.open(folder_name, flags, dir_fd=parent)
                os.close(parent)
                parent = child
            # Without O_NONBLOCK, a pipe would block the thread until it has a writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=parent)
        finally:
            os.close(parent)
    except OSError as error:
        final = fault_of(error) in {*FINAL, FileFault.PERMISSION} or error.errno in _NO_FILE
        raise (
            NoBodyFileError(f"body_file {path!r}: {error.strerror}") if final else _unreadable(path, error)
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoBodyFileError(f"body_file {path!r}: not a regular file")
    return FileBody(path, descriptor)


def _unreadable(path: str, error: OSError) -> UnreadableBodyFileError:
    return UnreadableBodyFileError(f"body_file {path!r}: {error.strerror}")
