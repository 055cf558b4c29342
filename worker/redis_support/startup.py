"""Startup checks: Redis replies, has its data loaded, a supported version and mode, and evicts no keys."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, NoPermissionError, RedisError, ResponseError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.compat import CLUSTER_MODE
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS
from fetchfleet.jobs.errors import UnsupportedRedisError
from fetchfleet.jobs.redis_errors import is_or_wraps
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.redis_support.errors import redis_at

LOADING_PAUSE_S = 0.5

MIN_VERSION = (6, 2)
"""The first version with all required commands: BLMOVE, LPOP with a count, XTRIM MINID."""


class RefusedRedisError(CommandError):
    """A worker cannot use this Redis. The message says what to change."""


async def await_usable_redis(redis: Redis, redis_url: str, log: FilteringBoundLogger) -> None:
    """Return when Redis has loaded its data, however long that takes.

    Raises UnreachableRedisError if Redis does not reply, because the URL may be wrong; only a running worker
    waits for Redis. Raises RefusedRedisError if a worker cannot use this Redis.
    """
    with redis_at(redis_url):
        logged = False
        while True:
            try:
                await redis.ping()
                break
            except RedisError as error:
                if not is_or_wraps(error, BusyLoadingError):
                    raise
            if not logged:
                log.warning(Event.REDIS_LOADING)
            logged = True
            await asyncio.sleep(LOADING_PAUSE_S)
        try:
            # Not CONFIG GET: a user with that right can read the passwords of Redis.
            info: dict[str, Any] = await redis.info()
        except UnsupportedRedisError:
            raise
        except ResponseError:
            return  # a managed Redis may deny INFO
    if refused := refusal_of(info):
        raise refused


def refusal_of(info: Mapping[str, Any]) -> RefusedRedisError | None:
    """Return the error of a Redis that a worker cannot use; None if it can. info: the reply of INFO.

    The exit code of the error is BAD_USE if only another Redis would help.
    """
    mode = info.get("redis_mode") or info.get("server_mode")  # of Redis, of Valkey
    version = str(info.get("redis_version", ""))
    if mode == "cluster" or info.get("cluster_enabled"):
        return RefusedRedisError(CLUSTER_MODE, BAD_USE)
    if mode == "sentinel":
        return RefusedRedisError(
            "the Redis URL is the URL of a Sentinel, which stores no data: give the URL of the primary",
            BAD_USE,
        )
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < MIN_VERSION:
        minimum = ".".join(map(str, MIN_VERSION))
        return RefusedRedisError(f"Redis {version} is too old: {minimum} or newer is needed", BAD_USE)
    if info.get("role") == "slave" and info.get("slave_read_only"):
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        return RefusedRedisError(f"Redis is a read-only replica: give the URL of the primary, {primary}")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return RefusedRedisError(
            f"Redis has maxmemory-policy {policy}, which drops fetches when memory is short;"
            " set it to noeviction: redis-cli CONFIG SET maxmemory-policy noeviction"
        )
    return None


async def check_rights(redis: Redis) -> None:
    """Run a command that users of earlier versions may not run. Raises NoPermissionError.

    A script that is denied the command after a write would otherwise leave its work incomplete.
    """
    try:
        await redis.bitfield(keys.record("0" * BATCH_ID_CHARS)).get("u1", 0).execute()
    except NoPermissionError:
        raise
    except ResponseError:
        return  # permitted, but another program wrote a value of another type to the key


@contextmanager
def startup_permissions() -> Iterator[None]:
    """Turn errors for denied or unknown commands within the block into RefusedRedisError."""
    try:
        yield
    except NoPermissionError as error:
        raise RefusedRedisError(
            f"Redis does not let a worker do its work: {redact.text(error)};"
            " use the user worker of ops/users.acl. If that user is from an earlier version:"
            " fetchfleet acl --keep users.acl prints your file of users with the rights of this version"
        ) from error
    except UnsupportedRedisError:
        raise
    except ResponseError as error:
        if "unknown command" not in str(error).lower():
            raise
        raise RefusedRedisError(
            f"Redis lacks a command that a worker needs: {redact.text(error)}; remove its rename-command line"
            " from the configuration of Redis",
            BAD_USE,
        ) from error
