"""The command line. Exit: 0 all stored, 1 some failed, 2 bad use, 130 interrupted."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvloop
from redis.exceptions import RedisError
from rich.console import Console

from jobs import Counts, InvalidFetchError, JobsError
from jobs.lines import read_fetches
from jobs.model import Fetch
from worker import log, redact
from worker import run as runs
from worker.embedded import EmbeddedRedisError
from worker.hand_off import run_worker
from worker.local import WorkersError
from worker.runtime import RefusedRedisError
from worker.settings import Settings, SettingsError, load_settings
from worker.snapshot import is_alive
from worker.unreachable import UnreachableRedisError

T = TypeVar("T")

FAILED = 1
BAD_USE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="fetchfleet",
    help="Bulk outbound fetching that never loses a job and never hammers an upstream.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

File = Annotated[str, typer.Argument(help="URLs or JSON fetches, one a line; - for standard input.")]
RedisUrl = Annotated[str | None, typer.Option("--redis", help="The fleet's Redis (FETCHFLEET_REDIS_URL).")]
Out = Annotated[str | None, typer.Option(help="Folder for bodies (FETCHFLEET_OUT), ./data by default.")]
PolicyFile = Annotated[str | None, typer.Option("--policy", help="TOML (FETCHFLEET_POLICY).")]
AllowNet = Annotated[
    str | None,
    typer.Option(help="CIDR[,CIDR] that may be dialled although not public (FETCHFLEET_ALLOW_NET)."),
]
Engine = Annotated[str | None, typer.Option(help="httpx (FETCHFLEET_ENGINE).")]
Report = Annotated[Path | None, typer.Option(help="Write each result as a JSON line to this file.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")]
Wait = Annotated[bool, typer.Option("--wait", help="Show progress until all is fetched.")]


@app.command()
def run(
    file: File,
    workers: Workers = 1,
    out: Out = None,
    policy: PolicyFile = None,
    allow_net: AllowNet = None,
    report: Report = None,
    engine: Engine = None,
) -> None:
    """Fetch FILE with a fleet on this machine: Redis and workers come and go with it."""
    settings = _settings(out=out, policy=policy, allow_net=allow_net, engine=engine)
    fetches = _read(file)
    flags = {"--out": out, "--policy": policy, "--allow-net": allow_net, "--engine": engine}
    arguments = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
    counts = _complete(
        runs.run(
            fetches,
            settings,
            workers=workers,
            worker_arguments=arguments,
            report=report,
            console=console,
        ),
        "interrupted; the same command goes on where this one stopped",
    )
    console.print(f"bodies are in {settings.out}", highlight=False, soft_wrap=True)
    _exit_by(counts)


@app.command()
def submit(file: File, redis: RedisUrl = None, wait: Wait = False, report: Report = None) -> None:  # noqa: FBT002
    """Enqueue FILE to a running fleet."""
    settings = _settings(redis_url=redis)
    fetches = _read(file)
    batch, counts = _complete(
        runs.submit(
            fetches, settings.redis_url, wait=wait or report is not None, report=report, console=console
        ),
        "interrupted; what was enqueued is fetched all the same",
    )
    if counts is not None:
        _exit_by(counts)
    console.print(f"{len(fetches)} fetches enqueued as batch", highlight=False)
    typer.echo(batch.id)


@app.command()
def worker(
    redis: RedisUrl = None,
    out: Out = None,
    policy: PolicyFile = None,
    allow_net: AllowNet = None,
    engine: Engine = None,
) -> None:
    """Run one worker until SIGTERM, which hands back what it holds."""
    settings = _settings(redis_url=redis, out=out, policy=policy, allow_net=allow_net, engine=engine)
    log.configure()
    _complete(run_worker(settings), "interrupted")


@app.command()
def health(redis: RedisUrl = None) -> None:
    """Exit 0 if a worker of this machine (or container) shows signs of life, else 1."""
    settings = _settings(redis_url=redis)
    name = os.environ.get("FETCHFLEET_WORKER_ID") or socket.gethostname()
    if not _complete(is_alive(settings.redis_url, name), "interrupted"):
        _fail("no worker of this machine has shown a sign of life; its log may say why", FAILED)


def main() -> None:
    """The `fetchfleet` command."""
    app()


def _settings(**flags: Any) -> Settings:
    try:
        return load_settings(flags, os.environ)
    except SettingsError as error:
        _fail(str(error), BAD_USE)


def _read(file: str) -> list[Fetch]:
    """All fetches of the file; any bad line ends the command before anything is enqueued."""
    try:
        if file == "-":
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
            fetches = read_fetches(sys.stdin)
        else:
            with Path(file).open(encoding="utf-8", errors="surrogateescape") as lines:
                fetches = read_fetches(lines)
    except OSError as error:
        _fail(f"{file}: {error.strerror}", BAD_USE)
    except InvalidFetchError as error:
        _fail(f"{file}: nothing was enqueued\n{error}", BAD_USE)
    if not fetches:
        _fail(f"{file}: holds no fetch; give a URL or a JSON object a line", BAD_USE)
    return fetches


def _complete(work: Coroutine[Any, Any, T], if_interrupted: str) -> T:
    """The work's result; an error that can be foreseen ends the command with one sentence."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return uvloop.run(work)
    except (KeyboardInterrupt, asyncio.CancelledError):
        _fail(if_interrupted, INTERRUPTED)
    except Exception as error:
        first = _first(error)
        for kinds, code in _FORESEEN:
            if isinstance(first, kinds):
                _fail(redact.text(first), code)
        raise


_FORESEEN: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((EmbeddedRedisError, runs.UnfinishedRunError), BAD_USE),
    ((WorkersError, RefusedRedisError, UnreachableRedisError, JobsError, RedisError, OSError), FAILED),
)


def _first(error: BaseException) -> BaseException:
    """The error itself, out of whatever groups it is in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _exit_by(counts: Counts) -> NoReturn:
    raise typer.Exit(0 if counts.failed + counts.cancelled == 0 else FAILED)


def _fail(message: str, code: int) -> NoReturn:
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
