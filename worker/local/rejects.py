"""The bad lines of a list: refused with the reason and what to do, or skipped and written to a file."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fetchfleet.jobs.contract.fetch_list import BadLine, BadLinesError, FetchList
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local import list_formats


class RejectedLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line that was skipped, as JSON in the file of rejects.

    line: its number, from 1. text: without the white space around it. base64: in its place, if the line is
    not UTF-8.
    """

    line: int
    error: str
    text: str | None = None
    base64: str | None = None


def refuse(file: str, found: FetchList) -> CommandError:
    """Return the error for a list with bad lines; it names its format if that is the cause."""
    message = list_formats.text_format(found.sample, file)
    if message is None:
        message = str(BadLinesError([(line.number, line.error) for line in found.bad_lines]))
        if any("is not UTF-8" in line.error for line in found.bad_lines):
            message = f"{message}\n{list_formats.legacy_encoding(file)}"
        if found.fetches:
            message = f"{message}\nto leave such lines out and enqueue the rest: --skip-invalid REJECTS"
    return CommandError(f"{file}: nothing was enqueued\n{message}", BAD_USE)


def skip(file: str, found: FetchList, to: Path) -> None:
    """Write the bad lines to a file that only its owner may read: lines may hold secrets.

    Raises CommandError if it cannot be written, or if the whole list is in another format. Rows of a table
    may be valid lines, though not the URLs that are meant.
    """
    if found.bad_lines and (
        list_formats.url_column(found.sample) is not None
        or (not found.fetches and list_formats.text_format(found.sample, file) is not None)
    ):
        raise refuse(file, found)
    try:
        with open(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as rejects:  # noqa: PTH123
            rejects.writelines(encoded(found.bad_lines))
    except OSError as error:
        raise CommandError(f"--skip-invalid {to}: {error.strerror}", BAD_USE) from None


def encoded(bad_lines: Sequence[BadLine]) -> list[bytes]:
    """Return a JSON line for each."""
    lines = []
    for number, text, error in bad_lines:
        as_read = text.encode(errors="surrogateescape")
        try:
            rejected = RejectedLine(line=number, error=error, text=as_read.decode())
        except UnicodeDecodeError:
            rejected = RejectedLine(line=number, error=error, base64=base64.b64encode(as_read).decode())
        lines.append(safe_json(msgspec.json.encode(rejected)) + b"\n")
    return lines
