"""The commands for batches and dead letters: batches, results, cancel; dead list, show, retry, purge."""

import asyncio
from typing import Annotated

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.batch import FROM_THE_START, Batch, Counts
from fetchfleet.jobs.client.batch_list import BatchSummary
from fetchfleet.jobs.client.dead_letters import DeadLetter, DeadLetterFilter, letter_at
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.contract.result import Outcome, Reason
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
    parse_host_option,
    via_words,
)
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.inspect.snapshot import worker_reports
from fetchfleet.worker.inspect.views.batches import state_of_batch
from fetchfleet.worker.inspect.views.dead_letters import known_reason
from fetchfleet.worker.observability import redact
from fetchfleet.worker.util.quantities import count

COMPLETION_TIMEOUT_S = 2.0
CANCEL_TIMEOUT_S = 10.0


def _completions(incomplete: str) -> list[str]:
    """Return the batch IDs to which the shell completes a word; none if Redis does not answer in time."""

    async def read(fleet: Fleet, _: Redis) -> list[str]:
        async with asyncio.timeout(COMPLETION_TIMEOUT_S):
            ids = [batch.id for batch in await fleet.batches(100)]
            return [batch_id for batch_id in ids if is_batch_id(batch_id) and batch_id.startswith(incomplete)]

    try:
        return query(None, read, 0)
    except CommandError:
        return []


def _reason(text: str | None) -> str | None:
    """Return the reason of `--reason`. Raises CommandError if there is no such reason."""
    try:
        return None if text is None else known_reason(text)
    except ValueError as error:
        raise CommandError(f"--{error}", BAD_USE) from None


BatchId = Annotated[
    str,
    typer.Argument(metavar="BATCH", help="Batch ID, as printed by submit.", autocompletion=_completions),
]


Follow = Annotated[bool, typer.Option("--follow", help="Wait for more results until the batch has ended.")]
OnlyOutcome = Annotated[
    Outcome | None,
    typer.Option(metavar="OUTCOME", help="Print these results only: stored, unchanged, failed or cancelled."),
]
OfBatch = Annotated[str | None, typer.Option("--batch", metavar="ID", help="Select those of this batch.")]
OfHost = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST", help="Select those of this host.", callback=parse_host_option),
]
OfReason = Annotated[
    str | None,
    typer.Option(
        "--reason",
        metavar="REASON",
        help="Select those with this reason, such as http_status.",
        callback=_reason,
        autocompletion=lambda incomplete: [of for of in Reason if of.startswith(incomplete)],
    ),
]
All = Annotated[bool, typer.Option("--all", help="Select every dead letter.")]

