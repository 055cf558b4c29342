"""Following a batch to its end: its progress, its report and its records."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import FROM_THE_START, Batch, Counts, ReadResult
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.local.output import reports
from fetchfleet.worker.local.output.jsonl_export import ExportTarget, JsonlExport
from fetchfleet.worker.local.output.output_files import Outputs, ReportFile
from fetchfleet.worker.local.output.progress import Progress, summary
from fetchfleet.worker.local.run_record import HOSTS_SAVED, RunPart, Tally
from fetchfleet.worker.util.clock import mono_s

SAVE_EVERY = 500
"""The number of results after which the record of a run is saved and read results are deleted in Redis."""

READ_PAUSE_S = 0.05
"""The pause after a page of results if more are due, so that the next page is larger."""


async def follow(
    redis_url: str, batch: Batch, outputs: Outputs, target: ExportTarget | None, part: RunPart | None = None
) -> Counts:
    """Show the progress of a batch and write its results and records, until the batch has ended.

    part: the part of a run; None for a batch of a running fleet. Raises ExportError.
    """
    console = outputs.console()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(redis_url))
        progress = Progress(redis, batch, console, part.tally if part else None, alone=part is not None)
        report = export = None
        if part is not None:
            stack.callback(part.save)
        if outputs.report:
            lines = reports.lines_of(outputs.report)
            report = stack.enter_context(ReportFile(lines, append=part is not None and part.appends))
        if target:
            resumes = part is not None and part.resumes
            export = stack.enter_context(JsonlExport(target, batch.id, outputs.warn, resumes=resumes))
        after = part.record.position if part else FROM_THE_START
        trim = (report is not None and part is None) or (target is not None and target.state is not None)
        results = batch.results(after=export.position if export else after, trim=trim)
        unsaved = 0
        async with progress.shown():
            while page := await results.page():
                for rows in [page] if export is None else [[row] for row in page]:
                    await write_results(rows, progress.tally, report, export)
                    if part is not None:
                        part.advance(rows[-1].position)
                unsaved += len(page)
                if part is not None and report is not None and export is None and unsaved >= SAVE_EVERY:
                    part.save(most_hosts=HOSTS_SAVED)
                    await delete_results(redis, batch.id, results.position)
                    unsaved = 0
                if results.due > len(page):
                    await asyncio.sleep(READ_PAUSE_S)
        counts = await batch.counts()
        if part is not None and part.resumes:
            progress.tally.complete(counts)
        elapsed_s = mono_s() - progress.tally.started_s
        if outputs.summary:
            console.print(summary(counts, progress.tally, elapsed_s, outputs.skipped))
        if export is not None:
            export.check(counts.done)
        return counts


async def write_results(
    rows: Sequence[ReadResult], tally: Tally, report: ReportFile | None, export: JsonlExport | None
) -> None:
    """Write results to the report, count them, and export their records. With `export`, give one result."""
    if report is not None:
        report.add(safe_json(b"".join([row.text + b"\n" for row in rows])))
        report.flush()  # before the result is saved as read, or deleted
    tally.add(*[row.result for row in rows])
    if export is not None:
        [(position, result, _)] = rows
        await export.add(result, position)


async def delete_results(redis: Redis, batch_id: str, position: str) -> None:
    """Delete the results up to a position. After an error of Redis, they stay until the next call."""
    ms, _, sequence = position.partition("-")
    with suppress(RedisError, OSError):
        await redis.xtrim(keys.results(batch_id), minid=f"{ms}-{int(sequence) + 1}", approximate=False)
