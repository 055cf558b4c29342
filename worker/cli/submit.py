"""The commands that are given a list of fetches."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fetchfleet.jobs.client.batch import Counts
from fetchfleet.jobs.contract.fetch_list import read_fetches
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.cli.common import (
    File,
    LinesTo,
    RedisUrl,
    Report,
    complete,
    console,
    fail,
    settings_of,
    work_settings_of,
)
from fetchfleet.worker.errors import BAD_USE, FAILED
from fetchfleet.worker.local import run as runs
from fetchfleet.worker.local.lines_to import STREAMS, Where, asking
from fetchfleet.worker.local.worker_process import WorkerProcess
from fetchfleet.worker.settings import WARC


class WhenFullChoice(StrEnum):
    """What submit does at a limit."""

    RAISE = "raise"
    WAIT = "wait"


WorkersOut = Annotated[
    str | None, typer.Option("--out", help="The workers' folder, where --lines-to reads (FETCHFLEET_OUT).")
]
Wait = Annotated[bool, typer.Option("--wait", help="Show progress until all is fetched.")]
MaxBacklog = Annotated[
    int, typer.Option(min=0, help="Enqueue only while the fleet has no more fetches to do than that.")
]
WhenFull = Annotated[WhenFullChoice, typer.Option(help="At that limit: fail, or wait for room.")]


def register(app: typer.Typer) -> None:
    """Make the command part of the app."""
    app.command()(submit)


def run_list(
    file: str,
    workers: list[WorkerProcess],
    given: dict[str, str | None],
    *,
    report: Path | None,
    lines_to: str | None,
) -> None:
    """What `fetchfleet run` does; given: the settings that are said by flags, to us and so to the workers."""
    settings = work_settings_of(**given)
    if lines_to is not None and settings.sink == WARC:
        fail("--lines-to reads bodies that are files: it does not go with --sink warc", BAD_USE)
    fetches = _with_lines(_read(file), lines_to, report)
    counts = complete(
        runs.run(
            fetches,
            settings,
            workers=workers,
            worker_arguments=_as_flags(given),
            report=report,
            console=console,
            lines_to=lines_to,
        ),
        "interrupted; the same command goes on where this one stopped",
    )
    console.print(f"bodies are in {settings.out}", highlight=False, soft_wrap=True)
    _exit_by(counts)


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


def _as_flags(given: dict[str, str | None]) -> list[str]:
    flags = {name: f"--{name.replace('_', '-')}" for name in given} | {"in_folder": "--in"}
    return [part for name, value in given.items() if value is not None for part in (flags[name], value)]


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
