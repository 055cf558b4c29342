"""The commands for hosts: explain, pause, resume, reset."""

import os
import socket
from typing import Annotated

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import is_fetch_id
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import command_line, console, echo, print_json, print_table, query
from fetchfleet.worker.cli.options.shared import HOST_HELP, Json, PolicyFile, RedisUrl, Reveal, parse_host
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.inspect.explain import (
    FetchExplained,
    LaneExplained,
    explain_fetch,
    explain_lane,
    why_paused,
)
from fetchfleet.worker.inspect.policy_in_force import PolicyInForce, policy_in_force
from fetchfleet.worker.inspect.snapshot import worker_reports
from fetchfleet.worker.inspect.views.hosts import known_or_similar
from fetchfleet.worker.lanes import reset as resets
from fetchfleet.worker.lanes.reset import LaneReset, lanes_of
from fetchfleet.worker.local.process import settings_from
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import DEFAULT, EVERY_HOST_BELOW, in_shell
from fetchfleet.worker.policy.overrides import Edited
from fetchfleet.worker.policy.pauses import Pauses, pauses_of
from fetchfleet.worker.util.quantities import age, count

NAMES_SHOWN = 20
RESET_TIMEOUT_S = 5.0
POLL_S = 0.1


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (explain, pause, resume, reset):
        app.command(epilog=f"Example: fetchfleet {command.__name__} api.example.com")(command)


def explain(
    target: Annotated[str, typer.Argument(metavar="HOST|FETCH", help="A host, or a fetch ID.")],
    redis: RedisUrl = None,
    policy_file: PolicyFile = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
) -> None:
    """Explain why a host or a fetch is waiting, and until when."""
    settings = settings_from({"redis_url": redis, "policy": policy_file})

    def reset_command(name: str) -> str:
        return command_line("reset", name, redis_url=redis)

    async def read(_: Fleet, client: Redis) -> tuple[LaneExplained | FetchExplained, PolicyInForce]:
        if is_fetch_id(target):
            in_force = await policy_in_force(client, settings.policy)
            return await explain_fetch(client, in_force.policy, target, reset_command=reset_command), in_force
        try:
            host = parse_host(target)
        except CommandError as error:
            raise CommandError(
                f"{target} is neither a host nor a fetch ID (16 hex digits, a hyphen, 8 more): {error}",
                BAD_USE,
            ) from None
        if host == DEFAULT or host.startswith(EVERY_HOST_BELOW):
            raise CommandError(
                f"{host} stands for several hosts; give one host, or see: fetchfleet status", BAD_USE
            )
        in_force = await policy_in_force(client, settings.policy, host)
        explained = await explain_lane(client, in_force.policy, host, reset_command=reset_command(host))
        return explained, in_force

    explained, in_force = query(redis, read)
    if isinstance(explained, FetchExplained):
        lane, lines = explained.lane, render.fetch_lines(explained)
    else:
        lane, lines = explained, render.lane_lines(explained)
    if as_json:
        policy = {} if lane is None else {"policy": in_force.summary(lane.lane)}
        print_json({**msgspec.to_builtins(explained), **policy}, reveal=reveal)
        return
    for line in [*lines, *(() if lane is None else render.policy_lines(in_force, lane.lane))]:
        echo(line)


