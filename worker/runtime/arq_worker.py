"""arq's part in a worker: the hand-off job, the sweep as cron, the loop that runs both.

This file and worker/main.py are the only ones that know arq's Worker.
"""

import asyncio
import functools
import logging
import signal
import time
from typing import Any

from arq import Retry, cron, func
from arq.worker import Worker
from redis.exceptions import RedisError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from fetchfleet.jobs import keys
from fetchfleet.jobs.errors import FullError, InvalidFetchError, NewerMessageError
from fetchfleet.jobs.notify import TAKE_LANE, arq_client
from fetchfleet.jobs.redis_connection import connection_pool
from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.intake import arq_jobs
from fetchfleet.worker.intake.arq_jobs import FETCH, REFUSED, write_result
from fetchfleet.worker.runtime.runtime import Runtime
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util import aio, gc_freeze

POLL_DELAY_S = 0.1
HAND_OFF_TIMEOUT_S = 10
HAND_OFFS_AT_ONCE = 64
MAX_HAND_OFF_TRIES = 1000
AGAIN_S = 0.05
MAX_DECLINES = 40
"""A worker with its share of lanes leaves one to others so many times: they may be at a standstill."""

FETCH_TIMEOUT_S = 120
"""A job of 8 MiB takes seconds. For as long as this arq gives the jobs of a dead worker to nobody."""
AGAIN_LATER_S = 1
NEWER_AGAIN_S = 5
MAX_FETCH_TRIES = 1_000_000
"""While the fleet is full, or Redis in trouble, a job is tried again until it expires by arq's rules."""
RECEIPT_TTL_S = 3600

HANG_UP_S = 2.0
"""Hand-offs under way are waited for so long before the grace of fetches begins to run out."""

HANG_UP_AGAIN_S = 0.05

SWEEP = "sweep"
SWEEP_EVERY_S = 2

logging.getLogger("arq").setLevel(logging.WARNING)


async def take_lane(ctx: dict[str, Any], lane: str, generation: int) -> None:
    """The hand-off: take the lane's lease and return; the lane goes on in the runtime."""
    runtime: Runtime = ctx["runtime"]
    insist = ctx["job_try"] > MAX_DECLINES
    match await runtime.take_lane(lane, generation, insist=insist):
        case Early(due_in_ms=due_in_ms):
            raise Retry(defer=max(due_in_ms / 1000, AGAIN_S))
        case Enough():
            # After a fixed time the same worker would be the first to meet the lane again.
            raise Retry(defer=AGAIN_S + POLL_DELAY_S * runtime.parts.chance() - _ahead_s(runtime))


def _ahead_s(runtime: Runtime) -> float:
    """How far this machine's clock, which arq goes by, is ahead: others would see the job so much later."""
    return max(0.0, time.time() - runtime.parts.clock.now_ms() / 1000)


async def fetch(ctx: dict[str, Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arq door: enqueues what it is given, and returns the receipt (worker/intake/arq_jobs.py)."""
    runtime: Runtime = ctx["runtime"]
    run_id = f"{ctx['job_id']} {ctx['enqueue_time']}"
    try:
        return await runtime.arq_door.fetch(run_id, args, kwargs)
    except NewerMessageError:
        raise Retry(defer=NEWER_AGAIN_S) from None  # whoever comes first then has it: a newer worker, in time
    except (FullError, RedisError, OSError):
        raise Retry(defer=AGAIN_LATER_S) from None  # the same job becomes the same batch: nothing comes twice


async def refused(ctx: dict[str, Any], note: str, found: str) -> None:
    """What was no job of ours is put aside, and the reason is its result."""
    runtime: Runtime = ctx["runtime"]
    await runtime.arq_door.refuse(note, found)
    raise InvalidFetchError(note)


async def sweep(ctx: dict[str, Any]) -> None:
    """Every few seconds one worker of the fleet wakes the lanes that need it."""
    runtime: Runtime = ctx["runtime"]
    await runtime.sweep()


FUNCTIONS = [
    func(
        take_lane,
        name=TAKE_LANE,
        timeout=HAND_OFF_TIMEOUT_S,
        keep_result=0,
        max_tries=MAX_HAND_OFF_TRIES,
    ),
    func(
        fetch,  # type: ignore[arg-type]  # any name may be among the arguments
        name=FETCH,
        timeout=FETCH_TIMEOUT_S,
        keep_result=RECEIPT_TTL_S,
        max_tries=MAX_FETCH_TRIES,
    ),
    func(refused, name=REFUSED, timeout=HAND_OFF_TIMEOUT_S, keep_result=RECEIPT_TTL_S),
]
CRON_JOBS = [
    cron(
        sweep,
        name=SWEEP,
        second=set(range(0, 60, SWEEP_EVERY_S)),
        timeout=HAND_OFF_TIMEOUT_S,
    )
]
KNOWN = frozenset({TAKE_LANE, FETCH, REFUSED, SWEEP})

read_job = functools.partial(arq_jobs.read_job, KNOWN)
"""arq's deserializer: nothing is ever unpickled."""


async def run_worker(settings: Settings) -> None:
    """Run one worker until SIGTERM or SIGINT; a Redis that goes away ends nothing.

    Raises what Runtime.start raises.
    """
    runtime = Runtime(settings)
    work = asyncio.create_task(_start_and_serve(runtime), name="arq")
    await aio.until_signal(work)
    signalled = not work.done()
    runtime.leave()  # at once: what follows takes a while where Redis does not answer
    async with aio.ended(work, HANG_UP_S):
        if runtime.started:
            await runtime.stop()
    if not runtime.started and not signalled:
        await work


async def _start_and_serve(runtime: Runtime) -> None:
    await runtime.start()
    gc_freeze.set_aside()
    await take_hand_offs(runtime)


async def take_hand_offs(runtime: Runtime) -> None:
    """Arq's loop ends when Redis blinks, or by a fault of its own: start it again.

    The lanes that we hold do not notice.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Exception),
        wait=wait_random_exponential(multiplier=0.1, max=1),
        before_sleep=lambda state: runtime.tell(state.outcome and state.outcome.exception()),
    ):
        with attempt:
            await runtime.clear_queue()
            await _arq_loop(runtime)


async def _arq_loop(runtime: Runtime) -> None:
    worker = Worker(
        FUNCTIONS,
        cron_jobs=CRON_JOBS,
        redis_pool=arq_client(connection_pool(runtime.settings.redis_url)),
        queue_name=keys.QUEUE,
        ctx={"runtime": runtime},
        handle_signals=False,
        # Each worker has an interval of its own, so that none is always a moment behind another.
        poll_delay=POLL_DELAY_S * (0.7 + 0.6 * runtime.parts.chance()),
        max_jobs=HAND_OFFS_AT_ONCE,
        keep_result=0,
        job_serializer=write_result,
        job_deserializer=read_job,
    )
    work = asyncio.create_task(worker.async_run(), name="arq's loop")
    try:
        await asyncio.shield(work)
    finally:
        await aio.end(work, again_s=HANG_UP_AGAIN_S)  # there is nothing that it does about its end
        await _close(worker)


async def _close(worker: Worker) -> None:
    """Arq's own close raises what its cancelled hand-offs raise, and then leaves connections open."""
    worker.handle_sig(signal.SIGTERM)
    await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
    await worker.pool.aclose(close_connection_pool=True)
