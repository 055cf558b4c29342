"""The work of `fetchfleet run` and `fetchfleet submit`, from the list of fetches to its last result."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import Batch, Counts
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.client.submit import WhenFull
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS, inbox_prefix
from fetchfleet.jobs.errors import BatchLostError, UnknownBatchError
from fetchfleet.jobs.redis_connection import connect, inbox_of, redis_now_ms
from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError, InTheWayError
from fetchfleet.worker.local import run_record
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis, supervised
from fetchfleet.worker.local.lists.checked_list import FetchLists, Hosts, ListUse, open_failed, open_list
from fetchfleet.worker.local.lists.fetch_stream import Change, FetchStream
from fetchfleet.worker.local.lists.rows import ListOptions
from fetchfleet.worker.local.output import reports
from fetchfleet.worker.local.output.jsonl_export import ExportTarget
from fetchfleet.worker.local.output.output_files import Outputs, check_distinct, check_outputs
from fetchfleet.worker.local.process import (
    WorkerProcess,
    configured,
    suspended_together,
)
from fetchfleet.worker.local.run_record import ENDED_RUNS
from fetchfleet.worker.redis_support.errors import NextCommand, followed_at, redis_at
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, REDIS_FOLDER, STATE_FOLDER, Directory

NOTHING: Mapping[str, Any] = {}


class UnfinishedRunError(CommandError):
    """The out folder holds an interrupted run of another list."""

    exit_code = BAD_USE


class RunEnd(NamedTuple):
    """The end of a run."""

    counts: Counts
    may_have_failure_notes: bool
    """False if it is known that no failed fetch has a note."""


class SubmitOptions(NamedTuple):
    """The options of a submit."""

    max_backlog: int = 0
    """The limit of unfinished fetches in the fleet; 0 for no limit."""
    when_full: WhenFull = "raise"
    """The behaviour at the limit."""
    notify: str | None = None
    """The URL that is notified of the end of the batch."""


def open_fetches(
    file: str | None,
    only_failed: Path | None,
    outputs: Outputs,
    changes: Sequence[Change] = (),
    reading: Mapping[str, Any] = NOTHING,
    hosts: Hosts | None = None,
    fetch_lists: FetchLists | None = None,
) -> FetchStream:
    """Check the outputs of a command, then its list; return the stream of its fetches.

    only_failed: a report. Only what failed by it is fetched, and the list is optional. changes: applied to
    each fetch; with `lines_to`, every fetch requires JSON Lines too. reading: the options of the list, by
    parameter. hosts: receives the URL of each fetch. fetch_lists: fetches the lists at URLs, if that is
    possible. Raises CommandError for invalid lines and for outputs that cannot be written.
    """
    lines_to = outputs.lines_to
    all_changes = [*([] if lines_to is None else [_require_lines]), *changes]
    use = ListUse(all_changes, hosts=hosts, rejects=outputs.rejects, expand=bool(reading.get("expand")))
    if only_failed is not None:
        files = {"--report": outputs.report, "--lines-to": Path(lines_to) if lines_to else None}
        check_distinct({"--only-failed": only_failed, **files})
    elif file is None:
        message = "no list of fetches; give FILE, - for standard input, or --only-failed REPORT"
        raise CommandError(message, BAD_USE)
    if (outputs.report, lines_to, outputs.rejects) != (None, None, None):
        check_outputs(file or "-", outputs)
    options = _list_options(reading)
    if only_failed is None:
        stream = open_list(str(file), use, options, fetch_lists)
    else:
        exports = lines_to is not None
        stream, missing = open_failed(file, only_failed, use, options, fetch_lists, lines=exports)
        if not stream.count:
            outputs.warn(f"{only_failed}: no fetch failed, so there is nothing to do", "")
        if missing:
            left_out = f"{missing} failed fetches of {only_failed} are left out"
            outputs.warn(f"{left_out}, because {file} does not have them")
    for note in stream.notes:
        outputs.warn(note, "")
    return stream


def _list_options(reading: Mapping[str, Any]) -> ListOptions:
    """Return the options of a list, given by the parameters of a command."""
    meta = reading.get("meta_cols")
    return ListOptions(
        format=reading.get("list_format"),
        url_column=reading.get("url_col"),
        meta_columns=tuple(meta.split(",")) if meta else (),
        dest_column=reading.get("dest_col"),
        sha256_column=reading.get("sha256_col"),
    )


def _require_lines(fetch: Fetch) -> Fetch:
    return msgspec.structs.replace(fetch, lines=True)


async def run(
    fetches: FetchStream,
    settings: Settings,
    flags: Mapping[str, Any],
    workers: list[WorkerProcess],
    outputs: Outputs,
    *,
    again: bool = False,
) -> RunEnd:
    """Fetch the list with a fleet on this machine, or continue an interrupted run of the list.

    flags: the flags of the settings, for the workers. workers: not configured yet; they end with the run.
    again: fetch the list even if an ended run did. Raises EndedRunError, UnfinishedRunError,
    EmbeddedRedisError, WorkersError, ExportError, FleetUnreachableError.
    """

    async def enqueue(fleet: Fleet) -> Batch:
        return await submit_stream(fleet, fetches, batch_id)

    state = settings.out / STATE_FOLDER
    record_file, export_state = state / "run.json", state / "lines.json"
    batch_id = run_record.batch_id_of(fetches.batch_id, settings.store)
    ended_file = state / ENDED_RUNS / f"{batch_id}.json"
    if ended_file.exists() and not again:
        ended = run_record.ended_run(ended_file, record_file, settings.bodies, outputs.report)
        if ended is not None:
            await finish_report(outputs)
            return RunEnd(ended, may_have_failure_notes=True)
    with EmbeddedRedis(settings.out / REDIS_FOLDER, while_starting=import_later_modules) as redis:
        earlier = await _unfinished(redis, batch_id, record_file)
        part = run_record.begin_part(batch_id, record_file, outputs.report, resumes=earlier is not None)
        if earlier is not None:
            part.restore(earlier.done, outputs.warn, exports=outputs.lines_to is not None)
        async with connect(redis.url) as client:
            await announce(client, [worker.name for worker in workers])
        patience_s = settings.redis_patience_s
        worker_flags = {**flags, "redis_url": redis.url, "results_length": "0", "alone": "1"}
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
                from fetchfleet.worker.local.output.follow import follow  # noqa: PLC0415 see while_starting

                counts = await follow(redis.url, batch, outputs, export, part)
        drop_partial_files(settings.out, batch_id)
        part.end(ended_file, counts)
        export_state.unlink(missing_ok=True)
        redis.remove_data()
    await finish_report(outputs)
    return RunEnd(counts, part.tally.may_have_failure_notes)


def drop_partial_files(out: Path, batch_id: str) -> None:
    """Remove what killed workers left of the bodies of an ended batch: none of its fetches will resume one.

    Those of other batches stay, because workers of a fleet may share the out folder. Ignores errors.
    """
    directory = Directory(out)
    with suppress(OSError, InTheWayError), closing(directory):
        directory.open(make=False)
        for name in directory.names(PARTIAL_FILES):
            if name.startswith(f"{batch_id}-"):
                directory.drop(name)


async def finish_report(outputs: Outputs) -> None:
    """Convert the report of an ended batch to its format. Raises CommandError."""
    if outputs.report is not None and reports.lines_of(outputs.report) != outputs.report:
        outputs.warn(f"writing {outputs.report}", "")  # a million results take half a minute
        await reports.finish(outputs.report, outputs.warn)


def import_later_modules() -> None:
    """Import arq and rich, which a run needs once Redis has started."""
    import_module("fetchfleet.jobs.notify")
    import_module("fetchfleet.worker.local.output.follow")


async def submit(
    fetches: FetchStream,
    settings: Settings,
    options: SubmitOptions,
    outputs: Outputs,
    batch_id: str | None,
    complete: NextCommand,
    next_command: NextCommand | None,
) -> tuple[Batch, Counts | None]:
    """Enqueue the list for a running fleet, and with `next_command` follow the batch to its end.

    batch_id: the batch of an earlier submit, to be completed; if None, an interrupted submit of the same
    fetches is completed, or else a batch is made. complete, next_command: return the command that continues
    if Redis is unreachable while the list is enqueued, or while the batch is followed. Raises ExportError,
    CommandError.
    """
    _check_lines_to(outputs, settings)
    url = settings.redis_url
    if outputs.report is not None:
        reports.check_converted(outputs.report)
    async with Fleet(
        url,
        max_backlog=options.max_backlog,
        redis_patience_s=settings.redis_patience_s,
        warn=outputs.warn_of_redis,
        via="inbox" if settings.via == "inbox" else "lanes",
    ) as fleet:
        try:
            _ = batch_id and fleet.batch(batch_id)
        except ValueError as error:  # of another inbox
            raise CommandError(str(error), BAD_USE) from None
        with redis_at(url), followed_at(url, complete):
            if batch_id is None:
                inbox = inbox_of(url, None) if settings.via == "inbox" else ""
                batch_id, enqueued = await batch_of_list(fleet, fetches.digest, inbox)
                if enqueued:
                    outputs.warn(f"completing batch {batch_id}, which an interrupted submit began", "")
            batch = await submit_stream(fleet, fetches, batch_id, options.when_full, options.notify)
        if next_command is None:
            return batch, None
        export = ExportTarget(outputs.lines_to, settings.out) if outputs.lines_to else None
        from fetchfleet.worker.local.output.follow import follow  # noqa: PLC0415 it imports rich

        with followed_at(url, next_command):
            counts = await follow(url, batch, outputs, export)
    await finish_report(outputs)
    return batch, counts


async def submit_stream(
    fleet: Fleet,
    fetches: FetchStream,
    batch_id: str,
    when_full: WhenFull = "raise",
    notify: str | None = None,
) -> Batch:
    """Enqueue a list, or complete its batch."""
    try:
        return await fleet.submit(fetches.fetches(), batch_id=batch_id, when_full=when_full, notify=notify)
    except BatchLostError:  # Redis lost its last second; the fleet repeats a list in memory itself
        return await fleet.submit(fetches.fetches(), batch_id=batch_id, when_full=when_full, notify=notify)


async def batch_of_list(fleet: Fleet, digest: str, inbox: str = "") -> tuple[str, bool]:
    """Return the batch ID for a submit of a list, and whether an interrupted submit has begun the batch.

    The IDs of the first, second, … submit of a list are derived from its digest. The result is the first one
    whose batch is not sealed. digest: of the fetches. inbox: name of the inbox, if the submit uses one.
    """

    async def state(number: int) -> Counts | None:
        with suppress(UnknownBatchError):
            return await fleet.batch(list_batch_id(digest, number, inbox)).counts()
        return None

    sealed, bound = -1, 0  # the batch of `sealed` is sealed, and after the loop that of `bound` is not
    while (counts := await state(bound)) is not None and counts.sealed:
        sealed, bound = bound, 2 * bound + 1
    while bound - sealed > 1:
        middle = (sealed + bound) // 2
        counts_there = await state(middle)
        if counts_there is not None and counts_there.sealed:
            sealed = middle
        else:
            bound, counts = middle, counts_there
    return list_batch_id(digest, bound, inbox), counts is not None and counts.total > 0


def list_batch_id(digest: str, number: int, inbox: str = "") -> str:
    """Return the batch ID of a submit of a list. number: of the submit, from 0."""
    text = hashlib.sha256(f"{digest} {number}".encode()).hexdigest()
    prefix = inbox_prefix(inbox) if inbox else ""
    return (prefix + text.lstrip("" if inbox else "f"))[:BATCH_ID_CHARS]


async def announce(redis: Redis, worker_ids: Iterable[str]) -> None:
    """Write a heartbeat for workers that are about to start.

    Otherwise the first one to start would acquire the lanes of the others too.
    """
    now_ms = await redis_now_ms(redis)
    await redis.zadd(keys.WORKERS, dict.fromkeys(worker_ids, now_ms))


def _check_lines_to(outputs: Outputs, settings: Settings) -> None:
    """Raise CommandError if records are to be read from bodies in an object store."""
    if outputs.lines_to is not None and settings.store:
        raise CommandError("--lines-to reads bodies from files; leave it out with an object store", BAD_USE)


def exit_code_of(counts: Counts) -> int:
    """Return the exit code of a command for an ended batch."""
    return 0 if counts.failed + counts.cancelled == 0 else FAILED


async def _unfinished(redis: EmbeddedRedis, batch_id: str, record_file: Path) -> Counts | None:
    """Return the counts of the batch if it is unfinished. Otherwise clear Redis, and return None.

    A batch of the list that is only enqueued in part stays.

    Raises UnfinishedRunError if another batch is unfinished.
    """
    before = counts = None
    if record_file.exists():  # noqa: ASYNC240 a few bytes, before anything runs
        before = run_record.load(record_file).batch or None
    async with Fleet(redis.url) as fleet:
        with suppress(UnknownBatchError, ValueError):
            counts = await fleet.batch(before or batch_id).counts()
    if counts is not None and not counts.sealed and before is None:
        return None  # the command was interrupted while it enqueued the list, and goes on
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
