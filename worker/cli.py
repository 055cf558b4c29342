"""The command line. Exit: 0 all stored, 1 some failed, 2 bad use, 130 interrupted."""

import os
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from jobs import Counts, InvalidFetchError
from jobs.lines import read_fetches
from jobs.model import Fetch
from worker import log, operate, steer
from worker import run as runs
from worker.command import BAD_USE, FAILED, RedisUrl, complete, console, fail, settings_of, work_settings_of
from worker.gather import STREAMS, Where, asking
from worker.hand_off import run_worker
from worker.settings import WARC
from worker.snapshot import is_alive

app = typer.Typer(
    name="fetchfleet",
    help="Bulk outbound fetching that never loses a job and never hammers an upstream.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class WhenFullChoice(StrEnum):
    """What submit does at a limit."""

    RAISE = "raise"
    WAIT = "wait"


File = Annotated[str, typer.Argument(help="URLs or JSON fetches, one a line; - for standard input.")]
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
Report = Annotated[Path | None, typer.Option(help="Write each result as a JSON line to this file.")]
LinesTo = Annotated[
    str | None,
    typer.Option(
        "--lines-to",
        help="Ask for JSON Lines and gather the records of all bodies in this file; - or stream: on standard"
        " output.",
    ),
]
WorkersOut = Annotated[
    str | None, typer.Option("--out", help="The workers' folder, where --lines-to reads (FETCHFLEET_OUT).")
]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")]
Wait = Annotated[bool, typer.Option("--wait", help="Show progress until all is fetched.")]
MaxBacklog = Annotated[
    int, typer.Option(min=0, help="Enqueue only while the fleet has no more fetches to do than that.")
]
WhenFull = Annotated[WhenFullChoice, typer.Option(help="At that limit: fail, or wait for room.")]


@app.command()
def run(
    file: File,
    workers: Workers = 1,
    out: Out = None,
    in_folder: In = None,
    policy: PolicyFile = None,
    allow_net: AllowNet = None,
    deny_net: DenyNet = None,
    report: Report = None,
    *,
    lines_to: LinesTo = None,
    engine: Engine = None,
    sink: Sink = None,
) -> None:
    """Fetch FILE with a fleet on this machine: Redis and workers come and go with it."""
    settings = work_settings_of(
        out=out,
        in_folder=in_folder,
        policy=policy,
        allow_net=allow_net,
        deny_net=deny_net,
        engine=engine,
        sink=sink,
    )
    if lines_to is not None and settings.sink == WARC:
        fail("--lines-to reads bodies that are files: it does not go with --sink warc", BAD_USE)
    fetches = _with_lines(_read(file), lines_to, report)
    flags = {"--out": out, "--in": in_folder, "--policy": policy}
    flags |= {"--allow-net": allow_net, "--deny-net": deny_net, "--engine": engine, "--sink": sink}
    arguments = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
    counts = complete(
        runs.run(
            fetches,
            settings,
            workers=workers,
            worker_arguments=arguments,
            report=report,
            console=console,
            lines_to=lines_to,
        ),
        "interrupted; the same command goes on where this one stopped",
    )
    console.print(f"bodies are in {settings.out}", highlight=False, soft_wrap=True)
    _exit_by(counts)


@app.command()
def submit(
    file: File,
    redis: RedisUrl = None,
    wait: Wait = False,  # noqa: FBT002 a flag
    report: Report = None,
    lines_to: LinesTo = None,
    out: WorkersOut = None,
    max_backlog: MaxBacklog = 0,
    when_full: WhenFull = WhenFullChoice.RAISE,
) -> None:
    """Enqueue FILE to a running fleet."""
    settings = settings_of(redis_url=redis, out=out)
    fetches = _with_lines(_read(file), lines_to, report)
    batch, counts = complete(
        runs.submit(
            fetches,
            settings.redis_url,
            runs.Room(max_backlog, when_full.value),
            wait=wait or report is not None or lines_to is not None,
            report=report,
            console=console,
            lines_to=Where(lines_to, settings.out) if lines_to else None,
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
    in_folder: In = None,
    policy: PolicyFile = None,
    allow_net: AllowNet = None,
    deny_net: DenyNet = None,
    engine: Engine = None,
    sink: Sink = None,
) -> None:
    """Run one worker until SIGTERM, which hands back what it holds."""
    settings = work_settings_of(
        redis_url=redis,
        out=out,
        in_folder=in_folder,
        policy=policy,
        allow_net=allow_net,
        deny_net=deny_net,
        engine=engine,
        sink=sink,
    )
    log.configure(level=settings.log_level)
    complete(run_worker(settings), "interrupted")


@app.command()
def health(redis: RedisUrl = None) -> None:
    """Exit 0 if a worker of this machine (or container) shows signs of life, else 1."""
    settings = settings_of(redis_url=redis)
    name = os.environ.get("FETCHFLEET_WORKER_ID") or socket.gethostname()
    if not complete(is_alive(settings.redis_url, name), "interrupted"):
        fail("no worker of this machine has shown a sign of life; its log may say why", FAILED)


operate.register(app)
steer.register(app)


def main() -> None:
    """The `fetchfleet` command."""
    app()


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
        fail(f"{file}: {error.strerror}", BAD_USE)
    except InvalidFetchError as error:
        fail(f"{file}: nothing was enqueued\n{error}", BAD_USE)
    if not fetches:
        fail(f"{file}: holds no fetch; give a URL or a JSON object a line", BAD_USE)
    return fetches


def _with_lines(fetches: list[Fetch], lines_to: str | None, report: Path | None) -> list[Fetch]:
    """The fetches, asking for lines if these are to be gathered; a place where they cannot be is bad use."""
    if lines_to is None:
        return fetches
    if lines_to not in STREAMS:
        place = Path(lines_to)
        if place.is_dir() or not place.parent.is_dir():
            fail(f"--lines-to {lines_to}: is a folder, or in a folder that is not there", BAD_USE)
        if report is not None and place.resolve() == report.resolve():
            fail("--lines-to and --report are the same file: give each its own", BAD_USE)
    return asking(fetches)


def _exit_by(counts: Counts) -> NoReturn:
    raise typer.Exit(0 if counts.failed + counts.cancelled == 0 else FAILED)
