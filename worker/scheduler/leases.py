"""Renews the leases of a worker's lanes, all in one call."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.store import LaneStore
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.util.clock import RedisClock, mono_s

RENEWALS_A_LEASE = 3
RETRY_S = 0.25
"""The wait before a failed renewal is repeated."""

LEASE_MARGIN_S = 1.0
"""Time before the end of a lease in Redis at which the worker stops the lane."""


class Leases:
    """Renews the leases of a worker process. `run` is its task."""

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
        """The duration of a lease by this worker's clock, from the start of the call."""
        self._store = store
        self._clock = clock
        self._report_redis_error = report_redis_error
        self._log = log
        self._renewed_s = mono_s()

    @property
    def renews(self) -> bool:
        """True if the last renewal was in time. If not, the worker sends no heartbeat."""
        return mono_s() - self._renewed_s <= self._lease_s

    async def run(self) -> None:
        """Renew all leases until cancelled. Stop lanes whose lease has lapsed or that another worker owns."""
        renewed = True
        while True:
            self._renewed_s = mono_s()
            await asyncio.sleep(self._lease_s / RENEWALS_A_LEASE if renewed else RETRY_S)
            lanes = list(self._lanes.values())
            self._stop_lapsed(lanes)  # before the call: the worker may have been suspended
            renewed, kept = True, list[bool]()
            called_s = mono_s()
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
                    lane.extend_lease(called_s + self.usable_s)
                elif self._lanes.get(lane.pool) is lane and not lane.released:
                    lane.lose()
            self._stop_lapsed(lanes)

    def _stop_lapsed(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            if not lane.live and not lane.lapsed and not lane.lost:
                self._log.warning(Event.LANE_LAPSED, lane=lane.name, in_flight=len(lane.in_flight))
                lane.lapse()
