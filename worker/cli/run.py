"""The commands that fetch: `run` is a fleet on this machine, `worker` one worker of a fleet."""

from collections.abc import Mapping
from typing import Annotated

import typer

from fetchfleet.worker.cli.options import File, LinesTo, RedisUrl, Report, with_worker_options
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.worker_process import prestarted
from fetchfleet.worker.util import gc_freeze

Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")]


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (run, worker):
        app.command()(command)


@with_worker_options
def run(
    file: File,
    workers: Workers = 1,
    report: Report = None,
    *,
    lines_to: LinesTo = None,
    flags: Mapping[str, str | None],
) -> None:
    """Fetch FILE with a fleet on this machine: Redis and workers come and go with it."""
    with prestarted(workers) as processes:
        with gc_freeze.none_yet():  # the workers import at the same time
            from fetchfleet.worker.cli.common import console, exit_by  # noqa: PLC0415
            from fetchfleet.worker.local.process import run_until_signal, worker_settings_from  # noqa: PLC0415
            from fetchfleet.worker.local.run import Outputs, read_list  # noqa: PLC0415
            from fetchfleet.worker.local.run import run as run_list  # noqa: PLC0415
            from fetchfleet.worker.settings import WARC  # noqa: PLC0415

        settings = worker_settings_from(flags)
        if lines_to is not None and settings.sink == WARC:
            raise CommandError(
                "--lines-to reads bodies that are files: it does not go with --sink warc", BAD_USE
            )
        outputs = Outputs(console, report, lines_to)
        counts = run_until_signal(
            run_list(read_list(file, outputs), settings, flags, processes, outputs),
            "interrupted; the same command goes on where this one stopped",
        )
        console.print(f"bodies are in {settings.out}", highlight=False, soft_wrap=True)
        exit_by(counts)


@with_worker_options
def worker(redis: RedisUrl = None, *, flags: Mapping[str, str | None]) -> None:
    """Run one worker until SIGTERM, which hands back what it holds."""
    from fetchfleet.worker.local.process import run_until_signal, worker_settings_from  # noqa: PLC0415
    from fetchfleet.worker.observability import log  # noqa: PLC0415 `run` needs none of them
    from fetchfleet.worker.runtime.arq_worker import run_worker  # noqa: PLC0415

    settings = worker_settings_from({**flags, "redis_url": redis})
    log.configure(level=settings.log_level)
    run_until_signal(run_worker(settings))
