"""Output and Redis access that several commands share."""

import re
import shlex
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import typer
from redis.asyncio import Redis
from rich.console import RenderableType
from rich.highlighter import JSONHighlighter

from fetchfleet.jobs.client.fleet import Fleet, Via
from fetchfleet.jobs.contract.safe_text import shown, shown_json, shown_lines
from fetchfleet.jobs.errors import RoleError
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError
from fetchfleet.worker.local.process import run_until_signal, settings_from
from fetchfleet.worker.local.progress import Screen, StandardError
from fetchfleet.worker.observability import redact
from fetchfleet.worker.redis_support.errors import GoOn, followed_at, redis_at

T = TypeVar("T")

UNLIMITED_WIDTH = 200
"""Columns of a table that is not shown on a terminal."""

_POSITION = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")

console = StandardError()


def query(
    redis_url: str | None,
    question: Callable[[Fleet, Redis], Coroutine[Any, Any, T]],
    patience_s: float | None = None,
    go_on: GoOn | None = None,
    via: str | None = None,
) -> T:
    """Ask the fleet at the URL, or at that of the environment. Raises CommandError.

    question: is asked again if Redis fails the connection that it is given. patience_s: for how long; that of
    the environment if None. go_on: makes the command to repeat when the patience is over. via: of --via.
    """
    settings = settings_from({"redis_url": redis_url, "redis_patience_s": patience_s, "via": via})
    url, patience_s = settings.redis_url, settings.redis_patience_s
    by: Via = "inbox" if settings.via == "inbox" else "lanes"

    async def asked() -> T:
        with redis_at(url), followed_at(url, go_on):
            async with (
                Fleet(url, redis_patience_s=patience_s, warn=warn, via=by) as fleet,
                connect(url) as redis,
            ):
                return await fleet.call(question, fleet, redis)

    try:
        return run_until_signal(asked())
    except RoleError as error:
        raise CommandError(str(error), BAD_USE) from None


def warn(message: str) -> None:
    """Print a warning on standard error."""
    console.print(redact.text(message), style="yellow", soft_wrap=True)


def command_line(*words: str, redis_url: str | None) -> str:
    """Return a command of fetchfleet as it is typed. redis_url: of --redis; if secret, it is shown as URL."""
    is_plain = redis_url is not None and redact.url(redis_url) == redis_url
    redis = ["--redis", redis_url if is_plain else "URL"] if redis_url else []
    return shlex.join(["fetchfleet", *words, *redis])


@contextmanager
def printing() -> Iterator[None]:
    """Turn an error of standard output within the block into the end of the command.

    If its reader has gone, as with `| head`, the command ends without a word, else with a CommandError.
    """
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(FAILED) from None
    except OSError as error:
        raise CommandError(f"standard output: {error.strerror}") from None


def echo(text: str) -> None:
    """Print a line on standard output, safe to show."""
    with printing():
        typer.echo(shown(text))


def echo_lines(text: str) -> None:
    """Print lines on standard output, safe to show."""
    with printing():
        typer.echo(shown_lines(text))


def print_json(
    value: Any, *, pretty: bool = False, reveal: bool = False, hide: Callable[[Any], Any] = redact.record
) -> None:
    """Print JSON on standard output: on one line, or indented for people.

    reveal: with its secrets. Otherwise `hide` hides them, and `redacted` is true if there are any.
    """
    plain = msgspec.to_builtins(value)
    text = msgspec.json.encode(plain if reveal else hide(plain))
    if pretty:
        indented = msgspec.json.format(text, indent=2).decode()
        with printing():
            Screen().print(JSONHighlighter()(shown_json(indented)), soft_wrap=True)
    else:
        echo(shown_json(text.decode()))


def print_table(what: RenderableType) -> None:
    """Print on standard output, as wide as the terminal, or with UNLIMITED_WIDTH elsewhere."""
    width = None if sys.stdout.isatty() else UNLIMITED_WIDTH
    with printing():
        Screen(width=width).print(what)


def check_position(position: str) -> None:
    """Raise CommandError if it is not the position of a stream's entry."""
    found = _POSITION.fullmatch(position)
    if found is None or max(int(found[1]), int(found[2] or 0)) >= 1 << 64:
        raise CommandError(f"{position} is no position; those look like 1700000000000-0", BAD_USE)
