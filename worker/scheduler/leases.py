"""Keeps a worker's lanes its own: one call renews every lease, off the path of any fetch."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from redis.exceptions import RedisError

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.store import Store
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.util.clock import RedisClock, mono_s

RENEWALS_A_LEASE = 3
AGAIN_S = 0.25
"""A renewal that failed is made again so soon: a lease holds for few of them."""

LEASE_MARGIN_S = 1.0
"""We let go of a lane this long before Redis would give it to somebody else."""


class Leases:
    """One for a worker process; `run` is its task."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        lease_s: float,
        store: Store,
        clock: RedisClock,
        trouble: Callable[[BaseException], None],
        log: Any,
    ) -> None:
        self._lanes = lanes
        self._lease_s = lease_s
        self._store = store
        self._clock = clock
        self._trouble = trouble
        self._log = log
        self._renewed_s = mono_s()

    @property
    def renews(self) -> bool:
        """Whether the leases are renewed in time: a worker that does not shows no sign of life."""
        return mono_s() - self._renewed_s <= self._lease_s

    def end_s(self, asked_s: float) -> float:
        """By our own clock, counted from before we asked: earlier than Redis's end of it."""
        return asked_s + self._lease_s - min(LEASE_MARGIN_S, self._lease_s / 4)

    async def run(self) -> None:
        """Renew, until cancelled."""
        renewed = True
        while True:
            self._renewed_s = mono_s()
            await asyncio.sleep(self._lease_s / RENEWALS_A_LEASE if renewed else AGAIN_S)
            lanes = list(self._lanes.values())
            self._stop_lapsed(lanes)  # before we ask: whoever was stopped for long must not wait for that
            renewed = not lanes or await self._renew(lanes)
            self._stop_lapsed(lanes)

    def _stop_lapsed(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            if not lane.live and not lane.lapsed and not lane.lost:
                self._log.warning(Event.LANE_LAPSED, lane=lane.name, in_flight=len(lane.in_flight))
                lane.lapse()

    async def _renew(self, lanes: list[Lane]) -> bool:
        """Whether Redis answered."""
        asked_s = mono_s()
        try:
            async with asyncio.timeout(self._lease_s / RENEWALS_A_LEASE):
                now_ms, kept = await self._store.renew([(lane.name, lane.token) for lane in lanes])
        except (RedisError, OSError) as error:
            self._trouble(error)
            return False
        self._clock.sync(now_ms)
        for lane, ours in zip(lanes, kept, strict=True):
            if ours:
                lane.lease_ends_s = self.end_s(asked_s)
            elif self._lanes.get(lane.pool) is lane and not lane.released:
                lane.lose()
        return True
