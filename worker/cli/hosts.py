"""The commands about a host: why it waits, and whether it may go on."""

import os
import socket
from difflib import get_close_matches
from typing import Annotated

import msgspec
import typer
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import is_fetch_id
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import console, echo, print_json, print_table, query
from fetchfleet.worker.cli.options.shared import Host, Json, PolicyFile, RedisUrl, Reveal, named
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
from fetchfleet.worker.lanes import reset as resets
from fetchfleet.worker.lanes.reset import LaneReset, lanes_of
from fetchfleet.worker.local.process import settings_from
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import DEFAULT, EVERY_HOST_BELOW, in_shell
from fetchfleet.worker.policy.overrides import Edited
from fetchfleet.worker.policy.pauses import Pauses, pauses_of

NAMES_SHOWN = 20
APPLIED_WITHIN_S = 5.0
LOOK_EVERY_S = 0.1
MAX_NAMES_COMPARED = 1000
"""Among so many lanes a command looks for the one whose name was mistyped."""


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (explain, pause, resume, reset):
        app.command(epilog=f"Example: fetchfleet {command.__name__} api.example.com")(command)


def explain(
    what: Annotated[str, typer.Argument(metavar="HOST|FETCH", help="A host, or the ID of a fetch.")],
    redis: RedisUrl = None,
    policy_file: PolicyFile = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
) -> None:
    """Explain why a host or a fetch is waiting, and until when."""
    settings = settings_from({"redis_url": redis, "policy": policy_file})

    async def read(_: Fleet, client: Redis) -> tuple[LaneExplained | FetchExplained, PolicyInForce]:
        if is_fetch_id(what):
            in_force = await policy_in_force(client, settings.policy)
            return await explain_fetch(client, in_force.policy, what), in_force
        try:
            lane = named(what)
        except CommandError as error:
            raise CommandError(
                f"{what} is neither a host nor the id of a fetch (16 hex digits, a hyphen, 8 more): {error}",
                BAD_USE,
            ) from None
        if lane == DEFAULT or lane.startswith(EVERY_HOST_BELOW):
            raise CommandError(
                f"explain says why one host waits, not {lane}; see: fetchfleet status", BAD_USE
            )
        in_force = await policy_in_force(client, settings.policy, lane)
        return await explain_lane(client, in_force.policy, lane), in_force

    found, in_force = query(redis, read)
    of_lane = found.lane if isinstance(found, FetchExplained) else found
    if as_json:
        known = {} if of_lane is None else {"policy": in_force.summary(of_lane.lane)}
        print_json({**msgspec.to_builtins(found), **known}, reveal=reveal)
        return
    for line in render.fetch_lines(found) if isinstance(found, FetchExplained) else render.lane_lines(found):
        echo(line)
    for line in () if of_lane is None else render.policy_lines(in_force, of_lane.lane):
        echo(line)


