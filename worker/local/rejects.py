"""The invalid lines of a list: refused with a reason and a remedy, or skipped and written to a file."""

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
    """A line that was skipped, in the file of rejects."""

    line: int
    """Its number, from 1."""
    error: str
    text: str | None = None
    """The line, stripped of white space."""
    base64: str | None = None
    """The line, if it is not UTF-8."""


def refuse(file: str, parsed: FetchList) -> CommandError:
    """Return the error for a list with invalid lines. It names the format if that is the cause."""
    message = list_formats.text_format(parsed.sample, file)
    if message is None:
        message = str(BadLinesError([(line.number, line.error) for line in parsed.bad_lines]))
        if any("is not UTF-8" in line.error for line in parsed.bad_lines):
            message = f"{message}\n{list_formats.legacy_encoding(file)}"
        if parsed.fetches:
            message = f"{message}\nto skip these lines and enqueue the rest: --skip-invalid REJECTS"
    return CommandError(f"{file}: nothing was enqueued\n{message}", BAD_USE)


def skip(file: str, parsed: FetchList, to: Path) -> None:
    """Write the invalid lines to a file with mode 600, because lines may contain secrets.

    Raises CommandError if the file cannot be written, or if the list is in another format. Rows of a table
    may be valid lines by chance, but with wrong URLs.
    """
    if parsed.bad_lines and (
        list_formats.url_column(parsed.sample) is not None
        or (not parsed.fetches and list_formats.text_format(parsed.sample, file) is not None)
    ):
        raise refuse(file, parsed)
    try:
        with open(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as rejects:  # noqa: PTH123
            rejects.writelines(encoded(parsed.bad_lines))
    except OSError as error:
        raise CommandError(f"--skip-invalid {to}: {error.strerror}", BAD_USE) from None


def encoded(bad_lines: Sequence[BadLine]) -> list[bytes]:
    """Return the lines of the file of rejects, one JSON object each."""
    lines = []
    for number, text, error in bad_lines:
        raw = text.encode(errors="surrogateescape")
        try:
            rejected = RejectedLine(line=number, error=error, text=raw.decode())
        except UnicodeDecodeError:
            rejected = RejectedLine(line=number, error=error, base64=base64.b64encode(raw).decode())
        lines.append(safe_json(msgspec.json.encode(rejected)) + b"\n")
    return lines
