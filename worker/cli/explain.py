"""The command that says why a host or a fetch waits."""

from typing import Annotated

import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import is_fetch_id
from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import echo, print_json, query
from fetchfleet.worker.cli.options import Json, PolicyFile, RedisUrl, Reveal
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.inspect.explain import FetchExplained, LaneExplained, explain_fetch, explain_lane
from fetchfleet.worker.local.process import settings_from
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import lane_named
from fetchfleet.worker.policy.model import PolicyError


def register(app: typer.Typer) -> None:
    """Make the command part of the app."""
    app.command()(explain)


def explain(
    what: Annotated[str, typer.Argument(help="A host, or the id of a fetch.")],
    redis: RedisUrl = None,
    policy_file: PolicyFile = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    reveal: Reveal = False,  # noqa: FBT002 a flag
) -> None:
    """Say why a host or a fetch is waiting, and until when."""
    settings = settings_from({"redis_url": redis, "policy": policy_file})

    async def read(_: Fleet, client: Redis) -> LaneExplained | FetchExplained:
        policy = settings.policy.overridden(await overrides.read(client))
        if is_fetch_id(what):
            return await explain_fetch(client, policy, what)
        try:
            lane = lane_named(what)
        except PolicyError:
            raise CommandError(
                f"{what} is neither a host nor the id of a fetch (16 hex digits, a hyphen, 8 more)", BAD_USE
            ) from None
        return await explain_lane(client, policy, lane)

    found = query(redis, read)
    if as_json:
        print_json(found, reveal=reveal)
    elif isinstance(found, FetchExplained):
        for line in render.fetch_lines(found):
            echo(line)
    else:
        for line in render.lane_lines(found):
            echo(line)
