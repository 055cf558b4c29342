"""The unexpected end of a worker process of a run: its lanes need not wait for their leases."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from signal import Signals

from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect, text_of
from fetchfleet.jobs.scripts.sweep import end_leases
from fetchfleet.jobs.scripts.views import ROWS_AT_ONCE, lane_rows
from fetchfleet.worker.inspect.registration import name_of
from fetchfleet.worker.local.process import WorkerProcess

MAX_LANES = 5_000
"""The maximum number of lanes to read. The leases of further ones lapse."""
TIMEOUT_S = 2.0
"""The time after which a worker is replaced although Redis does not answer. The leases lapse then."""


async def replace(
    worker: WorkerProcess, end: tuple[int, bool], url: str, warn: Callable[[str], None]
) -> None:
    """Start a worker process again that has ended unasked, and say so. end: from `WorkerProcess.end`.

    After a quick end the leases lapse in their own time: a fetch that kills each worker may have caused it.
    """
    code, is_quick = end
    if not is_quick:
        with suppress(RedisError, OSError):  # TimeoutError is one
            async with asyncio.timeout(TIMEOUT_S), connect(url) as redis:
                await release(redis, worker.name)
    worker.restart()
    warn(f"{worker.name} ended {end_text(code)} and was started again; its fetches in flight are repeated")


async def release(redis: Redis, name: str) -> None:
    """End the leases of a worker whose process has ended, and remove it from the list of workers.

    No other live process may have the name. Fencing tokens reject the last writes of the ended process.
    """
    place, lanes_in_all, held = 0, 1, list[tuple[str, str]]()
    while place < min(MAX_LANES, lanes_in_all):
        page = await lane_rows(redis, place)
        held += [(of.name, of.owner) for of in page.rows if of.state == "held" and name_of(of.owner) == name]
        place, lanes_in_all = place + ROWS_AT_ONCE, page.lanes_in_all
    members = map(text_of, await redis.zrange(keys.WORKERS, 0, -1))
    dead = {owner for _, owner in held} | {worker for worker in members if name_of(worker) == name}
    if dead:
        await redis.zrem(keys.WORKERS, *dead)
        await redis.delete(*map(keys.worker, dead))
    await end_leases(redis, held)


def end_text(code: int) -> str:
    """Return in words how a process ended. code: negative after a signal. Pure."""
    if code >= 0:
        return f"with exit code {code}"
    with suppress(ValueError):
        return f"by {Signals(-code).name}"
    return f"by signal {-code}"
