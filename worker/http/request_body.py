"""Bodies of requests, sent in blocks: each block has its own write timeout, the length is always declared."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from fetchfleet.jobs.contract.body_checks import inline
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.field_checks import relative_path
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.errors import BodyFileChangedError, NoBodyFileError, UnreadableBodyFileError
from fetchfleet.worker.util.executors import SENDING, run_in
from fetchfleet.worker.util.file_errors import FINAL, FileFault, fault_of

BLOCK_BYTES = 64 * 1024
FILE_BLOCK_BYTES = 256 * 1024

_SENDING = frozenset({"POST", "PUT", "PATCH"})

_NO_FILE = frozenset({errno.ENOENT, errno.ENXIO})
"""The errors of opening a path at which there is nothing, or a socket."""


def own_headers(user_agent: str) -> tuple[tuple[str, str], ...]:
    """Return the headers of every request, which its own headers override."""
    # No content coding: the length and the digest are those of the stored bytes.
    return (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", user_agent))


class Blocks:
    """A body in memory; every iteration starts at the first byte."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length_bytes = len(body)

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Yield it block by block."""
        for at in range(0, len(self._body), BLOCK_BYTES):
            yield self._body[at : at + BLOCK_BYTES]

    def close(self) -> None:
        """Do nothing: memory needs no closing."""


class Upload:
    """An open file; every iteration starts at the first byte."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._reading: asyncio.Task[bytes] | None = None
        self._opened = os.fstat(descriptor)
        self.length_bytes = self._opened.st_size

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Yield the file block by block, the last block only after a check that the file is unchanged.

        Raises BodyFileChangedError or UnreadableBodyFileError.
        """

        def read(at: int, wanted: int) -> bytes:
            try:
                block = os.pread(self._descriptor, wanted, at)
                now = os.fstat(self._descriptor)
            except OSError as error:
                raise _unreadable(self._path, error) from None
            if not block or (now.st_size, now.st_mtime_ns) != (
                self._opened.st_size,
                self._opened.st_mtime_ns,
            ):
                raise BodyFileChangedError(f"body_file {self._path!r}: was changed while it was sent")
            return block

        at = 0
        while at < self.length_bytes:
            wanted = min(FILE_BLOCK_BYTES, self.length_bytes - at)
            self._reading = asyncio.create_task(run_in(SENDING, read, at, wanted))
            block = await asyncio.shield(self._reading)
            at += len(block)
            yield block

    def close(self) -> None:
        """Close the file once no thread reads it: its descriptor may be another file's afterwards."""

        def close_after(reading: asyncio.Task[bytes]) -> None:
            os.close(self._descriptor)
            if not reading.cancelled():
                reading.exception()  # retrieved, so that asyncio does not log it

        if self._reading is None or self._reading.done():
            os.close(self._descriptor)
        else:
            self._reading.add_done_callback(close_after)


async def open_content(request: Hop, in_folder: Path | None) -> Blocks | Upload | None:
    """Open the body of a request, None for no body; the caller closes it.

    Raises NoBodyFileError or UnreadableBodyFileError.
    """
    if not request.has_body:
        return None
    if request.body_file is None:
        body = inline(request.body, request.body_base64)
        return None if body is None else Blocks(body)
    if in_folder is None:
        raise NoBodyFileError(
            f"body_file {request.body_file!r}: this worker has no in folder; "
            "start it with --in or FETCHFLEET_IN"
        )

    def close_unused(opening: asyncio.Task[Upload]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()

    opening = asyncio.create_task(run_in(SENDING, _open, in_folder, request.body_file))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close_unused)
        raise


def framing_of(method: str, content: Blocks | Upload | None) -> tuple[tuple[str, str], ...]:
    """Return the Content-Length header; chunked is never used, as many hosts reject it (RFC 9112 §6.2).

    A method that sends something says also that it is nothing (RFC 9110 §8.6).
    """
    if content is not None:
        return (("Content-Length", str(content.length_bytes)),)
    return (("Content-Length", "0"),) if method in _SENDING else ()


def _open(folder: Path, path: str) -> Upload:
    """Open a file below the folder, in a thread.

    Each name of the path is looked up in the folder before it. None is `..`, and no link is followed.
    """
    try:
        relative_path("body_file", path, "in")
    except InvalidFetchError as error:
        raise NoBodyFileError(str(error)) from None
    *folders, name = path.split("/")
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:  # it is the same for every file, so no file is at fault
        raise _unreadable(f"{folder}/{path}", error) from None
    try:
        try:
            for part in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(part, flags, dir_fd=at)
                os.close(at)
                at = below
            # Without O_NONBLOCK, a pipe would block the thread until it gets a writer.
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        finally:
            os.close(at)
    except OSError as error:
        final = fault_of(error) in {*FINAL, FileFault.PERMISSION} or error.errno in _NO_FILE
        raise (
            NoBodyFileError(f"body_file {path!r}: {error.strerror}") if final else _unreadable(path, error)
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoBodyFileError(f"body_file {path!r}: is no regular file")
    return Upload(path, descriptor)


def _unreadable(path: str, error: OSError) -> UnreadableBodyFileError:
    return UnreadableBodyFileError(f"body_file {path!r}: {error.strerror}")
