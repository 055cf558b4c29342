"""What every command shares: settings, how it ends, how it says what went wrong."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
import uvloop
from redis.exceptions import RedisError
from rich.console import Console

from fetchfleet.jobs.errors import JobsError
from fetchfleet.worker.errors import BAD_USE, FAILED, INTERRUPTED, CommandError
from fetchfleet.worker.http.net.tls_contexts import check
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.redis_support.errors import redis_at
from fetchfleet.worker.settings import Settings, SettingsError, load_settings
from fetchfleet.worker.util import aio

T = TypeVar("T")

console = Console(stderr=True)

_FORESEEN = (CommandError, JobsError, RedisError, OSError)


def settings_of(**flags: Any) -> Settings:
    """The settings that flags and environment make; bad ones end the command."""
    try:
        return load_settings(flags, os.environ)
    except SettingsError as error:
        fail(str(error), BAD_USE)


def work_settings_of(**flags: Any) -> Settings:
    """The same for those who fetch: the files that the policy names must be there."""
    settings = settings_of(**flags)
    try:
        check(settings.policy)
    except PolicyError as error:
        fail(f"--policy: {error}", BAD_USE)
    return settings


def ask(redis: str | None, question: Callable[[str], Coroutine[Any, Any, T]]) -> T:
    """What the fleet's Redis answers; the question is given its URL."""
    url = settings_of(redis_url=redis).redis_url

    async def asked() -> T:
        with redis_at(url):
            return await question(url)

    return complete(asked())


def complete(work: Coroutine[Any, Any, T], if_interrupted: str = "interrupted") -> T:
    """The work's result; an error that can be foreseen ends the command with one sentence."""
    try:
        return uvloop.run(_unless_interrupted(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        fail(if_interrupted, INTERRUPTED)
    except Exception as error:
        first = _first(error)
        if isinstance(first, _FORESEEN):
            fail(redact.text(first), first.exit_code if isinstance(first, CommandError) else FAILED)
        raise


async def _unless_interrupted(work: Coroutine[Any, Any, T]) -> T:
    """The work's result; CancelledError once SIGINT or SIGTERM came and the work has ended.

    One cancellation may be forgotten on its way (worker/util/aio.py), and then the signal was for nothing.
    """
    task = asyncio.create_task(work)
    await aio.until(task, aio.signals())
    if not task.done():
        await aio.end(task)
        raise asyncio.CancelledError
    return await task


def say_json(value: Any, *, pretty: bool = False) -> None:
    """JSON on standard output: one line for machines, or pretty for people."""
    text = msgspec.json.encode(value)
    if pretty:
        Console().print_json(text.decode())
    else:
        typer.echo(text)


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong and end the command."""
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _first(error: BaseException) -> BaseException:
    """The error itself, out of whatever groups it is in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


File = Annotated[str, typer.Argument(help="URLs or JSON fetches, one a line; - for standard input.")]


RedisUrl = Annotated[str | None, typer.Option("--redis", help="The fleet's Redis (FETCHFLEET_REDIS_URL).")]


Json = Annotated[bool, typer.Option("--json", help="For machines: JSON on standard output.")]


Out = Annotated[str | None, typer.Option(help="Folder for bodies (FETCHFLEET_OUT), ./data by default.")]


In = Annotated[str | None, typer.Option("--in", help="Folder of files to send (FETCHFLEET_IN).")]


PolicyFile = Annotated[str | None, typer.Option("--policy", help="TOML (FETCHFLEET_POLICY).")]


AllowNet = Annotated[
    str | None,
    typer.Option(help="CIDR[,CIDR] that may be dialled although not public (FETCHFLEET_ALLOW_NET)."),
]


DenyNet = Annotated[
    str | None,
    typer.Option(help="CIDR[,CIDR] that is never dialled, allowed or public (FETCHFLEET_DENY_NET)."),
]


Engine = Annotated[str | None, typer.Option(help="httpx or reqwest (FETCHFLEET_ENGINE).")]


Sink = Annotated[
    str | None, typer.Option(help="files, a body each, or warc: WARC segments (FETCHFLEET_SINK).")
]


Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")]


Report = Annotated[Path | None, typer.Option(help="Write each result as a JSON line to this file.")]


LinesTo = Annotated[
    str | None,
    typer.Option(
        "--lines-to",
        help="Ask for JSON Lines and gather the records of all bodies in this file; - or stream: on standard"
        " output.",
    ),
]
