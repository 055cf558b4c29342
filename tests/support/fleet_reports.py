"""Reports of workers in Redis, as heartbeats write them, without workers."""

from typing import Any

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.inspect.registration import registration_of
from fetchfleet.worker.inspect.snapshot import WorkerReport
from fetchfleet.worker.settings import Settings


async def publish_report(redis: Redis, name: str, **report: Any) -> str:
    """Publish the report of a live worker with this name; return its instance."""
    now_ms = await redis_now_ms(redis)
    registration = registration_of(Settings(worker_id=name), now_ms)
    text = msgspec.json.encode(WorkerReport(registration=registration, **report))
    await redis.zadd(keys.WORKERS, {registration.instance: now_ms})
    await redis.set(keys.worker(registration.instance), text, px=60_000)
    return registration.instance
