"""A batch: the counters and the results of what one submit created."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Notify, Receipt
from fetchfleet.jobs.contract.ids import batch_of, is_batch_id, is_fetch_id, place_of
from fetchfleet.jobs.contract.model import Result, decode_result, encode
from fetchfleet.jobs.errors import FleetUnreachableError, KeyTypeConflictError, UnknownBatchError
from fetchfleet.jobs.patience import RedisCaller, once
from fetchfleet.jobs.redis_connection import number_of, text_of
from fetchfleet.jobs.scripts import batches

P = ParamSpec("P")
T = TypeVar("T")

READ_COUNT = 500
READ_BLOCK_MS = 500
POLL_S = 0.2
FROM_THE_START = "0"

CancelBy = Callable[[str], Awaitable[None]]
Row = tuple[bytes, dict[bytes, bytes]]
"""An entry of a stream: its id and its fields."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """A batch's progress. `sealed` once all of it is submitted; `bytes` is the size of what was stored."""

    total: int = 0
    sealed: bool = False
    stored: int = 0
    unchanged: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes: int = 0

    @property
    def done(self) -> int:
        """The number of fetches that have a result."""
        return self.stored + self.unchanged + self.failed + self.cancelled

    @property
    def ended(self) -> bool:
        """True if every fetch has a result and no more will be submitted."""
        return self.sealed and self.done >= self.total


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One batch of a listing; created_ms, and cancel_ms if it was cancelled, are Unix ms by Redis's clock.

    retried_as: the batches in which failed fetches of it were submitted again.
    """

    id: str
    created_ms: int
    cancel_ms: int | None
    counts: Counts
    retried_as: list[str] = []


class ReadPlaces:
    """The places in a batch of the fetches whose results were read: a bit each, in pages of 8 KiB."""

    PAGE_BYTES = 8192

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, place: int) -> bool:
        """Add a place; return whether it is new."""
        number, bit = divmod(place, 8 * self.PAGE_BYTES)
        page = self._pages.setdefault(number, bytearray(self.PAGE_BYTES))
        mask = 1 << (bit & 7)
        is_new = not page[bit >> 3] & mask
        page[bit >> 3] |= mask
        return is_new


class ReadResult(NamedTuple):
    """A result that was read."""

    position: str
    result: Result
    text: bytes
    """Its JSON in one line, as it was written."""


class Results(AsyncIterator[Result]):
    """A batch's results in the order in which they were written, each once.

    A Redis that lost its last writes gets a result again, which was already yielded: it is left out, and so
    are rows that hold no result of the batch.

    `position` is that of the last result read; `Batch.results(after=position)` continues behind it. After
    FleetUnreachableError the iterator itself goes on where it was.
    """

    def __init__(
        self, batch: "Batch", redis: Redis, call: RedisCaller, after: str, *, follow: bool, trim: bool
    ) -> None:
        self.position = after
        self.due = 0
        """At least so many results are still to come, unless another reader deletes some."""
        self._batch = batch
        self._redis = redis
        self._call = call
        self._unread: deque[Row] = deque()
        self._is_known = follow  # a reader that waits asks for the batch when nothing comes
        self._may_be_last = False
        self._is_last = not follow
        self._ended = False
        self._trims = trim
        self._trimmed = after
        self._places = ReadPlaces()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        while await self._has_rows():
            row_id, fields = self._unread.popleft()
            self.position = row_id.decode()
            result = self._result_of(fields)
            if result is not None:
                return result
        raise StopAsyncIteration

    async def page(self) -> list[ReadResult]:
        """Return all results that are read at once; none at the end.

        With `trim` the next call deletes them.
        """
        found: list[ReadResult] = []
        while not found and await self._has_rows():
            for row_id, fields in self._unread:
                result = self._result_of(fields)
                if result is not None:
                    text = fields[b"r"]
                    if b"\n" in text or b"\r" in text:  # white space of another program
                        text = encode(result)
                    found.append(ReadResult(row_id.decode(), result, text))
            self.position = self._unread[-1][0].decode()
            self._unread.clear()
        return found

    def _result_of(self, fields: dict[bytes, bytes]) -> Result | None:
        """Return the result of a row; None for one that was read, or what another program has written."""
        try:
            result = decode_result(fields[b"r"])
        except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not is_fetch_id(result.id) or batch_of(result.id) != self._batch.id:
            return None
        return result if self._places.add(place_of(result.id)) else None

    async def _has_rows(self) -> bool:
        """Return whether a row is there to be decoded; wait for it until the batch has ended."""
        try:
            while not self._unread and not self._ended:
                await self._read()
        except FleetUnreachableError as error:
            error.position = self.position
            raise
        return bool(self._unread)

    async def _read(self) -> None:
        """Trim what was yielded, then read on. Each step may be repeated after an error."""
        stream = keys.results(self._batch.id)
        if self._trims and self._trimmed != self.position:
            ms, _, sequence = self.position.partition("-")
            try:
                first_kept = f"{ms}-{int(sequence) + 1}"
                await self._call(self._redis.xtrim, stream, minid=first_kept, approximate=False)
            except NoPermissionError:  # a producer's user may only read results (ops/users.acl)
                self._trims = False
            self._trimmed = self.position
        if not self._is_known:
            await self._batch.counts()
            self._is_known = True
        if self._may_be_last and not self._is_last:
            counts = await self._batch.counts()
            self._is_last, self.due = counts.ended, counts.total - counts.done
        with conflicts_at(stream, "stream"):
            block_ms = None if self._is_last else READ_BLOCK_MS
            reply: list[Any] = await self._call(
                self._redis.xread, {stream: self.position}, READ_COUNT, block_ms
            )
        rows: list[Row] = reply[0][1] if reply else []
        self._unread.extend(rows)
        self.due -= len(rows)
        self._may_be_last = not rows or (len(rows) < READ_COUNT and self.due <= 0)
        self._ended = self._is_last and not rows


class Batch:
    """A handle on a batch; any process that knows the id can make one (`Fleet.batch`)."""

    def __init__(
        self,
        redis: Redis,
        batch_id: str,
        notify: Notify,
        call: RedisCaller = once,
        cancel_by: CancelBy | None = None,
    ) -> None:
        """cancel_by: cancels a batch in place of the scripts."""
        self.id = batch_id
        self._redis = redis
        self._notify = notify
        self._call = call
        self._cancel_by = cancel_by

    def __repr__(self) -> str:
        return f"<Batch {self.id}>"

    async def counts(self) -> Counts:
        """Return the batch's progress; raises UnknownBatchError."""
        with conflicts_at(keys.batch(self.id), "hash"):
            fields = await self._ask(self._redis.hmget, keys.batch(self.id), list(Counts.__struct_fields__))  # type: ignore[arg-type]
        counts = _counts(fields)
        if counts is None:
            raise self._unknown()
        return counts

    async def wait(self) -> Counts:
        """Return once every fetch has a result."""
        while not (counts := await self.counts()).ended:  # noqa: ASYNC110 it happens in other processes
            await asyncio.sleep(POLL_S)
        return counts

    def results(self, *, after: str = FROM_THE_START, follow: bool = True, trim: bool = False) -> Results:
        """Iterate over every result of the batch, each once, until all have been read.

        after: the `position` of an earlier reader, to continue behind it. follow: wait for results that are
        not written yet. trim: delete results once yielded, so that Redis does not keep those of a batch of
        millions (if the user's ACL allows it). Raises UnknownBatchError, FleetUnreachableError.
        """
        return Results(self, self._redis, self._ask, after, follow=follow, trim=trim)

    async def cancel(self) -> Counts:
        """End every fetch that has no result as `cancelled`; return the progress so far.

        The workers do so within about a second: a waiting fetch ends at once, a running one is stopped.
        Nothing more can be submitted to the batch. A second cancel changes nothing. Raises UnknownBatchError,
        FleetUnreachableError.
        """
        if self._cancel_by is not None:
            await self._cancel_by(self.id)
            return await self.counts()
        lanes = await self._ask(batches.cancel, self._redis, batch_id=self.id)
        if lanes is None:
            raise self._unknown()
        due = await self._ask(batches.cancel_in_lanes, self._redis, lanes, batch_id=self.id)
        with suppress(RedisError, OSError):  # the workers' sweep replaces a notification that is lost
            await self._notify(due)
        return await self.counts()

    async def retried_as(self) -> list["Batch"]:
        """Return the batches in which failed fetches of this one were submitted again, oldest first.

        Their results have the id of the failed fetch in `retry_of`. The counters and results of this batch
        stay as they are. Raises UnknownBatchError.
        """
        with conflicts_at(keys.batch(self.id), "hash"):
            total, ids = await self._ask(self._redis.hmget, keys.batch(self.id), ["total", "retried_as"])  # type: ignore[arg-type]
        if total is None:
            raise self._unknown()
        parts = self._notify, self._call, self._cancel_by
        return [Batch(self._redis, batch_id, *parts) for batch_id in _batch_ids(ids)]

    async def _ask(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **named: P.kwargs) -> T:
        """Call Redis; an error that it cannot be reached names this batch."""
        try:
            return await self._call(function, *args, **named)
        except FleetUnreachableError as error:
            error.batch_id = self.id
            raise

    def _unknown(self) -> UnknownBatchError:
        return UnknownBatchError(
            f"batch {self.id} is not in Redis: results expire {keys.RESULTS_TTL_MS // 3_600_000} h"
            " after the last one"
        )


