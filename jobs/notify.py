"""Notification of workers through arq: everything of arq that producers and workers share.

Importing this module imports arq, so the producer's client imports it only at its first notification.
"""

import asyncio
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from arq.connections import ArqRedis

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.redis_connection import redis_now_ms

TAKE_LANE = "take_lane"
"""Name of the arq job for a due lane. Its arguments are the lane and the generation."""

MAX_CONCURRENT_JOBS = 16

SKEW_MS = 10 * 60 * 1000
"""Tolerated difference between the clocks of producers and workers."""

serialize = msgspec.json.encode
deserialize = msgspec.json.decode


def arq_client(pool: Any) -> ArqRedis:
    """Return an arq client on a connection pool. Jobs are JSON: pickle is never read or written."""
    return ArqRedis(
        pool_or_conn=pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=keys.QUEUE,
    )


async def notify_lanes(arq: ArqRedis, notifications: Iterable[LaneNotification]) -> None:
    """Enqueue an arq job for each lane. The sweep of the workers replaces lost notifications."""
    notifications = list(notifications)
    slots = asyncio.Semaphore(MAX_CONCURRENT_JOBS)
    own_ms = int(time.time() * 1000)
    later = any(item.due_in_ms > 0 for item in notifications)
    redis_ms = await redis_now_ms(arq) if later else own_ms

    async def enqueue(item: LaneNotification) -> None:
        async with slots:
            await arq.enqueue_job(
                TAKE_LANE,
                item.lane,
                item.generation,
                _job_id=keys.notification_job_id(item.lane, item.generation),
                _queue_name=keys.QUEUE,
                _defer_until=datetime.fromtimestamp(score_ms(item, own_ms, redis_ms) / 1000, UTC),
            )

    await asyncio.gather(*(enqueue(item) for item in notifications))


def score_ms(item: LaneNotification, own_ms: int, redis_ms: int) -> int:
    """Return the Unix ms at which arq runs the job. own_ms: the time by the local clock.

    arq compares it with the clock of the worker. A job that is due now gets a time that every clock has
    passed. A job that is due later gets the earlier time of the local clock and Redis's; if a worker runs it
    too early, Redis reports that, and the worker retries at the due time.
    """
    if item.due_in_ms <= 0:
        return own_ms - SKEW_MS
    return min(own_ms, redis_ms) + item.due_in_ms
