"""The sweep: once a second, one worker reclaims overdue lanes and repairs keys that other programs changed.

Each worker runs it by its own timer, so that the recovery of lanes does not depend on arq's queue, to which
other programs write. arq's cron job only trims results.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.jobs.scripts.batches import Trimming, trim
from fetchfleet.jobs.scripts.lanes import ReclaimedLane, reclaim_lanes
from fetchfleet.jobs.scripts.sweep import take_turn
from fetchfleet.worker.intake.webhooks import Webhooks
from fetchfleet.worker.lanes.store import due_lanes
from fetchfleet.worker.observability.log import Event, suppressed
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.redis_support.foreign_members import ForeignMembers
from fetchfleet.worker.redis_support.health import RedisHealth
from fetchfleet.worker.redis_support.key_repair import KeyRepair
from fetchfleet.worker.redis_support.lost_fetches import LostFetches
from fetchfleet.worker.util.clock import mono_s

RECLAIM_AT_ONCE = 200
TRIM_AT_ONCE = 5_000

LAGGING_AT = 0.8
"""The fraction of the stream's limits at which a consumer group with unread results is logged."""


class Reclaimed(NamedTuple):
    """The outcome of a reclaim."""

    lanes: list[ReclaimedLane]
    """The lanes that were rescheduled."""
    refused: list[tuple[str, Exception]]
    """Lanes whose call failed, with the error."""


async def reclaim_overdue(
    redis: Redis, limit: int = RECLAIM_AT_ONCE, *, newest_first: bool = False
) -> Reclaimed:
    """Reschedule lanes whose lease has lapsed or whose notification was lost, the most overdue first."""
    now_ms = await redis_now_ms(redis)
    names = await due_lanes(redis, until_ms=now_ms, limit=limit, newest_first=newest_first)
    replies = await reclaim_lanes(redis, names)
    return Reclaimed(
        [reply for reply in replies if isinstance(reply, ReclaimedLane)],
        [(name, reply) for name, reply in zip(names, replies, strict=True) if isinstance(reply, Exception)],
    )


class LaneReclaimer:
    """Reclaims lanes whose owner died or whose notification was lost."""

    def __init__(
        self,
        redis: Redis,
        key_repair: KeyRepair,
        notify: Callable[[Iterable[LaneNotification]], Awaitable[None]],
        look_soon: Callable[[], None],
        log: FilteringBoundLogger,
    ) -> None:
        self._redis = redis
        self._key_repair = key_repair
        self._notify = notify
        self._look_soon = look_soon
        self._log = log
        self._repeats = Repeats()

    async def run(self) -> None:
        """Reclaim all overdue lanes. Repairs a lane with a conflicting key, for the next run.

        Starts from both ends of the schedule, because foreign members may fill one of them.
        """
        for newest_first in (True, False):
            reclaimed = 1
            while reclaimed:
                reclaimed = await self._reclaim(newest_first=newest_first)

    async def _reclaim(self, *, newest_first: bool) -> int:
        reclaimed = await reclaim_overdue(self._redis, newest_first=newest_first)
        for name, error in reclaimed.refused:
            await self._key_repair.repair(error, name)
        for due, owner in reclaimed.lanes:
            left_out = self._repeats.admit(due.lane, mono_s())  # repeated if no worker can acquire the lane
            if left_out is not None:
                fields = suppressed(left_out)
                self._log.warning(Event.LANE_RESCUED, lane=due.lane, owner=owner or None, **fields)
        if reclaimed.lanes:
            self._look_soon()  # faster than the notification through arq's queue
            await self._notify([due for due, _ in reclaimed.lanes])
        return len(reclaimed.lanes)


class Sweep:
    """The sweep of a worker process. `run` is its task. One worker of the fleet sweeps in each interval.

    Every worker looks for webhooks.
    """

    def __init__(
        self,
        redis: Redis,
        reclaimer: LaneReclaimer,
        foreign: ForeignMembers,
        key_repair: KeyRepair,
        lost: LostFetches,
        webhooks: Webhooks,
        health: RedisHealth,
        *,
        every_s: float,
        reclaim_delay_s: float,
    ) -> None:
        self._redis = redis
        self._reclaimer = reclaimer
        self._foreign = foreign
        self._key_repair = key_repair
        self._lost = lost
        self._webhooks = webhooks
        self._health = health
        self._every_s = every_s
        self._reclaim_delay_s = reclaim_delay_s

    async def run(self) -> None:
        """Sweep whenever it is this worker's turn, until cancelled."""
        # Shorter than the interval, so that a single worker sweeps in each.
        every_ms = int(self._every_s * 900)
        while True:
            await asyncio.sleep(self._every_s)
            try:
                if await take_turn(self._redis, keys.SWEPT, every_ms=every_ms):
                    await self.once()
                # Without a turn, as workers of older versions take turns but enqueue no webhooks.
                await self._webhooks.enqueue()
            except (RedisError, OSError) as error:
                self._health.report(error)

    async def once(self) -> None:
        """Reclaim overdue lanes, unless Redis has just failed. Then repair the rest, even after an error."""
        try:
            if self._health.since_failure_s >= self._reclaim_delay_s:
                await self._reclaimer.run()
        finally:
            await self._foreign.remove()
            await self._foreign.remove_batches()
            await self._key_repair.find_lost_lanes()
            await self._lost.end(await redis_now_ms(self._redis))


class Housekeeping:
    """Trims the stream of all results."""

    def __init__(
        self,
        redis: Redis,
        results_length: int,
        log: FilteringBoundLogger,
        trim_at_once: int = TRIM_AT_ONCE,
    ) -> None:
        self._redis = redis
        self._results_length = results_length
        """Maximum results in the stream of all batches."""
        self._log = log
        self._trim_at_once = trim_at_once
        self._repeats = Repeats()

    async def run(self) -> None:
        """Trim the stream, and log the consumer groups that lose unread results, or soon may."""
        now_ms = await redis_now_ms(self._redis)
        while (excess := await self._over(now_ms, 1.0)).excess:
            self._warn(Event.RESULTS_TRIMMED, *excess)
            trimmed = await self._over(now_ms, 1.0, remove=True)
            if trimmed.excess < self._trim_at_once:
                break
        self._warn(Event.RESULTS_LAGGING, *await self._over(now_ms, LAGGING_AT))

    async def _over(self, now_ms: int, fraction: float, *, remove: bool = False) -> Trimming:
        """Count the results above that fraction of the limits, and list groups with unread ones of them."""
        oldest_ms = now_ms - int(fraction * keys.RESULTS_TTL_MS)
        keep, at_once = int(fraction * self._results_length), self._trim_at_once
        return await trim(self._redis, oldest_ms=oldest_ms, keep=keep, limit=at_once, remove=remove)

    def _warn(self, event: Event, count: int, groups: list[bytes]) -> None:
        if groups and (left_out := self._repeats.admit(event, mono_s())) is not None:
            names, fields = sorted(group.decode(errors="replace") for group in groups), suppressed(left_out)
            self._log.warning(event, groups=names, results=count, most=self._results_length, **fields)
