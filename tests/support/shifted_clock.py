"""A shifted Redis clock for the Lua scripts and the sweep."""

import hashlib
from functools import cache

import pytest
from redis.asyncio import Redis

from fetchfleet.jobs import redis_connection
from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.scheduler import sweep

KEY = "ff:shifted_s"
_SHIFTED = (
    f"local function shifted_time()\n  local t = redis.call('TIME')\n"
    f"  t[1] = t[1] + (redis.call('GET', '{KEY}') or 0)\n  return t\nend\n"
)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scripts and the sweep read the shifted clock."""
    source_of = runner.source_of

    @cache
    def shifted(script: str) -> str:
        return _SHIFTED + source_of(script).replace("redis.call('TIME')", "shifted_time()")

    @cache
    def digest_of(script: str) -> str:
        return hashlib.sha1(shifted(script).encode()).hexdigest()

    monkeypatch.setattr(runner, "source_of", shifted)
    monkeypatch.setattr(runner, "digest_of", digest_of)
    monkeypatch.setattr(sweep, "redis_now_ms", now_ms)


async def now_ms(redis: Redis) -> int:
    """Return the time of the shifted clock."""
    return await redis_connection.redis_now_ms(redis) + 1000 * int(await redis.get(KEY) or 0)


async def shift(redis: Redis, by_s: int) -> None:
    """Move the clock forward."""
    await redis.incrby(KEY, by_s)


async def unshift(redis: Redis) -> None:
    """Reset the clock."""
    await redis.delete(KEY)
