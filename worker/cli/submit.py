"""The command that enqueues a list of fetches to a running fleet."""

from enum import StrEnum
from typing import Annotated

import typer

from fetchfleet.worker.cli.common import console, echo
from fetchfleet.worker.cli.options import File, LinesTo, RedisUrl, Report, SkipInvalid
from fetchfleet.worker.local.process import run_until_signal, settings_from
from fetchfleet.worker.local.run import BacklogLimit, Outputs, exit_code_of, read_list
from fetchfleet.worker.local.run import submit as submit_list


class WhenFullChoice(StrEnum):
    """The ways to treat a fleet at its backlog limit."""

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


def submit(
    file: File,
    redis: RedisUrl = None,
    wait: Wait = False,  # noqa: FBT002 a flag
    report: Report = None,
    lines_to: LinesTo = None,
    out: WorkersOut = None,
    *,
    max_backlog: MaxBacklog = 0,
    when_full: WhenFull = WhenFullChoice.RAISE,
    skip_invalid: SkipInvalid = None,
) -> None:
    """Enqueue FILE to a running fleet."""
    settings = settings_from({"redis_url": redis, "out": out})
    outputs = Outputs(console, report, lines_to, skip_invalid)
    fetches, skipped = read_list(file, outputs)
    outputs = outputs._replace(skipped=skipped)
    limit = BacklogLimit(max_backlog, when_full.value)
    follows = wait or report is not None or lines_to is not None
    batch, counts = run_until_signal(
        submit_list(fetches, settings, limit, outputs, wait=follows),
        "interrupted; what was enqueued is fetched all the same",
    )
    if counts is not None:
        raise typer.Exit(exit_code_of(counts))
    left_out = f", {skipped} invalid lines skipped" if skip_invalid is not None else ""
    console.print(f"{len(fetches)} fetches enqueued as batch{left_out}", highlight=False)
    echo(batch.id)
