"""Acquire lanes: the one that arq notifies this worker of, then others that are due, many in one round trip.

So a notification is a hint. A thousand lanes need no thousand arq jobs, and a lane that this worker left to
the others is acquired as soon as one of them looks.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Protocol

from redis.exceptions import RedisError, ResponseError

from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.fetch.rules import abilities
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.gate import gate
from fetchfleet.worker.lanes.store import AcquiredLane, AcquireResult, LaneNeeds
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

CHOICE = 4
"""They are chosen at random from so many times more: other workers look at the same lanes."""

UPKEEP_LOOK = 500
"""At how many lanes a look for upkeep looks."""

UPKEEP_LANES = 128
"""How many lanes a worker holds for upkeep at most."""

UPKEEP_AFTER_S = 1.5
"""How long a lane may be due before a worker that starts no fetch looks at it, if others may take it."""


class ServeLane(Protocol):
    """Serves an acquired lane, whose lease was asked for at asked_s (monotonic)."""

    async def __call__(
        self,
        name: str,
        acquired: AcquiredLane,
        asked_s: float,
        *,
        beyond_share: bool = False,
        for_upkeep: bool = False,
    ) -> None:
        """Return once the worker holds the lane. for_upkeep: it starts no fetch of it."""


class Acquirer:
    """One for a worker process; `run` is its task."""

    def __init__(
        self,
        services: FetchServices,
        lanes: Sized,
        serve: ServeLane,
        may_acquire: Callable[[], bool],
        choose: Callable[[Sequence[str], int], Sequence[str]],
        wanted: asyncio.Event,
    ) -> None:
        self._services = services
        self._lanes = lanes
        self._serve = serve
        self._may_acquire = may_acquire
        self._choose = choose
        self._at_once = services.parameters.acquire_at_once
        self._under_way = 0
        """Lanes that are being acquired: they count towards this worker's share."""
        self._upkeep_looked = 0
        """How many of the lanes that are due the looks for upkeep have passed."""
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
                while more and self._may_acquire():
                    # Not cancelled half-way: a lane acquired and not served is stuck until its lease ends.
                    more = await aio.finish_before_cancel(self._acquire_due(), name="acquiring lanes")
            except (RedisError, OSError) as error:
                self._services.report_redis_error(error)

    async def acquire(self, name: str, generation: int, *, beyond_share: bool) -> Early | Enough | None:
        """Acquire and serve a lane that a notification names; beyond_share: whatever this worker's share is.

        Early if it is not due yet, Enough if this worker has its share of the lanes.
        """
        services, asked_s = self._services, mono_s()
        held = None if beyond_share else self._held
        with self._counted(1):
            try:
                result = await services.store.acquire(
                    name, generation, held, count=self._first_claims(services.policy().for_lane(name))
                )
            except ResponseError as error:
                if not await services.key_repair.repair(error, name):
                    raise
                return Early(0)
            if not isinstance(result, AcquiredLane):
                return result
            await self._serve(name, result, asked_s, beyond_share=beyond_share)
        self.look_soon()
        return None

    async def keep_up(self, *, others: bool) -> None:
        """Acquire lanes with fetches that need no attempt to end; for a worker that may start none.

        One call looks at a stretch of the lanes that are due, the next one at those behind it. others: other
        workers start fetches. Then only lanes that have been due for a while are looked at.
        """
        services, room = self._services, UPKEEP_LANES - self._held
        if room <= 0:
            return
        now_ms = services.clock.now_ms()
        due_ms = now_ms - (int(UPKEEP_AFTER_S * 1000) if others else 0)
        names = await services.store.due(due_ms, UPKEEP_LOOK, self._upkeep_looked)
        if len(names) == UPKEEP_LOOK:  # names of no lanes may hide those that have just become due
            self._upkeep_looked += UPKEEP_LOOK
            names = [*{*names, *await services.store.just_due(due_ms, UPKEEP_LOOK)}]
        else:
            self._upkeep_looked = 0
        policies, needs = services.policy(), await services.store.needs(names)
        chosen = [
            name
            for name, found in zip(names, needs, strict=True)
            if needs_upkeep(found, policies.for_lane(name), now_ms)
        ]
        if len(chosen) > room:
            chosen, self._upkeep_looked = chosen[:room], 0
        if chosen:
            work = self._acquire_many(chosen, None, for_upkeep=True)
            await aio.finish_before_cancel(work, name="acquiring lanes for upkeep")

    async def _acquire_due(self) -> bool:
        """Acquire and serve some of the lanes that are due; return whether to look for more."""
        services = self._services
        now_ms, most = services.clock.now_ms(), CHOICE * self._at_once
        names = await services.store.due(now_ms, most)
        if len(names) == most:
            names = [*{*names[: most // 2], *await services.store.just_due(now_ms, most // 2)}]
        chosen = self._choose(names, min(len(names), self._at_once))
        if not chosen:
            return False
        results = await self._acquire_many(chosen, self._held)
        acquired = any(isinstance(result, AcquiredLane) for result in results)
        enough = any(isinstance(result, Enough) for result in results)
        # Lanes that another worker was quicker to acquire counted as held: the share may not be reached.
        return acquired and (not enough or None in results)

    async def acquire_handed(self, lanes: Mapping[str, str]) -> None:
        """Acquire and serve the lanes that are left to workers like this one, whatever its share is.

        lanes: with the needs of a fetch in each, as text. Those that this worker does not meet are left out.
        """
        own = self._services.abilities
        names = [name for name, needs in lanes.items() if not own.unmet(abilities.parse(needs))]
        if names and self._may_acquire():
            chosen = self._choose(names, min(len(names), self._at_once))
            work = self._acquire_many(chosen, None, handed=True)
            await aio.finish_before_cancel(work, name="acquiring lanes left by others")

    async def _acquire_many(
        self,
        names: Sequence[str],
        held: int | None,
        *,
        handed: bool = False,
        for_upkeep: bool = False,
    ) -> list[AcquireResult | Exception]:
        """Acquire lanes in one round trip and serve them."""
        services, asked_s = self._services, mono_s()
        with self._counted(len(names)):
            policies = services.policy()
            counts = [0 if for_upkeep else self._first_claims(policies.for_lane(name)) for name in names]
            results = await services.store.acquire_many(names, held, handed=handed, counts=counts)
            for name, result in zip(names, results, strict=True):
                if isinstance(result, AcquiredLane):
                    await self._serve(name, result, asked_s, beyond_share=handed, for_upkeep=for_upkeep)
                elif isinstance(result, Exception) and not await services.key_repair.repair(result, name):
                    services.report_redis_error(result)
        return results

    def _first_claims(self, policy: LanePolicy) -> int:
        """Return how many fetches to claim in a lane as it is acquired: no more than it may start at once."""
        services = self._services
        if policy.paused or services.isolation.closed or services.settler.full:
            return 0
        return policy.concurrency if isinstance(policy.concurrency, int) else policy.concurrency.min

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


def needs_upkeep(lane: LaneNeeds, policy: LanePolicy, now_ms: int) -> bool:
    """Return whether a lane without an owner has fetches to end without an attempt, or is to be reset."""
    late = lane.earliest_ms is not None and lane.earliest_ms <= now_ms
    ends = lane.cancelled or late or lane.orphans or gate.is_dead(lane.gate, policy, now_ms)
    return lane.scheduled and (ends or lane.reset)
