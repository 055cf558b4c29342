"""The export of a batch's JSON Lines records to one file or to standard output (`--lines-to`).

The bodies are in the order of their results, and the records of a body in their own order, one a line. The
state of the export is saved after each result, so that an interrupted or killed command can continue.
"""

import asyncio
import hashlib
import io
import os
import stat
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

import msgspec

from fetchfleet.jobs.client.batch import FROM_THE_START
from fetchfleet.jobs.contract.result import Outcome, Result
from fetchfleet.worker.body.json_lines import records_in
from fetchfleet.worker.errors import CommandError, InTheWayError
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.util import aio

STANDARD_OUTPUT = frozenset({"-", "stream"})
BUFFER_BYTES = 8192
"""The buffer of the file. The default of Python 3.14 is 128 KiB, which delays records for a reader."""

BLOCK_BYTES = 1 << 20
"""The size of a read or write. The export can be cancelled between two of them."""


class ExportError(CommandError):
    """Records cannot be written, or are missing. The message says which, and what to do."""


class ExportTarget(NamedTuple):
    """The folder of the bodies, and the target of their records."""

    to: str
    """A file, or one of STANDARD_OUTPUT."""
    out: Path
    """The folder of bodies."""
    state: Path | None = None
    """The file with the state of the export; None if the export cannot be resumed."""


class ExportState(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of the export of a batch."""

    batch: str
    """The batch ID."""
    to: str
    """The resolved path of the file, or `-`."""
    position: str = FROM_THE_START
    """The position of the last result whose records are written."""
    bytes: int = 0
    """The size of the file after these records."""
    results: int = 0
    """The number of results read."""
    missing: int = 0
    """The number of their bodies that could not be read."""


class JsonlExport:
    """A context manager that exports the records of one batch. At its end the file has whole bodies only.

    warn: called for the first body whose records are left out. resumes: continue an earlier export of the
    batch. Raises ExportError.
    """

    def __init__(
        self,
        target: ExportTarget,
        batch_id: str,
        warn: Callable[[str], None],
        *,
        resumes: bool,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._target = target
        self._warn = warn
        self._block_bytes = block_bytes
        to = "-" if target.to in STANDARD_OUTPUT else os.path.realpath(target.to)
        self._state = ExportState(batch=batch_id, to=to)
        if resumes and target.state is not None:
            with suppress(OSError, msgspec.MsgspecError):
                before = msgspec.json.decode(target.state.read_bytes(), type=ExportState)
                if before.batch == batch_id:
                    self._state = before
        if self._state.to != to:
            raise ExportError(f"the interrupted run wrote records to {self._state.to}: give --lines-to that")
        self._missing = self._state.missing
        self._regular = False
        self._file: IO[bytes] = io.BytesIO()

    def __enter__(self) -> Self:
        """Open the file, truncated to the saved size, or standard output."""
        try:
            if self._state.to == "-":
                self._file = os.fdopen(os.dup(1), "wb")
                return self
            file = os.open(self._state.to, os.O_WRONLY | os.O_CREAT, 0o666)
            found = os.fstat(file)
            self._regular = stat.S_ISREG(found.st_mode)
            if self._regular and found.st_size >= self._state.bytes:
                os.truncate(file, self._state.bytes)
                os.lseek(file, 0, os.SEEK_END)
        except OSError as error:
            raise ExportError(f"--lines-to {self._target.to}: {error.strerror}") from None
        if self._regular and found.st_size < self._state.bytes:
            os.close(file)
            raise ExportError(
                f"{self._state.to} is shorter than the run left it; restore it, or delete"
                f" {self._target.state} to export only the records of later results"
            )
        self._file = os.fdopen(file, "wb", buffering=BUFFER_BYTES)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # reported by `add`
            # Truncated by descriptor, because the path may name another file by now.
            descriptor = os.dup(self._file.fileno()) if self._regular else None
            with suppress(OSError):
                self._file.close()
            if descriptor is not None:
                try:
                    os.ftruncate(descriptor, self._state.bytes)
                finally:
                    os.close(descriptor)

    @property
    def position(self) -> str:
        """The position of the last result whose records are written."""
        return self._state.position

    async def add(self, result: Result, position: str) -> None:
        """Write the records of a result's body, if it has one, and save the state."""
        steps = self._steps(result, position)
        try:
            ended = None
            while ended is None:
                step = asyncio.create_task(asyncio.to_thread(lambda: next(steps, True)))
                try:
                    ended = await asyncio.shield(step)
                except asyncio.CancelledError:
                    await aio.wait_until_done(step)  # the thread still uses the file
                    step.exception()
                    raise
        except OSError as error:
            raise ExportError(f"--lines-to {self._target.to}: {error.strerror}") from None
        finally:
            steps.close()

    def check(self, done: int) -> None:
        """Raise ExportError if records of the batch's `done` results are missing."""
        unread = done - self._state.results
        if self._regular and not os.fstat(self._file.fileno()).st_nlink:
            raise ExportError(f"--lines-to {self._target.to}: the file was removed during the run")
        if self._missing:
            raise ExportError(f"the records of {self._missing:,} bodies are missing, which could not be read")
        if unread > 0:
            raise ExportError(f"the records of {unread:,} results are missing, which an earlier part read")

    def _steps(self, result: Result, position: str) -> Generator[None, None, None]:
        """Write the records of a result, one block in each step, if its body has not changed. Blocks."""
        written_bytes = 0
        body = self._open_body(result)
        if body is not None:
            with body:
                digest = hashlib.sha256()
                while block := body.read(self._block_bytes):
                    digest.update(block)
                    yield
                if digest.hexdigest() != result.sha256:
                    self._skip(result, "another body has replaced it")
                else:
                    body.seek(0)
                    lines = bytearray()
                    for record in records_in(body):
                        lines += record + b"\n"
                        if len(lines) >= self._block_bytes:
                            written_bytes += self._file.write(lines)
                            lines = bytearray()
                            yield
                    written_bytes += self._file.write(lines)
        self._file.flush()
        self._state = msgspec.structs.replace(
            self._state,
            position=position,
            bytes=self._state.bytes + written_bytes,
            results=self._state.results + 1,
            missing=self._missing,
        )
        if self._target.state is not None:
            temporary = self._target.state.with_suffix(".new")
            temporary.write_bytes(msgspec.json.encode(self._state))
            temporary.replace(self._target.state)

    def _open_body(self, result: Result) -> IO[bytes] | None:
        """Open the body of a result, without following links in the out folder; None if it has none."""
        if result.outcome is not Outcome.STORED or result.path is None:
            return None
        if result.store is not None:
            self._skip(result, "it is in an object store, which --lines-to cannot read")
            return None
        if result.offset is not None:
            self._skip(result, "it is in a WARC segment, which --lines-to cannot read")
            return None
        directory = Directory(self._target.out)
        try:
            directory.open(make=False)
            return os.fdopen(directory.open_file(result.path), "rb")
        except InTheWayError as error:
            self._skip(result, str(error))
        except OSError as error:
            self._skip(result, error.strerror or "it cannot be read")
        finally:
            directory.close()
        return None

    def _skip(self, result: Result, why: str) -> None:
        """Count a body whose records are left out, and warn of the first one."""
        self._missing += 1
        if self._missing == 1:
            place = result.store or self._target.out
            advice = "" if result.store else ". With --out, give the workers' folder on this machine"
            self._warn(f"{result.url}: records left out: {place}/{result.path}: {why}{advice}")
