"""Startup checks: Redis answers, has loaded its data, can be worked with, and evicts no keys."""

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
from fetchfleet.jobs.redis_errors import is_of
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.redis_support.errors import redis_at

LOADING_PAUSE_S = 0.5

LEAST_VERSION = (6, 2)
"""The first Redis with all commands of jobs/lua and of the inbox: BLMOVE, LPOP with a count, XTRIM MINID."""


class RefusedRedisError(CommandError):
    """A Redis that a worker cannot use; the message holds the remedy."""


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
            info: dict[str, Any] = await redis.info()
        except UnsupportedRedisError:
            raise
        except ResponseError:
            return  # a managed Redis may deny it
    if refused := refusal_of(info):
        raise refused


def refusal_of(info: Mapping[str, Any]) -> RefusedRedisError | None:
    """Return the error of a Redis, by its INFO, that a worker cannot use.

    Its exit code is BAD_USE if only another Redis would help.
    """
    mode = info.get("redis_mode") or info.get("server_mode")  # of Redis, of Valkey
    version = str(info.get("redis_version", ""))
    if mode == "cluster" or info.get("cluster_enabled"):
        return RefusedRedisError(CLUSTER_MODE, BAD_USE)
    if mode == "sentinel":
        return RefusedRedisError(
            "the Redis URL is the URL of a Sentinel, which stores nothing: give that of the primary", BAD_USE
        )
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        return RefusedRedisError(f"Redis {version} is too old: {least} or newer is needed", BAD_USE)
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
    """Run what Redis denies the users of earlier versions; raise NoPermissionError.

    A script to which it is denied only after a write would leave its work half done.
    """
    try:
        await redis.bitfield(keys.record("0" * BATCH_ID_CHARS)).get("u1", 0).execute()
    except NoPermissionError:
        raise
    except ResponseError:
        return  # allowed; another program has written to the key


@contextmanager
def startup_permissions() -> Iterator[None]:
    """Turn a command that Redis denies or lacks, within the block, into RefusedRedisError."""
    try:
        yield
    except NoPermissionError as error:
        raise RefusedRedisError(
            f"Redis does not let a worker do its work: {redact.text(error)};"
            " use the user worker of ops/users.acl. If it is that of an earlier version:"
            " fetchfleet acl --keep users.acl prints your file of users with the rights of this version"
        ) from error
    except UnsupportedRedisError:
        raise
    except ResponseError as error:
        if "unknown command" not in str(error).lower():
            raise
        raise RefusedRedisError(
            f"Redis lacks a command that a worker needs: {redact.text(error)}; remove its rename-command from"
            " the configuration of Redis",
            BAD_USE,
        ) from error
