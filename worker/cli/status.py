"""The commands that look after a running fleet: health, status, batches, results, cancel, dead."""

import asyncio
import os
import socket
import sys
from typing import Annotated, Any

import msgspec
import typer
from redis.exceptions import RedisError
from rich.console import Console, RenderableType

from fetchfleet.jobs.client.batch import FROM_THE_START, Batch, Counts
from fetchfleet.jobs.client.dead_letters import DeadLetterFilter
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.contract.model import Outcome
from fetchfleet.jobs.errors import JobsError
from fetchfleet.jobs.redis_connection import connect, redis_now_ms
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import Json, RedisUrl, ask, complete, console, fail, say_json, settings_of
from fetchfleet.worker.errors import BAD_USE, FAILED
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.snapshot import is_alive

COMPLETE_WITHIN_S = 2.0
CANCEL_PATIENCE_S = 10.0
WIDE = 200

Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]


def _known_batches(incomplete: str) -> list[str]:
    """For the shell's completion: what comes within a moment, or nothing."""

    async def ask() -> list[str]:
        async with asyncio.timeout(COMPLETE_WITHIN_S), Fleet(settings_of().redis_url) as fleet:
            return [batch.id for batch in await fleet.batches(100) if batch.id.startswith(incomplete)]

    try:
        return asyncio.run(ask())
    except (RedisError, JobsError, OSError, TimeoutError, typer.Exit):
        return []


