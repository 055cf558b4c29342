"""Output and Redis access that several commands share."""

import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
import typer
from redis.asyncio import Redis
from rich.console import Console, RenderableType

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.process import run_until_signal, settings_from
from fetchfleet.worker.redis_support.errors import redis_at

T = TypeVar("T")

UNLIMITED_WIDTH = 200
"""Columns of a table that is not shown on a terminal."""

console = Console(stderr=True)


def query(redis_url: str | None, question: Callable[[Fleet, Redis], Coroutine[Any, Any, T]]) -> T:
    """Ask the fleet at the URL, or at that of the environment. Raises CommandError."""
    url = settings_from({"redis_url": redis_url}).redis_url

    async def asked() -> T:
        with redis_at(url):
            async with Fleet(url) as fleet, connect(url) as redis:
                return await question(fleet, redis)

    return run_until_signal(asked())


def print_json(value: Any, *, pretty: bool = False) -> None:
    """Print JSON on standard output: on one line, or indented for people."""
    text = msgspec.json.encode(value)
    if pretty:
        Console().print_json(text.decode())
    else:
        typer.echo(text)


def print_table(what: RenderableType) -> None:
    """Print on standard output, as wide as the terminal, or with UNLIMITED_WIDTH elsewhere."""
    width = None if sys.stdout.isatty() else UNLIMITED_WIDTH
    Console(highlight=False, width=width).print(what)


def check_position(position: str) -> None:
    """Raise CommandError if it is not the position of a stream's entry."""
    ms, _, sequence = position.partition("-")
    if not (ms.isdigit() and (sequence or "0").isdigit()):
        raise CommandError(f"{position} is no position; those look like 1700000000000-0", BAD_USE)