dead = typer.Typer(
    name="dead",
    help="List, show, retry or delete dead letters: fetches that failed permanently.",
    epilog="Example: fetchfleet dead list --host api.example.com",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
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

    summaries, now_ms = query(redis, read, redis_patience)
    if as_json:
        for summary in summaries:
            print_json({**msgspec.to_builtins(summary), "state": state_of_batch(summary)})
    else:
        print_table(render.batches_of(summaries, now_ms))


def results(
    batch: BatchId,
    redis: RedisUrl = None,
    after: Annotated[
        str, typer.Option(metavar="POSITION", help="Print the results after this position.")
    ] = FROM_THE_START,
    follow: Follow = False,  # noqa: FBT002 a flag
    outcome: OnlyOutcome = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
    *,
    via: Via = None,
) -> None:
    """Print the results of a batch, one a line.

    The position of the last one is printed on standard error, to continue from with --after.
    """
    check_position(after)

    async def read(fleet: Fleet, _: Redis) -> tuple[str, list[str]]:
        handle = batch_handle(fleet, batch)
        stream = handle.results(after=after, follow=follow)
        async for result in stream:
            if outcome not in {None, result.outcome}:
                continue
            if as_json:
                print_json(result, reveal=reveal, hide=redact.result)
            else:
                echo(render.result_line(result, reveal=reveal))
        return stream.position, [retry.id for retry in await handle.retried_as()]

    def next_command(error: FleetUnreachableError) -> str:
        words = ["results", batch, *(["--follow"] if follow else []), "--after", error.position or after]
        words += ["--outcome", outcome.value] if outcome else []
        return command_line(
            *words,
            *(["--json"] if as_json else []),
            *(["--reveal"] if reveal else []),
            *via_words(via),
            redis_url=redis,
        )

    position, retried_as = query(redis, read, redis_patience, next_command, via)
    console.print(f"to continue after these results: --after {position}")
    for batch_id in retried_as:
        console.print(f"its failed fetches were retried; see: fetchfleet results {batch_id}")


def cancel(
    batch: BatchId,
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
    via: Via = None,
) -> None:
    """Cancel every fetch of a batch that has no result yet."""

    async def stop(fleet: Fleet, client: Redis) -> tuple[Counts, bool]:
        handle = batch_handle(fleet, batch)
        counts = await handle.cancel()
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
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
    cancelled, ended = counts.cancelled, counts.done - counts.cancelled
    echo(f"{count(cancelled, 'fetch', 'fetches')} cancelled, {ended:,} had ended before")
    if not counts.ended:
        left = count(counts.total - counts.done, "fetch is", "fetches are")
        state = "being cancelled by the workers" if has_workers else "cancelled as soon as a worker runs"
        console.print(f"{left} {state}")


def batch_handle(fleet: Fleet, batch_id: str) -> Batch:
    """Return the handle of a batch. Raises CommandError if the ID is invalid or of another inbox."""
    if not is_batch_id(batch_id):
        raise CommandError(
            f"{batch_id} is not a batch ID (16 hex digits); list them with: fetchfleet batches", BAD_USE
        )
    try:
        return fleet.batch(batch_id)
    except ValueError as error:
        raise CommandError(str(error), BAD_USE) from None


@dead.command("list", epilog="Example: fetchfleet dead list --host api.example.com --reason http_status")
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
    letters = _read_letters(redis, DeadLetterFilter(batch, host, reason), limit)
    if as_json:
        for letter in letters:
            print_json(letter, reveal=reveal)
    else:
        print_table(render.dead_of(letters, reveal=reveal))


@dead.command("show", epilog="Example: fetchfleet dead show 1700000000000-0")
def dead_show(
    position: Annotated[str, typer.Argument(metavar="POSITION", help="Position, as printed by dead list.")],
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
) -> None:
    """Show one dead letter with its fetch and its result."""
    check_position(position)
    letter = query(redis, lambda _, client: letter_at(client, position))
    if letter is None:
        raise CommandError(f"no dead letter is at {position}; list them with: fetchfleet dead list")
    print_json(letter, pretty=not as_json, reveal=reveal)


@dead.command("retry", epilog="Example: fetchfleet dead retry --host api.example.com")
def dead_retry(
    redis: RedisUrl = None,
    batch: OfBatch = None,
    host: OfHost = None,
    reason: OfReason = None,
    everything: All = False,  # noqa: FBT002 a flag
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Enqueue the fetches of dead letters again, as new batches, and delete the letters."""
    selection = _checked(DeadLetterFilter(batch, host, reason), everything=everything)
    retried = query(redis, lambda fleet, _: fleet.dead.retry(selection))
    if as_json:
        print_json(retried)
        return
    echo(f"{count(retried.fetches, 'fetch', 'fetches')} enqueued again")
    for batch_id in retried.batches:
        echo(batch_id)
    if retried.left:
        console.print(f"{count(retried.left, 'dead letter')} without a fetch kept")


@dead.command("purge", epilog="Example: fetchfleet dead purge --reason invalid")
def dead_purge(
    redis: RedisUrl = None,
    batch: OfBatch = None,
    host: OfHost = None,
    reason: OfReason = None,
    everything: All = False,  # noqa: FBT002 a flag
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Delete dead letters."""
    selection = _checked(DeadLetterFilter(batch, host, reason), everything=everything)
    purged = query(redis, lambda fleet, _: fleet.dead.purge(selection))
    if as_json:
        print_json({"purged": purged})
    else:
        echo(f"{count(purged, 'dead letter')} deleted")


def _read_letters(redis_url: str | None, selection: DeadLetterFilter, limit: int) -> list[DeadLetter]:
    """Return the selected dead letters, the oldest first, at most `limit`."""

    async def read(fleet: Fleet, _: Redis) -> list[DeadLetter]:
        letters: list[DeadLetter] = []
        async for letter in fleet.dead.iter(selection):
            letters.append(letter)
            if len(letters) == limit:
                break
        return letters

    return query(redis_url, read)


def _checked(selection: DeadLetterFilter, *, everything: bool) -> DeadLetterFilter:
    """Return the selection. Raises CommandError unless it is given either by a filter or by `--all`."""
    if everything == any(selection):
        raise CommandError(
            "which dead letters? give --batch, --host or --reason (combined, all must match), or --all",
            BAD_USE,
        )
    return selection