BatchId = Annotated[str, typer.Argument(help="The batch's id.", autocompletion=_known_batches)]
OfBatch = Annotated[str | None, typer.Option("--batch", help="Those of this batch.")]
OfHost = Annotated[str | None, typer.Option("--host", help="Those of this host.")]
OfReason = Annotated[str | None, typer.Option("--reason", help="Those with this reason.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

dead = typer.Typer(
    name="dead", help="What failed for good: look at it, try it again, drop it.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (health, status, batches, results, cancel):
        app.command()(command)
    app.add_typer(dead)


def health(redis: RedisUrl = None) -> None:
    """Exit 0 if a worker of this machine (or container) shows signs of life, else 1."""
    settings = settings_of(redis_url=redis)
    name = os.environ.get("FETCHFLEET_WORKER_ID") or socket.gethostname()
    if not complete(is_alive(settings.redis_url, name), "interrupted"):
        fail("no worker of this machine has shown a sign of life; its log may say why", FAILED)


def status(redis: RedisUrl = None, as_json: Json = False) -> None:  # noqa: FBT002 a flag
    """Show workers, lanes and the backlog."""

    async def look(url: str) -> Any:
        async with connect(url) as client:
            return await fleet_status(client)

    found = ask(redis, look)
    if as_json:
        rates = {
            "finished_per_s": found.finished_per_s,
            "received_bytes_per_s": found.received_bytes_per_s,
        }
        say_json({**msgspec.to_builtins(found), **rates})
    else:
        _show(render.status_of(found))


def batches(redis: RedisUrl = None, limit: Limit = 50, as_json: Json = False) -> None:  # noqa: FBT002 a flag
    """List the newest batches."""

    async def look(url: str) -> Any:
        async with Fleet(url) as fleet, connect(url) as client:
            return await fleet.batches(limit), await redis_now_ms(client)

    found, now_ms = ask(redis, look)
    if as_json:
        for batch in found:
            say_json({**msgspec.to_builtins(batch), "state": render.state_of(batch)})
    else:
        _show(render.batches_of(found, now_ms))


def results(
    batch: BatchId,
    redis: RedisUrl = None,
    after: Annotated[str, typer.Option(help="Begin behind this position.")] = FROM_THE_START,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until the batch has ended.")] = False,  # noqa: FBT002
    outcome: Annotated[Outcome | None, typer.Option(help="Only these.")] = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Print the results of a batch, and where the next reading may begin."""
    _check_position(after)

    async def read(url: str) -> str:
        async with Fleet(url) as fleet:
            rows = _batch(fleet, batch).results(after=after, follow=follow)
            async for result in rows:
                if outcome in {None, result.outcome}:
                    typer.echo(msgspec.json.encode(result) if as_json else render.result_line(result))
            return rows.position

    position = ask(redis, read)
    console.print(f"to go on from here: --after {position}", highlight=False)


def cancel(batch: BatchId, redis: RedisUrl = None, as_json: Json = False) -> None:  # noqa: FBT002 a flag
    """End every fetch of a batch that has no result yet."""

    async def stop(url: str) -> Counts:
        async with Fleet(url) as fleet:
            handle = _batch(fleet, batch)
            counts = await handle.cancel()
            try:
                async with asyncio.timeout(CANCEL_PATIENCE_S):
                    return await handle.wait()
            except TimeoutError:
                return counts

    counts = ask(redis, stop)
    if as_json:
        say_json({"id": batch, "ended": counts.ended, **msgspec.to_builtins(counts)})
        return
    typer.echo(f"{counts.cancelled} fetches cancelled, {counts.done - counts.cancelled} had ended before")
    if not counts.ended:
        left = counts.total - counts.done
        console.print(f"{left} are still to be ended; a worker does it as soon as one runs", highlight=False)


@dead.command("list")
def dead_list(
    redis: RedisUrl = None,
    batch: OfBatch = None,
    host: OfHost = None,
    reason: OfReason = None,
    limit: Limit = 100,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """List dead letters, the oldest first."""

    async def read(url: str) -> list[Any]:
        found: list[Any] = []
        async with Fleet(url) as fleet:
            async for letter in fleet.dead.iter(DeadLetterFilter(batch, host, reason)):
                found.append(letter)
                if len(found) == limit:
                    break
        return found

    found = ask(redis, read)
    if as_json:
        for letter in found:
            say_json(letter)
    else:
        _show(render.dead_of(found))


@dead.command("show")
def dead_show(
    position: Annotated[str, typer.Argument(help="As in the list.")],
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Show one dead letter whole."""
    _check_position(position)

    async def read(url: str) -> Any:
        async with Fleet(url) as fleet:
            return [letter async for letter in fleet.dead.iter(DeadLetterFilter(position=position))]

    found = ask(redis, read)
    if not found:
        fail(f"no dead letter is at {position}; see: fetchfleet dead list", 1)
    say_json(found[0], pretty=not as_json)


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
    which = _which(batch, host, reason, everything=everything)

    async def retry(url: str) -> Any:
        async with Fleet(url) as fleet:
            return await fleet.dead.retry(which)

    done = ask(redis, retry)
    if as_json:
        say_json(done)
        return
    typer.echo(f"{render.count(done.fetches, 'fetch', 'fetches')} enqueued again")
    for batch_id in done.batches:
        typer.echo(batch_id)
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
    which = _which(batch, host, reason, everything=everything)

    async def purge(url: str) -> int:
        async with Fleet(url) as fleet:
            return await fleet.dead.purge(which)

    count = ask(redis, purge)
    if as_json:
        say_json({"purged": count})
    else:
        typer.echo(f"{render.count(count, 'dead letter')} dropped")


def _which(batch: str | None, host: str | None, reason: str | None, *, everything: bool) -> DeadLetterFilter:
    which = DeadLetterFilter(batch, host, reason)
    if everything == any(which):
        fail("say which: --batch, --host or --reason (together they narrow it down), or --all", BAD_USE)
    return which


def _batch(fleet: Fleet, batch_id: str) -> Batch:
    if not is_batch_id(batch_id):
        fail(f"{batch_id} is no batch id, which has 16 hex digits; see: fetchfleet batches", BAD_USE)
    return fleet.batch(batch_id)


def _check_position(position: str) -> None:
    ms, _, sequence = position.partition("-")
    if not (ms.isdigit() and (sequence or "0").isdigit()):
        fail(f"{position} is no position; those look like 1700000000000-0", BAD_USE)


def _show(what: RenderableType) -> None:
    """On standard output: as wide as the terminal, or wide enough for whatever reads it."""
    width = None if sys.stdout.isatty() else WIDE
    Console(highlight=False, width=width).print(what)
