"""The work of `fetchfleet run` and `fetchfleet submit`, from the list of fetches to its last result."""

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import Batch, Counts
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.client.submit import WhenFull
from fetchfleet.jobs.contract.fetch import Fetch, encode
from fetchfleet.jobs.contract.fetch_list import NOT_TEXT, parse_list
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS
from fetchfleet.jobs.errors import UnknownBatchError
from fetchfleet.jobs.redis_connection import connect, redis_now_ms
from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError
from fetchfleet.worker.local import failed, list_formats, rejects, run_record
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis, supervised
from fetchfleet.worker.local.output.follow import follow
from fetchfleet.worker.local.output.jsonl_export import ExportTarget
from fetchfleet.worker.local.output.output_files import Outputs, check_distinct, check_outputs
from fetchfleet.worker.local.process import (
    WorkerProcess,
    configured,
    suspended_together,
)
from fetchfleet.worker.local.run_record import ENDED_RUNS, RunPart, RunRecord
from fetchfleet.worker.redis_support.errors import NextCommand, followed_at, redis_at
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.sink.files.directory import REDIS_FOLDER, STATE_FOLDER


class UnfinishedRunError(CommandError):
    """The out folder holds an interrupted run of another list."""

    exit_code = BAD_USE


class BacklogLimit(NamedTuple):
    """The limit of the fleet's backlog for a submit."""

    max_backlog: int = 0
    """The number of unfinished fetches; 0 for no limit."""
    when_full: WhenFull = "raise"
    """The behaviour at the limit."""


def read_list(file: str, outputs: Outputs) -> tuple[list[Fetch], int]:
    """Return the fetches of a file, or of standard input for `-`, and the number of lines skipped.

    With `lines_to`, every fetch requires JSON Lines. Raises CommandError for invalid lines and for outputs
    that cannot be written.
    """
    lines_to = outputs.lines_to
    if (outputs.report, lines_to, outputs.rejects) != (None, None, None):
        check_outputs(file, outputs)
    try:
        with os.fdopen(0, "rb", closefd=False) if file == "-" else Path(file).open("rb") as source:
            head = source.peek()
            if NOT_TEXT.search(head) and (advice := list_formats.binary_format(head, file)):
                raise CommandError(f"{file}: nothing was enqueued\nlooks like {advice}", BAD_USE)
            with io.TextIOWrapper(source, encoding="utf-8", errors="surrogateescape") as lines:
                parsed = parse_list(lines)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", BAD_USE) from None
    fetches, bad_lines, _ = parsed
    if outputs.rejects is not None:
        rejects.skip(file, parsed, outputs.rejects)
    elif bad_lines:
        raise rejects.refuse(file, parsed)
    if not fetches and bad_lines:
        raise CommandError(f"{file}: every line is invalid; see {outputs.rejects}", BAD_USE)
    if not fetches:
        raise CommandError(f"{file}: no fetches; give a URL or a JSON object on each line", BAD_USE)
    if lines_to is None:
        return fetches, len(bad_lines)
    return [msgspec.structs.replace(fetch, lines=True) for fetch in fetches], len(bad_lines)


def read_failed(file: str | None, report: Path, outputs: Outputs) -> tuple[list[Fetch], int]:
    """Return the fetches of a list, or of the report itself, that failed by the report; else as `read_list`.

    The list is empty if no fetch failed. Raises CommandError.
    """
    lines_to = outputs.lines_to
    check_distinct(
        {
            "--only-failed": report,
            "--report": outputs.report,
            "--lines-to": Path(lines_to) if lines_to else None,
        }
    )
    results = failed.read_failed(report)
    if not results:
        outputs.warn(f"{report}: no fetch failed, so there is nothing to do", "")
        return [], 0
    if file is None:
        check_outputs("-", outputs)
        return failed.restore_fetches(report, results, lines=lines_to is not None), 0
    fetches, skipped = read_list(file, outputs)
    fetches, missing = failed.select_failed(fetches, results)
    if not fetches:
        raise CommandError(f"{file}: none of the {len(results)} failed fetches of {report} is in it", BAD_USE)
    if missing:
        outputs.warn(f"{missing} failed fetches of {report} are left out, because {file} does not have them")
    return fetches, skipped


