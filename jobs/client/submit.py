"""Submits batches: for producers, and for workers that take fetches in by the inbox or arq."""

import asyncio
import dataclasses
import hashlib
import itertools
import secrets
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import serialize_new_entry
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS, MAX_BATCH_FETCHES, batch_of, fetch_id, is_batch_id
from fetchfleet.jobs.contract.messages import PART_FETCHES
from fetchfleet.jobs.contract.model import Fetch, as_fetch, encode, fingerprint_of
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
from fetchfleet.jobs.patience import RedisCaller, once
from fetchfleet.jobs.scripts import batches, submission
from fetchfleet.jobs.scripts.submission import Backlog, BatchRefusal, ChunkTaken, KeyedFetch, NoRoom, hints

CHUNK_FETCHES = 500
CHUNK_BYTES = 4 << 20


class RetriedFetch(NamedTuple):
    """A fetch that is submitted again, and the id of the one that failed.

    key: it counts in place of the fetch's own, which stands for the one that failed. retry_of: None for the
    fetch of a named inbox, whose key is known within that inbox only.
    """

    fetch: Fetch
    retry_of: str | None
    key: str | None


Fetchable = Fetch | str | Mapping[str, Any]
Submittable = Fetchable | RetriedFetch
T = TypeVar("T")


class Chunk:
    """The serialized entries of one submit call, grouped by lane and priority."""

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self.lanes: Counter[str] = Counter()
        self.groups: dict[tuple[str, str], list[bytes]] = {}
        self.fingerprints: dict[tuple[str, str], list[int]] = {}
        self.keyed: list[KeyedFetch] = []

    @property
    def full(self) -> bool:
        """Return True if the next fetch belongs in another chunk."""
        return self.count >= CHUNK_FETCHES or self.size_bytes >= CHUNK_BYTES

    def add(self, fetch_id: str, fetch: Fetch, serialized: bytes, key: str | None = None) -> None:
        """Add a fetch; key: in place of its own."""
        lane = lane_of_url(fetch.url)
        group = lane, fetch.priority.value
        self.groups.setdefault(group, []).append(serialized)
        self.fingerprints.setdefault(group, []).append(fingerprint_of(encode(fetch)))
        self.lanes[lane] += 1
        self.count += 1
        self.size_bytes += len(serialized)
        if (key := key or fetch.key) is not None:
            self.keyed.append(KeyedFetch(fetch_id, key, max(keys.KEY_TTL_MS, fetch.deadline_ms)))

    def digest(self) -> str:
        """Return a short hash of the chunk's content."""
        return hashlib.sha256(b"".join(map(b"\n".join, self.groups.values()))).hexdigest()[:16]


async def chunks(
    batch_id: str,
    items: Iterable[Submittable] | AsyncIterable[Submittable],
    check: Callable[[int, Any], None] | None = None,
) -> AsyncGenerator[Chunk, None]:
    """Yield the items in chunks, each item checked; raises InvalidFetchError, which names the item."""
    places = itertools.count()
    chunk = Chunk()
    async with aclosing(each(items)) as given:
        async for item in given:
            place = next(places)
            if place >= MAX_BATCH_FETCHES:
                raise InvalidFetchError(f"a batch holds at most {MAX_BATCH_FETCHES} fetches; begin another")
            of = fetch_id(batch_id, place)
            try:
                if check is not None:
                    check(place, item)
                add_to(chunk, of, item)
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


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """Iterate over a synchronous or an asynchronous iterable."""
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
    """The most fetches without a result, 0 for no limit."""

    fleet: int = 0
    lane: int = 0


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Receipt:
    """The result of a submit: the batch, the number of items, and the earlier fetch of each repeated key."""

    batch_id: str
    count: int
    repeats: dict[str, str]
    first: int = 0
    """The place of the first item in the batch."""

    @property
    def ids(self) -> list[str]:
        """The ids of the items in their order; if a `key` was taken, the id of the earlier fetch."""
        own = (fetch_id(self.batch_id, place) for place in range(self.first, self.first + self.count))
        return [self.repeats.get(of, of) for of in own]

    @property
    def handle(self) -> str:
        """The batch to follow: an earlier one if it has every fetch of this submit."""
        earlier = {batch_of(of) for of in self.repeats.values()}
        return earlier.pop() if len(self.repeats) == self.count and len(earlier) == 1 else self.batch_id


