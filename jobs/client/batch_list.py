"""The batches of a fleet, newest first."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import Counts, batch_ids_of, counts_of
from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.contract.webhooks import is_webhook
from fetchfleet.jobs.redis_connection import number_of, text_of

MAX_TIME_MS = 253_370_764_800_000
"""The beginning of the year 9999, Unix ms. Another program may have written any time."""

PAGE = 500
"""The number of batches to read at once."""


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One batch of a listing. Times are by Redis's clock."""

    id: str
    created_ms: int
    """Unix ms of the first submit."""
    cancel_ms: int | None
    """Unix ms of the cancellation; None if the batch was not cancelled."""
    counts: Counts
    retried_as: list[str] = []
    """IDs of the batches in which its failed fetches were submitted again."""


class BatchListPage(NamedTuple):
    """Batches of a listing."""

    batches: list[BatchSummary]
    """The batches at these places; those without a fetch, and those of webhooks, are left out."""
    next_place: int | None
    """The place of the next batch; None at the end."""


async def batch_page(redis: Redis, place: int, limit: int) -> BatchListPage:
    """Return the batches at up to `limit` places, newest first."""
    names = [text_of(name) for name in await redis.zrange(keys.BATCHES, place, place + limit - 1, desc=True)]
    summaries = await summaries_of(
        redis, [name for name in names if is_batch_id(name) and not is_webhook(name)]
    )
    batches = [summary for summary in summaries if summary.counts.total]
    return BatchListPage(batches, place + len(names) if len(names) == limit else None)


async def summaries_of(redis: Redis, ids: Sequence[str]) -> list[BatchSummary]:
    """Return the batches with these IDs, without those that do not exist."""
    async with redis.pipeline(transaction=False) as pipe:
        for batch_id in ids:
            fields = ["created_ms", "cancel_ms", "retried_as", *Counts.__struct_fields__]
            pipe.hmget(keys.batch(batch_id), fields)
        rows = await pipe.execute(raise_on_error=False)
    summaries = []
    for batch_id, row in zip(ids, rows, strict=True):
        if isinstance(row, ResponseError) and "WRONGTYPE" in str(row):
            continue  # written by another program
        if isinstance(row, Exception):
            raise row
        created_ms, cancel_ms, retried_as, *count_fields = row
        counts = counts_of(count_fields)
        if counts:
            summary = BatchSummary(
                id=batch_id,
                created_ms=_time(created_ms) or 0,
                cancel_ms=_time(cancel_ms),
                counts=counts,
                retried_as=batch_ids_of(retried_as),
            )
            summaries.append(summary)
    return summaries


def _time(text: bytes | None) -> int | None:
    """Return a time in Unix ms, MAX_TIME_MS at most; None if it is not a number."""
    at_ms = number_of(text)
    return None if at_ms is None else max(0, min(at_ms, MAX_TIME_MS))


async def list_batches(redis: Redis, limit: int) -> list[BatchSummary]:
    """Return the newest batches, newest first; those without a fetch, and those of webhooks, are skipped."""
    summaries: list[BatchSummary] = []
    place: int | None = 0
    while place is not None and len(summaries) < limit:
        page = await batch_page(redis, place, min(limit, PAGE))
        summaries += page.batches
        place = page.next_place
    return summaries[:limit]
