"""The command `export`, which writes the results of a batch to a file."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Annotated, Any

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.batch import Batch
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.contract.result import decode_result
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.jobs.errors import FleetUnreachableError
from fetchfleet.worker.cli.batches import BatchId, Follow, batch_handle
from fetchfleet.worker.cli.common import command_line, console, printing, query
from fetchfleet.worker.cli.options.shared import RedisPatience, RedisUrl, Reveal, Via, via_words
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.output import reports
from fetchfleet.worker.local.output.output_files import check_distinct, check_writable
from fetchfleet.worker.local.output.reports import ReportFormat
from fetchfleet.worker.local.process import STDOUT, closed_at_start, run_until_signal
from fetchfleet.worker.observability import redact
from fetchfleet.worker.util.quantities import count

Target = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="File in the format of its ending: .jsonl, .csv, .parquet or .sqlite; - for standard output.",
    ),
]
Format = Annotated[
    ReportFormat | None,
    typer.Option("--format", metavar="FORMAT", help="The format, if the ending of FILE does not name it."),
]
Encode = Callable[[bytes], bytes]
"""Returns the line of a result as it is exported."""


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog="Example: fetchfleet export 0123456789abcdef results.parquet --follow")(export)


def export(
    batch: BatchId,
    file: Target,
    redis: RedisUrl = None,
    follow: Follow = False,  # noqa: FBT002 a flag
    format_: Format = None,
    reveal: Reveal = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
    *,
    via: Via = None,
) -> None:
    """Write the results of a batch to FILE, which is replaced when they are complete.

    BATCH can also be a report in JSON Lines, to be converted.
    """
    to = Path(file)
    kind = format_ or reports.format_of(to)
    if format_ is None:
        reports.check_ending("FILE", to)
    check_target(to, kind, is_printed=file == "-")
    words = ["export", batch, file, *(["--follow"] if follow else [])]
    words += ["--format", format_.value] if format_ else []
    words += [*(["--reveal"] if reveal else []), *via_words(via)]

    def export_to(written: Path) -> None:
        source, encode = Path(batch), revealed if reveal else masked
        if not is_batch_id(batch) and source.is_file():
            if (source_kind := reports.format_of(source)) is not ReportFormat.JSONL:
                raise CommandError(
                    f"{batch}: a report in {source_kind}; only one in JSON Lines is converted", BAD_USE
                )
            check_distinct({"BATCH": source, "FILE": written})
            number = run_until_signal(write(file_lines(source, encode), batch, written, kind))
            console.print(written_note(number, file), soft_wrap=True)
            if reveal and source == reports.lines_of(written):
                source.unlink()
            return

        async def read(fleet: Fleet, _: Redis) -> list[str]:
            handle = batch_handle(fleet, batch)
            number = await write(batch_lines(handle, encode, follow=follow), batch, written, kind)
            return [written_note(number, file), *await notes_on(handle, number)]

        def next_command(_: FleetUnreachableError) -> str:
            return command_line(*words, redis_url=redis)

        for note in query(redis, read, redis_patience, next_command, via):
            console.print(note, soft_wrap=True)

    if file != "-":
        export_to(to)
        return
    with TemporaryDirectory() as folder:
        export_to(Path(folder) / "results")
        with printing(), (Path(folder) / "results").open("rb") as results:
            shutil.copyfileobj(results, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def check_target(to: Path, kind: ReportFormat, *, is_printed: bool) -> None:
    """Raise CommandError if the results cannot be written."""
    if not is_printed:
        check_writable("FILE", to)
    elif STDOUT in closed_at_start:
        raise CommandError("-: standard output is closed", BAD_USE)
    elif kind in {ReportFormat.PARQUET, ReportFormat.SQLITE} and os.isatty(STDOUT):
        raise CommandError(f"-: {kind} is not text; redirect it to a file, or name a file", BAD_USE)
    reports.check_format("FILE", to, kind)


async def write(lines: AsyncIterator[list[bytes]], name: str, to: Path, kind: ReportFormat) -> int:
    """Write results to a file, and return their number. Raises CommandError."""
    number = 0
    try:
        with TemporaryFile(dir=to.parent) as stage:
            async for page in lines:
                stage.writelines(page)
                number += len(page)
            await reports.convert(stage, name, to, kind)
    except OSError as error:
        raise CommandError(f"{to}: {error.strerror}") from None
    return number


async def batch_lines(batch: Batch, encode: Encode, *, follow: bool) -> AsyncIterator[list[bytes]]:
    """Yield the results of a batch, in pages."""
    results = batch.results(follow=follow)
    while page := await results.page():
        yield [encode(row.text) for row in page]


async def file_lines(report: Path, encode: Encode) -> AsyncIterator[list[bytes]]:
    """Yield the results of a report in JSON Lines, in pages. Raises CommandError for a bad line."""
    with report.open("rb") as lines:
        for page in reports.decoded(lines, str(report), encode):
            yield page


def revealed(line: bytes) -> bytes:
    """Return the line of a result as it is."""
    decode_result(line)
    return safe_json(line.rstrip() + b"\n")


def masked(line: bytes) -> bytes:
    """Return the line of a result with its secrets hidden."""
    decode_result(line)
    fields = msgspec.json.decode(line, type=dict[str, Any])
    return safe_json(msgspec.json.encode(redact.result(fields)) + b"\n")


def written_note(number: int, file: str) -> str:
    """Return the message for an export of this number of results."""
    return f"{count(number, 'result')} written to {'standard output' if file == '-' else file}"


async def notes_on(batch: Batch, number: int) -> list[str]:
    """Return notes on what an export of this number of results lacks, and on retries."""
    counts, notes = await batch.counts(), list[str]()
    if not counts.ended:
        notes.append(
            f"the batch has not ended: {counts.done:,} of {count(counts.total, 'fetch', 'fetches')} have a"
            " result; --follow waits for the others"
        )
    elif missing := counts.done - number:
        verb, they = ("is", "it") if missing == 1 else ("are", "them")
        notes.append(
            f"{count(missing, 'result')} {verb} missing: a reader that deletes results has read {they}"
        )
    retries = await batch.retried_as()
    return notes + [f"its failed fetches were retried; see: fetchfleet results {of.id}" for of in retries]
