"""The arq jobs of a worker (lane notifications, fetches, housekeeping) and the arq loop that runs them.

Only this module and worker/main.py use arq's Worker.
"""

import asyncio
import functools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from arq import Retry, cron, func
from arq.worker import Worker
from redis.exceptions import RedisError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from fetchfleet.jobs import keys
from fetchfleet.jobs.errors import FullError, InvalidFetchError, NewerMessageError
from fetchfleet.jobs.notify import TAKE_LANE
from fetchfleet.jobs.redis_connection import connection_pool
from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.intake import arq_jobs
from fetchfleet.worker.intake.arq_jobs import FETCH, REFUSED, write_result
from fetchfleet.worker.intake.arq_queue import vetted_queue
from fetchfleet.worker.observability.metrics_server import MetricsServer
from fetchfleet.worker.observability.process_health import ProcessHealth
from fetchfleet.worker.runtime.build import build
from fetchfleet.worker.runtime.runtime import Runtime
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util import aio, gc_freeze

NOTIFICATION_TIMEOUT_S = 10
JOBS_AT_ONCE = 64
MAX_NOTIFICATION_TRIES = 1000
NOTIFICATION_RETRY_S = 0.05
"""The shortest wait before another try of a lane notification."""
MAX_DECLINES = 40
"""The tries that a worker with its share of lanes declines. After them the other workers may be stuck."""

FETCH_TIMEOUT_S = 120
"""A job of 8 MiB takes seconds. arq blocks the jobs of a dead worker for this time."""
FETCH_RETRY_S = 1
MAX_FETCH_TRIES = 1_000_000
"""While the backlog is full or Redis fails, a job is retried until it expires by the rules of arq."""
MAX_FULL_WAITS = 8
"""The maximum wait of a job while the backlog is full, in units of FETCH_RETRY_S."""
RECEIPT_TTL_S = 3600

STOP_ARQ_S = 2.0
"""The time that shutdown waits for running arq jobs before it waits for fetches."""

CANCEL_AGAIN_S = 0.05

MAX_UNSUPPORTED_WAITS = 24
"""The maximum wait of a job of a newer version, in units of unsupported_retry_s."""
SWEEP = "sweep"
"""The name of the housekeeping job. Workers of older versions also reclaim lanes in it."""
SWEEP_EVERY_S = 2

logging.getLogger("arq").setLevel(logging.WARNING)


async def take_lane(ctx: dict[str, Any], lane: str, generation: int) -> None:
    """Acquire the lane of a notification. The runtime serves it in a task of its own."""
    runtime: Runtime = ctx["runtime"]
    beyond_share = ctx["job_try"] > MAX_DECLINES
    match await runtime.take_lane(lane, generation, beyond_share=beyond_share):
        case Early(due_in_ms=due_in_ms):
            raise Retry(defer=max(due_in_ms / 1000, NOTIFICATION_RETRY_S))
        case Enough():
            # The random part gives other workers a chance to take the job first. arq computes the next try by
            # the clock of this machine. If that clock is ahead, other workers would see the job later.
            ahead_s = max(0.0, time.time() - runtime.services.clock.now_ms() / 1000)
            wait_s = NOTIFICATION_RETRY_S + runtime.timings.poll_delay_s * runtime.services.chance()
            raise Retry(defer=wait_s - ahead_s)


