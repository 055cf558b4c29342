"""The robots.txt files that the fleet knows, in Redis."""

from redis.asyncio import Redis

from fetchfleet.jobs import keys


class RobotsCache:
    """One entry for each origin; worker/gate/robots_rules.py reads and writes the text."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, origin: str) -> bytes | None:
        """Return the entry of the origin, None if no worker has requested its robots.txt lately."""
        text: bytes | None = await self._redis.get(keys.robots(origin))
        return text

    async def put(self, origin: str, text: bytes, ttl_ms: int) -> None:
        """Share the entry with the fleet."""
        await self._redis.set(keys.robots(origin), text, px=ttl_ms)
