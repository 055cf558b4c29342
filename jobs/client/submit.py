"""One submit, whatever door the fetches come in by."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from fetchfleet.jobs.client.chunk import Chunk, Fetchable, chunks
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS, batch_of, fetch_id, is_batch_id
from fetchfleet.jobs.errors import (
    BatchCancelledError,
    BatchExistsError,
    FleetFullError,
    RedisFullError,
)
from fetchfleet.jobs.notifications import LaneNotification, hints
from fetchfleet.jobs.scripts import batches, submission
from fetchfleet.jobs.scripts.submission import Backlog, BatchRefusal, ChunkTaken, NoRoom

FULL_PAUSE_S = 0.2

WhenFull = Literal["raise", "wait"]
Notify = Callable[[Iterable[LaneNotification]], Awaitable[None]]


class Limits(NamedTuple):
    """How many fetches without a result there may be; 0: no limit."""

    fleet: int = 0
    lane: int = 0


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Receipt:
    """What became of a submit: the batch, how many items it had, and which were repeats of whose."""

    batch_id: str
    count: int
    repeats: dict[str, str]

    @property
    def ids(self) -> list[str]:
        """The id of each item, by its place; that of an earlier fetch where the `key` was taken."""
        own = (fetch_id(self.batch_id, place) for place in range(self.count))
        return [self.repeats.get(of, of) for of in own]

    @property
    def handle(self) -> str:
        """The batch to look at: the earlier one, if nothing of this is new and all of it is there."""
        earlier = {batch_of(of) for of in self.repeats.values()}
        return earlier.pop() if len(self.repeats) == self.count and len(earlier) == 1 else self.batch_id


def new_batch_id() -> str:
    """Sixteen hex digits of chance."""
    return secrets.token_hex(BATCH_ID_CHARS // 2)


def checked_batch_id(batch_id: str) -> str:
    """The id; raises ValueError if it is none."""
    if not is_batch_id(batch_id):
        raise ValueError(f"{batch_id!r} is not a batch id: those are {BATCH_ID_CHARS} hex digits")
    return batch_id


class Submitter:
    """Enqueues batches over one Redis; `notify` notifies the workers of their lanes."""

    def __init__(self, redis: Redis, notify: Notify, limits: Limits = NO_LIMITS) -> None:
        self._redis = redis
        self._notify = notify
        self._limits = limits

    async def submit(
        self,
        fetches: Iterable[Fetchable] | AsyncIterable[Fetchable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
    ) -> Receipt:
        """Enqueue the fetches; Fleet.submit says how."""
        named = batch_id is not None
        sending = _Submission(
            self._redis,
            self._notify,
            self._limits,
            checked_batch_id(batch_id or new_batch_id()),
            named=named,
            may_wait=when_full == "wait",
        )
        pieces = chunks(sending.batch_id, fetches)
        if isinstance(fetches, Sequence):
            await sending.all_or_nothing([piece async for piece in pieces])
        else:
            async for piece in pieces:
                await sending.send(piece)
            await sending.seal()
        return sending.receipt


class _Submission:
    """One batch on its way in."""

    def __init__(
        self,
        redis: Redis,
        notify: Notify,
        limits: Limits,
        batch_id: str,
        *,
        named: bool,
        may_wait: bool,
    ) -> None:
        self.batch_id = batch_id
        self._redis = redis
        self._notify = notify
        self._limits = limits
        self._named = named
        self._may_wait = may_wait
        self._sent: list[tuple[Chunk, int]] = []
        self._number = 0
        self._count = 0
        self._repeats: dict[str, str] = {}

    @property
    def receipt(self) -> Receipt:
        return Receipt(self.batch_id, self._count, self._repeats)

    async def all_or_nothing(self, pieces: list[Chunk]) -> None:
        """Send the chunks of a list; what is in of it is taken back when Redis has no room for the rest."""
        room = None if self._may_wait else sum((piece.lanes for piece in pieces), Counter[str]())
        try:
            for piece in pieces:
                taken_ms = await self.send(piece, room, last=piece is pieces[-1])
                self._sent.append((piece, taken_ms))
                if room is not None:
                    room = Counter()  # there was room for the whole list
        except RedisFullError:
            await self._take_back()
        if not pieces:
            await self.seal()

    async def send(self, piece: Chunk, room: Counter[str] | None = None, *, last: bool = False) -> int:
        """Send a chunk; when Redis took it, in Redis's ms. room: for how many there must be, by lane."""
        self._number += 1
        needed = self._needed(piece) if room is None else room
        taken = await self._until_there_is_room(piece, needed, last=last)
        self._repeats |= taken.repeats
        await self._notify_lanes(hints(taken.notifications))
        self._count += piece.count
        return taken.taken_ms

    async def seal(self) -> None:
        """No more will come."""
        await batches.seal(self._redis, batch_id=self.batch_id)

    def _needed(self, piece: Chunk) -> Counter[str]:
        """As much as a chunk needs; never more than the limits, or it would wait for ever."""
        most = self._limits.lane or piece.count
        return Counter({lane: min(count, most) for lane, count in piece.lanes.items()})

    async def _until_there_is_room(self, piece: Chunk, room: Counter[str], *, last: bool) -> ChunkTaken:
        while True:
            match await self._try(piece, room, last=last):
                case ChunkTaken() as taken:
                    return taken
                case NoRoom(lane, holds):
                    if not self._may_wait:
                        raise self._full(lane, holds)
                    await asyncio.sleep(FULL_PAUSE_S)
                case BatchRefusal.CANCELLED:
                    raise BatchCancelledError(f"batch {self.batch_id} is cancelled; submit to another")
                case BatchRefusal.OTHER_FETCHES:
                    raise BatchExistsError(
                        f"batch {self.batch_id} holds other fetches; give them an id of their own, or none"
                    )

    async def _try(
        self, piece: Chunk, room: Counter[str], *, last: bool
    ) -> ChunkTaken | NoRoom | BatchRefusal:
        limits = self._limits if room else NO_LIMITS
        to_come = min(room.total(), self._limits.fleet) if self._may_wait else room.total()
        try:
            return await submission.submit(
                self._redis,
                batch_id=self.batch_id,
                number=self._number,
                count=piece.count,
                groups=piece.groups,
                keyed=piece.keyed,
                backlog=Backlog(limits.fleet, limits.lane, to_come, room if limits.lane else {}),
                digest=piece.digest() if self._named else "",
                last=last,
            )
        except OutOfMemoryError:
            raise self._redis_full("") from None

    def _full(self, lane: str | None, holds: int) -> FleetFullError:
        limit = self._limits.fleet if lane is None else self._limits.lane
        what = "the fleet" if lane is None else f"lane {lane}"
        message = f"{what} holds {holds} fetches without a result, the limit is {limit}; {self._so_far()}"
        return FleetFullError(message, self.batch_id, self._count)

    def _redis_full(self, left: str) -> RedisFullError:
        message = "Redis has reached its maxmemory and takes nothing more"
        return RedisFullError(f"{message}; {left or self._so_far()}", self.batch_id, self._count)

    def _so_far(self) -> str:
        if self._count:
            return f"the first {self._count} fetches are in as batch {self.batch_id}; submit the rest later"
        return "nothing was enqueued; submit again later"

    async def _take_back(self) -> None:
        left = 0
        for piece, taken_ms in self._sent:
            left = await submission.undo(
                self._redis,
                batch_id=self.batch_id,
                groups=piece.groups,
                keyed=piece.keyed,
                taken_ms=taken_ms,
            )
        if left:
            self._count = left
            stay = (
                f"{left} fetches of batch {self.batch_id} stay, for they have begun or others count on them"
            )
            raise self._redis_full(f"{stay}; the rest was taken back, submit it again as another batch")
        self._count = 0
        raise self._redis_full("nothing was enqueued; submit again later")

    async def _notify_lanes(self, notifications: list[LaneNotification]) -> None:
        """Notify the workers. Their sweep replaces a notification that is lost."""
        try:
            await self._notify(notifications)
        except (RedisError, OSError):
            return