def pause(
    host: Annotated[
        str | None, typer.Argument(metavar="HOST", help=f"{Host}. Without HOST, list all pauses.")
    ] = None,
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Stop starting fetches to a host. Fetches in flight end normally."""
    if host is None:
        _list_pauses(redis, as_json=as_json)
        return
    name, settings = named(host), settings_from({"redis_url": redis})

    async def change(fleet: Fleet, client: Redis) -> tuple[Edited, bool, list[str]]:
        file = (await policy_in_force(client, settings.policy, name)).file
        edited = await overrides.pause(client, fleet.notify, name, file)
        return edited, *await _known(client, name)

    edited, known, like = query(redis, change)
    now = pauses_of(edited.after, {})
    not_stopped = now.not_stopped(name)
    ended = sorted(pauses_of(edited.before, {}).excepted.keys() - now.excepted)
    if as_json:
        print_json({"name": name, "known": known, "not_stopped": not_stopped, "ended_exceptions": ended})
        return
    echo(f"{name} is paused; go on with: fetchfleet resume {in_shell(name)}")
    for other in not_stopped[:NAMES_SHOWN]:
        echo(f"not stopped: {other}, an exception; stop it with: fetchfleet pause {in_shell(other)}")
    if len(not_stopped) > NAMES_SHOWN:
        echo(f"and {len(not_stopped) - NAMES_SHOWN} more exceptions; list them with: fetchfleet pause")
    if not known:
        hint = f"; did you mean {' or '.join(like)}?" if like else ""
        echo(
            f"no fetch has ever gone to {name}, as far as Redis remembers"
            f" ({render.age(keys.GATE_TTL_MS / 1000)} after the last one){hint}"
        )


def resume(
    host: Annotated[str, typer.Argument(metavar="HOST", help=Host)],
    redis: RedisUrl = None,
    *,
    excepted: Annotated[
        bool, typer.Option("--except", help="Resume even under a wider pause, as an exception from it.")
    ] = False,
) -> None:
    """Resume the fetches of a paused host."""
    name, settings = named(host), settings_from({"redis_url": redis})

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
        echo(f"{name} goes on, as an exception from wider pauses; end that with: {end}")
    elif name in now.lifted:
        echo(f"{name} goes on, whatever the workers' policy file pauses")
    elif name in before.paused:
        echo(f"{name} goes on")
    else:
        wide = name == DEFAULT or name.startswith(EVERY_HOST_BELOW)
        look = "fetchfleet status" if wide else f"fetchfleet explain {name}"
        echo(f"{name} was not paused; see what waits: {look}")
    for other in now.below(name)[:NAMES_SHOWN]:
        echo(f"still paused by itself: {other}; go on with: fetchfleet resume {in_shell(other)}")
    for other in sorted(before.excepted.keys() - now.excepted.keys())[:NAMES_SHOWN]:
        echo(f"no exception any more: {other}; no pause covers it")


def reset(
    host: Annotated[str, typer.Argument(metavar="HOST", help=Host)],
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
) -> None:
    """Clear what keeps a host waiting.

    That is an open circuit breaker, a cool-down, a quota, and a learned concurrency.
    """
    name = named(host)
    by = f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"

    async def change(fleet: Fleet, client: Redis) -> tuple[list[LaneReset], list[str], Pauses]:
        lanes = await lanes_of(client, name)
        if not lanes:
            _, like = await _known(client, name)
            hint = f"; did you mean {' or '.join(like)}?" if like else ""
            raise CommandError(f"no fetch has ever gone to {name}, as far as Redis remembers{hint}")
        done = await resets.reset(client, fleet.notify, lanes, by)
        workers = [*await worker_reports(client)]  # those that start no fetch apply it too
        await resets.await_applied(client, done, APPLIED_WITHIN_S if workers else 0, LOOK_EVERY_S)
        return done, workers, pauses_of(await overrides.read(client), {})

    done, workers, pauses = query(redis, change)
    if as_json:
        print_json({"name": name, "lanes": done})
        return
    shown = [one for one in done if one.reset or one.retries] if len(done) > 1 else done
    for one in shown[:NAMES_SHOWN]:
        echo(render.reset_line(one))
        stop = pauses.stop(one.lane)
        if stop is not None:
            echo(f"{one.lane}: {why_paused(one.lane, stop)}")
    if len(done) > 1:
        echo(f"{render.count(len(done), 'host')} reset, {len(shown)} of which had something to forget")
    late = [one for one in done if one.pending and one.held]
    if not workers:
        console.print(
            "no worker is running; the next one that takes a lane applies its reset",
        )
    elif late:
        console.print(
            f"{render.count(len(late), 'host')} not reset yet: a worker of an older version knows no resets",
        )


def _list_pauses(redis_url: str | None, *, as_json: bool) -> None:
    """Print every pause and exception that was set at run time."""
    found = pauses_of(query(redis_url, lambda _, client: overrides.read(client)), {})
    if as_json:
        print_json({"paused": found.paused, "excepted": found.excepted})
    elif not found.paused:
        echo("nothing is paused at run time")
    else:
        print_table(render.pauses_of(found))


async def _known(redis: Redis, name: str) -> tuple[bool, list[str]]:
    """Return whether a lane of that name is known, and if not, names that are spelled like it."""
    if name == DEFAULT or await lanes_of(redis, name, at_most=1):
        return True, []
    lanes = [text_of(lane) for lane in await redis.zrange(keys.ATTENTION, 0, MAX_NAMES_COMPARED - 1)]
    return False, get_close_matches(name.removeprefix(EVERY_HOST_BELOW), lanes, 2, 0.8)
