"""The commands that show and change how a fleet treats its hosts: policy set, unset and show."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import console, echo, print_json, print_table, query
from fetchfleet.worker.cli.options.shared import Host, Json, PolicyFile, RedisUrl, named
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.inspect.policy_in_force import policy_in_force
from fetchfleet.worker.local.process import settings_from
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import in_shell
from fetchfleet.worker.policy.overrides import Edited
from fetchfleet.worker.policy.pairs import parsed
from fetchfleet.worker.policy.pauses import PAUSED, pauses_of

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help=Host)]

policy = typer.Typer(
    name="policy", help="Show or change the policy of a running fleet.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    app.add_typer(policy)


@policy.command("set", epilog="Example: fetchfleet policy set api.example.com concurrency=2 rate_per_s=5")
def policy_set(
    host: HostArgument,
    pairs: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="Keys of the policy, such as rate_per_s=5.")
    ],
    redis: RedisUrl = None,
) -> None:
    """Set keys of the policy for a host. Every worker applies them within seconds."""
    try:
        values = parsed(pairs)
    except PolicyError as error:
        raise CommandError(str(error), BAD_USE) from None
    name = named(host)
    edited = _change(name, values, redis)
    echo(f"{name}: {', '.join(pairs)}")
    if values.get(PAUSED) is True:
        for other in pauses_of(edited.after, {}).not_stopped(name):
            echo(f"not stopped: {other}, an exception; stop it with: fetchfleet pause {in_shell(other)}")


@policy.command("unset", epilog="Example: fetchfleet policy unset api.example.com rate_per_s")
def policy_unset(
    host: HostArgument,
    names: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys that were set at run time.")],
    redis: RedisUrl = None,
) -> None:
    """Remove keys that were set at run time. The values of the policy file apply again."""
    name = named(host)
    _change(name, dict.fromkeys(names), redis)
    echo(f"{name}: {', '.join(names)} as in the file")


@policy.command("show", epilog="Example: fetchfleet policy show api.example.com")
def policy_show(
    host: Annotated[str | None, typer.Argument(metavar="HOST", help=Host)] = None,
    redis: RedisUrl = None,
    policy_file: PolicyFile = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Show the keys set at run time; for a host, all keys in force, with those of the policy file."""
    settings = settings_from({"redis_url": redis, "policy": policy_file})
    name = named(host) if host else None
    in_force = query(redis, lambda _, client: policy_in_force(client, settings.policy, name))
    if name is None:
        print_json(in_force.overrides.tables, pretty=not as_json)
    elif as_json:
        shown = msgspec.to_builtins(in_force.policy.for_lane(name))
        print_json({**shown, "policy": in_force.summary(name)})
    else:
        print_table(render.policy_of(in_force, name))
        for note in in_force.notes(name):
            console.print(note, soft_wrap=True)
    for other in sorted(in_force.policy.pauses.lifted) if name is None else ():
        console.print(
            f"{other}: paused=false lifts pauses of the policy file only; what `pause` stops stays stopped",
        )


def _change(name: str, values: Mapping[str, Any | None], redis_url: str | None) -> Edited:
    """Set keys of a table, or delete those that are None. Raises CommandError."""

    async def change(fleet: Fleet, redis: Redis) -> Edited:
        try:
            return await overrides.change(redis, fleet.notify, name, values)
        except PolicyError as error:
            raise CommandError(str(error), BAD_USE) from None

    return query(redis_url, change)
