"""The sweep: every few seconds, one worker reclaims overdue lanes and removes old data."""

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.redis_connection import redis_now_ms, text_of
from fetchfleet.jobs.scripts.batches import Trimming, trim
from fetchfleet.jobs.scripts.lanes import ReclaimedLane, reclaim_lanes
from fetchfleet.worker.lanes.store import lane_names
from fetchfleet.worker.observability.log import Event, suppressed
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.redis_support.key_repair import KeyRepair
from fetchfleet.worker.util.clock import mono_s

RECLAIM_AT_ONCE = 200
BATCHES_AT_ONCE = 200
TRIM_AT_ONCE = 5_000

LAGGING_AT = 0.8
"""A consumer group is named once the results that it has not read fill so much of the stream."""


class Reclaimed(NamedTuple):
    """The outcome of a reclaim."""

    lanes: list[ReclaimedLane]
    """Scheduled again."""
    refused: list[tuple[str, Exception]]
    """Lanes that Redis refused to schedule."""


async def reclaim_overdue(redis: Redis, limit: int = RECLAIM_AT_ONCE) -> Reclaimed:
    """Schedule lanes again whose lease or notification is overdue."""
    now_ms = await redis_now_ms(redis)
    overdue = await redis.zrangebyscore(keys.ATTENTION, "-inf", now_ms, 0, limit)
    names = await lane_names(redis, overdue)
    replies = await reclaim_lanes(redis, names)
    return Reclaimed(
        [reply for reply in replies if isinstance(reply, ReclaimedLane)],
        [(name, reply) for name, reply in zip(names, replies, strict=True) if isinstance(reply, Exception)],
    )


class LaneReclaimer:
    """Brings back lanes whose owner died or whose notification was lost."""

    def __init__(
        self,
        redis: Redis,
        key_repair: KeyRepair,
        notify: Callable[[Iterable[LaneNotification]], Awaitable[None]],
        log: FilteringBoundLogger,
    ) -> None:
        self._redis = redis
        self._key_repair = key_repair
        self._notify = notify
        self._log = log
        self._repeats = Repeats()

    async def run(self) -> None:
        """Reclaim once. A lane behind a conflicting key is repaired now and reclaimed by the next run."""
        reclaimed = await reclaim_overdue(self._redis)
        for name, error in reclaimed.refused:
            await self._key_repair.repair(error, name)
        for due, owner in reclaimed.lanes:
            left_out = self._repeats.admit(due.lane, mono_s())  # no worker may be able to take the lane
            if left_out is not None:
                fields = suppressed(left_out)
                self._log.warning(Event.LANE_RESCUED, lane=due.lane, owner=owner or None, **fields)
        await self._notify([due for due, _ in reclaimed.lanes])


class Housekeeping:
    """Bounds the list of batches and the stream of all results."""

    def __init__(
        self,
        redis: Redis,
        results_length: int,
        log: FilteringBoundLogger,
        trim_at_once: int = TRIM_AT_ONCE,
    ) -> None:
        self._redis = redis
        self._results_length = results_length
        """How many results the stream of all batches keeps."""
        self._log = log
        self._trim_at_once = trim_at_once
        self._repeats = Repeats()

    async def run(self) -> None:
        """Forget expired batches and trim the stream; name the consumer groups that lose results by it."""
        # Of the list of batches the oldest are checked, and some others at random.
        oldest = await self._redis.zrange(keys.BATCHES, 0, BATCHES_AT_ONCE // 2 - 1)
        some = await self._redis.zrandmember(keys.BATCHES, BATCHES_AT_ONCE // 2) if oldest else []
        names = list({*oldest, *some})
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(keys.batch(text_of(name)))
            there = await pipe.execute() if names else []
        gone = [name for name, exists in zip(names, there, strict=True) if not exists]
        if gone:
            await self._redis.zrem(keys.BATCHES, *gone)

        now_ms = await redis_now_ms(self._redis)
        while (going := await self._over(now_ms, 1.0)).excess:
            self._warn(Event.RESULTS_TRIMMED, *going)
            trimmed = await self._over(now_ms, 1.0, remove=True)
            if trimmed.excess < self._trim_at_once:
                break
        self._warn(Event.RESULTS_LAGGING, *await self._over(now_ms, LAGGING_AT))

    async def _over(self, now_ms: int, part: float, *, remove: bool = False) -> Trimming:
        """Count the results over that part of the limits; list the groups that have not read them."""
        oldest_ms = now_ms - int(part * keys.RESULTS_TTL_MS)
        most, at_once = int(part * self._results_length), self._trim_at_once
        return await trim(self._redis, oldest_ms=oldest_ms, keep=most, at_once=at_once, remove=remove)

    def _warn(self, event: Event, count: int, groups: list[bytes]) -> None:
        if groups and (left_out := self._repeats.admit(event, mono_s())) is not None:
            names, fields = sorted(group.decode(errors="replace") for group in groups), suppressed(left_out)
            self._log.warning(event, groups=names, results=count, most=self._results_length, **fields)
