"""Ends fetches whose entries were lost or damaged in Redis, so that every fetch ends once.

The record of a batch lists its open fetches independently of their entries.
"""

from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.jobs.contract.result import Outcome, Reason, Result
from fetchfleet.jobs.scripts.batches import end_lost, late_batches
from fetchfleet.worker.observability.log import Event

NOTE = "its data in Redis was lost or damaged"

GRACE_S = 60.0
"""The time after the last deadline of a batch. Lanes end their own fetches within seconds."""

BATCHES_AT_ONCE = 200
"""The maximum number of batches checked by one run."""
FETCHES_AT_ONCE = 500
"""The maximum number of fetches of one batch ended by one run."""


class LostFetches:
    """Ends lost fetches with the reason `deadline`."""

    def __init__(
        self,
        redis: Redis,
        worker_id: str,
        log: FilteringBoundLogger,
        *,
        to_all_results: bool = True,
        grace_s: float = GRACE_S,
    ) -> None:
        """to_all_results: write the results to the stream of all results too."""
        self._redis = redis
        self._worker_id = worker_id
        self._log = log
        self._to_all_results = to_all_results
        self._grace_ms = int(grace_s * 1000)
        self._next = 0

    async def end(self, now_ms: int) -> None:
        """Check the next BATCHES_AT_ONCE batches, and end the open fetches of those that are late."""
        late = await late_batches(
            self._redis, skip=self._next, limit=BATCHES_AT_ONCE, before_ms=now_ms - self._grace_ms
        )
        self._next = self._next + BATCHES_AT_ONCE if late.checked == BATCHES_AT_ONCE else 0
        for batch_id in late.batch_ids:
            with suppress(ResponseError):
                await self._end(batch_id)

    async def _end(self, batch_id: str) -> None:
        some_id = fetch_id(batch_id, 0)
        result = Result(
            id=some_id,
            url="",
            outcome=Outcome.FAILED,
            reason=Reason.DEADLINE,
            worker=self._worker_id,
            note=NOTE,
        )
        before_id, _, after_id = encode(result).partition(some_id.encode())
        count = await end_lost(
            self._redis,
            batch_id=batch_id,
            grace_ms=self._grace_ms,
            limit=FETCHES_AT_ONCE,
            result_parts=(before_id, after_id),
            to_all_results=self._to_all_results,
        )
        if count:
            self._log.warning(Event.FETCH_LOST, batch=batch_id, fetches=count)
