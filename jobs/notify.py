"""Asks arq to hand a lane to a worker: all that producers and workers share of arq.

arq is imported when the first lane is woken, so that importing `jobs` stays cheap.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import redis_now_ms

if TYPE_CHECKING:
    from arq.connections import ArqRedis

TAKE_LANE = "take_lane"
GRACE_MS = 3_000
NEXT_MS = 1_000
MAX_WAKES_AT_ONCE = 16

HINTS = 16
"""Of lanes that come due together so many are handed over."""

SKEW_MS = 10 * 60 * 1000
"""So far the clocks of producers and workers may be from each other, and none notices."""

serialize = msgspec.json.encode
deserialize = msgspec.json.decode


class Wake(NamedTuple):
    """One lane to hand over: its generation, and in how many ms."""

    lane: str
    generation: int
    due_in_ms: int


def busy_within_ms(lease_ms: int) -> int:
    """A lane that needs attention within this time is held (its lease ends) or due; others cool down."""
    return max(lease_ms, GRACE_MS) + NEXT_MS


def hints(wakes: Sequence[Wake]) -> list[Wake]:
    """Those that are due later, and a few of those that are due now: who takes one looks for the others."""
    now = [item for item in wakes if item.due_in_ms <= 0]
    return now[:HINTS] + [item for item in wakes if item.due_in_ms > 0]


def arq_client(pool: Any) -> "ArqRedis":
    """Arq's client on our connection pool, speaking JSON: pickle is never read or written."""
    from arq.connections import ArqRedis  # noqa: PLC0415 see the module's docstring

    return ArqRedis(
        pool_or_conn=pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=keys.QUEUE,
    )


async def wake(arq: "ArqRedis", wakes: Iterable[Wake]) -> None:
    """Enqueue the hand-offs. One that is lost here is made good by the workers."""
    wakes = list(wakes)
    slots = asyncio.Semaphore(MAX_WAKES_AT_ONCE)
    own_ms = int(time.time() * 1000)
    later = any(item.due_in_ms > 0 for item in wakes)
    redis_ms = await redis_now_ms(arq) if later else own_ms

    async def one(item: Wake) -> None:
        async with slots:
            await arq.enqueue_job(
                TAKE_LANE,
                item.lane,
                item.generation,
                _job_id=keys.wake_job(item.lane, item.generation),
                _queue_name=keys.QUEUE,
                _defer_until=datetime.fromtimestamp(score_ms(item, own_ms, redis_ms) / 1000, UTC),
            )

    await asyncio.gather(*(one(item) for item in wakes))


def score_ms(item: Wake, own_ms: int, redis_ms: int) -> int:
    """When arq is to see the hand-off, by the clock of whoever looks.

    arq compares what one machine's clock wrote with another's. What is due now is written so long ago that
    every clock agrees; what is due later never by a clock that is ahead. Who sees it too early is told so by
    Redis, and looks again then.
    """
    if item.due_in_ms <= 0:
        return own_ms - SKEW_MS
    return min(own_ms, redis_ms) + item.due_in_ms
