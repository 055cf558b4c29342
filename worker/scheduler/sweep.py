"""What one worker of the fleet does every few seconds for lanes that nobody looks at."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.jobs.redis_values import text_of
from fetchfleet.jobs.scripts.batches import Trimming, trim
from fetchfleet.worker.lanes.store import Store
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.redis_support.key_repair import KeyRepair
from fetchfleet.worker.util.clock import mono_s


class Sweep:
    """Wakes lanes whose owner died or whose hand-off was lost."""

    def __init__(
        self,
        store: Store,
        foreign: KeyRepair,
        wake: Callable[[Iterable[LaneNotification]], Awaitable[None]],
        log: Any,
    ) -> None:
        self._store = store
        self._foreign = foreign
        self._wake = wake
        self._log = log

    async def run(self) -> None:
        """Once; what stands in the way of a lane is put aside, and the next sweep wakes it."""
        broken: list[tuple[str, Exception]] = []
        rescued = await self._store.rescue(broken=broken)
        for name, error in broken:
            await self._foreign.repair(error, name)
        for found, owner in rescued:
            self._log.warning(Event.LANE_RESCUED, lane=found.lane, owner=owner or None)
        await self._wake([found for found, _ in rescued])


LOOK_AT_BATCHES = 200


TRIM_AT_ONCE = 5_000


LAGGING_AT = 0.8


WARN_EVERY_S = 60.0


class Housekeeping:
    """results_length: how many results the stream of all batches keeps."""

    def __init__(self, redis: Redis, results_length: int, log: Any) -> None:
        self._redis = redis
        self._results_length = results_length
        self._log = log
        self._warned_s: dict[Event, float] = {}

    async def run(self) -> None:
        """Trim what grows, forget what has expired."""
        await self._forget_batches()
        await self._trim_results()

    async def _forget_batches(self) -> None:
        """Out of the list of batches goes what has expired; the oldest are looked at, and some others."""
        oldest = await self._redis.zrange(keys.BATCHES, 0, LOOK_AT_BATCHES // 2 - 1)
        some = await self._redis.zrandmember(keys.BATCHES, LOOK_AT_BATCHES // 2) if oldest else []
        names = list({*oldest, *some})
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(keys.batch(text_of(name)))
            there = await pipe.execute() if names else []
        gone = [name for name, exists in zip(names, there, strict=True) if not exists]
        if gone:
            await self._redis.zrem(keys.BATCHES, *gone)

    async def _trim_results(self) -> None:
        """Never silently: a consumer group that loses results by it is named first."""
        now_ms = await redis_now_ms(self._redis)
        while (going := await self._over(now_ms, 1.0)).excess:
            self._warn(Event.RESULTS_TRIMMED, *going)
            trimmed = await self._over(now_ms, 1.0, remove=True)
            if trimmed.excess < TRIM_AT_ONCE:
                break
        self._warn(Event.RESULTS_LAGGING, *await self._over(now_ms, LAGGING_AT))

    async def _over(self, now_ms: int, part: float, *, remove: bool = False) -> Trimming:
        """How many results are over that part of the limits, and which consumer groups still want them."""
        oldest_ms = now_ms - int(part * keys.RESULTS_TTL_MS)
        most = int(part * self._results_length)
        return await trim(self._redis, oldest_ms=oldest_ms, keep=most, at_once=TRIM_AT_ONCE, remove=remove)

    def _warn(self, event: Event, count: int, groups: list[bytes]) -> None:
        if groups and mono_s() - self._warned_s.get(event, -WARN_EVERY_S) >= WARN_EVERY_S:
            self._warned_s[event] = mono_s()
            names = sorted(group.decode(errors="replace") for group in groups)
            self._log.warning(event, groups=names, results=count, most=self._results_length)
