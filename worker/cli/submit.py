"""The command `submit`, which enqueues a list of fetches for a running fleet."""

import os
import shlex
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fetchfleet.jobs.client.batch import FROM_THE_START
from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.contract.webhooks import notify_url
from fetchfleet.jobs.errors import FleetUnreachableError, InvalidFetchError
from fetchfleet.worker.cli.common import command_line, console, echo, print_dry_run
from fetchfleet.worker.cli.options.changes import Revalidate, changes_of, words_of
from fetchfleet.worker.cli.options.headers import HeaderLines
from fetchfleet.worker.cli.options.names import NameTemplate, OnExisting
from fetchfleet.worker.cli.options.shared import (
    FLEET,
    OUTPUT,
    DryRun,
    File,
    LinesTo,
    RedisPatience,
    RedisUrl,
    Report,
    SkipInvalid,
    Via,
    via_words,
)
from fetchfleet.worker.cli.options.worker_options import reading_words, with_list_options
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local import list_downloads
from fetchfleet.worker.local.output.output_files import Outputs
from fetchfleet.worker.local.output.reports import command_to_convert, lines_of
from fetchfleet.worker.local.process import run_until_signal, settings_from
from fetchfleet.worker.local.run import SubmitOptions, exit_code_of, open_fetches
from fetchfleet.worker.local.run import submit as submit_list
from fetchfleet.worker.redis_support.errors import NextCommand
from fetchfleet.worker.util.quantities import count


class WhenFullChoice(StrEnum):
    """The behaviour if the backlog of the fleet is at its limit."""

    RAISE = "raise"
    WAIT = "wait"


WorkersOut = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="The workers' folder for bodies, for --lines-to and a FILE that is a URL (env: FETCHFLEET_OUT).",
        rich_help_panel=OUTPUT,
    ),
]


def parse_batch_option(value: str | None) -> str | None:
    """Return the batch ID. Raises CommandError."""
    if value is not None and not is_batch_id(value):
        raise CommandError(f"--batch {value}: not a batch ID; it has 16 hex digits", BAD_USE)
    return value


CompletedBatch = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="ID",
        help="Complete this batch of an earlier submit of the same FILE.",
        callback=parse_batch_option,
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until every fetch has ended, and show progress.")]
MaxBacklog = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Enqueue only while the fleet has fewer than N unfinished fetches; 0: no limit.",
        rich_help_panel=FLEET,
    ),
]


def parse_notify_option(value: str | None) -> str | None:
    """Return the URL of a webhook in canonical form. Raises CommandError."""
    try:
        return None if value is None else notify_url(value)
    except InvalidFetchError as error:
        raise CommandError(f"--{error}", BAD_USE) from None


Notify = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Send a signed POST to URL when the batch has ended (docs/webhooks.md).",
        callback=parse_notify_option,
    ),
]
WhenFull = Annotated[WhenFullChoice, typer.Option(help="Fail or wait at that limit.", rich_help_panel=FLEET)]


MAX_MAX_BACKLOG = 1 << 53
OUT = "FETCHFLEET_OUT"
"""The variable of the workers' folder."""
EXAMPLE = "Example: fetchfleet submit urls.txt --wait --report results.jsonl"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog=EXAMPLE)(submit)


@with_list_options
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
    batch_id: CompletedBatch = None,
    redis_patience: RedisPatience = None,
    via: Via = None,
    header: HeaderLines = None,
    name: NameTemplate = None,
    if_exists: OnExisting = None,
    revalidate: Revalidate = False,
    notify: Notify = None,
    dry_run: DryRun = False,
    reading: Mapping[str, Any],
) -> None:
    """Enqueue the fetches in FILE for a running fleet, and print their batch ID."""
    flags = {"redis_url": redis, "out": out, "redis_patience_s": redis_patience, "via": via}
    settings = settings_from(flags)
    options = submit_options(max_backlog, when_full, settings.via)._replace(notify=notify)
    outputs = Outputs(lambda: console, report, lines_to, skip_invalid)
    changes = changes_of(header, name, if_exists, revalidate=revalidate)
    if dry_run:
        print_dry_run(file, None, outputs, changes, reading, settings.policy)
        return
    notify_words = ["--notify", notify] if notify else []
    waits = wait or report is not None or lines_to is not None

    def complete(error: FleetUnreachableError) -> str:
        skips = ["--skip-invalid", str(skip_invalid)] if skip_invalid else []
        words = [
            *skips,
            *words_of(name, if_exists, revalidate=revalidate),
            *notify_words,
            *via_words(via),
            *reading_words(reading),
        ]
        return command_line("submit", file, "--batch", error.batch_id, *words, redis_url=redis)

    fetch_lists = None
    if out or OUT in os.environ:
        fetch_lists = partial(list_downloads.by_fleet, settings=settings, changes=changes, outputs=outputs)
    with open_fetches(file, None, outputs, changes, reading, fetch_lists=fetch_lists) as fetches:
        outputs = outputs._replace(skipped=fetches.skipped)
        follows = next_command(report, via, redis) if waits else None
        batch, counts = run_until_signal(
            submit_list(fetches, settings, options, outputs, batch_id, complete, follows),
            "interrupted; the workers fetch what was enqueued. Repeat the command to enqueue the rest",
        )
    if counts is not None:
        raise typer.Exit(exit_code_of(counts))
    skips = f"{count(fetches.skipped, 'invalid line')} skipped, " if skip_invalid is not None else ""
    console.print(f"{skips}{count(fetches.count, 'fetch', 'fetches')} enqueued as batch")
    echo(batch.id)


def next_command(report: Path | None, via: str | None, redis: str | None) -> NextCommand:
    """Return the function for the command that follows the batch after an error of Redis."""

    def follow(error: FleetUnreachableError) -> str:
        words = ["results", error.batch_id, "--follow", "--after", error.position or FROM_THE_START]
        words += via_words(via)
        if report is None:
            return command_line(*words, redis_url=redis)
        lines = shlex.quote(str(lines_of(report)))
        command = f"{command_line(*words, '--json', '--reveal', redis_url=redis)} >> {lines}"
        return command if lines_of(report) == report else f"{command} && {command_to_convert(report)}"

    return follow


def submit_options(max_backlog: int, when_full: WhenFullChoice, via: str) -> SubmitOptions:
    """Return the options of a submit. Raises CommandError for values that are invalid or exclude others."""
    if not 0 <= max_backlog <= MAX_MAX_BACKLOG:
        raise CommandError(
            f"--max-backlog: must be between 0 and {MAX_MAX_BACKLOG}, got {max_backlog}", BAD_USE
        )
    if max_backlog and via == "inbox":
        raise CommandError(
            "--max-backlog: the workers limit an inbox; leave it out with --via inbox", BAD_USE
        )
    return SubmitOptions(max_backlog, when_full.value)
