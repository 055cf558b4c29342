"""The commands that show and change the policy of a running fleet: policy set, unset and show."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import console, echo, print_json, print_table, query
from fetchfleet.worker.cli.options.shared import HOST_HELP, Json, PolicyFile, RedisUrl, parse_host
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.inspect.policy_in_force import policy_in_force
from fetchfleet.worker.local.process import settings_from
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import in_shell
from fetchfleet.worker.policy.overrides import Edited
from fetchfleet.worker.policy.pairs import parsed
from fetchfleet.worker.policy.pauses import PAUSED, pauses_of

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help=HOST_HELP)]

policy = typer.Typer(
    name="policy",
    help="Show or change the policy of a running fleet.",
    epilog="Example: fetchfleet policy set api.example.com concurrency=2 rate_per_s=5",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the command group to the app."""
    app.add_typer(policy)


@policy.command("set", epilog="Example: fetchfleet policy set api.example.com concurrency=2 rate_per_s=5")
def policy_set(
    host: HostArgument,
    pairs: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="Policy keys, such as rate_per_s=5.")
    ],
    redis: RedisUrl = None,
) -> None:
    """Set policy keys of a host. All workers apply them within seconds."""
    try:
        values = parsed(pairs)
    except PolicyError as error:
        raise CommandError(str(error), BAD_USE) from None
    name = parse_host(host)
    edited = _change(name, values, redis)
    echo(f"{name}: {', '.join(pairs)}")
    if values.get(PAUSED) is True:
        for other in pauses_of(edited.after, {}).not_stopped(name):
            echo(f"{other} is an exception and continues; pause it with: fetchfleet pause {in_shell(other)}")


@policy.command("unset", epilog="Example: fetchfleet policy unset api.example.com rate_per_s")
def policy_unset(
    host: HostArgument,
    names: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys to remove, such as rate_per_s.")],
    redis: RedisUrl = None,
) -> None:
    """Remove policy keys set at run time. The values of the policy file apply again."""
    name = parse_host(host)
    _change(name, dict.fromkeys(names), redis)
    echo(f"{name}: {', '.join(names)} as in the policy file")


@policy.command("show", epilog="Example: fetchfleet policy show api.example.com")
def policy_show(
    host: Annotated[str | None, typer.Argument(metavar="HOST", help=HOST_HELP)] = None,
    redis: RedisUrl = None,
    policy_file: PolicyFile = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Show the policy keys set at run time, or with HOST all keys in force and their sources."""
    settings = settings_from({"redis_url": redis, "policy": policy_file})
    name = parse_host(host) if host else None
    in_force = query(redis, lambda _, client: policy_in_force(client, settings.policy, name))
    if name is None:
        print_json(in_force.overrides.tables, pretty=not as_json)
    elif as_json:
        values = msgspec.to_builtins(in_force.policy.for_lane(name))
        print_json({**values, "policy": in_force.summary(name)})
    else:
        print_table(render.policy_of(in_force, name))
        for note in in_force.notes(name):
            console.print(note, soft_wrap=True)
    for other in sorted(in_force.policy.pauses.lifted) if name is None else ():
        console.print(f"{other}: paused=false lifts pauses of the policy file only, not those of `pause`")


def _change(name: str, values: Mapping[str, Any | None], redis_url: str | None) -> Edited:
    """Set keys of a host's table, and delete those whose value is None. Raises CommandError."""

    async def change(fleet: Fleet, redis: Redis) -> Edited:
        try:
            return await overrides.change(redis, fleet.notify, name, values)
        except PolicyError as error:
            raise CommandError(str(error), BAD_USE) from None

    return query(redis_url, change)
