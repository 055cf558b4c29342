"""The commands that change what a fleet does to a host: pause, resume and policy."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.worker.cli.common import echo, print_json, query
from fetchfleet.worker.cli.options import Json, PolicyFile, RedisUrl
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.process import settings_from
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Table, lane_named, table_named
from fetchfleet.worker.policy.model import PolicyError

Host = Annotated[str, typer.Argument(help="A host, a pattern (*.cdn.net) or default.")]

policy = typer.Typer(
    name="policy", help="The fleet's policy at run time, over the file's.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (pause, resume):
        app.command()(command)
    app.add_typer(policy)


def pause(host: Host, redis: RedisUrl = None) -> None:
    """Start no fetch to a host any more; what is in flight ends."""
    _change(host, {"paused": True}, redis)
    echo(f"{host} is paused; go on with: fetchfleet resume {host}")


def resume(host: Host, redis: RedisUrl = None) -> None:
    """Let a paused host's fetches go on."""
    tables = _change(host, {"paused": None}, redis)
    in_force = settings_from({"redis_url": redis}).policy.overridden(tables)
    if in_force.for_lane(table_named(host)).paused:  # by a wider table, or by the file
        _change(host, {"paused": False}, redis)
    echo(f"{host} goes on")


@policy.command("set")
def policy_set(
    host: Host,
    pairs: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Keys of the policy file.")],
    redis: RedisUrl = None,
) -> None:
    """Set keys for a host, fleet-wide, until they are unset; workers see it within seconds."""
    try:
        values = overrides.parsed(pairs)
    except PolicyError as error:
        raise CommandError(str(error), BAD_USE) from None
    _change(host, values, redis)
    echo(f"{host}: {', '.join(pairs)}")


@policy.command("unset")
def policy_unset(
    host: Host,
    names: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys that were set.")],
    redis: RedisUrl = None,
) -> None:
    """Let the file's values hold again."""
    _change(host, dict.fromkeys(names), redis)
    echo(f"{host}: {', '.join(names)} as in the file")


@policy.command("show")
def policy_show(
    host: Annotated[str | None, typer.Argument(help="A host: what holds for it.")] = None,
    redis: RedisUrl = None,
    policy_file: PolicyFile = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Show what was set at run time; for a host all that holds for it, the file's values included."""
    settings = settings_from({"redis_url": redis, "policy": policy_file})
    tables = query(redis, lambda _, client: overrides.read(client))
    try:
        shown = settings.policy.overridden(tables).for_lane(lane_named(host)) if host else tables
    except PolicyError as error:
        raise CommandError(str(error), BAD_USE) from None
    print_json(shown, pretty=not as_json)


def _change(host: str, values: Mapping[str, Any | None], redis_url: str | None) -> Mapping[str, Table]:
    """Set keys of a host's table, or delete those that are None; return all tables. Raises CommandError."""

    async def change(fleet: Fleet, redis: Redis) -> Mapping[str, Table]:
        try:
            return await overrides.change(redis, fleet.notify, host, values)
        except PolicyError as error:
            raise CommandError(str(error), BAD_USE) from None

    return query(redis_url, change)
