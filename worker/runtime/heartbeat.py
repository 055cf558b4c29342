"""Signs of life: once a second a worker says what it is at, and hears what has changed."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet.jobs import keys
from fetchfleet.jobs.notify import busy_within_ms
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.inspect.snapshot import Portrait, WorkerPortrait
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability.percentiles import Rate
from fetchfleet.worker.scheduler.balance import FleetLoad
from fetchfleet.worker.util.clock import RedisClock, mono_s

SIGN_OF_LIFE_S = 1.0
SLOW_S = 2.0
"""A Redis that takes so long to answer was away: others may have results to tell it first."""


class Life:
    """What others get to see of a worker; `run` is its task."""

    def __init__(
        self,
        redis: Redis,
        worker_id: str,
        lease_ms: int,
        clock: RedisClock,
        on_cancels: Callable[[], Awaitable[None]],
        on_policy: Callable[[bytes], Awaitable[None]],
        on_fleet: Callable[[FleetLoad], None],
        on_trouble: Callable[[BaseException], None],
    ) -> None:
        self._redis = redis
        self._worker_id = worker_id
        self._busy_within_ms = busy_within_ms(lease_ms)
        self._clock = clock
        self._on_cancels = on_cancels
        self._on_policy = on_policy
        self._on_fleet = on_fleet
        self._on_trouble = on_trouble
        self._cancels: bytes | None = None
        self._finished = Rate()
        self._received = Rate()
        self.portrait = WorkerPortrait()
        self.renews = True
        """Whether the worker renews its leases: one that does not shows no sign of life."""

    def look_again(self) -> None:
        """A batch may have been cancelled without our hearing of it."""
        self._cancels = None

    def saw(self, lanes: Iterable[Lane], finished: int, received_bytes: int) -> None:
        """Draw the portrait: fetches in flight and why a lane waits, totals and rates."""
        now_s = mono_s()
        self.portrait = WorkerPortrait(
            lanes={lane.name: _portrait_of(lane) for lane in lanes},
            finished=finished,
            finished_per_s=round(self._finished.add(now_s, finished), 1),
            received_bytes=received_bytes,
            received_bytes_per_s=round(self._received.add(now_s, received_bytes)),
        )

    async def run(self, look: Callable[[], None]) -> None:
        """Show a sign of life every second; `look` draws the portrait first."""
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            look()
            if not self.renews:
                continue
            asked_s = mono_s()
            try:
                await self.show()
            except (RedisError, OSError) as error:
                self._on_trouble(error)
            if mono_s() - asked_s > SLOW_S:
                self._on_trouble(TimeoutError(f"Redis took {mono_s() - asked_s:.1f} s to answer"))

    async def show(self) -> None:
        """One sign of life."""
        now_ms = self._clock.now_ms()
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(keys.WORKERS, {self._worker_id: now_ms})
            pipe.zremrangebyscore(keys.WORKERS, "-inf", now_ms - keys.WORKER_TTL_MS)
            portrait = msgspec.json.encode(self.portrait)
            pipe.set(keys.worker(self._worker_id), portrait, px=keys.WORKER_TTL_MS)
            pipe.get(keys.CANCELS)
            pipe.get(keys.POLICY_VERSION)
            pipe.zcount(keys.ATTENTION, "-inf", now_ms + self._busy_within_ms)
            pipe.zcard(keys.WORKERS)
            *_, cancels, policy_version, busy, workers = await pipe.execute()
        self._on_fleet(FleetLoad(busy, workers))
        await self._on_policy(policy_version or b"")
        if cancels != self._cancels:
            self._cancels = cancels
            try:
                await self._on_cancels()
            except BaseException:
                self.look_again()
                raise

    async def end(self) -> None:
        """No sign of life any more: our share of the lanes is the others'."""
        with contextlib.suppress(RedisError, OSError):
            await self._redis.zrem(keys.WORKERS, self._worker_id)
            await self._redis.delete(keys.worker(self._worker_id))


async def expect(redis: Redis, worker_ids: Iterable[str]) -> None:
    """Count workers among the fleet that are about to show their first sign of life.

    So the first of them to start leaves the others their share of the lanes.
    """
    now_ms = await redis_now_ms(redis)
    await redis.zadd(keys.WORKERS, dict.fromkeys(worker_ids, now_ms))


def _portrait_of(lane: Lane) -> Portrait:
    shut = lane.shut()
    return Portrait(
        in_flight=len(lane.in_flight),
        why=shut.why.value if shut else None,
        until_ms=shut.until_ms if shut else None,
    )
