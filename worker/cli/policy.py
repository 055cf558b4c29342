"""The commands that steer a running fleet: explain, pause, resume, policy."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import is_fetch_id
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.cli.common import Json, RedisUrl, ask, fail, say_json, settings_of
from fetchfleet.worker.errors import BAD_USE
from fetchfleet.worker.inspect.explain import (
    FetchExplained,
    LaneExplained,
    explain_fetch,
    explain_lane,
)
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Table, lane_named, table_named
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.settings import Settings

Host = Annotated[str, typer.Argument(help="A host, a pattern (*.cdn.net) or default.")]
PolicyFile = Annotated[str | None, typer.Option("--policy", help="The workers' TOML (FETCHFLEET_POLICY).")]

policy = typer.Typer(
    name="policy", help="The fleet's policy at run time, over the file's.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (explain, pause, resume):
        app.command()(command)
    app.add_typer(policy)


def explain(
    what: Annotated[str, typer.Argument(help="A host, or the id of a fetch.")],
    redis: RedisUrl = None,
    policy_file: PolicyFile = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Say why a host or a fetch is waiting, and until when."""
    settings = settings_of(redis_url=redis, policy=policy_file)
    found = ask(redis, lambda _: _explained(settings, what))
    if as_json:
        say_json(found)
    elif isinstance(found, FetchExplained):
        _show_fetch(found)
    else:
        _show_lane(found)


def pause(host: Host, redis: RedisUrl = None) -> None:
    """Start no fetch to a host any more; what is in flight ends."""
    _change(host, {"paused": True}, redis)
    typer.echo(f"{host} is paused; go on with: fetchfleet resume {host}")


def resume(host: Host, redis: RedisUrl = None) -> None:
    """Let a paused host's fetches go on."""
    tables = _change(host, {"paused": None}, redis)
    held = settings_of(redis_url=redis).policy.overridden(tables)
    if held.for_lane(table_named(host)).paused:  # by a wider table, or the file's
        _change(host, {"paused": False}, redis)
    typer.echo(f"{host} goes on")


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
        fail(str(error), BAD_USE)
    _change(host, values, redis)
    typer.echo(f"{host}: {', '.join(pairs)}")


@policy.command("unset")
def policy_unset(
    host: Host,
    names: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys that were set.")],
    redis: RedisUrl = None,
) -> None:
    """Let the file's values hold again."""
    _change(host, dict.fromkeys(names), redis)
    typer.echo(f"{host}: {', '.join(names)} as in the file")


@policy.command("show")
def policy_show(
    host: Annotated[str | None, typer.Argument(help="A host: what holds for it.")] = None,
    redis: RedisUrl = None,
    policy_file: PolicyFile = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Show what was set at run time; for a host all that holds for it, the file's values included."""
    settings = settings_of(redis_url=redis, policy=policy_file)

    async def read(url: str) -> Mapping[str, Any]:
        async with connect(url) as client:
            return await overrides.read(client)

    tables = ask(redis, read)
    try:
        held = settings.policy.overridden(tables).for_lane(lane_named(host)) if host else tables
    except PolicyError as error:
        fail(str(error), BAD_USE)
    say_json(held, pretty=not as_json)


def _change(host: str, values: Mapping[str, Any | None], redis: str | None) -> Mapping[str, Table]:
    """The tables as they are now."""

    async def change(url: str) -> Mapping[str, Table] | str:
        async with Fleet(url) as fleet, connect(url) as client:
            try:
                return await overrides.change(client, fleet.notify, host, values)
            except PolicyError as error:
                return str(error)

    changed = ask(redis, change)
    if isinstance(changed, str):
        fail(changed, BAD_USE)
    return changed


async def _explained(settings: Settings, what: str) -> LaneExplained | FetchExplained:
    async with connect(settings.redis_url) as client:
        rules = settings.policy.overridden(await overrides.read(client))
        if is_fetch_id(what):
            return await explain_fetch(client, rules, what)
        return await explain_lane(client, rules, _lane_of(what))


def _lane_of(what: str) -> str:
    try:
        return lane_named(what)
    except PolicyError:
        fail(f"{what} is neither a host nor the id of a fetch (16 hex digits, a hyphen, 8 more)", BAD_USE)


def _show_fetch(found: FetchExplained) -> None:
    ahead = f", {found.ahead} ahead of it" if found.ahead is not None else ""
    typer.echo(f"{found.id}: {found.state}{ahead}; {found.why}")
    if found.result is not None and found.result.reason is not None:
        typer.echo(f"reason: {found.result.reason.value}, status {found.result.status}")
    if found.lane is not None:
        _show_lane(found.lane)


def _show_lane(found: LaneExplained) -> None:
    until = f" until {_clock(found.until_ms)}" if found.until_ms else ""
    typer.echo(f"{found.lane}: {found.state}{until}; {found.why}")
    owner = f", held by {found.owner}" if found.owner else ""
    typer.echo(f"{found.waiting} waiting, {found.in_flight} of {found.concurrency} in flight{owner}")
    if found.answers:
        typer.echo(
            "last answers: " + ", ".join(f"{said.what} at {_clock(said.at_ms)}" for said in found.answers)
        )


def _clock(at_ms: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_ms / 1000))
