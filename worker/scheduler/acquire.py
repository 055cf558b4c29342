"""Acquires lanes: one for each notification of arq, then other due lanes, many in one round trip.

A notification is therefore a hint. A thousand due lanes do not need a thousand arq jobs, and a lane whose
notification reached a worker with its full share is acquired by another worker that searches.
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

CHOICE_FACTOR = 4
"""Due lanes to read for each one to acquire. The choice is random: other workers read the same ones."""

UPKEEP_PAGE = 500
"""Number of due lanes that one search for upkeep reads."""

UPKEEP_LANES = 128
"""Maximum lanes that a worker holds for upkeep."""

UPKEEP_AFTER_S = 1.5
"""Time after which a due lane is acquired for upkeep, if other workers could start its fetches."""

FIRST_LOOK_EVERY_S = 0.01
FIRST_LOOKS = 100
"""The interval and number of searches for the first lanes. Notifications and heartbeats start later ones."""


class ServeLane(Protocol):
    """Serves an acquired lane. asked_s: the monotonic time at which its lease was requested."""

    async def __call__(
        self,
        name: str,
        acquired: AcquiredLane,
        asked_s: float,
        *,
        beyond_share: bool = False,
        for_upkeep: bool = False,
    ) -> None:
        """Return once the worker holds the lane. for_upkeep: start no fetch of the lane."""


class Acquirer:
    """Acquires the lanes of a worker process. `run` is its task."""

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
        self._acquiring = 0
        """Number of lanes that are being acquired. They count towards this worker's share."""
        self._upkeep_offset = 0
        """Number of due lanes that earlier searches for upkeep have read."""
        self.wanted = wanted
        """Set it to start a search for due lanes."""
        wanted.set()

    def look_soon(self) -> None:
        """Start a search for due lanes, because this worker may have fewer than its share."""
        self.wanted.set()

    async def run(self) -> None:
        """Search for due lanes after each `look_soon`, until cancelled."""
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            more = True
            try:
                while more and self._may_acquire():
                    # If cancelled halfway, an acquired lane would be stuck until its lease ends.
                    more = await aio.finish_before_cancel(self._acquire_due(), name="acquiring lanes")
            except (RedisError, OSError) as error:
                self._services.report_redis_error(error)

    async def look_for_first_lanes(self) -> None:
        """Search often until this worker holds a lane: the command that has started it enqueues meanwhile.

        arq polls for notifications every 100 ms, which would be half of the time of a run of one URL.
        """
        for _ in range(FIRST_LOOKS):
            if self._held:
                return
            self.look_soon()
            await asyncio.sleep(FIRST_LOOK_EVERY_S)

    async def acquire(self, name: str, generation: int, *, beyond_share: bool) -> Early | Enough | None:
        """Acquire and serve the lane of a notification. beyond_share: ignore this worker's share.

        Returns Early if the lane is not due yet, Enough if this worker has its share of the lanes.
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

    async def acquire_for_upkeep(self, *, others: bool) -> None:
        """Acquire lanes with fetches that end without an attempt, for a worker that may start no fetch.

        Each call reads one page of the due lanes, the next call the following page. others: other workers
        start fetches. Then only lanes that have been due for UPKEEP_AFTER_S are read.
        """
        services, free = self._services, UPKEEP_LANES - self._held
        if free <= 0:
            return
        now_ms = services.clock.now_ms()
        due_ms = now_ms - (int(UPKEEP_AFTER_S * 1000) if others else 0)
        names = await services.store.due(due_ms, UPKEEP_PAGE, self._upkeep_offset)
        if len(names) == UPKEEP_PAGE:  # names of no lanes may hide the lanes that have just become due
            self._upkeep_offset += UPKEEP_PAGE
            names = [*{*names, *await services.store.just_due(due_ms, UPKEEP_PAGE)}]
        else:
            self._upkeep_offset = 0
        policies, needs = services.policy(), await services.store.needs(names)
        chosen = [
            name
            for name, found in zip(names, needs, strict=True)
            if needs_upkeep(found, policies.for_lane(name), now_ms)
        ]
        if len(chosen) > free:
            chosen, self._upkeep_offset = chosen[:free], 0
        if chosen:
            work = self._acquire_many(chosen, None, for_upkeep=True)
            await aio.finish_before_cancel(work, name="acquiring lanes for upkeep")

    async def _acquire_due(self) -> bool:
        """Acquire and serve some of the due lanes. Returns whether to search for more."""
        services = self._services
        now_ms, limit = services.clock.now_ms(), CHOICE_FACTOR * self._at_once
        names = await services.store.due(now_ms, limit)
        if len(names) == limit:
            names = [*{*names[: limit // 2], *await services.store.just_due(now_ms, limit // 2)}]
        chosen = self._choose(names, min(len(names), self._at_once))
        if not chosen:
            return False
        results = await self._acquire_many(chosen, self._held)
        acquired = any(isinstance(result, AcquiredLane) for result in results)
        enough = any(isinstance(result, Enough) for result in results)
        # Lanes that another worker acquired first were counted as held, so the share may not be reached.
        return acquired and (not enough or None in results)

    async def acquire_handed_over(self, lanes: Mapping[str, str]) -> None:
        """Acquire and serve lanes that other workers handed over, regardless of this worker's share.

        lanes: the needs of a fetch in each, as text. Lanes whose needs this worker does not meet are skipped.
        """
        own = self._services.abilities
        names = [name for name, needs in lanes.items() if not own.unmet(abilities.parse(needs))]
        if names and self._may_acquire():
            chosen = self._choose(names, min(len(names), self._at_once))
            work = self._acquire_many(chosen, None, handed=True)
            await aio.finish_before_cancel(work, name="acquiring handed over lanes")

    async def _acquire_many(
        self,
        names: Sequence[str],
        held: int | None,
        *,
        handed: bool = False,
        for_upkeep: bool = False,
    ) -> list[AcquireResult | Exception]:
        """Acquire lanes in one round trip and serve them. Returns the result of each."""
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
        """Return the number of fetches to claim with the acquisition: those that may start at once."""
        services = self._services
        if policy.paused or services.isolation.closed or services.settler.full:
            return 0
        return policy.concurrency if isinstance(policy.concurrency, int) else policy.concurrency.min

    @property
    def _held(self) -> int:
        return len(self._lanes) + self._acquiring

    @contextmanager
    def _counted(self, count: int) -> Iterator[None]:
        """Count lanes that are being acquired as held."""
        self._acquiring += count
        try:
            yield
        finally:
            self._acquiring -= count


def needs_upkeep(lane: LaneNeeds, policy: LanePolicy, now_ms: int) -> bool:
    """Return whether a lane without an owner needs a reset, or has fetches that end without an attempt."""
    expired = lane.earliest_ms is not None and lane.earliest_ms <= now_ms
    ends = lane.cancelled or expired or lane.orphans or gate.is_dead(lane.gate, policy, now_ms)
    return lane.scheduled and (ends or lane.reset)