async def fetch(ctx: dict[str, Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Enqueue the fetches of an arq job and return the receipt (worker/intake/arq_jobs.py)."""
    runtime: Runtime = ctx["runtime"]
    if runtime.live_lanes.drained.is_set():  # possible only under arq's own command
        raise Retry(defer=FETCH_RETRY_S)
    run_id = f"{ctx['job_id']} {ctx['enqueue_time']}"
    try:
        return await runtime.arq_ingress.fetch(run_id, args, kwargs)
    except NewerMessageError:  # a newer worker may run the next try; the wait keeps the queue free for others
        waits = min(_doubled(ctx), MAX_UNSUPPORTED_WAITS)
        raise Retry(defer=waits * runtime.timings.unsupported_retry_s) from None
    except (FullError, RedisError, OSError):  # a retry has the same batch ID, so nothing is enqueued twice
        raise Retry(defer=min(_doubled(ctx), MAX_FULL_WAITS) * FETCH_RETRY_S) from None


def _doubled(ctx: dict[str, Any]) -> int:
    """Return 1 for the first try of a job, doubled for each further one, at most 1024."""
    return int(2 ** min(ctx.get("job_try", 1) - 1, 10))


async def refused(ctx: dict[str, Any], note: str, excerpt: str) -> None:
    """Write a dead letter for an invalid job. The result of the job is the reason."""
    runtime: Runtime = ctx["runtime"]
    await runtime.arq_ingress.refuse(note, excerpt)
    raise InvalidFetchError(note)


async def sweep(ctx: dict[str, Any]) -> None:
    """Trim the stream of all results. arq runs this cron job on one worker of the fleet at a time.

    It shares only its name with the sweep of lanes, which is a loop of its own (worker/scheduler/sweep.py).
    """
    runtime: Runtime = ctx["runtime"]
    await runtime.housekeeping.run()


FUNCTIONS = [
    func(
        take_lane,
        name=TAKE_LANE,
        timeout=NOTIFICATION_TIMEOUT_S,
        keep_result=0,
        max_tries=MAX_NOTIFICATION_TRIES,
    ),
    func(
        fetch,  # type: ignore[arg-type]  # any name may be among the arguments
        name=FETCH,
        timeout=FETCH_TIMEOUT_S,
        keep_result=RECEIPT_TTL_S,
        max_tries=MAX_FETCH_TRIES,
    ),
    func(refused, name=REFUSED, timeout=NOTIFICATION_TIMEOUT_S, keep_result=RECEIPT_TTL_S),
]
CRON_JOBS = [
    cron(
        sweep,
        name=SWEEP,
        second=set(range(0, 60, SWEEP_EVERY_S)),
        timeout=NOTIFICATION_TIMEOUT_S,
    )
]
KNOWN = frozenset({TAKE_LANE, FETCH, REFUSED, SWEEP})

read_job = functools.partial(arq_jobs.read_job, KNOWN)
"""The deserializer of arq's Worker. Nothing is ever unpickled."""


async def run_monitored_worker(settings: Settings) -> None:
    """Run one worker as run_worker does, and serve its health and metrics. Raises CommandError too."""
    async with monitoring(settings, os.environ) as on_started:
        await run_worker(settings, on_started)


@asynccontextmanager
async def monitoring(
    settings: Settings, environment: Mapping[str, str]
) -> AsyncIterator[Callable[[Runtime], None]]:
    """Serve the health of a worker within the block, and its metrics if the settings have an address.

    Yields a function to call with the started runtime. Raises CommandError if metrics cannot be served.
    """
    health, metrics = ProcessHealth(settings.worker_id), MetricsServer()

    def on_started(runtime: Runtime) -> None:
        health.not_ready, metrics.read = runtime.not_ready, runtime.figures

    address = settings.metrics_address
    serving = metrics.serve(*address) if address is not None else nullcontext()
    async with health.serve(environment), serving:
        yield on_started


async def run_worker(settings: Settings, on_started: Callable[[Runtime], None] = lambda _: None) -> None:
    """Run one worker until SIGTERM or SIGINT. Once started, it survives outages of Redis.

    Raises the errors of `build` and Runtime.start.
    """
    signalled = aio.stop_signal()
    starting = asyncio.create_task(start(settings), name="start")
    await aio.wait_for_either(starting, signalled)
    if not starting.done():
        await aio.end(starting)
        if starting.cancelled() or starting.exception():
            return
    runtime = starting.result()
    on_started(runtime)
    gc_freeze.freeze()
    work = asyncio.create_task(serve_arq_jobs(runtime), name="arq")
    await aio.wait_for_either(work, signalled)
    runtime.begin_stop()  # first: without replies from Redis, arq's loop ends late
    async with aio.cancelling(work, STOP_ARQ_S):
        await runtime.stop()


async def start(settings: Settings) -> Runtime:
    """Return a running worker that takes no arq jobs yet. Raises the errors of `build` and Runtime.start."""
    runtime = await build(settings)
    await runtime.start()
    return runtime


async def serve_arq_jobs(runtime: Runtime) -> None:
    """Run arq's loop until cancelled, except while the worker is drained."""
    while True:
        await runtime.live_lanes.undrained.wait()
        await _serve_until_drained(runtime)


async def _serve_until_drained(runtime: Runtime) -> None:
    """Run arq's loop until the worker is drained. Restart it when a Redis error or a bug ends it.

    Held lanes are not affected.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Exception),
        wait=wait_random_exponential(multiplier=0.1, max=1),
        before_sleep=lambda state: runtime.health.report(state.outcome and state.outcome.exception()),
    ):
        with attempt:
            worker = Worker(
                FUNCTIONS,
                cron_jobs=CRON_JOBS,
                redis_pool=vetted_queue(connection_pool(runtime.settings.redis_url), runtime.foreign.report),
                queue_name=keys.QUEUE,
                ctx={"runtime": runtime},
                handle_signals=False,
                # A random interval for each worker, so that none always polls right after another.
                poll_delay=runtime.timings.poll_delay_s * (0.7 + 0.6 * runtime.services.chance()),
                max_jobs=JOBS_AT_ONCE,
                keep_result=0,
                job_serializer=write_result,
                job_deserializer=read_job,
            )
            work = asyncio.create_task(worker.async_run(), name="arq's loop")
            try:
                await aio.wait_for_either(work, runtime.live_lanes.drained)
                if work.done():
                    work.result()
            finally:
                await aio.finish_before_cancel(_end(worker, work), name="ending arq's loop")


async def _end(worker: Worker, work: asyncio.Task[None]) -> None:
    """End arq's loop and its jobs, and close its connections."""
    await aio.end(work, again_s=CANCEL_AGAIN_S)  # arq's loop has no clean-up that this could interrupt
    # Not Worker.close: it raises the errors of cancelled jobs, and leaves connections open.
    worker.handle_sig(signal.SIGTERM)
    await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
    await worker.pool.aclose(close_connection_pool=True)
