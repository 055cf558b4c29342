"""The workers that an operator drains: they hold no lanes and take no messages or jobs until `undrain`.

keys.DRAINS is a hash with a field for each such worker. The value is the start of the drain (Unix ms). ENDED
ends the drain; the worker then removes the field. A drained worker restores a missing field, because Redis
may have lost it.
"""

from collections.abc import Collection

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import number_of, text_of

ENDED = 0
"""The value of a field that ends a drain."""
MAX_MEMBERS = 10_000
"""The maximum number of fields of the hash. A larger hash was not written by a fleet."""

KEPT_MS = 3600 * 1000
"""The time for which the field of a worker without heartbeats is kept: it may be cut off from Redis."""


async def drained(redis: Redis) -> dict[str, int]:
    """Return the start of each drain (Unix ms), by the instance of the worker."""
    if await redis.hlen(keys.DRAINS) > MAX_MEMBERS:  # type: ignore[misc]
        return {}  # from another program: the sweep removes it, and drained workers restore their fields
    fields = await redis.hgetall(keys.DRAINS)  # type: ignore[misc]
    return {text_of(instance): at for instance, since in fields.items() if (at := number_of(since) or 0)}


async def drain(redis: Redis, instance: str, now_ms: int) -> None:
    """Drain a worker, as of now_ms."""
    await redis.hset(keys.DRAINS, instance, str(now_ms))  # type: ignore[misc]


async def undrain(redis: Redis, instance: str) -> None:
    """End the drain of a worker."""
    await redis.hset(keys.DRAINS, instance, str(ENDED))  # type: ignore[misc]


async def forget(redis: Redis, instance: str) -> None:
    """Remove the field of a worker whose drain has ended, or that has stopped."""
    await redis.hdel(keys.DRAINS, instance)  # type: ignore[misc]


async def forget_ended(redis: Redis, living: Collection[str], now_ms: int) -> None:
    """Remove the fields of workers that died while they were drained. living: the live instances."""
    for instance, since_ms in (await drained(redis)).items():
        if instance not in living and now_ms - since_ms > KEPT_MS:
            await forget(redis, instance)
