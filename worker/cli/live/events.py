"""The command `events`: the log lines of all workers, live."""

import sys
from contextlib import aclosing
from typing import Annotated

import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.worker.cli.common import echo, printing, query, until_interrupted
from fetchfleet.worker.cli.options.shared import Json, RedisPatience, RedisUrl, parse_host_option
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.inspect import event_tail
from fetchfleet.worker.inspect.event_tail import LEVELS, EventFilter, fields_of
from fetchfleet.worker.local.output.progress import SafeConsole
from fetchfleet.worker.policy.names import DEFAULT
from fetchfleet.worker.top.event_text import event_text


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command(epilog="Example: fetchfleet events --event 'lane.*' --level warning")(events)


def events(
    redis: RedisUrl = None,
    event: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Print these events only, such as 'lane.*'.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Print only lines about this host or pattern.", callback=parse_host_option
        ),
    ] = None,
    level: Annotated[
        str,
        typer.Option(
            metavar="LEVEL", help="Print lines of this level or above: info, warning, error or critical."
        ),
    ] = "info",
    as_json: Json = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
) -> None:
    """Print the log lines of all workers as they are written, until interrupted.

    A worker sends at most 200 lines a second; a line `skipped` counts the others.
    """
    if level not in LEVELS:
        raise CommandError(f"--level {level}: must be one of {', '.join(LEVELS[1:])}", BAD_USE)
    wanted = EventFilter(event, None if host == DEFAULT else host, level)
    as_json = as_json or not sys.stdout.isatty()
    terminal = SafeConsole()

    async def follow(fleet: Fleet, client: Redis) -> None:
        async with aclosing(event_tail.events(client, fleet.call)) as lines:
            async for line in lines:
                fields = fields_of(line)
                if fields is None or not wanted.admits(fields):
                    continue
                if as_json:
                    echo(line.decode())
                else:
                    with printing():
                        terminal.print(event_text(fields), soft_wrap=True)

    with until_interrupted():
        query(redis, follow, redis_patience)
