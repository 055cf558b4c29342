"""Puts the records of a batch's bodies together as its results come: in one file, or on standard output.

Bodies follow one another in the order of their results, the records of each in theirs, one a line. What has
been written is noted result by result, so that a command which was interrupted, or killed, goes on behind it.
"""

import asyncio
import hashlib
import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Self, TypeVar

import msgspec

from fetchfleet.jobs.client.batch import FROM_THE_START
from fetchfleet.jobs.contract.model import Outcome, Result
from fetchfleet.worker.body.json_lines import records_in
from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.local.lines_to import STREAMS, LinesError, Where
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.util import aio

T = TypeVar("T")

BLOCK_BYTES = 1 << 20
"""So much is read or written before it may be interrupted."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch's records have been written: up to this position, in so many bytes of that file.

    results: how many have been read; missing: the bodies of so many could not be.
    """

    batch: str
    to: str
    position: str = FROM_THE_START
    bytes: int = 0
    results: int = 0
    missing: int = 0


class Gather:
    """Takes the results of one batch. A context manager: what is at the end of the file is whole.

    goes_on: the batch was followed before, and what was written then stays. say: for what must be known now.
    Raises LinesError.
    """

    def __init__(self, where: Where, batch_id: str, say: Callable[[str], None], *, goes_on: bool) -> None:
        self._where = where
        self._say = say
        to = "-" if where.to in STREAMS else os.path.realpath(where.to)
        self._done = Note(batch=batch_id, to=to)
        before = _noted(where.note) if goes_on else None
        if before is not None and before.batch == batch_id:
            if before.to != to:
                raise LinesError(f"this run's records go to {before.to}: give that to --lines-to again")
            self._done = before
        self._missing = self._done.missing
        self._regular = False
        self._file = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it has been told
            self._file.close()
        if self._regular:
            with suppress(OSError):
                os.truncate(self._done.to, self._done.bytes)

    @property
    def position(self) -> str:
        """Behind which result to go on."""
        return self._done.position

    async def add(self, result: Result, position: str) -> None:
        """Write the records of a result's body, if it has one, and note that it is done."""
        steps = self._steps(result, position)
        try:
            while await _to_its_end(lambda: next(steps, True)) is None:
                pass
        except OSError as error:
            raise LinesError(f"--lines-to {self._where.to}: {error.strerror}") from None
        finally:
            steps.close()

    def check(self, done: int) -> None:
        """All results have come, `done` of the batch; raises LinesError if the records of some have not."""
        unseen = done - self._done.results
        if self._missing:
            raise LinesError(f"the records of {self._missing} bodies could not be read and are not there")
        if unseen > 0:
            raise LinesError(f"the records of {unseen} results that were read before are not there")

    def _steps(self, result: Result, position: str) -> Generator[None, None, None]:
        """Runs off the loop, a block at a time."""
        written_bytes = 0
        if result.outcome is Outcome.STORED and result.path is not None:
            for written in self._records_of(result, result.path):
                written_bytes += written
                yield
        self._file.flush()
        self._note(position, written_bytes)

    def _records_of(self, result: Result, path: str) -> Iterator[int]:
        """Writes them if the body is still the one that was stored; how many bytes that were at each step."""
        if result.offset is not None:
            self._miss(result, "is a WARC segment, which is not read here")
            return
        try:
            body = self._opened(path)
        except InTheWayError as error:
            self._miss(result, str(error))
            return
        except OSError as error:
            self._miss(result, error.strerror or "cannot be read")
            return
        with body:
            digest = hashlib.sha256()
            while block := body.read(BLOCK_BYTES):
                digest.update(block)
                yield 0
            if digest.hexdigest() != result.sha256:
                self._miss(result, "has been replaced")
                return
            body.seek(0)
            yield from self._copied(body)

    def _opened(self, path: str) -> IO[bytes]:
        """A body, by its place in the out folder; no link in it is followed."""
        directory = Directory(self._where.out)
        try:
            directory.open(make=False)
            return os.fdopen(directory.open_file(path), "rb")
        finally:
            directory.close()

    def _copied(self, body: IO[bytes]) -> Iterator[int]:
        """See _records_of."""
        lines: list[bytes] = []
        lines_bytes = 0
        for record in records_in(body):
            lines += (record, b"\n")
            lines_bytes += len(record) + 1
            if lines_bytes >= BLOCK_BYTES:
                yield self._file.write(b"".join(lines))
                lines, lines_bytes = [], 0
        yield self._file.write(b"".join(lines))

    def _note(self, position: str, written_bytes: int) -> None:
        self._done = msgspec.structs.replace(
            self._done,
            position=position,
            bytes=self._done.bytes + written_bytes,
            results=self._done.results + 1,
            missing=self._missing,
        )
        if self._where.note is not None:
            temporary = self._where.note.with_suffix(".new")
            temporary.write_bytes(msgspec.json.encode(self._done))
            temporary.replace(self._where.note)

    def _miss(self, result: Result, what: str) -> None:
        self._missing += 1
        if self._missing == 1:
            self._say(
                f"{result.url}: its records are left out, for its body, {result.path} in {self._where.out}:"
                f" {what}. The folder must be that of the workers, on this machine; --out names it"
            )

    def _open(self) -> IO[bytes]:
        """The file, cut to what has been noted; or standard output, whose past is past."""
        try:
            if self._done.to == "-":
                return os.fdopen(os.dup(1), "wb")
            file = os.open(self._done.to, os.O_WRONLY | os.O_CREAT, 0o666)
            found = os.fstat(file)
            self._regular = stat.S_ISREG(found.st_mode)
            if self._regular and found.st_size >= self._done.bytes:
                os.truncate(file, self._done.bytes)
                os.lseek(file, 0, os.SEEK_END)
        except OSError as error:
            raise LinesError(f"--lines-to {self._where.to}: {error.strerror}") from None
        if self._regular and found.st_size < self._done.bytes:
            os.close(file)
            raise LinesError(
                f"{self._done.to} is shorter than what was written to it: put it back, or delete"
                f" {self._where.note} to have the records of what is still to come"
            )
        return os.fdopen(file, "wb")


def _noted(note: Path | None) -> Note | None:
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(note.read_bytes(), type=Note) if note is not None else None
    return None


async def _to_its_end(work: Callable[[], T]) -> T:
    """What the work comes to, off the loop; it has ended when this ends, however often that is cancelled."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await aio.end_of(task)
        task.exception()
        raise
