"""What one submit made: its counters and its stream of results."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Self

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Notify, Receipt
from fetchfleet.jobs.contract.model import Result, decode_result
from fetchfleet.jobs.errors import KeyTypeConflictError, UnknownBatchError
from fetchfleet.jobs.redis_values import number_of, text_of
from fetchfleet.jobs.scripts import batches

READ_COUNT = 500
READ_BLOCK_MS = 500
POLL_S = 0.2
FROM_THE_START = "0"


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is. `sealed` once all of it is submitted; `bytes` is what was stored."""

    total: int = 0
    sealed: bool = False
    stored: int = 0
    unchanged: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes: int = 0

    @property
    def done(self) -> int:
        """How many fetches have their result."""
        return self.stored + self.unchanged + self.failed + self.cancelled

    @property
    def ended(self) -> bool:
        """Whether every fetch has its result and no more will be submitted."""
        return self.sealed and self.done >= self.total


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A batch among others; created_ms, and cancel_ms if it was cancelled, are Unix ms by Redis's clock."""

    id: str
    created_ms: int
    cancel_ms: int | None
    counts: Counts


class Results(AsyncIterator[Result]):
    """A batch's results in the order in which they came.

    `position` is where it stands: a later reader goes on behind it by `Batch.results(after=position)`.
    """

    def __init__(self, batch: "Batch", after: str, *, follow: bool, trim: bool) -> None:
        self.position = after
        self._rows = batch._rows(after, follow=follow, trim=trim)  # noqa: SLF001 one thing in two classes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        self.position, result = await anext(self._rows)
        return result


class Batch:
    """A handle on a batch; any process that knows the id can make one (`Fleet.batch`)."""

    def __init__(self, redis: Redis, batch_id: str, notify: Notify) -> None:
        self.id = batch_id
        self._redis = redis
        self._notify = notify

    def __repr__(self) -> str:
        return f"<Batch {self.id}>"

    async def counts(self) -> Counts:
        """How far the batch is; raises UnknownBatchError."""
        with foreign_at(keys.batch(self.id), "hash"):
            fields = await self._redis.hmget(keys.batch(self.id), Counts.__struct_fields__)  # type: ignore[misc, arg-type]
        counts = _counts(fields)
        if counts is None:
            raise self._unknown()
        return counts

    async def wait(self) -> Counts:
        """Return when every fetch has its result."""
        while not (counts := await self.counts()).ended:  # noqa: ASYNC110 it happens in other processes
            await asyncio.sleep(POLL_S)
        return counts

    def results(self, *, after: str = FROM_THE_START, follow: bool = True, trim: bool = False) -> Results:
        """Every result of the batch, each once, until all are there.

        after: a `position` that an earlier reader came to; what is behind it is read. follow: wait for
        those that are still to come. trim: delete what has been yielded, so that a batch of millions does
        not live in Redis (where Redis lets us). Raises UnknownBatchError.
        """
        return Results(self, after, follow=follow, trim=trim)

    async def cancel(self) -> Counts:
        """End every fetch that has no result as `cancelled`; how far the batch was.

        The workers do it, within about a second: what waits ends untried, what runs is stopped. Nothing
        more can be submitted to the batch. Again without harm; raises UnknownBatchError.
        """
        lanes = await batches.cancel(self._redis, batch_id=self.id)
        if lanes is None:
            raise self._unknown()
        await self._notify(await batches.cancel_in_lanes(self._redis, lanes, batch_id=self.id))
        return await self.counts()

    def _unknown(self) -> UnknownBatchError:
        return UnknownBatchError(
            f"batch {self.id} is not in Redis: results expire {keys.RESULTS_TTL_MS // 3_600_000} h"
            " after the last one"
        )

    async def _rows(self, after: str, *, follow: bool, trim: bool) -> AsyncIterator[tuple[str, Result]]:
        position, ended = after, not follow
        if ended:
            await self.counts()
        while True:
            rows = await self._read(position, wait=not ended)
            for row_id, fields in rows:
                position = row_id.decode()
                yield position, decode_result(fields[b"r"])
            if trim and rows:
                trim = await self._forget(position)
            if ended and not rows:
                return
            ended = ended or (len(rows) < READ_COUNT and (await self.counts()).ended)

    async def _read(self, after: str, *, wait: bool) -> list[tuple[bytes, dict[bytes, bytes]]]:
        block = READ_BLOCK_MS if wait else None
        with foreign_at(keys.results(self.id), "stream"):
            reply: list[Any] = await self._redis.xread({keys.results(self.id): after}, READ_COUNT, block)
        return reply[0][1] if reply else []

    async def _forget(self, position: str) -> bool:
        """Whether Redis lets us: a producer's user may read results only (ops/users.acl)."""
        ms, _, sequence = position.partition("-")
        behind = f"{ms}-{int(sequence) + 1}"
        try:
            await self._redis.xtrim(keys.results(self.id), minid=behind, approximate=False)
        except NoPermissionError:
            return False
        return True


@contextmanager
def foreign_at(key: str, wanted: str) -> Iterator[None]:
    """Raises KeyTypeConflictError if the key turns out to hold something else."""
    try:
        yield
    except ResponseError as error:
        if "WRONGTYPE" in str(error):
            raise KeyTypeConflictError(key, "value of another type", wanted) from None
        raise


class Submitted(Batch):
    """The batch that a submit has made."""

    def __init__(self, redis: Redis, receipt: Receipt, notify: Notify) -> None:
        super().__init__(redis, receipt.handle, notify)
        self._receipt = receipt

    @property
    def ids(self) -> list[str]:
        """The id of each fetch, in their order; where its `key` was taken, that of the earlier fetch."""
        return self._receipt.ids


async def list_batches(redis: Redis, limit: int) -> list[BatchSummary]:
    """The newest batches that hold a fetch, the newest first."""
    found: list[BatchSummary] = []
    start = 0
    while len(found) < limit:
        names = await redis.zrange(keys.BATCHES, start, start + limit - 1, desc=True)
        if not names:
            break
        start += len(names)
        summaries = await _summaries(redis, [text_of(name) for name in names])
        found += [summary for summary in summaries if summary and summary.counts.total]
    return found[:limit]


async def _summaries(redis: Redis, names: list[str]) -> list[BatchSummary | None]:
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(keys.batch(name), ["created_ms", "cancel_ms", *Counts.__struct_fields__])
        rows = await pipe.execute()
    return [_summary(name, row) for name, row in zip(names, rows, strict=True)]


def _summary(name: str, row: list[bytes | None]) -> BatchSummary | None:
    created_ms, cancel_ms, *fields = row
    counts = _counts(fields)
    if counts is None:
        return None
    return BatchSummary(
        id=name,
        created_ms=number_of(created_ms) or 0,
        cancel_ms=number_of(cancel_ms),
        counts=counts,
    )


def _counts(fields: list[bytes | None]) -> Counts | None:
    """What a batch's hash says; None if there is no such batch."""
    given = {
        name: text_of(text)
        for name, text in zip(Counts.__struct_fields__, fields, strict=True)
        if text is not None
    }
    return msgspec.convert(given, Counts, strict=False) if given else None
