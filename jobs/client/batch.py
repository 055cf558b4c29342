"""`Batch`: the counters and results of the fetches of one submit."""

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
from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.ids import batch_of, is_batch_id, is_fetch_id, place_of
from fetchfleet.jobs.contract.result import Result, decode_result
from fetchfleet.jobs.errors import FleetUnreachableError, KeyTypeConflictError, UnknownBatchError
from fetchfleet.jobs.patience import RedisCaller, call_once
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
"""A stream record: its ID and its fields."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a batch."""

    total: int = 0
    """Number of fetches submitted so far."""
    sealed: bool = False
    """True once no more fetches will be submitted."""
    stored: int = 0
    """Number of fetches with this outcome, as each of the next three."""
    unchanged: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes: int = 0
    """Sum of the sizes of stored bodies."""

    @property
    def done(self) -> int:
        """The number of fetches that have a result."""
        return self.stored + self.unchanged + self.failed + self.cancelled

    @property
    def ended(self) -> bool:
        """True if every fetch has a result and no more will be submitted."""
        return self.sealed and self.done >= self.total


class ReadPlaces:
    """The places of fetches whose results were read: a bitmap of the batch, in pages of 8 KiB."""

    PAGE_BYTES = 8192

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, place: int) -> bool:
        """Add a place; return whether it was new."""
        number, bit = divmod(place, 8 * self.PAGE_BYTES)
        page = self._pages.setdefault(number, bytearray(self.PAGE_BYTES))
        mask = 1 << (bit & 7)
        is_new = not page[bit >> 3] & mask
        page[bit >> 3] |= mask
        return is_new


class ReadResult(NamedTuple):
    """A result, as Redis has it."""

    position: str
    """ID of its stream record."""
    result: Result
    text: bytes
    """JSON in one line, as the worker wrote it."""