async def run(
    fetches: list[Fetch],
    settings: Settings,
    flags: Mapping[str, Any],
    workers: list[WorkerProcess],
    outputs: Outputs,
    *,
    again: bool = False,
) -> Counts:
    """Fetch the list with a fleet on this machine, or continue an interrupted run of the list.

    flags: the flags of the settings, for the workers. workers: not configured yet; they end with the run.
    again: fetch the list even if an ended run did. Raises EndedRunError, UnfinishedRunError,
    EmbeddedRedisError, WorkersError, ExportError, FleetUnreachableError.
    """

    async def enqueue(fleet: Fleet) -> Batch:
        return await fleet.submit(fetches, batch_id=batch_id)

    state = settings.out / STATE_FOLDER
    record_file, export_state = state / "run.json", state / "lines.json"
    batch_id = batch_id_of(fetches)
    ended_file = state / ENDED_RUNS / f"{batch_id}.json"
    if ended_file.exists() and not again:
        run_record.refuse_again(ended_file, record_file, settings.out)
    with EmbeddedRedis(settings.out / REDIS_FOLDER) as redis:
        earlier = await _unfinished(redis, batch_id, record_file)
        began = datetime.now(UTC).isoformat(timespec="seconds")
        record = RunRecord(batch=batch_id, began=began) if earlier is None else run_record.load(record_file)
        part = RunPart(record, record_file, outputs.report, resumes=earlier is not None)
        if earlier is not None:
            exports = outputs.lines_to is not None
            run_record.resume(
                part.record, part.tally, outputs.report, earlier.done, outputs.warn, exports=exports
            )
        async with connect(redis.url) as client:
            await announce(client, [worker.name for worker in workers])
        patience_s = settings.redis_patience_s
        worker_flags = {**flags, "redis_url": redis.url, "alone": "1"}
        with configured(workers, worker_flags, state), suspended_together(workers):
            async with supervised(redis, workers, patience_s, outputs.warn_of_redis, enqueue) as fleet:
                batch = fleet.batch(batch_id)
                export = None
                if outputs.lines_to:
                    export = ExportTarget(outputs.lines_to, settings.out, export_state)
                if earlier is None:
                    export_state.unlink(missing_ok=True)
                    ended_file.unlink(missing_ok=True)
                    batch = await enqueue(fleet)
                    part.save()
                counts = await follow(redis.url, batch, outputs, export, part)
        part.record.ended, part.record.counts = datetime.now(UTC).isoformat(timespec="seconds"), counts
        ended_file.parent.mkdir(exist_ok=True)
        ended_file.write_bytes(encode(part.record))
        for file in (record_file, export_state):
            file.unlink(missing_ok=True)
        redis.remove_data()
        return counts


async def submit(
    fetches: list[Fetch],
    settings: Settings,
    limit: BacklogLimit,
    outputs: Outputs,
    batch_id: str | None,
    complete: NextCommand,
    next_command: NextCommand | None,
) -> tuple[Batch, Counts | None]:
    """Enqueue the list for a running fleet, and with `next_command` follow the batch to its end.

    batch_id: the batch of an earlier submit, to be completed. complete, next_command: return the command
    that continues if Redis is unreachable while the list is enqueued, or while the batch is followed. Raises
    ExportError, CommandError.
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
        if next_command is None:
            return batch, None
        export = ExportTarget(outputs.lines_to, settings.out) if outputs.lines_to else None
        with followed_at(url, next_command):
            return batch, await follow(url, batch, outputs, export)


async def announce(redis: Redis, worker_ids: Iterable[str]) -> None:
    """Write a heartbeat for workers that are about to start.

    Otherwise the first one to start would acquire the lanes of the others too.
    """
    now_ms = await redis_now_ms(redis)
    await redis.zadd(keys.WORKERS, dict.fromkeys(worker_ids, now_ms))


def exit_code_of(counts: Counts) -> int:
    """Return the exit code of a command for an ended batch."""
    return 0 if counts.failed + counts.cancelled == 0 else FAILED


def batch_id_of(fetches: list[Fetch]) -> str:
    """Return the batch ID of a list: a digest, so that a repeated command finds the interrupted run."""
    digest = hashlib.sha256()
    for fetch in fetches:
        digest.update(msgspec.json.encode(fetch) + b"\n")
    return digest.hexdigest()[:BATCH_ID_CHARS]


async def _unfinished(redis: EmbeddedRedis, batch_id: str, record_file: Path) -> Counts | None:
    """Return the counts of the batch if it is unfinished. Otherwise clear Redis, and return None.

    Raises UnfinishedRunError if another batch is unfinished.
    """
    before = counts = None
    if record_file.exists():  # noqa: ASYNC240 a few bytes, before anything runs
        before = run_record.load(record_file).batch or None
    async with Fleet(redis.url) as fleet:
        with suppress(UnknownBatchError, ValueError):
            counts = await fleet.batch(before or batch_id).counts()
    if counts is not None and counts.sealed and not counts.ended:
        if before == batch_id:
            return counts
        raise UnfinishedRunError(
            f"{record_file.parent.parent} has an interrupted run of another list, or with other headers"
            f" ({counts.done:,} of {counts.total:,} done); repeat its command to finish it, give another"
            f" --out, or delete {record_file.parent}"
        )
    redis.clear()
    return None
