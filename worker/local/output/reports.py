"""Reports: files of results, in the format that their ending names.

While a command follows a batch, it writes results as JSON Lines. If the report has another format, these are
in a file beside it, which is converted at the end of the batch. This file stays if the conversion fails.
"""

import asyncio
import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from fetchfleet.worker.errors import BAD_USE, CommandError

T = TypeVar("T")

PAGE_BYTES = 8 << 20
"""The size of the lines that are converted together. The command can be interrupted between two pages."""

SQLITE_SIDE_FILES = ("-journal", "-wal", "-shm")
"""The endings of files that SQLite would apply to a database of the same name."""


class ReportFormat(StrEnum):
    """A format of a report. Its value is the ending of the file."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    SQLITE = "sqlite"


LINES_ENDINGS = frozenset({"", ".jsonl", ".ndjson", ".json", ".txt", ".log"})
"""The endings of files that are written as JSON Lines. The first means that a name has no ending."""


def format_of(report: Path) -> ReportFormat:
    """Return the format that the ending names; JSON Lines for any other ending."""
    ending = report.suffix.lower().removeprefix(".")
    return ReportFormat(ending) if ending in {*ReportFormat} else ReportFormat.JSONL


def lines_of(report: Path) -> Path:
    """Return the file for the results of a report as JSON Lines: the report itself, or a file beside it."""
    return report if format_of(report) is ReportFormat.JSONL else Path(f"{report}.part.jsonl")


def check_ending(option: str, report: Path) -> None:
    """Raise CommandError if the file has an ending that names no format of a report.

    An ending without letters is part of a name, such as a date. A pipe or a device may have any.
    """
    ending = report.suffix.lower()
    has_letters = any(map(str.isalpha, ending))
    if ending.removeprefix(".") in {*ReportFormat} or ending in LINES_ENDINGS or not has_letters:
        return
    if not report.exists() or report.is_file():
        raise CommandError(
            f"{option} {report}: a report is not written as {ending}; its ending can be .csv, .parquet,"
            " .sqlite, or .jsonl for JSON Lines",
            BAD_USE,
        )


def check_format(option: str, report: Path, format_: ReportFormat) -> None:
    """Raise CommandError if a report of this format cannot be written."""
    if format_ is ReportFormat.PARQUET and find_spec("pyarrow") is None:
        raise CommandError(f"{option} {report}: needs pyarrow: pip install 'fetchfleet[parquet]'", BAD_USE)
    if format_ is not ReportFormat.JSONL and report.exists() and not stat.S_ISREG(report.stat().st_mode):
        raise CommandError(f"{option} {report}: not a file; only JSON Lines can go to a pipe", BAD_USE)


def is_unconverted(report: Path) -> bool:
    """Return whether the results of a report are still JSON Lines beside it."""
    lines = lines_of(report)
    return lines != report and lines.is_file() and bool(lines.stat().st_size)


def check_converted(report: Path) -> None:
    """Raise CommandError if an earlier command has left results that are not converted to this report."""
    if is_unconverted(report):
        raise CommandError(
            f"--report {report}: {lines_of(report)} has results of an earlier command; delete it,"
            f" or convert it with:\n{command_to_convert(report)}",
            BAD_USE,
        )


def command_to_convert(report: Path) -> str:
    """Return the command that converts the JSON Lines beside a report."""
    return shlex.join(["fetchfleet", "export", str(lines_of(report)), str(report), "--reveal"])


async def finish(report: Path, warn: Callable[[str], None]) -> None:
    """Convert the JSON Lines beside a report to its format, and remove them.

    warn: called if the conversion is interrupted. Raises CommandError, which names the JSON Lines.
    """
    lines = lines_of(report)
    remedy = f"every result is in {lines}; convert it with:\n{command_to_convert(report)}"
    try:
        with lines.open("rb") as source:
            await convert(source, str(lines), report, format_of(report))
    except (CommandError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CommandError(f"--report {report}: {why}\n{remedy}") from None
    except asyncio.CancelledError:
        warn(remedy)
        raise
    lines.unlink(missing_ok=True)


async def convert(source: IO[bytes], name: str, report: Path, format_: ReportFormat) -> None:
    """Write the results of JSON Lines to a report, which replaces an earlier file when it is complete.

    name: the name of the JSON Lines, for errors. Raises CommandError, OSError.
    """
    from fetchfleet.worker.local.output import table_files  # noqa: PLC0415 csv and sqlite3; the others need none
    from fetchfleet.worker.local.output.table import MetaColumns, ReportRow, RowMeta  # noqa: PLC0415

    with replacing(report) as new:
        if format_ is ReportFormat.JSONL:
            with new.open("wb") as copy:
                source.seek(0)
                while block := source.read(PAGE_BYTES):
                    copy.write(block)
                    await asyncio.sleep(0)  # an interruption ends the command here
            return
        meta = MetaColumns()
        for seen in decoded(source, name, msgspec.json.Decoder(RowMeta).decode):
            meta.add(seen)
            await asyncio.sleep(0)
        columns = meta.columns()
        with table_files.writing(format_, new, columns) as write:
            for rows in decoded(source, name, msgspec.json.Decoder(ReportRow).decode):
                write([column.values(rows) for column in columns])
                await asyncio.sleep(0)


def decoded(lines: IO[bytes], name: str, decode: Callable[[bytes], T]) -> Iterator[list[T]]:
    """Yield the decoded lines of a file from its start, in pages. Raises CommandError for a bad line."""
    number = 0
    lines.seek(0)
    while page := lines.readlines(PAGE_BYTES):
        rows: list[T] = []
        for line in page:
            number += 1
            try:
                if not line.isspace():
                    rows.append(decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise CommandError(f"{name}: line {number}: not a result ({error})", BAD_USE) from None
        yield rows


@contextmanager
def read_lines(option: str, report: Path) -> Iterator[Iterable[bytes]]:
    """Yield the results of a report of any format as JSON Lines. Raises CommandError, OSError."""
    kind = format_of(report)
    with report.open("rb") as lines:
        if kind is ReportFormat.JSONL:
            yield lines
            return
    check_format(option, report, kind)
    from fetchfleet.worker.local.output import table_files  # noqa: PLC0415

    yield table_files.lines_in(option, report, kind)


def item_of(report: Path) -> str:
    """Return the word for an item of a report: `line` or `row`."""
    return "line" if format_of(report) is ReportFormat.JSONL else "row"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file, which replaces the one at `path`; after an error it is removed."""
    path = path.resolve()  # a link stays
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        yield new
        with new.open("rb") as file:
            os.fsync(file.fileno())  # because the caller may remove its other copy of the results
        for ending in SQLITE_SIDE_FILES:
            path.with_name(path.name + ending).unlink(missing_ok=True)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
