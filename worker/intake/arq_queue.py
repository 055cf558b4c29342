"""A client for arq's worker that hides members of the queue which arq can neither run nor drop.

arq reads the first few hundred members. It skips those with the score 0 or with a job in progress. A member
that is not UTF-8, or has an infinite score, ends its loop. Such members would block every job behind them.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from arq.connections import ArqRedis
from redis.asyncio.connection import ConnectionPool

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.messages import MAX_INPUT_BYTES
from fetchfleet.jobs.notify import deserialize, serialize
from fetchfleet.jobs.scripts.sweep import due_jobs
from fetchfleet.worker.intake.arq_jobs import REFUSED

LISTED = 128
"""The maximum number of jobs in one reply: more than a worker runs at once."""

CHECKED = 2_000
"""The maximum number of members checked by one call, so that Redis can serve other clients in between."""

MAX_CALLS = 10
"""The maximum number of calls for one read of the queue."""

OnForeign = Callable[[str, str, int, bytes], Awaitable[None]]
"""Called after members were removed, with the key, their kind, their number, and the first one."""

NO_JOB = "member without a job"


class VettedQueue(ArqRedis):
    """The Redis client of arq's worker. arq reads the queue with `zrangebyscore`, which returns only jobs."""

    on_foreign: OnForeign | None = None
    """Reports removed members."""

    async def zrangebyscore(self, name: Any, *args: Any, **options: Any) -> Any:
        """Return the members with these scores; for arq's queue, only those whose job may run now."""
        if name != keys.QUEUE or args:
            return await super().zrangebyscore(name, *args, **options)
        for _ in range(MAX_CALLS):
            due = await due_jobs(
                self,
                until_ms=options["max"],
                limit=LISTED,
                check=CHECKED,
                max_bytes=MAX_INPUT_BYTES,
                refuse_with=REFUSED,
            )
            if due.removed and self.on_foreign is not None:
                await self.on_foreign(keys.QUEUE, NO_JOB, due.removed, due.first)
            if due.ids or due.checked < CHECKED:
                break
        return due.ids


def vetted_queue(pool: ConnectionPool, on_foreign: OnForeign | None = None) -> VettedQueue:
    """Return a client on this connection pool. Jobs are JSON, as for `arq_client`."""
    queue = VettedQueue(
        pool_or_conn=pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=keys.QUEUE,
    )
    queue.on_foreign = on_foreign
    return queue
