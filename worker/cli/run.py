"""The commands that fetch: `run` is a fleet on this machine, `worker` one worker of a fleet."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from fetchfleet.worker.cli.options import (
    FileOrReport,
    LinesTo,
    OnlyFailed,
    PolicyFile,
    RedisPatience,
    RedisUrl,
    Report,
    SkipInvalid,
)
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.process import prestarted, run_until_signal, worker_settings_from

_WORKER_OPTIONS = {
    "out": Annotated[str | None, typer.Option(help="Folder for bodies (FETCHFLEET_OUT), ./data by default.")],
    "in_folder": Annotated[str | None, typer.Option("--in", help="Folder of files to send (FETCHFLEET_IN).")],
    "policy": PolicyFile,
    "allow_net": Annotated[
        str | None,
        typer.Option(help="CIDR[,CIDR] that may be dialled although not public (FETCHFLEET_ALLOW_NET)."),
    ],
    "deny_net": Annotated[
        str | None,
        typer.Option(help="CIDR[,CIDR] that is never dialled, allowed or public (FETCHFLEET_DENY_NET)."),
    ],
    "engine": Annotated[str | None, typer.Option(help="httpx or direct (FETCHFLEET_ENGINE).")],
    "sink": Annotated[
        str | None, typer.Option(help="files, a body each, or warc: WARC segments (FETCHFLEET_SINK).")
    ],
}
"""The options of a process that fetches, by the names of the settings."""

Again = Annotated[
    bool, typer.Option("--again", help="Fetch FILE although it was fetched into this folder before.")
]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")]


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (run, worker):
        app.command()(command)


def with_worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a worker to a command, which receives them as one mapping, `flags`."""

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        command(flags={name: given.pop(name) for name in _WORKER_OPTIONS}, **given)

    own = inspect.signature(command)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _WORKER_OPTIONS.items()
    ]
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "flags"]
    wrapper.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return wrapper


@with_worker_options
def run(
    file: FileOrReport = None,
    workers: Workers = 1,
    report: Report = None,
    *,
    lines_to: LinesTo = None,
    skip_invalid: SkipInvalid = None,
    again: Again = False,
    only_failed: OnlyFailed = None,
    redis_patience: RedisPatience = None,
    flags: Mapping[str, str | None],
) -> None:
    """Fetch FILE with a fleet on this machine: Redis and workers come and go with it."""
    from fetchfleet.worker.cli.common import console  # noqa: PLC0415
    from fetchfleet.worker.local.run import Outputs, exit_code_of, read_failed, read_list  # noqa: PLC0415
    from fetchfleet.worker.local.run import run as run_list  # noqa: PLC0415
    from fetchfleet.worker.settings import WARC  # noqa: PLC0415
    from fetchfleet.worker.sink.files.directory import (  # noqa: PLC0415
        PARTIAL_FILES,
        REDIS_FOLDER,
        WARC_FOLDER,
        make_out,
    )

    settings = worker_settings_from({**flags, "redis_patience_s": redis_patience})
    if lines_to is not None and settings.sink == WARC:
        raise CommandError("--lines-to reads bodies that are files: it does not go with --sink warc", BAD_USE)
    from fetchfleet.worker.local.prestart import main  # noqa: PLC0415 what a worker needs

    # Before the list is read: the workers would keep a copy of it.
    with prestarted(workers, main) as processes:
        outputs = Outputs(console, report, lines_to, skip_invalid, out=settings.out)
        if only_failed is not None:
            fetches, skipped = read_failed(file, only_failed, outputs)
        elif file is not None:
            fetches, skipped = read_list(file, outputs)
        else:
            raise CommandError("no list; give FILE, - for standard input, or --only-failed REPORT", BAD_USE)
        if not fetches:
            raise typer.Exit
        outputs = outputs._replace(skipped=skipped)
        make_out(
            settings.out, [PARTIAL_FILES, REDIS_FOLDER, *([WARC_FOLDER] if settings.sink == WARC else [])]
        )
        counts = run_until_signal(
            run_list(fetches, settings, flags, processes, outputs, again=again),
            "interrupted; the same command goes on where this one stopped",
        )
        console.print(f"bodies are in {settings.out}", soft_wrap=True)
        raise typer.Exit(exit_code_of(counts))


@with_worker_options
def worker(redis: RedisUrl = None, *, flags: Mapping[str, str | None]) -> None:
    """Run one worker until SIGTERM, which hands back what it holds."""
    from fetchfleet.worker.observability import log  # noqa: PLC0415 `run` needs none of them
    from fetchfleet.worker.runtime.arq_worker import run_told_worker  # noqa: PLC0415

    settings = worker_settings_from({**flags, "redis_url": redis})
    log.configure(level=settings.log_level)
    run_until_signal(run_told_worker(settings))