class Results(AsyncIterator[Result]):
    """An asynchronous iterator over the results of a batch, in the order in which they were written.

    Each result is yielded once, even if Redis lost its last writes and a worker wrote the result again.
    Stream records that are not results of the batch are skipped. After FleetUnreachableError, iterating
    again continues with the next result.
    """

    def __init__(
        self, batch: "Batch", redis: Redis, call: RedisCaller, after: str, *, follow: bool, trim: bool
    ) -> None:
        self.position = after
        """Position of the last result read, for `Batch.results(after=position)`."""
        self.due = 0
        """Lower bound of the number of unread results, unless another reader deletes some."""
        self._batch = batch
        self._redis = redis
        self._call = call
        self._unread: deque[Row] = deque()
        self._exists = follow  # checked after an empty read
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
        """Return the next results, up to READ_COUNT; an empty list at the end.

        With `trim`, the next call deletes them.
        """
        page: list[ReadResult] = []
        while not page and await self._has_rows():
            for row_id, fields in self._unread:
                result = self._result_of(fields)
                if result is not None:
                    text = fields[b"r"]
                    if b"\n" in text or b"\r" in text:  # reformatted by another program
                        text = encode(result)
                    page.append(ReadResult(row_id.decode(), result, text))
            self.position = self._unread[-1][0].decode()
            self._unread.clear()
        return page

    def _result_of(self, fields: dict[bytes, bytes]) -> Result | None:
        """Return the result of a stream record; None for a repeated one, or one that is not of the batch."""
        try:
            result = decode_result(fields[b"r"])
        except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not is_fetch_id(result.id) or batch_of(result.id) != self._batch.id:
            return None
        return result if self._places.add(place_of(result.id)) else None

    async def _has_rows(self) -> bool:
        """Read until a stream record can be decoded; return False at the end of the results."""
        try:
            while not self._unread and not self._ended:
                await self._read()
        except FleetUnreachableError as error:
            error.position = self.position
            raise
        return bool(self._unread)

    async def _read(self) -> None:
        """Delete results already yielded if `trim` is set, then read. Safe to repeat after an error."""
        stream = keys.results(self._batch.id)
        if self._trims and self._trimmed != self.position:
            ms, _, sequence = self.position.partition("-")
            try:
                next_id = f"{ms}-{int(sequence) + 1}"
                await self._call(self._redis.xtrim, stream, minid=next_id, approximate=False)
            except NoPermissionError:  # the user may only read results (ops/users.acl)
                self._trims = False
            self._trimmed = self.position
        if not self._exists:
            await self._batch.counts()
            self._exists = True
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
    """A handle on a batch, from `Fleet.submit` or, in any process that knows the ID, from `Fleet.batch`.

    Its calls wait for Redis for up to the redis_patience_s of the Fleet, then raise FleetUnreachableError.
    """

    def __init__(
        self,
        redis: Redis,
        batch_id: str,
        notify: Notify,
        call: RedisCaller = call_once,
        cancel_by: CancelBy | None = None,
    ) -> None:
        """cancel_by: function that cancels the batch in place of the script, for producers with an inbox."""
        self.id = batch_id
        """Batch ID, 16 hex digits."""
        self._redis = redis
        self._notify = notify
        self._call = call
        self._cancel_by = cancel_by

    def __repr__(self) -> str:
        return f"<Batch {self.id}>"

    async def counts(self) -> Counts:
        """Return the progress of the batch. Raises UnknownBatchError."""
        with conflicts_at(keys.batch(self.id), "hash"):
            fields = await self._redis_call(
                self._redis.hmget,  # type: ignore[arg-type]
                keys.batch(self.id),
                list(Counts.__struct_fields__),
            )
        counts = counts_of(fields)
        if counts is None:
            raise self._unknown()
        return counts

    async def wait(self) -> Counts:
        """Wait until the batch is sealed and every fetch has a result; return the final counts.

        A batch whose producer died during `submit` is never sealed; `cancel` ends it. Raises
        UnknownBatchError.
        """
        while not (counts := await self.counts()).ended:  # noqa: ASYNC110 other processes change it
            await asyncio.sleep(POLL_S)
        return counts

    def results(self, *, after: str = FROM_THE_START, follow: bool = True, trim: bool = False) -> Results:
        """Return an asynchronous iterator over the results of the batch.

        after: `position` of an earlier reader, to continue behind it.
        follow: wait for results until the batch has ended; False ends with the results that exist now.
        trim: delete results once they are read, if the Redis user may, so that Redis does not keep them.

        Iterating raises UnknownBatchError and FleetUnreachableError.
        """
        return Results(self, self._redis, self._redis_call, after, follow=follow, trim=trim)

    async def cancel(self) -> Counts:
        """Cancel the batch and return its progress so far.

        Workers end each fetch without a result as `cancelled`, within about a second. Fetches in flight are
        stopped. Nothing more can be submitted to the batch. Cancelling twice, or after the end, changes
        nothing. Raises UnknownBatchError.
        """
        if self._cancel_by is not None:
            await self._cancel_by(self.id)
            return await self.counts()
        lanes = await self._redis_call(batches.cancel, self._redis, batch_id=self.id)
        if lanes is None:
            raise self._unknown()
        due = await self._redis_call(batches.cancel_in_lanes, self._redis, lanes, batch_id=self.id)
        with suppress(RedisError, OSError):  # the sweep of the workers replaces lost notifications
            await self._notify(due)
        return await self.counts()

    async def retried_as(self) -> list["Batch"]:
        """Return the batches in which failed fetches of this one were submitted again, oldest first.

        The `retry_of` of their results is the ID of the failed fetch. The counters and results of this batch
        do not change. Raises UnknownBatchError.
        """
        with conflicts_at(keys.batch(self.id), "hash"):
            total, ids = await self._redis_call(
                self._redis.hmget,  # type: ignore[arg-type]
                keys.batch(self.id),
                ["total", "retried_as"],
            )
        if total is None:
            raise self._unknown()
        parts = self._notify, self._call, self._cancel_by
        return [Batch(self._redis, batch_id, *parts) for batch_id in batch_ids_of(ids)]

    async def _redis_call(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **named: P.kwargs
    ) -> T:
        """Call Redis; add the ID of this batch to a FleetUnreachableError."""
        try:
            return await self._call(function, *args, **named)
        except FleetUnreachableError as error:
            error.batch_id = self.id
            raise

    def _unknown(self) -> UnknownBatchError:
        return UnknownBatchError(
            f"batch {self.id} is not in Redis: it never existed, or it expired"
            f" {keys.RESULTS_TTL_MS // 3_600_000} h after its last result"
        )


@contextmanager
def conflicts_at(key: str, wanted: str) -> Iterator[None]:
    """Convert a WRONGTYPE error of Redis to a KeyTypeConflictError of this key."""
    try:
        yield
    except ResponseError as error:
        if "WRONGTYPE" in str(error):
            raise KeyTypeConflictError(key, "value of another type", wanted) from None
        raise


class Submitted(Batch):
    """The batch that `Fleet.submit` returns."""

    def __init__(
        self,
        redis: Redis,
        receipt: Receipt,
        notify: Notify,
        call: RedisCaller = call_once,
        cancel_by: CancelBy | None = None,
    ) -> None:
        super().__init__(redis, receipt.batch_to_follow, notify, call, cancel_by)
        self._receipt = receipt

    @property
    def ids(self) -> list[str]:
        """The IDs of the fetches, in order; for a `key` that was taken, the ID of the earlier fetch."""
        return self._receipt.ids

    @property
    def receipt(self) -> Receipt:
        """The receipt, for a caller that must not have all IDs in memory."""
        return self._receipt


def batch_ids_of(text: bytes | None) -> list[str]:
    """Return the batch IDs of a space-separated list; other words are skipped."""
    return [word for word in text_of(text or b"").split() if is_batch_id(word)]


def counts_of(fields: list[bytes | None]) -> Counts | None:
    """Return the counts in the hash of a batch, 0 for invalid numbers; None if the batch does not exist."""
    if not any(text is not None for text in fields):
        return None
    counts = {
        name: max(0, number_of(text) or 0)
        for name, text in zip(Counts.__struct_fields__, fields, strict=True)
    }
    return msgspec.convert({**counts, "sealed": counts["sealed"] > 0}, Counts)
