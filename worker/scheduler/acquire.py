"""Acquire lanes: the one that arq notifies this worker of, then others that are due, many in one round trip.

So a notification is a hint. A thousand lanes need no thousand arq jobs, and a lane that this worker left to
the others is acquired as soon as one of them looks.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Protocol

from redis.exceptions import RedisError, ResponseError

from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.lanes.services import LaneServices
from fetchfleet.worker.lanes.store import AcquiredLane
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

CHOICE = 4
"""They are chosen at random from so many times more: other workers look at the same lanes."""


class ServeLane(Protocol):
    """Serves an acquired lane, whose lease was asked for at asked_s (monotonic)."""

    async def __call__(
        self, name: str, acquired: AcquiredLane, asked_s: float, *, insisted: bool = False
    ) -> None:
        """Return once the worker holds the lane."""


class Acquirer:
    """One for a worker process; `run` is its task."""

    def __init__(
        self,
        services: LaneServices,
        lanes: Sized,
        serve: ServeLane,
        wants_more: Callable[[], bool],
        choose: Callable[[Sequence[str], int], Sequence[str]],
        wanted: asyncio.Event,
    ) -> None:
        self._services = services
        self._lanes = lanes
        self._serve = serve
        self._wants_more = wants_more
        self._choose = choose
        self._at_once = services.tuning.acquire_at_once
        self._under_way = 0
        """Lanes that are being acquired: they count towards this worker's share."""
        self.wanted = wanted
        """Set to have it look."""
        wanted.set()

    def look_soon(self) -> None:
        """Look for lanes that are due: this worker may have fewer than its share."""
        self.wanted.set()

    async def run(self) -> None:
        """Look whenever `look_soon` asks for it, until cancelled."""
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            more = True
            try:
                while more and self._wants_more():
                    # Not cancelled half-way: a lane acquired and not served is stuck until its lease ends.
                    more = await aio.whole(self._acquire_due(), name="acquiring lanes")
            except (RedisError, OSError) as error:
                self._services.report_redis_error(error)

    async def acquire(self, name: str, generation: int, *, insist: bool) -> Early | Enough | None:
        """Acquire and serve a lane that a notification names; insist: whatever this worker's share is.

        Early if it is not due yet, Enough if this worker has its share of the lanes.
        """
        services, asked_s = self._services, mono_s()
        held = None if insist else self._held
        with self._counted(1):
            try:
                result = await services.store.acquire(name, generation, held)
            except ResponseError as error:
                if not await services.key_repair.repair(error, name):
                    raise
                return Early(0)
            if not isinstance(result, AcquiredLane):
                return result
            await self._serve(name, result, asked_s, insisted=insist)
        self.look_soon()
        return None

    async def _acquire_due(self) -> bool:
        """Acquire and serve some of the lanes that are due; return whether to look for more."""
        services = self._services
        names = await services.store.due(services.clock.now_ms(), CHOICE * self._at_once)
        chosen = self._choose(names, min(len(names), self._at_once))
        if not chosen:
            return False
        asked_s = mono_s()
        held = self._held
        with self._counted(len(chosen)):
            results = await services.store.acquire_many(chosen, held)
            for name, result in zip(chosen, results, strict=True):
                if isinstance(result, AcquiredLane):
                    await self._serve(name, result, asked_s)
                elif isinstance(result, Exception) and not await services.key_repair.repair(result, name):
                    services.report_redis_error(result)
        ours = any(isinstance(result, AcquiredLane) for result in results)
        enough = any(isinstance(result, Enough) for result in results)
        # Lanes that another worker was quicker to acquire counted as held: the share may not be reached.
        return ours and (not enough or None in results)

    @property
    def _held(self) -> int:
        return len(self._lanes) + self._under_way

    @contextmanager
    def _counted(self, count: int) -> Iterator[None]:
        """Count lanes that are being acquired as held."""
        self._under_way += count
        try:
            yield
        finally:
            self._under_way -= count
