"""The commands that show whether a fleet is well: status and health."""

import os
import socket

import msgspec
import typer

from fetchfleet.worker.cli import render
from fetchfleet.worker.cli.common import print_json, print_table, query
from fetchfleet.worker.cli.options import Json, RedisUrl
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.snapshot import is_alive


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (health, status):
        app.command()(command)


def health(redis: RedisUrl = None) -> None:
    """Exit 0 if a worker of this machine (or container) sends heartbeats, else 1."""
    name = os.environ.get("FETCHFLEET_WORKER_ID") or socket.gethostname()
    if not query(redis, lambda _, client: is_alive(client, name)):
        raise CommandError("no worker of this machine has shown a sign of life; its log may say why")


def status(redis: RedisUrl = None, as_json: Json = False) -> None:  # noqa: FBT002 a flag
    """Show workers, lanes and the backlog."""
    found = query(redis, lambda _, client: fleet_status(client))
    if as_json:
        rates = {
            "finished_per_s": found.finished_per_s,
            "received_bytes_per_s": found.received_bytes_per_s,
        }
        print_json({**msgspec.to_builtins(found), **rates})
    else:
        print_table(render.status_of(found))
