"""A list of fetches, from its file to its last result: what `fetchfleet run` and `submit` do."""

import asyncio
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import FROM_THE_START, Batch, Counts, ReadResult
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.client.submit import WhenFull
from fetchfleet.jobs.contract.fetch_list import NOT_TEXT, parse_list
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS
from fetchfleet.jobs.contract.model import Fetch, encode
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.jobs.errors import UnknownBatchError
from fetchfleet.jobs.redis_connection import connect, redis_now_ms
from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError
from fetchfleet.worker.local import failed, list_formats, rejects, run_record
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis, kept_running
from fetchfleet.worker.local.jsonl_export import STANDARD_OUTPUT, ExportTarget, JsonlExport
from fetchfleet.worker.local.output_files import ReportFile, check_distinct, check_writable
from fetchfleet.worker.local.process import (
    STDOUT,
    WorkerProcess,
    at_work,
    closed_at_start,
    suspended_together,
)
from fetchfleet.worker.local.progress import Progress, Tally, summary
from fetchfleet.worker.local.run_record import ENDED_RUNS, RunPart, RunRecord
from fetchfleet.worker.observability import redact
from fetchfleet.worker.redis_support.errors import GoOn, followed_at, redis_at
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.sink.files.directory import REDIS_FOLDER, STATE_FOLDER
from fetchfleet.worker.util.clock import mono_s

SAVE_EVERY = 500
"""Results of a run between two times at which its record is saved and read results leave Redis."""

READ_PAUSE_S = 0.05
"""Between two readings of results, while there is more to come than one of them brings."""


class UnfinishedRunError(CommandError):
    """The out folder holds an interrupted run of another list."""

    exit_code = BAD_USE


class Outputs(NamedTuple):
    """The places where a command shows the progress of a batch and writes its results."""

    console: Console
    report: Path | None = None
    """A file for each result, as a JSON line."""
    lines_to: str | None = None
    """A file, or one of STANDARD_OUTPUT, for the records of all bodies."""
    rejects: Path | None = None
    """A file for the lines that are skipped as invalid; None: one refuses the list."""
    skipped: int = 0
    """The number of skipped lines."""
    out: Path | None = None
    """The folder for bodies, if the command makes it."""

    def warn(self, message: str, style: str = "red") -> None:
        """Print a line above the progress."""
        self.console.print(message, style=style, soft_wrap=True)

    def warn_of_redis(self, message: str) -> None:
        """Print that Redis does not answer, or does so again."""
        self.warn(redact.text(message), "yellow")


class BacklogLimit(NamedTuple):
    """The backlog up to which fetches are enqueued, and the behaviour above it."""

    max_backlog: int = 0
    """0: no limit."""
    when_full: WhenFull = "raise"


def read_list(file: str, outputs: Outputs) -> tuple[list[Fetch], int]:
    """Read the fetches of a file, or of standard input for `-`, and count the lines that were skipped.

    With lines_to each fetch asks for JSON Lines.

    Raises CommandError for any bad line, and for outputs that cannot be written.
    """
    lines_to = outputs.lines_to
    if (outputs.report, lines_to, outputs.rejects) != (None, None, None):
        check_outputs(file, outputs)
    try:
        with os.fdopen(0, "rb", closefd=False) if file == "-" else Path(file).open("rb") as source:
            head = source.peek()
            if NOT_TEXT.search(head) and (what := list_formats.binary_format(head, file)):
                raise CommandError(f"{file}: nothing was enqueued\nlooks like {what}", BAD_USE)
            with io.TextIOWrapper(source, encoding="utf-8", errors="surrogateescape") as lines:
                found = parse_list(lines)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", BAD_USE) from None
    fetches, bad_lines, _ = found
    if outputs.rejects is not None:
        rejects.skip(file, found, outputs.rejects)
    elif bad_lines:
        raise rejects.refuse(file, found)
    if not fetches and bad_lines:
        raise CommandError(f"{file}: every line is invalid; {outputs.rejects} says why", BAD_USE)
    if not fetches:
        raise CommandError(f"{file}: holds no fetch; give a URL or a JSON object a line", BAD_USE)
    if lines_to is None:
        return fetches, len(bad_lines)
    return [msgspec.structs.replace(fetch, lines=True) for fetch in fetches], len(bad_lines)


def read_failed(file: str | None, report: Path, outputs: Outputs) -> tuple[list[Fetch], int]:
    """Read the fetches that failed by a report: those of a list, or as the report has them; and as read_list.

    Returns none if none has failed. Raises CommandError.
    """
    lines_to = outputs.lines_to
    check_distinct(
        {
            "--only-failed": report,
            "--report": outputs.report,
            "--lines-to": Path(lines_to) if lines_to else None,
        }
    )
    found = failed.read_failed(report)
    if not found:
        outputs.warn(f"{report}: no fetch failed, so there is nothing to do", "")
        return [], 0
    if file is None:
        check_outputs("-", outputs)
        return failed.restored(report, found, lines=lines_to is not None), 0
    fetches, skipped = read_list(file, outputs)
    fetches, missing = failed.chosen(fetches, found)
    if not fetches:
        raise CommandError(f"{file}: has none of the {len(found)} failed fetches of {report}", BAD_USE)
    if missing:
        outputs.warn(f"left out, because {file} does not have them: {missing} failed of {report}")
    return fetches, skipped


