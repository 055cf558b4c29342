"""The command `top`: the fleet live in a terminal."""

import os
import sys

import typer
from redis.asyncio import Redis

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.cli.common import query
from fetchfleet.worker.cli.options.shared import PolicyFile, RedisPatience, RedisUrl
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.inspect.overview import Overview, overview
from fetchfleet.worker.local.process import run_until_signal, settings_from
from fetchfleet.worker.observability import redact
from fetchfleet.worker.settings import Settings

REPLY_WITHIN_S = 5.0
"""The time after which the display says that Redis does not answer."""

UNUSABLE_TERMINALS = {"", "dumb", "unknown"}
"""Values of TERM of terminals without a cursor that can be moved."""


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog="Example: fetchfleet top")(top)


def top(redis: RedisUrl = None, policy_file: PolicyFile = None, redis_patience: RedisPatience = None) -> None:
    """Show hosts, workers, batches and events of a fleet live. The key ? lists the keys."""
    if not is_terminal():
        raise CommandError(
            "top needs a terminal that can move its cursor; in another one, use: fetchfleet status --watch",
            BAD_USE,
        )
    try:
        import textual  # noqa: F401, PLC0415 it takes 0.2 s
    except ImportError:
        raise CommandError("top needs textual: pip install 'fetchfleet[console]'", BAD_USE) from None
    settings = settings_from({"redis_url": redis, "policy": policy_file})

    async def read(_: Fleet, client: Redis) -> Overview:
        return await overview(client)

    query(redis, read, redis_patience)  # waits for Redis, and ends the command if it denies what top needs
    run_until_signal(_show(settings))


def is_terminal() -> bool:
    """Return whether the three standard streams are a terminal that can move its cursor."""
    streams = (sys.stdin, sys.stdout, sys.stderr)  # textual writes to standard error
    return all(of.isatty() for of in streams) and os.environ.get("TERM", "") not in UNUSABLE_TERMINALS


async def _show(settings: Settings) -> None:
    """Run the display until it is left."""
    from fetchfleet.worker.top.app import TopApp  # noqa: PLC0415 it loads textual

    url = settings.redis_url
    source = redact.url(url).partition("?")[0]
    async with Fleet(url, redis_patience_s=0) as fleet, connect(url, REPLY_WITHIN_S) as client:
        await TopApp(client, fleet.notify, source, settings.policy).run_async()
