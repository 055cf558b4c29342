"""The fleet's cache of robots.txt files, in Redis."""

from redis.asyncio import Redis

from fetchfleet.jobs import keys


class RobotsCache:
    """One entry for each origin. worker/gate/robots_rules.py encodes and parses the entries."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, origin: str) -> bytes | None:
        """Return the entry of the origin; None if it is missing or expired."""
        text: bytes | None = await self._redis.get(keys.robots(origin))
        return text

    async def put(self, origin: str, text: bytes, ttl_ms: int) -> None:
        """Store the entry of the origin for ttl_ms."""
        await self._redis.set(keys.robots(origin), text, px=ttl_ms)
