"""The commands that show whether a fleet is well: status and health."""

import os
import socket
from typing import Annotated

import msgspec
import typer

from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import print_json, print_table, query
from fetchfleet.worker.cli.options import Json, RedisPatience, RedisUrl
from fetchfleet.worker.errors import UNREACHABLE, CommandError
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.snapshot import is_alive
from fetchfleet.worker.observability.process_health import ask_workers

Live = Annotated[bool, typer.Option("--live", help="The loop of each worker here turns; needs no Redis.")]
Ready = Annotated[bool, typer.Option("--ready", help="Each worker here would take work now.")]


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (health, status):
        app.command()(command)


def health(redis: RedisUrl = None, live: Live = False, ready: Ready = False) -> None:  # noqa: FBT002 flags
    """Exit 0 if a worker of this machine (or container) sends heartbeats, else 1.

    With --live or --ready, ask the workers themselves, without Redis.
    """
    if live or ready:
        _ask_workers(ready=ready)
        return
    name = os.environ.get("FETCHFLEET_WORKER_ID") or socket.gethostname()
    try:
        is_well = query(redis, lambda _, client: is_alive(client, name), 0)
    except CommandError as error:
        if error.exit_code != UNREACHABLE:
            raise
        raise CommandError(str(error).partition("\n")[0]) from None
    if not is_well:
        raise CommandError("no worker of this machine has shown a sign of life; its log may say why")


def _ask_workers(*, ready: bool) -> None:
    """Raise CommandError unless there are workers here and all of them are live, or also ready."""
    asked = ask_workers(os.environ.get("FETCHFLEET_WORKER_ID"))
    if not asked:
        raise CommandError("no worker of this user runs on this machine (or in this container)")
    faults = [
        f"process {at.pid} does not answer: its event loop does not turn" for at in asked if not at.told
    ]
    if ready:
        faults += [f"{at.told.worker} {why}" for at in asked if at.told for why in at.told.not_ready]
    if faults:
        raise CommandError("\n".join(faults))


def status(
    redis: RedisUrl = None,
    as_json: Json = False,  # noqa: FBT002 a flag
    redis_patience: RedisPatience = None,
) -> None:
    """Show workers, lanes and the backlog."""
    found = query(redis, lambda _, client: fleet_status(client), redis_patience)
    if as_json:
        rates = {
            "finished_per_s": found.finished_per_s,
            "received_bytes_per_s": found.received_bytes_per_s,
        }
        print_json({**msgspec.to_builtins(found), **rates})
    else:
        print_table(render.status_of(found))
