"""The workers that an operator has drained: they hold no lanes and take nothing in until `undrain`.

A field of the hash asks a worker to be drained, since when; ENDED asks it to take lanes again, and the worker
removes the field. A drained worker whose field is missing writes it again: Redis may have lost it.
"""

from collections.abc import Collection

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import number_of, text_of

ENDED = 0
MOST = 10_000
"""How many workers may be drained at once."""

KEPT_MS = 3600 * 1000
"""How long the field of a worker without heartbeats stays: it may be cut off from Redis."""


async def drained(redis: Redis) -> dict[str, int]:
    """Return the instances that are asked to be drained, and since when (Unix ms)."""
    if await redis.hlen(keys.DRAINS) > MOST:  # type: ignore[misc]
        return {}  # another program's: a sweep removes it, and drained workers write their fields again
    found = await redis.hgetall(keys.DRAINS)  # type: ignore[misc]
    return {text_of(instance): at for instance, since in found.items() if (at := number_of(since) or 0)}


async def drain(redis: Redis, instance: str, now_ms: int) -> None:
    """Ask a worker to give its lanes back and to take none."""
    await redis.hset(keys.DRAINS, instance, str(now_ms))  # type: ignore[misc]


async def undrain(redis: Redis, instance: str) -> None:
    """Ask a drained worker to take lanes again."""
    await redis.hset(keys.DRAINS, instance, str(ENDED))  # type: ignore[misc]


async def forget(redis: Redis, instance: str) -> None:
    """Remove the field of a worker that has ended, or has taken lanes again."""
    await redis.hdel(keys.DRAINS, instance)  # type: ignore[misc]


async def forget_ended(redis: Redis, living: Collection[str], now_ms: int) -> None:
    """Remove the fields of workers that were killed while they were drained."""
    for instance, since_ms in (await drained(redis)).items():
        if instance not in living and now_ms - since_ms > KEPT_MS:
            await forget(redis, instance)
