"""The invalid rows of a list: refused with a reason and a remedy, or skipped and written to a file."""

import base64
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Self

import msgspec

from fetchfleet.jobs.contract.fetch_list import MAX_NAMED_ERRORS
from fetchfleet.jobs.contract.safe_text import safe_json, shown
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.lists.fetch_stream import Part, RowPlace
from fetchfleet.worker.local.lists.formats import list_formats

IN_MEMORY_BYTES = 1 << 20
"""The size of rejects up to which they are in memory until they are written."""


class RejectedLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line that was skipped, in the file of rejects."""

    line: int
    """Its number, from 1."""
    error: str
    text: str | None = None
    """The line, stripped of white space."""
    base64: str | None = None
    """The line, if it is not UTF-8."""
    file: str | None = None
    """Its file, if the list has several."""


class Rejects:
    """The invalid rows of one pass: their number, the first ones, and all of them for a file."""

    def __init__(self, *, several_files: bool, keep: bool) -> None:
        """keep: keep all of them, for `skip`."""
        self.count = 0
        self._several_files = several_files
        self._first: list[str] = []
        self._part: Part | None = None
        self._not_utf8 = False
        self._kept: IO[bytes] | None = None
        if keep:
            self._kept = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, prefix="fetchfleet-")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept is not None:
            self._kept.close()

    def add(self, place: RowPlace, text: str, error: str) -> None:
        """Add a row."""
        self.count += 1
        self._part = self._part or place.part
        self._not_utf8 = self._not_utf8 or "is not UTF-8" in error
        file = place.part.file.name if self._several_files else None
        if len(self._first) < MAX_NAMED_ERRORS:
            self._first.append(f"{f'{file}: ' if file else ''}{place.text}: {shown(error)}")
        if self._kept is not None:
            self._kept.write(encoded(place.number, text, error, file))

    def refusal(self, file: str, *, some_valid: bool) -> CommandError:
        """Return the error for a list with invalid rows. It names the format if that is the cause."""
        part = self._part
        is_text = part is not None and not part.reader.description
        message = (
            list_formats.text_format(part.sample, part.file.name) if part is not None and is_text else None
        )
        if message is None:
            more = self.count - len(self._first)
            message = "\n".join([*self._first, *([f"and {more} more bad lines"] if more else [])])
            if self._not_utf8:
                message = f"{message}\n{list_formats.legacy_encoding(file)}"
            if some_valid:
                message = f"{message}\nto skip these lines and enqueue the rest: --skip-invalid REJECTS"
        return CommandError(f"{file}: nothing was enqueued\n{message}", BAD_USE)

    def skip(self, file: str, to: Path, *, some_valid: bool) -> None:
        """Write the rows to a file with mode 600, because they may contain secrets.

        Raises CommandError if the file cannot be written, or if the list is in another format.
        """
        part = self._part
        if part is not None and not some_valid and list_formats.text_format(part.sample, file) is not None:
            raise self.refusal(file, some_valid=False)
        try:
            with open(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as rejects:  # noqa: PTH123
                if self._kept is not None:
                    self._kept.seek(0)
                    shutil.copyfileobj(self._kept, rejects)
        except OSError as error:
            raise CommandError(f"--skip-invalid {to}: {error.strerror}", BAD_USE) from None


def encoded(number: int, text: str, error: str, file: str | None = None) -> bytes:
    """Return a line of the file of rejects, a JSON object."""
    raw = text.encode(errors="surrogateescape")
    try:
        rejected = RejectedLine(line=number, error=error, text=raw.decode(), file=file)
    except UnicodeDecodeError:
        rejected = RejectedLine(line=number, error=error, base64=base64.b64encode(raw).decode(), file=file)
    return safe_json(msgspec.json.encode(rejected)) + b"\n"
