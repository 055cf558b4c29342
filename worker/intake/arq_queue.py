"""arq's queue, without what arq could neither run nor drop.

arq looks at the first few hundred members. It skips one with the score 0 or with a job in progress, and one
that is no text or has an infinite score ends its loop: such members would hide every job behind them.
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
"""How many jobs one look returns: more than a worker runs at once."""

CHECKED = 2_000
"""How many members one call checks, so that Redis serves others in between."""

MOST_CALLS = 10

OnForeign = Callable[[str, str, int, bytes], Awaitable[None]]
"""Called for removed members with the key, their kind, their number, and the first of them."""

NO_JOB = "member without a job"


class VettedQueue(ArqRedis):
    """The client of arq's worker. arq reads its queue with `zrangebyscore`, and gets jobs only."""

    on_foreign: OnForeign | None = None

    async def zrangebyscore(self, name: Any, *args: Any, **how: Any) -> Any:
        """Return the members with these scores; of arq's queue, those that have a job which may run now."""
        if name != keys.QUEUE or args:
            return await super().zrangebyscore(name, *args, **how)
        for _ in range(MOST_CALLS):
            due = await due_jobs(
                self,
                until_ms=how["max"],
                most=LISTED,
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
    """Return the client on this connection pool. Jobs are JSON, as those of `arq_client`."""
    queue = VettedQueue(
        pool_or_conn=pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=keys.QUEUE,
    )
    queue.on_foreign = on_foreign
    return queue
