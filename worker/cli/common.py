"""Redis access, and output to standard output and standard error, for all commands."""

import shlex
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import typer
from redis.asyncio import Redis
from rich.console import RenderableType
from rich.highlighter import JSONHighlighter

from fetchfleet.jobs.client.fleet import Fleet, Via
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.ids import is_position
from fetchfleet.jobs.contract.safe_text import shown, shown_json, shown_lines
from fetchfleet.jobs.errors import RoleError
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.errors import BAD_USE, FAILED, INTERRUPTED, CommandError
from fetchfleet.worker.local.output.output_files import Outputs
from fetchfleet.worker.local.output.progress import SafeConsole, StandardError
from fetchfleet.worker.local.process import run_until_signal, settings_from
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.redis_support.errors import NextCommand, followed_at, redis_at
from fetchfleet.worker.util.quantities import count

T = TypeVar("T")

UNLIMITED_WIDTH = 200
"""The columns of a table that is not printed on a terminal."""

console = StandardError()


def query(
    redis_url: str | None,
    question: Callable[[Fleet, Redis], Coroutine[Any, Any, T]],
    patience_s: float | None = None,
    next_command: NextCommand | None = None,
    via: str | None = None,
) -> T:
    """Return the answer of a fleet to a question. Raises CommandError.

    redis_url, patience_s, via: the values of the options; if None, those of the environment. question: called
    again, for patience_s, if Redis fails. next_command: returns the command that continues after that.
    """
    settings = settings_from({"redis_url": redis_url, "redis_patience_s": patience_s, "via": via})
    url, patience_s = settings.redis_url, settings.redis_patience_s
    by: Via = "inbox" if settings.via == "inbox" else "lanes"

    async def ask() -> T:
        with redis_at(url), followed_at(url, next_command):
            async with (
                Fleet(url, redis_patience_s=patience_s, warn=warn, via=by) as fleet,
                connect(url) as redis,
            ):
                return await fleet.call(question, fleet, redis)

    try:
        return run_until_signal(ask())
    except RoleError as error:
        raise CommandError(str(error), BAD_USE) from None


def warn(message: str) -> None:
    """Print a warning on standard error."""
    console.print(redact.text(message), style="yellow", soft_wrap=True)


def command_line(*words: str, redis_url: str | None) -> str:
    """Return a command of fetchfleet as it is typed. A redis_url with a secret is replaced by `URL`."""
    is_public = redis_url is not None and redact.url(redis_url) == redis_url
    redis = ["--redis", redis_url if is_public else "URL"] if redis_url else []
    return shlex.join(["fetchfleet", *words, *redis])


@contextmanager
def printing() -> Iterator[None]:
    """End the command if standard output fails within the block.

    If the reader of the output has ended, as with `| head`, it ends silently. Else raises CommandError.
    """
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(FAILED) from None
    except OSError as error:
        raise CommandError(f"standard output: {error.strerror}") from None


@contextmanager
def until_interrupted() -> Iterator[None]:
    """End the block without an error if it is interrupted, as with Ctrl-C."""
    try:
        yield
    except CommandError as error:
        if error.exit_code != INTERRUPTED:
            raise


def echo(text: str) -> None:
    """Print a line on standard output, with unsafe characters escaped."""
    with printing():
        typer.echo(shown(text))


def echo_lines(text: str) -> None:
    """Print lines on standard output, with unsafe characters escaped."""
    with printing():
        typer.echo(shown_lines(text))


def print_json(
    value: Any, *, pretty: bool = False, reveal: bool = False, hide: Callable[[Any], Any] = redact.record
) -> None:
    """Print JSON on standard output, on one line or indented (pretty).

    hide: masks the secrets, unless they are to be revealed. It sets `redacted` if it has masked any.
    """
    fields = msgspec.to_builtins(value)
    text = msgspec.json.encode(fields if reveal else hide(fields))
    if pretty:
        indented = msgspec.json.format(text, indent=2).decode()
        with printing():
            SafeConsole().print(JSONHighlighter()(shown_json(indented)), soft_wrap=True)
    else:
        echo(shown_json(text.decode()))


def print_dry_run(
    file: str | None,
    only_failed: Path | None,
    outputs: Outputs,
    changes: Sequence[Callable[[Fetch], Fetch]],
    reading: Mapping[str, Any],
    policy: Policy,
    slots: int = 0,
) -> None:
    """Check a list and print its fetches by host. The arguments are those of `open_fetches` and `report`."""
    from fetchfleet.worker.local.lists.dry_run import HostCounts, report  # noqa: PLC0415 few commands need it
    from fetchfleet.worker.local.output.check_progress import shown_while_checked  # noqa: PLC0415
    from fetchfleet.worker.local.run import open_fetches  # noqa: PLC0415

    hosts = HostCounts()
    try:
        with shown_while_checked(hosts, console) as receiver:
            fetches = open_fetches(file, only_failed, outputs, changes, reading, receiver)
        with fetches:
            skipped = f", {count(fetches.skipped, 'invalid line')} skipped" if fetches.skipped else ""
            echo(f"{count(fetches.count, 'fetch', 'fetches')}{skipped}; nothing was enqueued (dry run)")
    finally:
        if hosts.total:
            echo_lines("\n".join(report(hosts, policy, slots)))


def print_table(table: RenderableType) -> None:
    """Print on standard output, as wide as the terminal; UNLIMITED_WIDTH if it is not a terminal."""
    width = None if sys.stdout.isatty() else UNLIMITED_WIDTH
    with printing():
        SafeConsole(width=width).print(table)


def check_position(position: str) -> None:
    """Raise CommandError if the text is not the position of a stream record."""
    if not is_position(position):
        raise CommandError(f"{position} is not a position; write it like 1700000000000-0", BAD_USE)