@contextmanager
def conflicts_at(key: str, wanted: str) -> Iterator[None]:
    """Raise KeyTypeConflictError if Redis reports a value of another type at the key."""
    try:
        yield
    except ResponseError as error:
        if "WRONGTYPE" in str(error):
            raise KeyTypeConflictError(key, "value of another type", wanted) from None
        raise


class Submitted(Batch):
    """The batch that a submit created."""

    def __init__(
        self,
        redis: Redis,
        receipt: Receipt,
        notify: Notify,
        call: RedisCaller = once,
        cancel_by: CancelBy | None = None,
    ) -> None:
        super().__init__(redis, receipt.handle, notify, call, cancel_by)
        self._receipt = receipt

    @property
    def ids(self) -> list[str]:
        """The ids of the fetches in their order; if a `key` was taken, the id of the earlier fetch."""
        return self._receipt.ids


async def list_batches(redis: Redis, limit: int) -> list[BatchSummary]:
    """Return the newest batches that hold a fetch, newest first."""
    found: list[BatchSummary] = []
    start = 0
    while len(found) < limit:
        ids = [
            text_of(name) for name in await redis.zrange(keys.BATCHES, start, start + limit - 1, desc=True)
        ]
        if not ids:
            break
        start += len(ids)
        async with redis.pipeline(transaction=False) as pipe:
            for batch_id in ids:
                fields = ["created_ms", "cancel_ms", "retried_as", *Counts.__struct_fields__]
                pipe.hmget(keys.batch(batch_id), fields)
            rows = await pipe.execute()
        for batch_id, (created_ms, cancel_ms, retried_as, *found_counts) in zip(ids, rows, strict=True):
            counts = _counts(found_counts)
            if counts and counts.total:
                summary = BatchSummary(
                    id=batch_id,
                    created_ms=number_of(created_ms) or 0,
                    cancel_ms=number_of(cancel_ms),
                    counts=counts,
                    retried_as=_batch_ids(retried_as),
                )
                found.append(summary)
    return found[:limit]


def _batch_ids(found: bytes | None) -> list[str]:
    """Return the ids in a list of them; another program may have written anything there."""
    return [word for word in text_of(found or b"").split() if is_batch_id(word)]


def _counts(fields: list[bytes | None]) -> Counts | None:
    """Return the counts in a batch's hash, None if there is no such batch. What is no number counts as 0."""
    if not any(text is not None for text in fields):
        return None
    found = {
        name: max(0, number_of(text) or 0)
        for name, text in zip(Counts.__struct_fields__, fields, strict=True)
    }
    return msgspec.convert({**found, "sealed": found["sealed"] > 0}, Counts)
