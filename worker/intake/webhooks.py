"""Enqueues the webhooks of batches that have ended, each as a batch of one fetch.

Each step may be repeated: the ID of the webhook's batch is derived from that of the batch.
"""

from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import RetriedFetch, Submitter
from fetchfleet.jobs.contract.webhooks import batch_ended, webhook_batch_id
from fetchfleet.jobs.errors import BatchError
from fetchfleet.jobs.scripts.batches import EndedBatch, ended_batches
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event

CHECKED_AT_ONCE = 500
MAX_CHECKED = 5_000
"""The maximum number of batches that one call checks. The next one continues with the others."""
CHECK_EVERY_MS = 500
"""The minimum time between two checks of a batch, by any worker of the fleet."""


class Webhooks:
    """Enqueues webhooks. submitter: without backlog limits, because a full fleet must not delay them."""

    def __init__(self, redis: Redis, submitter: Submitter, log: FilteringBoundLogger) -> None:
        self._redis = redis
        self._submitter = submitter
        self._log = log

    async def enqueue(self) -> None:
        """Enqueue the webhooks of the batches that have ended since the last call."""
        checked = 0
        while checked < MAX_CHECKED:
            check = await ended_batches(self._redis, limit=CHECKED_AT_ONCE, every_ms=CHECK_EVERY_MS)
            for ended in check.ended:
                await self._enqueue(ended)
            checked += check.checked
            if check.checked < CHECKED_AT_ONCE:
                break

    async def _enqueue(self, ended: EndedBatch) -> None:
        webhook_id, error = webhook_batch_id(ended.batch_id), ""
        try:
            fetch = batch_ended(ended.notify, ended.batch_id, ended.counts, ended.ended_ms)
            # As a retried fetch: producers may not submit a fetch that is signed.
            await self._submitter.submit([RetriedFetch(fetch, None, None)], batch_id=webhook_id)
        except (ValueError, BatchError) as refused:  # changed by another program, or cancelled
            error = str(refused)
        await self._redis.zrem(keys.WEBHOOKS, ended.batch_id)
        fields = {"batch": ended.batch_id, "webhook": webhook_id, "url": redact.url(ended.notify)}
        if error:
            self._log.warning(Event.WEBHOOK_REFUSED, **fields, error=redact.text(error))
        else:
            self._log.info(Event.WEBHOOK_ENQUEUED, **fields)
