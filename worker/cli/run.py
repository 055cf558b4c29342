"""The commands that fetch: `run`, a fleet on this machine, and `worker`, one worker of a fleet."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from fetchfleet.worker.cli.options.changes import Revalidate, changes_of
from fetchfleet.worker.cli.options.headers import HeaderLines
from fetchfleet.worker.cli.options.names import NameTemplate, OnExisting
from fetchfleet.worker.cli.options.shared import (
    DryRun,
    FileOrReport,
    LinesTo,
    OnlyFailed,
    RedisPatience,
    RedisUrl,
    Report,
    SkipInvalid,
)
from fetchfleet.worker.cli.options.worker_options import with_list_options, with_worker_options
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.output.output_files import Outputs
from fetchfleet.worker.local.process import prestarted, run_until_signal, worker_settings_from
from fetchfleet.worker.settings import FILES, HTTPX, WARC, Settings

Again = Annotated[
    bool, typer.Option("--again", help="Fetch FILE although an earlier run fetched it into this folder.")
]
RUN_EXAMPLE = (
    "Example: fetchfleet run urls.txt --out bodies --report results.jsonl --rate 10\n\n"
    "Fetches of a host that stays down fail after an hour. For a shorter wait: --set give_up_s=60"
)
WORKER_EXAMPLE = "Example: fetchfleet worker --redis redis://localhost:6379 --out /srv/bodies"
Workers = Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Number of worker processes.")]

Metrics = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Serve metrics for Prometheus (env: FETCHFLEET_METRICS)."),
]
MetricsHosts = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Export metrics of each of the N busiest lanes (env: FETCHFLEET_METRICS_HOSTS)."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command(epilog=RUN_EXAMPLE)(run)
    app.command(epilog=WORKER_EXAMPLE)(worker)


@with_worker_options
@with_list_options
def run(
    file: FileOrReport = None,
    workers: Workers = 1,
    report: Report = None,
    *,
    lines_to: LinesTo = None,
    skip_invalid: SkipInvalid = None,
    again: Again = False,
    only_failed: OnlyFailed = None,
    dry_run: DryRun = False,
    redis_patience: RedisPatience = None,
    header: HeaderLines = None,
    name: NameTemplate = None,
    if_exists: OnExisting = None,
    revalidate: Revalidate = False,
    flags: Mapping[str, Any],
    reading: Mapping[str, Any],
) -> None:
    """Fetch the URLs in FILE with workers on this machine.

    Redis and the workers run until the end. Repeat the command to continue an interrupted run.
    """
    settings = worker_settings_from({**flags, "redis_patience_s": redis_patience})
    is_plain = not header and (name, if_exists) == (None, None) and not revalidate
    changes = [] if is_plain else changes_of(header, name, if_exists, revalidate=revalidate)
    if settings.sink_kind != FILES:
        refuse_files(settings.sink_kind, lines_to, name)
    outputs = Outputs(standard_error, report, lines_to, skip_invalid, out=settings.out)
    if dry_run:
        from fetchfleet.worker.cli.common import print_dry_run  # noqa: PLC0415 it imports rich

        slots = workers * settings.max_in_flight
        return print_dry_run(file, only_failed, outputs, changes, reading, settings.policy, slots)
    if workers > 1:  # import once, for all; one worker imports while this process starts Redis
        import_worker(settings.engine)
    # Fork before the list is read, so that the workers have no copy of it.
    with (
        prestarted(workers, lambda: import_worker(settings.engine).main()) as processes,
        ExitStack() as stack,
    ):
        from fetchfleet.worker.local import list_downloads  # noqa: PLC0415 workers need none of it
        from fetchfleet.worker.local import run as local  # noqa: PLC0415

        fetch_lists = partial(
            list_downloads.by_run, settings=settings, flags=flags, changes=changes, outputs=outputs
        )
        fetches = stack.enter_context(
            local.open_fetches(file, only_failed, outputs, changes, reading, fetch_lists=fetch_lists)
        )
        if not fetches.count:
            raise typer.Exit
        outputs = outputs._replace(skipped=fetches.skipped)
        prepare_out(settings)
        end = run_until_signal(
            local.run(fetches, settings, flags, processes, outputs, again=again),
            "interrupted; repeat the command to continue the run",
        )
        places = places_of(settings, report, has_notes=end.counts.failed > 0 and end.may_have_failure_notes)
        outputs.console().print(places, soft_wrap=True)
        raise typer.Exit(local.exit_code_of(end.counts))


@cache
def standard_error() -> Any:
    """Return the console for messages and progress. The first call imports rich."""
    from fetchfleet.worker.local.output.progress import StandardError  # noqa: PLC0415

    return StandardError()


def places_of(settings: Settings, report: Path | None, *, has_notes: bool) -> str:
    """Return the lines that end a run: where notes on failed fetches are, if any, and the bodies."""
    from fetchfleet.worker.sink.files.directory import STATE_FOLDER  # noqa: PLC0415 workers need it later

    place = report or f"{settings.out}/{STATE_FOLDER}/worker-*.log"
    notes = f"notes on failed fetches are in {place}\n" if has_notes else ""
    return f"{notes}bodies are in {settings.bodies}"


def refuse_files(sink_kind: str, lines_to: str | None, name: str | None) -> None:
    """Raise CommandError for an option that needs bodies in files, or of their own."""
    if lines_to is not None:
        sink = "--sink warc" if sink_kind == WARC else "an object store"
        raise CommandError(f"--lines-to reads bodies from files; leave it out with {sink}", BAD_USE)
    if name is not None and sink_kind == WARC:
        raise CommandError(
            "--name: WARC segments hold no named files; leave it out with --sink warc", BAD_USE
        )


def import_worker(engine: str) -> ModuleType:
    """Import the modules of a worker with this engine, and return the one that has its `main`."""
    module = import_module("fetchfleet.worker.local.prestart")
    if engine == HTTPX:
        import_module("fetchfleet.worker.http.httpx_engine")
    return module


def prepare_out(settings: Settings) -> None:
    """Make the folders of a run, and write a first object to its store. Raises CommandError."""
    from fetchfleet.worker.sink.files import directory  # noqa: PLC0415 workers need it later

    warc = [directory.WARC_FOLDER] if settings.sink == WARC else []
    directory.make_out(settings.out, [directory.PARTIAL_FILES, directory.REDIS_FOLDER, *warc])
    if settings.store:
        from fetchfleet.worker.sink.objects.store import ObjectStore  # noqa: PLC0415 it needs an extra
        from fetchfleet.worker.util import object_url  # noqa: PLC0415

        ObjectStore(object_url.parse(settings.store)).check()


@with_worker_options
def worker(
    redis: RedisUrl = None,
    *,
    metrics: Metrics = None,
    metrics_hosts: MetricsHosts = None,
    flags: Mapping[str, Any],
) -> None:
    """Run one worker of a fleet.

    On SIGTERM it returns its unfinished fetches to the fleet and exits.
    """
    from fetchfleet.worker.observability import log  # noqa: PLC0415 not needed by `run`
    from fetchfleet.worker.runtime.arq_worker import run_monitored_worker  # noqa: PLC0415

    settings = worker_settings_from(
        {**flags, "redis_url": redis, "metrics": metrics, "metrics_hosts": metrics_hosts}
    )
    log.configure(level=settings.log_level, schema=settings.log_schema, worker=settings.worker_id)
    run_until_signal(run_monitored_worker(settings))
