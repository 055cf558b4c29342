"""The commands about batches and dead letters: batches, results, cancel; dead list, show, retry, purge."""

import asyncio
from typing import Annotated

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.batch import FROM_THE_START, Batch, BatchSummary, Counts
from fetchfleet.jobs.client.dead_letters import DeadLetter, DeadLetterFilter
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.contract.model import Outcome
from fetchfleet.jobs.errors import FleetUnreachableError
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import (
    check_position,
    command_line,
    console,
    echo,
    print_json,
    print_table,
    query,
)
from fetchfleet.worker.cli.options.shared import (
    Json,
    Limit,
    RedisPatience,
    RedisUrl,
    Reveal,
    Via,
    host_given,
    via_words,
)
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.inspect.snapshot import worker_reports
from fetchfleet.worker.observability import redact

COMPLETE_WITHIN_S = 2.0
CANCEL_WAIT_S = 10.0


def _known_batches(incomplete: str) -> list[str]:
    """Return the batches that the shell may complete to; none if Redis does not answer in time."""

    async def read(fleet: Fleet, _: Redis) -> list[str]:
        async with asyncio.timeout(COMPLETE_WITHIN_S):
            known = [batch.id for batch in await fleet.batches(100) if is_batch_id(batch.id)]
            return [batch_id for batch_id in known if batch_id.startswith(incomplete)]

    try:
        return query(None, read, 0)
    except CommandError:
        return []


BatchId = Annotated[
    str,
    typer.Argument(
        metavar="BATCH", help="ID of the batch, as submit prints it.", autocompletion=_known_batches
    ),
]


Follow = Annotated[bool, typer.Option("--follow", help="Wait for more results until the batch has ended.")]
OfBatch = Annotated[str | None, typer.Option("--batch", metavar="ID", help="Dead letters of this batch.")]
OfHost = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST", help="Dead letters of this host.", callback=host_given),
]
OfReason = Annotated[
    str | None,
    typer.Option("--reason", metavar="REASON", help="Dead letters with this reason, such as timeout."),
]
All = Annotated[bool, typer.Option("--all", help="Every dead letter.")]