def check_outputs(file: str, outputs: Outputs) -> None:
    """Raise CommandError for an output that cannot be written or would replace the list or another."""
    lines_to = outputs.lines_to
    export = None if lines_to is None or lines_to in STANDARD_OUTPUT else Path(lines_to)
    if lines_to in STANDARD_OUTPUT and STDOUT in closed_at_start:
        raise CommandError(f"--lines-to {lines_to}: standard output is closed", BAD_USE)
    files = {"--report": outputs.report, "--lines-to": export, "--skip-invalid": outputs.rejects}
    check_distinct({"FILE": None if file == "-" else Path(file), "--out": outputs.out, **files})
    for option, path in files.items():
        if path is not None:
            check_writable(option, path)


async def run(
    fetches: list[Fetch],
    settings: Settings,
    flags: Mapping[str, Any],
    workers: list[WorkerProcess],
    outputs: Outputs,
    *,
    again: bool = False,
) -> Counts:
    """Fetch the list with a fleet on this machine; an interrupted run of the same list continues.

    flags: those that made the settings, for the workers. workers: started, without orders; they end with it.
    again: also if the list has been fetched into the out folder before. Raises EndedRunError,
    UnfinishedRunError, EmbeddedRedisError, WorkersError, ExportError, FleetUnreachableError.
    """

    async def enqueue(fleet: Fleet) -> Batch:
        return await fleet.submit(fetches, batch_id=batch_id)

    state = settings.out / STATE_FOLDER
    run_note, export_state = state / "run.json", state / "lines.json"
    batch_id = batch_id_of(fetches)
    ended_note = state / ENDED_RUNS / f"{batch_id}.json"
    if ended_note.exists() and not again:
        run_record.refuse_again(ended_note, run_note, settings.out)
    with EmbeddedRedis(settings.out / REDIS_FOLDER) as redis:
        before = await _unfinished(redis, batch_id, run_note)
        began = datetime.now(UTC).isoformat(timespec="seconds")
        record = RunRecord(batch=batch_id, began=began) if before is None else run_record.load(run_note)
        part = RunPart(record, run_note, outputs.report, resumes=before is not None)
        if before is not None:
            exports = outputs.lines_to is not None
            run_record.resume(
                part.record, part.tally, outputs.report, before.done, outputs.warn, exports=exports
            )
        async with connect(redis.url) as client:
            await announce(client, [worker.name for worker in workers])
        patience_s = settings.redis_patience_s
        orders = {**flags, "redis_url": redis.url, "alone": "1"}
        with at_work(workers, orders, state), suspended_together(workers):
            async with kept_running(redis, workers, patience_s, outputs.warn_of_redis, enqueue) as fleet:
                batch = fleet.batch(batch_id)
                export = None
                if outputs.lines_to:
                    export = ExportTarget(outputs.lines_to, settings.out, export_state)
                if before is None:
                    export_state.unlink(missing_ok=True)
                    ended_note.unlink(missing_ok=True)
                    batch = await enqueue(fleet)
                    part.save()
                counts = await follow(redis.url, batch, outputs, export, part)
        part.record.ended, part.record.counts = datetime.now(UTC).isoformat(timespec="seconds"), counts
        ended_note.parent.mkdir(exist_ok=True)
        ended_note.write_bytes(encode(part.record))
        for note in (run_note, export_state):
            note.unlink(missing_ok=True)
        redis.remove_data()
        return counts


async def submit(
    fetches: list[Fetch],
    settings: Settings,
    limit: BacklogLimit,
    outputs: Outputs,
    batch_id: str | None,
    complete: GoOn,
    go_on: GoOn | None,
) -> tuple[Batch, Counts | None]:
    """Enqueue the list to a running fleet; with `go_on`, follow it to its end.

    batch_id: of an earlier submit of the list, to be completed. complete, go_on: make the commands that do so
    if Redis is away for too long while the list is enqueued, or followed. Raises ExportError, CommandError.
    """
    url = settings.redis_url
    async with Fleet(
        url,
        max_backlog=limit.max_backlog,
        redis_patience_s=settings.redis_patience_s,
        warn=outputs.warn_of_redis,
        via="inbox" if settings.via == "inbox" else "lanes",
    ) as fleet:
        try:
            _ = batch_id and fleet.batch(batch_id)
        except ValueError as error:  # of another inbox
            raise CommandError(str(error), BAD_USE) from None
        with redis_at(url), followed_at(url, complete):
            batch = await fleet.submit(fetches, batch_id=batch_id, when_full=limit.when_full)
        if go_on is None:
            return batch, None
        export = ExportTarget(outputs.lines_to, settings.out) if outputs.lines_to else None
        with followed_at(url, go_on):
            return batch, await follow(url, batch, outputs, export)