def pause(
    host: Annotated[
        str | None, typer.Argument(metavar="HOST", help=f"{HOST_HELP} Without HOST, list all pauses.")
    ] = None,
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Start no more fetches to a host. Fetches in flight continue."""
    if host is None:
        _list_pauses(redis, as_json=as_json)
        return
    name, settings = parse_host(host), settings_from({"redis_url": redis})

    async def change(fleet: Fleet, client: Redis) -> tuple[Edited, bool, list[str]]:
        file = (await policy_in_force(client, settings.policy, name)).file
        edited = await overrides.pause(client, fleet.notify, name, file)
        return edited, *await known_or_similar(client, name)

    edited, known, similar = query(redis, change)
    now = pauses_of(edited.after, {})
    not_stopped = now.not_stopped(name)
    ended = sorted(pauses_of(edited.before, {}).excepted.keys() - now.excepted)
    if as_json:
        print_json({"name": name, "known": known, "not_stopped": not_stopped, "ended_exceptions": ended})
        return
    echo(f"{name} is paused; resume it with: fetchfleet resume {in_shell(name)}")
    for other in not_stopped[:NAMES_SHOWN]:
        echo(f"{other} is an exception and continues; pause it with: fetchfleet pause {in_shell(other)}")
    if len(not_stopped) > NAMES_SHOWN:
        echo(f"and {len(not_stopped) - NAMES_SHOWN} more exceptions; list them with: fetchfleet pause")
    if not known:
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        echo(f"no fetch was sent to {name} in the last {age(keys.GATE_TTL_MS / 1000)}{hint}")


def resume(
    host: Annotated[str, typer.Argument(metavar="HOST", help=HOST_HELP)],
    redis: RedisUrl = None,
    *,
    excepted: Annotated[
        bool, typer.Option("--except", help="Resume although a wider pause covers it, as an exception.")
    ] = False,
) -> None:
    """Resume the fetches of a paused host."""
    name, settings = parse_host(host), settings_from({"redis_url": redis})

    async def change(fleet: Fleet, client: Redis) -> tuple[Edited, Policy]:
        file = (await policy_in_force(client, settings.policy, name)).file
        try:
            return await overrides.resume(client, fleet.notify, name, file, excepted=excepted), file
        except PolicyError as error:
            raise CommandError(str(error), BAD_USE) from None

    edited, file = query(redis, change)
    before, now = pauses_of(edited.before, {}), pauses_of(edited.after, file.pauses.in_file)
    if name in now.excepted:
        end = f"fetchfleet pause {in_shell(name)}"
        echo(f"{name} is resumed, as an exception from wider pauses; end that with: {end}")
    elif name in now.lifted:
        echo(f"{name} is resumed, although the workers' policy file pauses it")
    elif name in before.paused:
        echo(f"{name} is resumed")
    else:
        is_wide = name == DEFAULT or name.startswith(EVERY_HOST_BELOW)
        command = "fetchfleet status" if is_wide else f"fetchfleet explain {name}"
        echo(f"{name} was not paused; to see why fetches wait: {command}")
    for other in now.below(name)[:NAMES_SHOWN]:
        echo(f"{other} has a pause of its own; end it with: fetchfleet resume {in_shell(other)}")
    for other in sorted(before.excepted.keys() - now.excepted.keys())[:NAMES_SHOWN]:
        echo(f"{other} is no longer an exception: no pause covers it")


def reset(
    host: Annotated[str, typer.Argument(metavar="HOST", help=HOST_HELP)],
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Close the circuit breaker of a host and end its cool-down.

    A used-up quota and a learned concurrency are cleared too, and waiting retries are due at once.
    """
    name = parse_host(host)
    by = f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"

    async def change(fleet: Fleet, client: Redis) -> tuple[list[LaneReset], list[str], Pauses]:
        lanes = await lanes_of(client, name)
        if not lanes:
            _, similar = await known_or_similar(client, name)
            hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
            recently = age(keys.GATE_TTL_MS / 1000)
            raise CommandError(f"no fetch was sent to {name} in the last {recently}{hint}")
        lane_resets = await resets.reset(client, fleet.notify, lanes, by)
        workers = [*await worker_reports(client)]  # drained workers apply resets too
        await resets.await_applied(client, lane_resets, RESET_TIMEOUT_S if workers else 0, POLL_S)
        return lane_resets, workers, pauses_of(await overrides.read(client), {})

    lane_resets, workers, pauses = query(redis, change)
    if as_json:
        print_json({"name": name, "lanes": lane_resets})
        return
    changed = [of for of in lane_resets if of.reset or of.retries]
    for of in (changed if len(lane_resets) > 1 else lane_resets)[:NAMES_SHOWN]:
        echo(render.reset_line(of))
        stop = pauses.stop(of.lane)
        if stop is not None:
            echo(f"{of.lane}: {why_paused(of.lane, stop)}")
    if len(lane_resets) > 1:
        echo(f"{count(len(lane_resets), 'host')} reset; {len(changed):,} had a state to clear")
    late = [of for of in lane_resets if of.pending and of.held]
    if not workers:
        console.print("no worker is running; the next one that acquires a lane applies its reset")
    elif late:
        console.print(
            f"{count(len(late), 'host')} not reset yet: held by a worker of a version without resets"
        )


def _list_pauses(redis_url: str | None, *, as_json: bool) -> None:
    """Print every pause and exception that was set at run time."""
    pauses = pauses_of(query(redis_url, lambda _, client: overrides.read(client)), {})
    if as_json:
        print_json({"paused": pauses.paused, "excepted": pauses.excepted})
    elif not pauses.paused:
        echo("nothing is paused at run time")
    else:
        print_table(render.pauses_of(pauses))