dead = typer.Typer(
    name="dead", help="List, show, retry or purge fetches that failed for good.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    app.command(epilog="Example: fetchfleet batches --limit 10")(batches)
    app.command(epilog="Example: fetchfleet results 0123456789abcdef --follow --json")(results)
    app.command(epilog="Example: fetchfleet cancel 0123456789abcdef")(cancel)
    app.add_typer(dead)


def batches(
    redis: RedisUrl = None,
    limit: Limit = 50,
    as_json: Json = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
) -> None:
    """List the newest batches with their progress."""

    async def read(fleet: Fleet, client: Redis) -> tuple[list[BatchSummary], int]:
        return await fleet.batches(limit), await redis_now_ms(client)

    found, now_ms = query(redis, read, redis_patience)
    if as_json:
        for batch in found:
            print_json({**msgspec.to_builtins(batch), "state": render.state_of(batch)})
    else:
        print_table(render.batches_of(found, now_ms))


def results(
    batch: BatchId,
    redis: RedisUrl = None,
    after: Annotated[
        str, typer.Option(metavar="POSITION", help="Begin after this position.")
    ] = FROM_THE_START,
    follow: Follow = False,  # noqa: FBT002 a flag
    outcome: Annotated[Outcome | None, typer.Option(help="Only results with this outcome.")] = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
    *,
    via: Via = None,
) -> None:
    """Print the results of a batch, one a line, and the position after the last one."""
    check_position(after)

    async def read(fleet: Fleet, _: Redis) -> tuple[str, list[str]]:
        handle = _batch(fleet, batch)
        rows = handle.results(after=after, follow=follow)
        async for result in rows:
            if outcome not in {None, result.outcome}:
                continue
            if as_json:
                print_json(result, reveal=reveal, hide=redact.result)
            else:
                echo(render.result_line(result, reveal=reveal))
        return rows.position, [again.id for again in await handle.retried_as()]

    def go_on(error: FleetUnreachableError) -> str:
        words = ["results", batch, *(["--follow"] if follow else []), "--after", error.position or after]
        words += ["--outcome", outcome.value] if outcome else []
        return command_line(
            *words,
            *(["--json"] if as_json else []),
            *(["--reveal"] if reveal else []),
            *via_words(via),
            redis_url=redis,
        )

    position, retried_as = query(redis, read, redis_patience, go_on, via)
    console.print(f"to go on from here: --after {position}")
    for again in retried_as:
        console.print(f"failed fetches of it were retried as: fetchfleet results {again}")


def cancel(
    batch: BatchId,
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
    via: Via = None,
) -> None:
    """Cancel every fetch of a batch that has no result yet."""

    async def stop(fleet: Fleet, client: Redis) -> tuple[Counts, bool]:
        handle = _batch(fleet, batch)
        counts = await handle.cancel()
        try:
            async with asyncio.timeout(CANCEL_WAIT_S):
                counts = await handle.wait()
        except TimeoutError:
            counts = await handle.counts()
        return counts, counts.ended or bool(await worker_reports(client))

    counts, has_workers = query(
        redis,
        stop,
        redis_patience,
        lambda _: command_line("cancel", batch, *via_words(via), redis_url=redis),
        via,
    )
    if as_json:
        print_json({"id": batch, "ended": counts.ended, **msgspec.to_builtins(counts)})
        return
    echo(f"{counts.cancelled} fetches cancelled, {counts.done - counts.cancelled} had ended before")
    if not counts.ended:
        left = counts.total - counts.done
        by = "the workers go on ending them" if has_workers else "a worker does it as soon as one runs"
        console.print(f"{left} are still to be ended; {by}")


def _batch(fleet: Fleet, batch_id: str) -> Batch:
    if not is_batch_id(batch_id):
        raise CommandError(
            f"{batch_id} is no batch id, which has 16 hex digits; see: fetchfleet batches", BAD_USE
        )
    try:
        return fleet.batch(batch_id)
    except ValueError as error:  # of another inbox
        raise CommandError(str(error), BAD_USE) from None


@dead.command("list")
def dead_list(
    redis: RedisUrl = None,
    batch: OfBatch = None,
    host: OfHost = None,
    reason: OfReason = None,
    limit: Limit = 100,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
) -> None:
    """List dead letters, the oldest first."""
    found = _letters(redis, DeadLetterFilter(batch, host, reason), limit)
    if as_json:
        for letter in found:
            print_json(letter, reveal=reveal)
    else:
        print_table(render.dead_of(found, reveal=reveal))


@dead.command("show")
def dead_show(
    position: Annotated[str, typer.Argument(metavar="POSITION", help="Position, as `dead list` shows it.")],
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
) -> None:
    """Show one dead letter with its fetch and its result."""
    check_position(position)
    found = _letters(redis, DeadLetterFilter(position=position), 1)
    if not found:
        raise CommandError(f"no dead letter is at {position}; see: fetchfleet dead list")
    print_json(found[0], pretty=not as_json, reveal=reveal)


@dead.command("retry")
def dead_retry(
    redis: RedisUrl = None,
    batch: OfBatch = None,
    host: OfHost = None,
    reason: OfReason = None,
    everything: All = False,  # noqa: FBT002 a flag
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Enqueue the fetches of dead letters again, as new batches, and delete the letters."""
    letters = _chosen(DeadLetterFilter(batch, host, reason), everything=everything)
    done = query(redis, lambda fleet, _: fleet.dead.retry(letters))
    if as_json:
        print_json(done)
        return
    echo(f"{render.count(done.fetches, 'fetch', 'fetches')} enqueued again")
    for batch_id in done.batches:
        echo(batch_id)
    if done.left:
        console.print(f"{render.count(done.left, 'letter')} held no fetch and stayed")


@dead.command("purge")
def dead_purge(
    redis: RedisUrl = None,
    batch: OfBatch = None,
    host: OfHost = None,
    reason: OfReason = None,
    everything: All = False,  # noqa: FBT002 a flag
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Delete dead letters."""
    letters = _chosen(DeadLetterFilter(batch, host, reason), everything=everything)
    count = query(redis, lambda fleet, _: fleet.dead.purge(letters))
    if as_json:
        print_json({"purged": count})
    else:
        echo(f"{render.count(count, 'dead letter')} dropped")


def _letters(redis_url: str | None, letters: DeadLetterFilter, limit: int) -> list[DeadLetter]:
    """Return the oldest of them, at most `limit`."""

    async def read(fleet: Fleet, _: Redis) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        async for letter in fleet.dead.iter(letters):
            found.append(letter)
            if len(found) == limit:
                break
        return found

    return query(redis_url, read)


def _chosen(letters: DeadLetterFilter, *, everything: bool) -> DeadLetterFilter:
    """Return `letters` if it, or else --all, says what to change. Raises CommandError."""
    if everything == any(letters):
        raise CommandError(
            "say which: --batch, --host or --reason (together they narrow it down), or --all", BAD_USE
        )
    return letters
