"""Startup checks: Redis answers, has loaded its data, lets the worker work, and evicts no keys."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, NoPermissionError, RedisError, ResponseError
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.redis_support.errors import is_of, redis_at

LOADING_PAUSE_S = 0.5


class RefusedRedisError(CommandError):
    """A Redis that may evict fetches or denies a command; the message holds the remedy."""


async def await_usable_redis(redis: Redis, redis_url: str, log: FilteringBoundLogger) -> None:
    """Return once Redis has loaded its data, however long that takes.

    At startup a Redis that does not answer is an error; a running worker waits for it. Raises
    RefusedRedisError or UnreachableRedisError.
    """
    with redis_at(redis_url):
        logged = False
        while True:
            try:
                await redis.ping()
                break
            except RedisError as error:
                if not is_of(error, BusyLoadingError):
                    raise
            if not logged:
                log.warning(Event.REDIS_LOADING)
            logged = True
            await asyncio.sleep(LOADING_PAUSE_S)
        try:
            # Not CONFIG GET: a user who may call that can read Redis's own passwords.
            memory: dict[str, Any] = await redis.info("memory")
        except ResponseError:
            return  # a managed Redis may deny it
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise RefusedRedisError(
            f"Redis has maxmemory-policy {policy}, which drops fetches when memory is short;"
            " set it to noeviction: redis-cli CONFIG SET maxmemory-policy noeviction"
        )


@contextmanager
def startup_permissions() -> Iterator[None]:
    """Turn a command that Redis denies within the block into RefusedRedisError."""
    try:
        yield
    except NoPermissionError as error:
        raise RefusedRedisError(
            f"Redis does not let a worker do its work: {redact.text(error)};"
            " docs/security.md says what a worker's user must be allowed"
        ) from error
