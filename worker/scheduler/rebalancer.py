"""Releases lanes for workers that hold fewer. worker/scheduler/balance.py decides which."""

from collections.abc import Mapping

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.fetch.rules.decide import may_repeat
from fetchfleet.worker.lanes import log_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.scheduler.balance import FleetLoad, HeldLane, balance
from fetchfleet.worker.util.clock import mono_s

UNWANTED_S = 30.0
"""Time for which a lane that no other worker acquired is not released again."""


class Rebalancer:
    """Releases lanes above this worker's share, and all lanes of a drained worker."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        log: FilteringBoundLogger,
        release_within_s: float,
    ) -> None:
        self._lanes = lanes
        self._log = log
        self._release_within_s = release_within_s
        self._too_many = 0
        """Consecutive checks that found too many lanes."""
        self._stopped_s: dict[str, float] = {}
        """The monotonic times at which lanes were stopped, by pool."""

    def check(self, load: FleetLoad) -> None:
        """Release lanes above the share. Interrupt, once, fetches that have not ended in time."""
        now_s = mono_s()
        held = [
            HeldLane(
                lane=lane.pool,
                token=lane.token,
                in_flight=len(lane.in_flight),
                unrepeatable=_unrepeatable(lane),
                stopping=lane.stopping or lane.lost,
                unwanted=now_s < lane.unwanted_until_s,
            )
            for lane in self._lanes.values()
        ]
        self._too_many, release = balance(held, load, self._too_many)
        for pool in release:
            log_events.yielded(self._lanes[pool], len(self._lanes), load.busy, load.workers, self._log)
            self._lanes[pool].stop_serving()
            self._stopped_s[pool] = now_s
        self._interrupt_late(now_s)

    def release_all(self) -> None:
        """Release every lane of a drained worker. Interrupt, once, fetches that have not ended in time."""
        now_s = mono_s()
        for lane in self._lanes.values():
            lane.stop_serving()
            self._stopped_s.setdefault(lane.pool, now_s)
        self._interrupt_late(now_s)

    def _interrupt_late(self, now_s: float) -> None:
        for pool, stopped_s in list(self._stopped_s.items()):
            lane = self._lanes.get(pool)
            if lane is None:
                del self._stopped_s[pool]
            elif now_s - stopped_s >= self._release_within_s and not _unrepeatable(lane):
                del self._stopped_s[pool]
                lane.interrupt()


def _unrepeatable(lane: Lane) -> bool:
    """Return whether a request is in flight that must not be sent twice. A robots.txt request may be."""
    fetches = lane.in_flight.keys() - lane.robots_requests.values()
    entries = [lane.entries[fetch_id] for fetch_id in fetches if fetch_id in lane.entries]
    return not all(may_repeat(entry) for entry in entries)
