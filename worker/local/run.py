"""What `fetchfleet run` and `fetchfleet submit` do."""

import asyncio
import hashlib
import json
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec
from rich.console import Console

from fetchfleet.jobs.client.batch import FROM_THE_START, Batch, Counts
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.client.submit import WhenFull
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS
from fetchfleet.jobs.contract.model import Fetch, encode
from fetchfleet.jobs.errors import UnknownBatchError
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis
from fetchfleet.worker.local.lines_to import Where
from fetchfleet.worker.local.progress import Progress, summary
from fetchfleet.worker.local.worker_process import WorkerProcess, at_work
from fetchfleet.worker.redis_support.errors import redis_at
from fetchfleet.worker.runtime.heartbeat import expect
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.sink.files.directory import STATE_FOLDER
from fetchfleet.worker.util.clock import mono_s

if TYPE_CHECKING:
    from fetchfleet.worker.local.jsonl_export import Gather

KEEP_ALIVE_S = 0.5


class UnfinishedRunError(CommandError):
    """The out folder holds an interrupted run of another list."""

    exit_code = BAD_USE


async def run(
    fetches: list[Fetch],
    settings: Settings,
    *,
    workers: list[WorkerProcess],
    worker_arguments: list[str],
    report: Path | None,
    console: Console,
    lines_to: str | None = None,
) -> Counts:
    """Fetch the list with a fleet of this machine's own; an interrupted run of it goes on.

    workers: their interpreters have been started, and wait for orders; they are ended when this ends.

    Raises UnfinishedRunError, EmbeddedRedisError, WorkersError, LinesError.
    """
    state = settings.out / STATE_FOLDER
    where = Where(lines_to, settings.out, state / "lines.json") if lines_to else None
    batch_id = batch_id_of(fetches)
    with EmbeddedRedis(state / "redis") as redis:
        goes_on = await _goes_on(redis, batch_id, state / "run.json")
        arguments = [*worker_arguments, "--redis", redis.url]
        async with connect(redis.url) as client:
            await expect(client, [worker.name for worker in workers])
        with at_work(workers, arguments, state):
            async with Fleet(redis.url) as fleet, asyncio.TaskGroup() as group:
                watch = group.create_task(_keep_alive(workers))
                batch = fleet.batch(batch_id)
                if not goes_on:
                    (state / "lines.json").unlink(missing_ok=True)
                    batch = await fleet.submit(fetches, batch_id=batch_id)
                    (state / "run.json").write_text(json.dumps({"batch": batch_id}))
                counts = await follow(redis.url, batch, report, console, append=goes_on, lines_to=where)
                watch.cancel()
        for note in ("run.json", "lines.json"):
            (state / note).unlink(missing_ok=True)
        return counts


class Room(NamedTuple):
    """How much the fleet may have to do for more to be enqueued (0: no limit), and what if it has more."""

    max_backlog: int = 0
    when_full: WhenFull = "raise"


async def submit(
    fetches: list[Fetch],
    redis_url: str,
    room: Room,
    *,
    wait: bool,
    report: Path | None,
    console: Console,
    lines_to: Where | None = None,
) -> tuple[Batch, Counts | None]:
    """Enqueue the list to a running fleet; with wait, follow it to its end."""
    async with Fleet(redis_url, max_backlog=room.max_backlog) as fleet:
        with redis_at(redis_url):
            batch = await fleet.submit(fetches, when_full=room.when_full)
        if not wait:
            return batch, None
        return batch, await follow(redis_url, batch, report, console, append=False, lines_to=lines_to)


async def follow(
    redis_url: str,
    batch: Batch,
    report: Path | None,
    console: Console,
    *,
    append: bool,
    lines_to: Where | None = None,
) -> Counts:
    """Show the batch's progress and write its results, and their records, until it has ended.

    append: it was followed before. Raises LinesError.
    """
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(redis_url))
        progress = Progress(redis, batch, console)
        mode = "ab" if append else "wb"
        lines: IO[bytes] | None = stack.enter_context(report.open(mode) if report else nullcontext())
        gather = stack.enter_context(_gathered(lines_to, batch.id, console, goes_on=append))
        after = gather.position if gather else FROM_THE_START
        trim = report is not None or (lines_to is not None and lines_to.note is not None)
        results = batch.results(after=after, trim=trim)
        async with progress.shown():
            async for result in results:
                progress.tally.add(result)
                if lines is not None:
                    lines.write(encode(result) + b"\n")
                if gather is not None:
                    if lines is not None:
                        lines.flush()  # what is noted as read is not read again
                    await gather.add(result, results.position)
        counts = await batch.counts()
        console.print(summary(counts, progress.tally, mono_s() - progress.tally.started_s))
        if gather is not None:
            gather.check(counts.done)
        return counts


def _gathered(
    where: Where | None, batch_id: str, console: Console, *, goes_on: bool
) -> "AbstractContextManager[Gather | None]":
    """A Gather that speaks on the console, or none where none is wanted."""
    if where is None:
        return nullcontext()
    from fetchfleet.worker.local.jsonl_export import Gather  # noqa: PLC0415 few want it, and importing it takes longer than the rest

    def say(message: str) -> None:
        console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)

    return Gather(where, batch_id, say, goes_on=goes_on)


def batch_id_of(fetches: list[Fetch]) -> str:
    """The same list has the same id, so that an interrupted run is found again."""
    digest = hashlib.sha256()
    for fetch in fetches:
        digest.update(msgspec.json.encode(fetch) + b"\n")
    return digest.hexdigest()[:BATCH_ID_CHARS]


async def _goes_on(redis: EmbeddedRedis, batch_id: str, note: Path) -> bool:
    """Whether the batch is there and unfinished; anything finished or half submitted is dropped."""
    before = _noted(note)
    async with Fleet(redis.url) as fleet:
        counts = await _counts_of(fleet, before or batch_id)
    if counts is not None and counts.sealed and not counts.ended:
        if before == batch_id:
            return True
        raise UnfinishedRunError(
            f"{note.parent.parent} holds an interrupted run of another list ({counts.done} of"
            f" {counts.total} done); finish that one, give another --out, or delete {note.parent}"
        )
    redis.forget()
    return False


def _noted(note: Path) -> str | None:
    try:
        found: dict[str, Any] = json.loads(note.read_text())
        return str(found["batch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def _counts_of(fleet: Fleet, batch_id: str) -> Counts | None:
    try:
        return await fleet.batch(batch_id).counts()
    except (UnknownBatchError, ValueError):
        return None


async def _keep_alive(processes: list[WorkerProcess]) -> None:
    while True:
        for process in processes:
            process.keep_alive()
        await asyncio.sleep(KEEP_ALIVE_S)
