"""The command that is a worker."""

import typer

from fetchfleet.worker.cli.common import (
    AllowNet,
    DenyNet,
    Engine,
    In,
    Out,
    PolicyFile,
    RedisUrl,
    Sink,
    complete,
    work_settings_of,
)
from fetchfleet.worker.observability import log
from fetchfleet.worker.runtime.arq_worker import run_worker


def register(app: typer.Typer) -> None:
    """Make the command part of the app."""
    app.command()(worker)


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
