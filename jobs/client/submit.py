"""`Submitter`: enqueues batches, for producers, and for workers that read the inbox and arq jobs."""

import asyncio
import hashlib
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import serialize_new_entry
from fetchfleet.jobs.contract.fetch import Fetch, as_fetch, encode, fingerprint_of
from fetchfleet.jobs.contract.ids import (
    BATCH_ID_CHARS,
    MAX_BATCH_FETCHES,
    batch_of,
    checked_batch_id,
    fetch_id,
)
from fetchfleet.jobs.contract.messages import PART_FETCHES
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.jobs.errors import (
    BatchCancelledError,
    BatchExistsError,
    BatchLostError,
    FleetFullError,
    FleetUnreachableError,
    InvalidFetchError,
    RedisFullError,
)
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.patience import RedisCaller, call_once
from fetchfleet.jobs.scripts import batches
from fetchfleet.jobs.scripts import submission as scripts
from fetchfleet.jobs.scripts.submission import (
    BacklogCheck,
    BacklogFull,
    BatchRefusal,
    ChunkAccepted,
    DueNotifications,
    KeyedFetch,
)

CHUNK_FETCHES = 500
CHUNK_BYTES = 4 << 20


class RetriedFetch(NamedTuple):
    """A fetch to submit under a key other than its own."""

    fetch: Fetch
    retry_of: str | None
    """ID of the failed fetch; None for a fetch of a named inbox, whose key is known in that inbox only."""
    key: str | None
    """Key in place of the fetch's own, which still belongs to the failed fetch; None: the fetch's own."""


Fetchable = Fetch | str | Mapping[str, Any]
Submittable = Fetchable | RetriedFetch
T = TypeVar("T")


class Chunk:
    """The serialized entries of one call of submit.lua, by lane and priority."""

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self.lanes: Counter[str] = Counter()
        self.groups: dict[tuple[str, str], list[bytes]] = {}
        self.fingerprints: dict[tuple[str, str], list[int]] = {}
        self.keyed: list[KeyedFetch] = []

    @property
    def full(self) -> bool:
        """True if the next fetch needs another chunk."""
        return self.count >= CHUNK_FETCHES or self.size_bytes >= CHUNK_BYTES

    def add(self, fetch_id: str, fetch: Fetch, serialized: bytes, key: str | None = None) -> None:
        """Add a fetch. key: in place of the fetch's own."""
        lane = lane_of_url(fetch.url)
        group = lane, fetch.priority.value
        self.groups.setdefault(group, []).append(serialized)
        self.fingerprints.setdefault(group, []).append(fingerprint_of(encode(fetch)))
        self.lanes[lane] += 1
        self.count += 1
        self.size_bytes += len(serialized)
        if (key := key or fetch.key) is not None:
            self.keyed.append(KeyedFetch(fetch_id, key, max(keys.KEY_TTL_MS, fetch.lifetime_ms)))

    def digest(self) -> str:
        """Return 16 hex digits that identify the content of the chunk."""
        return hashlib.sha256(b"".join(map(b"\n".join, self.groups.values()))).hexdigest()[:16]


async def chunks(
    batch_id: str,
    items: Iterable[Submittable] | AsyncIterable[Submittable],
    check: Callable[[int, Any], None] | None = None,
) -> AsyncGenerator[Chunk, None]:
    """Yield the items in chunks, checked; raises InvalidFetchError, which names the item."""
    places = itertools.count()
    chunk = Chunk()
    async with aclosing(iterate(items)) as iterator:
        async for item in iterator:
            place = next(places)
            if place >= MAX_BATCH_FETCHES:
                raise InvalidFetchError(f"a batch has at most {MAX_BATCH_FETCHES} fetches; submit another")
            try:
                if check is not None:
                    check(place, item)
                add_to(chunk, fetch_id(batch_id, place), item)
            except InvalidFetchError as error:
                raise InvalidFetchError(f"item {place}: {error}") from None
            if chunk.full:
                yield chunk
                chunk = Chunk()
                await asyncio.sleep(0)
    if chunk.count:
        yield chunk


def add_to(chunk: Chunk, fetch_id: str, item: Submittable) -> None:
    """Add an item to the chunk; raises InvalidFetchError."""
    fetch, retry_of, key = item if isinstance(item, RetriedFetch) else (as_fetch(item), None, None)
    chunk.add(fetch_id, fetch, serialize_new_entry(fetch_id, fetch, retry_of), key)