def new_batch_id(prefix: str = "") -> str:
    """Return a random id. prefix: that of a named inbox, how its ids begin; no other id begins with `f`."""
    random = secrets.token_hex(BATCH_ID_CHARS // 2)
    if prefix:
        return prefix + random[len(prefix) :]
    return "0123456789abcde"[secrets.randbelow(15)] + random[1:]


def checked_batch_id(batch_id: str) -> str:
    """Return the id; raise ValueError if it is malformed."""
    if not is_batch_id(batch_id):
        raise ValueError(f"{batch_id!r} is not a batch id: those are {BATCH_ID_CHARS} hex digits")
    return batch_id


class Submitter:
    """Enqueues batches over one Redis; `notify` notifies the workers of their lanes."""

    def __init__(
        self, redis: Redis, notify: Notify, limits: Limits = NO_LIMITS, call: RedisCaller = once
    ) -> None:
        self._redis = redis
        self.notify = notify
        self._limits = limits
        self._call = call

    async def submit_part(
        self, fetches: Sequence[Submittable], *, batch_id: str, part: int, last: bool
    ) -> Receipt:
        """Enqueue one part of a batch, from 1, after the parts before it; all of it or nothing.

        Raises BatchLostError if an earlier part is not in.
        """
        first = (part - 1) * PART_FETCHES
        chunk = Chunk()
        for place, item in enumerate(fetches, first):
            add_to(chunk, fetch_id(batch_id, place), item)
        parts = self._redis, self.notify, self._limits, self._call, batch_id
        sending = _Submission(*parts, may_wait=False, sent=part - 1)
        await sending.send(chunk, last=last)
        return dataclasses.replace(sending.receipt, first=first)

    async def submit(
        self,
        fetches: Iterable[Submittable] | AsyncIterable[Submittable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
        check: Callable[[int, Any], None] | None = None,
    ) -> Receipt:
        """Enqueue the fetches, as Fleet.submit documents. check: of each item, by its place."""
        batch_id = checked_batch_id(batch_id or new_batch_id())
        parts = self._redis, self.notify, self._limits, self._call, batch_id
        sending = _Submission(*parts, may_wait=when_full == "wait")
        async with aclosing(chunks(batch_id, fetches, check)) as pieces:
            try:
                if isinstance(fetches, Sequence):
                    whole = [piece async for piece in pieces]
                    try:
                        await sending.all_or_nothing(whole)
                    except BatchLostError:
                        sending = _Submission(*parts, may_wait=when_full == "wait")
                        await sending.all_or_nothing(whole)
                else:
                    async for piece in pieces:
                        await sending.send(piece)
                    await sending.seal()
            except FleetUnreachableError as error:
                raise sending.unreachable(error) from error.__cause__
        return sending.receipt


class _Submission:
    """One batch being submitted. may_wait: wait at a limit instead of raising."""

    def __init__(
        self,
        redis: Redis,
        notify: Notify,
        limits: Limits,
        call: RedisCaller,
        batch_id: str,
        *,
        may_wait: bool,
        sent: int = 0,
    ) -> None:
        """sent: how many chunks of the batch are in."""
        self.batch_id = batch_id
        self._redis = redis
        self._notify = notify
        self._limits = limits
        self._call = call
        self._may_wait = may_wait
        self._number = sent
        self._count = 0
        self._repeats: dict[str, str] = {}

    @property
    def receipt(self) -> Receipt:
        return Receipt(self.batch_id, self._count, self._repeats)

    async def all_or_nothing(self, pieces: list[Chunk]) -> None:
        """Send the chunks of a list; if Redis runs out of memory, take back those already sent."""
        room = None if self._may_wait else sum((piece.lanes for piece in pieces), Counter[str]())
        sent: list[tuple[Chunk, int]] = []
        try:
            for piece in pieces:
                taken_ms = await self.send(piece, room, last=piece is pieces[-1])
                sent.append((piece, taken_ms))
                if room is not None:
                    room = Counter()  # there was room for the whole list
        except RedisFullError:
            left = 0
            for piece, taken_ms in sent:
                left = await self._call(
                    submission.undo,
                    self._redis,
                    batch_id=self.batch_id,
                    groups=piece.groups,
                    keyed=piece.keyed,
                    taken_ms=taken_ms,
                )
            self._count = left
            if not left:
                raise self._redis_full("nothing was enqueued; submit again later") from None
            raise self._redis_full(
                f"{left} fetches of batch {self.batch_id} stay, for they have begun or others count on them;"
                " the rest was taken back, submit it again as another batch"
            ) from None
        if not pieces:
            await self.seal()

    async def send(self, piece: Chunk, room: Counter[str] | None = None, *, last: bool = False) -> int:
        """Send a chunk, waiting at a limit if that is allowed; return when Redis took it, in its Unix ms.

        room: how many fetches there must be room for, by lane; the chunk itself if None.
        """
        self._number += 1
        if room is None:  # no more than the limits allow: a larger chunk would wait for ever
            most = self._limits.lane or piece.count
            room = Counter({lane: min(count, most) for lane, count in piece.lanes.items()})
        limits = self._limits if room else NO_LIMITS
        to_come = min(room.total(), self._limits.fleet) if self._may_wait else room.total()
        backlog = Backlog(limits.fleet, limits.lane, to_come, room if limits.lane else {})
        digest = piece.digest()
        while True:
            try:
                reply = await self._call(
                    submission.submit,
                    self._redis,
                    batch_id=self.batch_id,
                    number=self._number,
                    count=piece.count,
                    groups=piece.groups,
                    fingerprints=piece.fingerprints,
                    keyed=piece.keyed,
                    backlog=backlog,
                    digest=digest,
                    last=last,
                )
            except OutOfMemoryError:
                raise self._redis_full(self._so_far()) from None
            if isinstance(reply, ChunkTaken):
                break
            if not isinstance(reply, NoRoom) or not self._may_wait:
                raise self._refused(reply)
            await asyncio.sleep(FULL_PAUSE_S)
        self._repeats |= reply.repeats
        with suppress(RedisError, OSError):  # the workers' sweep replaces a notification that is lost
            await self._notify(hints(reply.notifications))
        self._count += piece.count
        return reply.taken_ms

    async def seal(self) -> None:
        """Mark the batch as complete."""
        await self._call(batches.seal, self._redis, batch_id=self.batch_id)

    def unreachable(self, error: FleetUnreachableError) -> FleetUnreachableError:
        """Return the error with the batch, and what may be done about it."""
        message = (
            f"{error}; {self._count} fetches are in as batch {self.batch_id}, and at most {CHUNK_FETCHES}"
            " more; the same submit under this batch id adds the rest"
        )
        return FleetUnreachableError(message, self.batch_id, enqueued=self._count)

    def _refused(self, reply: NoRoom | BatchRefusal) -> Exception:
        if isinstance(reply, NoRoom):
            limit = self._limits.fleet if reply.lane is None else self._limits.lane
            place = "the fleet" if reply.lane is None else f"lane {reply.lane}"
            message = f"{place} holds {reply.holds} fetches without a result, the limit is {limit}"
            return FleetFullError(f"{message}; {self._so_far()}", self.batch_id, self._count)
        if reply is BatchRefusal.CANCELLED:
            return BatchCancelledError(f"batch {self.batch_id} is cancelled; submit to another")
        if reply is BatchRefusal.EARLIER_LOST:
            lost = f"Redis has lost fetches of batch {self.batch_id}, as after a failover"
            return BatchLostError(f"{lost}; the same submit under this batch id adds them")
        return BatchExistsError(
            f"batch {self.batch_id} holds other fetches; give them an id of their own, or none"
        )

    def _redis_full(self, state: str) -> RedisFullError:
        message = f"Redis has reached its maxmemory and takes nothing more; {state}"
        return RedisFullError(message, self.batch_id, self._count)

    def _so_far(self) -> str:
        if self._count:
            return f"the first {self._count} fetches are in as batch {self.batch_id}; submit the rest later"
        return "nothing was enqueued; submit again later"
