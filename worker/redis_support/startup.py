"""At the start of a worker: a Redis that is there, has read what it kept, and is one to trust fetches to."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, NoPermissionError, RedisError, ResponseError

from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.redis_support.errors import is_of, redis_at

LOADING_PAUSE_S = 0.5


class RefusedRedisError(CommandError):
    """A Redis that would lose fetches, or lets us do nothing; the message holds the remedy."""


async def reach(redis: Redis, redis_url: str, log: Any) -> None:
    """Return once Redis has read what it kept, however long that takes; it is one to work with.

    At the start a Redis that does not answer is an error; later it is only waited for. Raises
    RefusedRedisError or UnreachableRedisError.
    """
    with redis_at(redis_url):
        await _loaded(redis, log)
        await _refuse_lossy(redis)


@contextmanager
def allowed() -> Iterator[None]:
    """For what is done at the start: what Redis does not let us do is a RefusedRedisError."""
    try:
        yield
    except NoPermissionError as error:
        raise RefusedRedisError(
            f"Redis does not let a worker do its work: {redact.text(error)};"
            " docs/security.md says what a worker's user must be allowed"
        ) from error


async def _loaded(redis: Redis, log: Any) -> None:
    told = False
    while await _is_loading(redis):
        if not told:
            log.warning(Event.REDIS_LOADING)
        told = True
        await asyncio.sleep(LOADING_PAUSE_S)


async def _is_loading(redis: Redis) -> bool:
    try:
        await redis.ping()
    except RedisError as error:
        if is_of(error, BusyLoadingError):
            return True
        raise
    return False


async def _refuse_lossy(redis: Redis) -> None:
    """A Redis that evicts keys would drop fetches silently."""
    try:
        # Not CONFIG GET: who may call that may read Redis's own passwords.
        found: dict[str, Any] = await redis.info("memory")
    except ResponseError:
        return  # a managed Redis may not tell
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise RefusedRedisError(
            f"Redis has maxmemory-policy {policy}, which drops fetches when memory is short;"
            " set it to noeviction: redis-cli CONFIG SET maxmemory-policy noeviction"
        )