async def iterate(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """Yield the items of a synchronous or asynchronous iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


FULL_PAUSE_S = 0.2
WhenFull = Literal["raise", "wait"]
Notify = Callable[[Iterable[LaneNotification]], Awaitable[None]]


class Limits(NamedTuple):
    """Backlog limits: most fetches without a result, 0 for no limit."""

    fleet: int = 0
    lane: int = 0
    """Limit of each lane."""


NO_LIMITS = Limits()


class Receipt(msgspec.Struct, frozen=True):
    """The result of a submit."""

    batch_id: str
    count: int
    """Number of items, those with a repeated key included."""
    repeats: dict[str, str]
    """IDs of items whose key was taken, each with the ID of the earlier fetch."""
    first: int = 0
    """Place of the first item in the batch."""

    @property
    def ids(self) -> list[str]:
        """The IDs of the items, in order; for a `key` that was taken, the ID of the earlier fetch."""
        new_ids = (fetch_id(self.batch_id, place) for place in range(self.first, self.first + self.count))
        return [self.repeats.get(new_id, new_id) for new_id in new_ids]

    @property
    def batch_to_follow(self) -> str:
        """ID of the batch with the results: an earlier one if that has every fetch of this submit."""
        earlier = {batch_of(earlier_id) for earlier_id in self.repeats.values()}
        return earlier.pop() if len(self.repeats) == self.count and len(earlier) == 1 else self.batch_id


def new_batch_id(prefix: str = "") -> str:
    """Return a random batch ID. prefix: of a named inbox; without one, the ID does not begin with `f`."""
    random = secrets.token_hex(BATCH_ID_CHARS // 2)
    if prefix:
        return prefix + random[len(prefix) :]
    return "0123456789abcde"[secrets.randbelow(15)] + random[1:]


class Submitter:
    """Enqueues batches over one Redis, and notifies workers of their lanes."""

    def __init__(
        self, redis: Redis, notify: Notify, limits: Limits = NO_LIMITS, call: RedisCaller = call_once
    ) -> None:
        self._redis = redis
        self.notify = notify
        self._limits = limits
        self._call = call

    async def submit_part(
        self, fetches: Sequence[Submittable], *, batch_id: str, part: int, last: bool, notify: str = ""
    ) -> Receipt:
        """Enqueue one part of a batch, completely or not at all. part: number, from 1.

        Raises BatchLostError if an earlier part is not enqueued.
        """
        first = (part - 1) * PART_FETCHES
        chunk = Chunk()
        for place, item in enumerate(fetches, first):
            add_to(chunk, fetch_id(batch_id, place), item)
        args = self._redis, self.notify, self._limits, self._call, batch_id, notify
        submission = _Submission(*args, may_wait=False, chunks_sent=part - 1)
        await submission.send(chunk, last=last)
        return msgspec.structs.replace(submission.receipt, first=first)

    async def submit(
        self,
        fetches: Iterable[Submittable] | AsyncIterable[Submittable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
        check: Callable[[int, Any], None] | None = None,
        notify: str = "",
    ) -> Receipt:
        """Enqueue fetches, as `Fleet.submit`. check: called with each place and item. notify: checked."""
        batch_id = checked_batch_id(batch_id or new_batch_id())
        args = self._redis, self.notify, self._limits, self._call, batch_id, notify
        submission = _Submission(*args, may_wait=when_full == "wait")
        async with aclosing(chunks(batch_id, fetches, check)) as iterator:
            try:
                if isinstance(fetches, Sequence):
                    all_chunks = [chunk async for chunk in iterator]
                    try:
                        await submission.send_all(all_chunks)
                    except BatchLostError:
                        submission = _Submission(*args, may_wait=when_full == "wait")
                        await submission.send_all(all_chunks)
                else:
                    async for chunk in iterator:
                        await submission.send(chunk)
                    await submission.seal()
            except FleetUnreachableError as error:
                raise submission.unreachable(error) from error.__cause__
        return submission.receipt


class _Submission:
    """One batch during its submit."""

    def __init__(
        self,
        redis: Redis,
        notify: Notify,
        limits: Limits,
        call: RedisCaller,
        batch_id: str,
        webhook: str,
        *,
        may_wait: bool,
        chunks_sent: int = 0,
    ) -> None:
        """may_wait: wait at a backlog limit instead of raising. chunks_sent: chunks of the batch so far."""
        self.batch_id = batch_id
        self._webhook = webhook
        self._redis = redis
        self._notify = notify
        self._limits = limits
        self._call = call
        self._may_wait = may_wait
        self._chunks_sent = chunks_sent
        self._count = 0
        self._repeats: dict[str, str] = {}
        self._due_notifications = DueNotifications()

    @property
    def receipt(self) -> Receipt:
        return Receipt(self.batch_id, self._count, self._repeats)

    async def send_all(self, chunks: list[Chunk]) -> None:
        """Send the chunks of a list; if Redis runs out of memory, remove those already sent."""
        room = None if self._may_wait else sum((chunk.lanes for chunk in chunks), Counter[str]())
        sent: list[tuple[Chunk, int]] = []
        try:
            for chunk in chunks:
                taken_ms = await self.send(chunk, room, last=chunk is chunks[-1])
                sent.append((chunk, taken_ms))
                if room is not None:
                    room = Counter()  # the first call checked the room for the whole list
        except RedisFullError:
            left = 0
            for chunk, taken_ms in sent:
                left = await self._call(
                    scripts.undo,
                    self._redis,
                    batch_id=self.batch_id,
                    groups=chunk.groups,
                    keyed=chunk.keyed,
                    taken_ms=taken_ms,
                )
            self._count = left
            if not left:
                raise self._redis_full("nothing was enqueued; submit again later") from None
            raise self._redis_full(
                f"{left} fetches of batch {self.batch_id} stay enqueued: they have started, or another batch"
                " has their key. The rest was removed; submit it again later as another batch"
            ) from None
        if not chunks:
            await self.seal()

    async def send(self, chunk: Chunk, room: Counter[str] | None = None, *, last: bool = False) -> int:
        """Send a chunk, waiting at a backlog limit if that is allowed; return its Unix ms by Redis's clock.

        room: number of fetches by lane that must fit under the limits; None: those of the chunk.
        """
        self._chunks_sent += 1
        if room is None:  # capped at the limit: a larger chunk would wait forever
            limit = self._limits.lane or chunk.count
            room = Counter({lane: min(count, limit) for lane, count in chunk.lanes.items()})
        limits = self._limits if room else NO_LIMITS
        total = min(room.total(), self._limits.fleet) if self._may_wait else room.total()
        backlog = BacklogCheck(limits.fleet, limits.lane, total, room if limits.lane else {})
        digest = chunk.digest()
        while True:
            try:
                reply = await self._call(
                    scripts.submit,
                    self._redis,
                    batch_id=self.batch_id,
                    number=self._chunks_sent,
                    count=chunk.count,
                    groups=chunk.groups,
                    fingerprints=chunk.fingerprints,
                    keyed=chunk.keyed,
                    backlog=backlog,
                    digest=digest,
                    last=last,
                    notify=self._webhook,
                )
            except OutOfMemoryError:
                raise self._redis_full(self._so_far()) from None
            if isinstance(reply, ChunkAccepted):
                break
            if not isinstance(reply, BacklogFull) or not self._may_wait:
                raise self._refused(reply)
            await asyncio.sleep(FULL_PAUSE_S)
        self._repeats |= reply.repeats
        with suppress(RedisError, OSError):  # the sweep of the workers replaces lost notifications
            now_s = asyncio.get_running_loop().time()
            await self._notify(self._due_notifications.chosen(reply.notifications, now_s))
        self._count += chunk.count
        return reply.taken_ms

    async def seal(self) -> None:
        """Mark the batch as complete."""
        await self._call(batches.seal, self._redis, batch_id=self.batch_id, notify=self._webhook)

    def unreachable(self, error: FleetUnreachableError) -> FleetUnreachableError:
        """Return the error with the batch, its progress and the remedy."""
        message = (
            f"{error}; {self._count} fetches are enqueued as batch {self.batch_id}, and at most"
            f" {CHUNK_FETCHES} more; the same submit under this batch ID adds the rest"
        )
        return FleetUnreachableError(message, self.batch_id, enqueued=self._count)

    def _refused(self, reply: BacklogFull | BatchRefusal) -> Exception:
        if isinstance(reply, BacklogFull):
            limit = self._limits.fleet if reply.lane is None else self._limits.lane
            place = "the fleet" if reply.lane is None else f"lane {reply.lane}"
            message = f"{place} has {reply.open_fetches} fetches without a result; the limit is {limit}"
            return FleetFullError(f"{message}; {self._so_far()}", self.batch_id, self._count)
        if reply is BatchRefusal.CANCELLED:
            return BatchCancelledError(f"batch {self.batch_id} is cancelled; submit to another")
        if reply is BatchRefusal.EARLIER_LOST:
            lost = f"Redis lost fetches of batch {self.batch_id}, for example in a failover"
            return BatchLostError(f"{lost}; the same submit under this batch ID adds them")
        return BatchExistsError(
            f"batch {self.batch_id} holds other fetches; leave out the batch ID, or choose another"
        )

    def _redis_full(self, state: str) -> RedisFullError:
        message = f"Redis is at its maxmemory and accepts no writes; {state}"
        return RedisFullError(message, self.batch_id, self._count)

    def _so_far(self) -> str:
        if self._count:
            state = f"the first {self._count} fetches are enqueued as batch {self.batch_id}"
            return f"{state}; submit the rest later"
        return "nothing was enqueued; submit again later"
