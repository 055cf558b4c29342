"""Plain arq, as in a service that does not import fetchfleet."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job, SerializationError

QUEUE = "ff:queue"


@asynccontextmanager
async def plain_arq(redis_url: str, **serializers: Any) -> AsyncIterator[ArqRedis]:
    """Yield a pool that uses JSON, or the given serializers."""
    as_json = {"job_serializer": lambda job: json.dumps(job).encode(), "job_deserializer": json.loads}
    pool = await create_pool(RedisSettings.from_dsn(redis_url), **{**as_json, **serializers})
    try:
        yield pool
    finally:
        await pool.aclose(close_connection_pool=True)


async def enqueue(pool: ArqRedis, function: str, *args: Any, **kwargs: Any) -> Job:
    """Enqueue a job for the fleet."""
    job = await pool.enqueue_job(function, *args, _queue_name=QUEUE, **kwargs)
    assert job is not None
    return job


async def job_outcome(pool: ArqRedis, job: Job) -> tuple[bool, Any]:
    """Return whether the job succeeded, and its result, decoded from JSON, or its error."""
    readable = Job(job.job_id, pool, QUEUE, json.loads)
    try:
        return True, await readable.result(timeout=30, poll_delay=0.02)
    except SerializationError as error:
        return False, str(error)