async def follow(
    redis_url: str, batch: Batch, outputs: Outputs, target: ExportTarget | None, part: RunPart | None = None
) -> Counts:
    """Show the progress of a batch and write its results, and their records, until it has ended.

    part: of a run, which may go on where an earlier part stopped. Raises ExportError.
    """
    console = outputs.console
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(redis_url))
        progress = Progress(redis, batch, console, part.tally if part else None)
        report = export = None
        if part is not None:
            stack.callback(part.save)
        if outputs.report:
            report = stack.enter_context(ReportFile(outputs.report, append=part is not None and part.appends))
        if target:
            resumes = part is not None and part.resumes
            export = stack.enter_context(JsonlExport(target, batch.id, outputs.warn, resumes=resumes))
        after = part.record.position if part else FROM_THE_START
        trim = (report is not None and part is None) or (target is not None and target.state is not None)
        results = batch.results(after=export.position if export else after, trim=trim)
        unsaved = 0
        async with progress.shown():
            while page := await results.page():
                for read in [page] if export is None else [[row] for row in page]:
                    await pass_on(read, progress.tally, report, export)
                    if part is not None:
                        part.note(read[-1].position)
                unsaved += len(page)
                if part is not None and report is not None and export is None and unsaved >= SAVE_EVERY:
                    part.save()
                    await drop_results(redis, batch.id, results.position)
                    unsaved = 0
                if results.due > len(page):  # many are to come: read them in larger pages
                    await asyncio.sleep(READ_PAUSE_S)
        counts = await batch.counts()
        if part is not None and part.resumes:
            progress.tally.complete(counts)
        elapsed_s = mono_s() - progress.tally.started_s
        console.print(summary(counts, progress.tally, elapsed_s, outputs.skipped))
        if export is not None:
            export.check(counts.done)
        return counts


async def pass_on(
    read: Sequence[ReadResult], tally: Tally, report: ReportFile | None, export: JsonlExport | None
) -> None:
    """Count results, write them to the report as the workers wrote them, and export the records of one."""
    if report is not None:
        report.add(safe_json(b"".join([item.text + b"\n" for item in read])))
        report.flush()  # a result that is saved as read, or deleted, is not read again
    tally.add(*[item.result for item in read])
    if export is not None:
        [(position, result, _)] = read
        await export.add(result, position)


async def drop_results(redis: Redis, batch_id: str, position: str) -> None:
    """Delete the results up to a position. If Redis does not answer, they stay until the next time."""
    ms, _, sequence = position.partition("-")
    with suppress(RedisError, OSError):
        await redis.xtrim(keys.results(batch_id), minid=f"{ms}-{int(sequence) + 1}", approximate=False)


async def announce(redis: Redis, worker_ids: Iterable[str]) -> None:
    """Count workers as part of the fleet before they start.

    The first of them to start then leaves the others their share of the lanes.
    """
    now_ms = await redis_now_ms(redis)
    await redis.zadd(keys.WORKERS, dict.fromkeys(worker_ids, now_ms))


def exit_code_of(counts: Counts) -> int:
    """Return the exit code of a command that has followed a batch to its end."""
    return 0 if counts.failed + counts.cancelled == 0 else FAILED


def batch_id_of(fetches: list[Fetch]) -> str:
    """Return the id of the list's batch: the same for the same list, so that an interrupted run is found."""
    digest = hashlib.sha256()
    for fetch in fetches:
        digest.update(msgspec.json.encode(fetch) + b"\n")
    return digest.hexdigest()[:BATCH_ID_CHARS]


async def _unfinished(redis: EmbeddedRedis, batch_id: str, run_note: Path) -> Counts | None:
    """Return the progress of the batch if it is unfinished; drop a finished or half submitted one.

    Raises UnfinishedRunError if another batch is unfinished.
    """
    before = counts = None
    if run_note.exists():  # noqa: ASYNC240 a few bytes, before anything runs
        before = run_record.load(run_note).batch or None
    async with Fleet(redis.url) as fleet:
        with suppress(UnknownBatchError, ValueError):
            counts = await fleet.batch(before or batch_id).counts()
    if counts is not None and counts.sealed and not counts.ended:
        if before == batch_id:
            return counts
        raise UnfinishedRunError(
            f"{run_note.parent.parent} holds an interrupted run of another list, or with other headers"
            f" ({counts.done} of {counts.total} done); finish that one, give another --out, or delete"
            f" {run_note.parent}"
        )
    redis.clear()
    return None
