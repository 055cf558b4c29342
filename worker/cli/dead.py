"""The commands about dead letters: list, show, retry and purge."""

from typing import Annotated

import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.dead_letters import DeadLetter, DeadLetterFilter
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import check_position, console, echo, print_json, print_table, query
from fetchfleet.worker.cli.options import Json, Limit, RedisUrl, Reveal, host_given
from fetchfleet.worker.errors import BAD_USE, CommandError

OfBatch = Annotated[str | None, typer.Option("--batch", help="Those of this batch.")]
OfHost = Annotated[str | None, typer.Option("--host", help="Those of this host.", callback=host_given)]
OfReason = Annotated[str | None, typer.Option("--reason", help="Those with this reason.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

dead = typer.Typer(
    name="dead", help="What failed for good: look at it, try it again, drop it.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    app.add_typer(dead)


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
    position: Annotated[str, typer.Argument(help="As in the list.")],
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
) -> None:
    """Show one dead letter; its secrets only with --reveal."""
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
    """Enqueue the fetches again, as new batches, and drop their letters."""
    letters = _chosen(DeadLetterFilter(batch, host, reason), everything=everything)
    done = query(redis, lambda fleet, _: fleet.dead.retry(letters))
    if as_json:
        print_json(done)
        return
    echo(f"{render.count(done.fetches, 'fetch', 'fetches')} enqueued again")
    for batch_id in done.batches:
        echo(batch_id)
    if done.left:
        console.print(f"{render.count(done.left, 'letter')} held no fetch and stayed", highlight=False)


@dead.command("purge")
def dead_purge(
    redis: RedisUrl = None,
    batch: OfBatch = None,
    host: OfHost = None,
    reason: OfReason = None,
    everything: All = False,  # noqa: FBT002 a flag
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Drop dead letters for good."""
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
