"""Notifies workers of due lanes through arq: all that producers and workers share of arq.

Importing this module loads arq. The producer's client imports it for its first notification.
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
"""The arq function that takes a lane, with the lane's name and generation."""

MAX_AT_ONCE = 16

SKEW_MS = 10 * 60 * 1000
"""How far the clocks of producers and workers may differ without an effect."""

serialize = msgspec.json.encode
deserialize = msgspec.json.decode


def arq_client(pool: Any) -> ArqRedis:
    """Return arq's client on this connection pool. Jobs are JSON: pickle is never read or written."""
    return ArqRedis(
        pool_or_conn=pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=keys.QUEUE,
    )


async def notify_lanes(arq: ArqRedis, notifications: Iterable[LaneNotification]) -> None:
    """Enqueue one arq job per lane. The sweep of the workers replaces a notification that is lost."""
    notifications = list(notifications)
    slots = asyncio.Semaphore(MAX_AT_ONCE)
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
    """Return the time (Unix ms) at which arq is to run the job.

    arq compares the enqueuing machine's clock with the worker's. A job that is due now gets a time that every
    clock has passed, and one that is due later never a time of a clock that is ahead. A worker that runs it
    too early learns so from Redis and tries again at the right time.
    """
    if item.due_in_ms <= 0:
        return own_ms - SKEW_MS
    return min(own_ms, redis_ms) + item.due_in_ms
