"""The command that is a whole fleet: its workers are started while it imports what it needs itself."""

import typer

from fetchfleet.worker.cli.common import (
    AllowNet,
    DenyNet,
    Engine,
    File,
    In,
    LinesTo,
    Out,
    PolicyFile,
    Report,
    Sink,
    Workers,
)
from fetchfleet.worker.local.worker_process import started_ahead
from fetchfleet.worker.util import gc_freeze


def register(app: typer.Typer) -> None:
    """Make the command part of the app."""
    app.command()(run)


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
    given = {"out": out, "in_folder": in_folder, "policy": policy}
    given |= {"allow_net": allow_net, "deny_net": deny_net, "engine": engine, "sink": sink}
    with started_ahead(workers) as processes:
        with gc_freeze.none_yet():
            from fetchfleet.worker.cli.submit import run_list  # noqa: PLC0415 the workers import meanwhile

        run_list(file, processes, given, report=report, lines_to=lines_to)
