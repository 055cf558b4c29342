"""Renew the leases of a worker's lanes: all in one call, off the path of any fetch."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.store import LaneStore
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.util.clock import RedisClock, mono_s

RENEWALS_A_LEASE = 3
AGAIN_S = 0.25
"""When a renewal that failed is repeated: a lease lasts for few of them."""

LEASE_MARGIN_S = 1.0
"""How long before Redis would give a lane away this worker lets go of it."""


class Leases:
    """One for a worker process; `run` is its task."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        lease_s: float,
        store: LaneStore,
        clock: RedisClock,
        report_redis_error: Callable[[BaseException], None],
        log: FilteringBoundLogger,
    ) -> None:
        self._lanes = lanes
        self._lease_s = lease_s
        self.usable_s = lease_s - min(LEASE_MARGIN_S, lease_s / 4)
        """How long a lease counts by this worker's clock, from the call on: less than in Redis."""
        self._store = store
        self._clock = clock
        self._report_redis_error = report_redis_error
        self._log = log
        self._renewed_s = mono_s()

    @property
    def renews(self) -> bool:
        """True if the leases are renewed in time: a worker that does not renew them sends no heartbeat."""
        return mono_s() - self._renewed_s <= self._lease_s

    async def run(self) -> None:
        """Renew, until cancelled; stop the lanes whose lease has lapsed or that another worker owns."""
        renewed = True
        while True:
            self._renewed_s = mono_s()
            await asyncio.sleep(self._lease_s / RENEWALS_A_LEASE if renewed else AGAIN_S)
            lanes = list(self._lanes.values())
            self._stop_lapsed(lanes)  # first: a worker that was suspended for long must not wait for Redis
            renewed, kept = True, list[bool]()
            asked_s = mono_s()
            try:
                if lanes:
                    async with asyncio.timeout(self._lease_s / RENEWALS_A_LEASE):
                        now_ms, kept = await self._store.renew([(lane.name, lane.token) for lane in lanes])
                    self._clock.sync(now_ms)
            except (RedisError, OSError) as error:
                renewed = False
                self._report_redis_error(error)
            for lane, held in zip(lanes, kept, strict=False):
                if held:
                    lane.extend_lease(asked_s + self.usable_s)
                elif self._lanes.get(lane.pool) is lane and not lane.released:
                    lane.lose()
            self._stop_lapsed(lanes)

    def _stop_lapsed(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            if not lane.live and not lane.lapsed and not lane.lost:
                self._log.warning(Event.LANE_LAPSED, lane=lane.name, in_flight=len(lane.in_flight))
                lane.lapse()
