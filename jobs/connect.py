"""How every part of ours connects to Redis."""

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool

from jobs.errors import RedisSetupError

CONNECT_TIMEOUT_S = 5.0
SOCKET_TIMEOUT_S = 10.0
HEALTH_CHECK_INTERVAL_S = 15


def connection_pool(redis_url: str) -> ConnectionPool:
    """A pool for redis://, rediss:// (certificate and host name checked) or unix://.

    Connecting takes CONNECT_TIMEOUT_S at most and a reply SOCKET_TIMEOUT_S, so a frozen Redis is
    noticed. Nothing is sent twice by itself: the scripts' callers know what may be.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "health_check_interval": HEALTH_CHECK_INTERVAL_S,
    }
    if redis_url.startswith("rediss://"):
        options["ssl_check_hostname"] = True
    try:
        return ConnectionPool.from_url(redis_url, **options)
    except ValueError:  # its message quotes what may be a password
        raise RedisSetupError(
            "not a Redis URL; use redis://HOST:PORT/DB, rediss://… or unix:///PATH, special characters"
            " of a password percent-encoded"
        ) from None


def connect(redis_url: str) -> Redis:
    """A client on a pool of its own; close it with `aclose()`."""
    return Redis.from_pool(connection_pool(redis_url))


async def redis_now_ms(redis: Redis) -> int:
    """Redis's Unix time in ms, the only clock that counts."""
    seconds, micros = await redis.time()
    return int(seconds * 1000 + micros // 1000)
