"""A worker for arq's command line, with settings from the environment (FETCHFLEET_…).

Run it with `arq fetchfleet.worker.main.WorkerSettings`.
"""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import uvloop

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connection_pool
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.intake.arq_jobs import write_result
from fetchfleet.worker.intake.arq_queue import vetted_queue
from fetchfleet.worker.local.process import open_standard_streams
from fetchfleet.worker.observability import log
from fetchfleet.worker.runtime.arq_worker import (
    CRON_JOBS,
    FUNCTIONS,
    JOBS_AT_ONCE,
    monitoring,
    read_job,
    start,
)
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.settings import load_settings
from fetchfleet.worker.util import gc_freeze

open_standard_streams()
settings = load_settings({}, os.environ)


async def startup(ctx: dict[str, Any]) -> None:
    """Start the runtime of a process, and serve its health and metrics."""
    log.configure(level=settings.log_level, schema=settings.log_schema, worker=settings.worker_id)
    ctx["monitoring"] = AsyncExitStack()
    try:
        on_started = await ctx["monitoring"].enter_async_context(monitoring(settings, os.environ))
    except CommandError as error:
        print(error, file=sys.stderr)  # noqa: T201 as the command of fetchfleet does
        raise SystemExit(error.exit_code) from None
    ctx["runtime"] = runtime = await start(settings)
    on_started(runtime)
    WorkerSettings.redis_pool.on_foreign = runtime.foreign.report
    gc_freeze.freeze()


async def shutdown(ctx: dict[str, Any]) -> None:
    """Stop the runtime, which returns its fetches and releases its lanes."""
    async with ctx["monitoring"]:
        if "runtime" in ctx:  # else the startup has failed
            await ctx["runtime"].stop()


class WorkerSettings:
    """The settings that arq's command line reads."""

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

    functions: ClassVar = FUNCTIONS
    cron_jobs: ClassVar = CRON_JOBS
    on_startup = startup
    on_shutdown = shutdown
    redis_pool = vetted_queue(connection_pool(settings.redis_url))
    queue_name = keys.QUEUE
    poll_delay = WorkerTimings().poll_delay_s
    max_jobs = JOBS_AT_ONCE
    keep_result = 0
    job_serializer = write_result
    job_deserializer = read_job
