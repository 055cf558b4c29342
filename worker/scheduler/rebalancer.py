"""Give lanes back to workers that hold fewer; worker/scheduler/balance.py decides which."""

from collections.abc import Mapping

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.fetch.rules.decide import may_repeat
from fetchfleet.worker.lanes import log_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.scheduler.balance import FleetLoad, HeldLane, balance
from fetchfleet.worker.util.clock import mono_s

UNWANTED_S = 30.0
"""How long a lane stays that no other worker acquired: given back it would only return."""


class Rebalancer:
    """Looks at this worker's lanes once a second, with the heartbeat."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        log: FilteringBoundLogger,
        give_back_within_s: float,
    ) -> None:
        self._lanes = lanes
        self._log = log
        self._give_back_within_s = give_back_within_s
        self._too_many = 0
        self._given_s: dict[str, float] = {}

    def look(self, load: FleetLoad) -> None:
        """Give back what exceeds the share; cut short, once, what has not ended in time."""
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
        self._too_many, give = balance(held, load, self._too_many)
        for pool in give:
            log_events.yielded(self._lanes[pool], len(self._lanes), load.busy, load.workers, self._log)
            self._lanes[pool].stop_serving()
            self._given_s[pool] = now_s
        self._cut_late(now_s)

    def give_all(self) -> None:
        """Give every lane back, because this worker is drained; cut short what has not ended in time."""
        now_s = mono_s()
        for lane in self._lanes.values():
            lane.stop_serving()
            self._given_s.setdefault(lane.pool, now_s)
        self._cut_late(now_s)

    def _cut_late(self, now_s: float) -> None:
        for pool, given_s in list(self._given_s.items()):
            lane = self._lanes.get(pool)
            if lane is None:
                del self._given_s[pool]
            elif now_s - given_s >= self._give_back_within_s and not _unrepeatable(lane):
                del self._given_s[pool]
                lane.cut_short()


def _unrepeatable(lane: Lane) -> bool:
    """Return whether a request is in flight that must not be sent twice; one for a robots.txt may be."""
    fetches = lane.in_flight.keys() - lane.asking.values()
    entries = [lane.entries[fetch_id] for fetch_id in fetches if fetch_id in lane.entries]
    return not all(may_repeat(entry) for entry in entries)
