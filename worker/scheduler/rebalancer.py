"""Gives lanes back to workers that have fewer; worker/scheduler/balance.py says which."""

from collections.abc import Mapping
from typing import Any

from fetchfleet.worker.fetch.rules.decide import may_repeat
from fetchfleet.worker.lanes import log_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.scheduler import balance
from fetchfleet.worker.scheduler.balance import FleetLoad, HeldLane
from fetchfleet.worker.util.clock import mono_s

GIVE_BACK_WITHIN_S = 5.0
"""What is in flight in a lane that goes may end within this time, then it is cut short."""

UNWANTED_S = 30.0
"""A lane that nobody else took stays for so long: given back it would only come back."""


class Balancer:
    """Looks at our lanes once a second, with the sign of life."""

    def __init__(self, lanes: Mapping[str, Lane], log: Any) -> None:
        self._lanes = lanes
        self._log = log
        self._too_many = 0
        self._given_s: dict[str, float] = {}

    def look(self, fleet: FleetLoad) -> None:
        """Give back what is too much, and hurry what is being given back."""
        now_s = mono_s()
        stays = [_stay(lane, now_s) for lane in self._lanes.values()]
        self._too_many, give = balance.balance(stays, fleet, self._too_many)
        for pool in give:
            log_events.yielded(self._lanes[pool], len(self._lanes), fleet.busy, fleet.workers, self._log)
            self._lanes[pool].leave()
            self._given_s[pool] = now_s
        self._hurry(now_s)

    def _hurry(self, now_s: float) -> None:
        """Cut short, once, what has had its time; what may not be repeated ends by itself."""
        for pool, given_s in list(self._given_s.items()):
            lane = self._lanes.get(pool)
            if lane is None:
                del self._given_s[pool]
            elif now_s - given_s >= GIVE_BACK_WITHIN_S and not _unrepeatable(lane):
                del self._given_s[pool]
                lane.cut_short()


def _stay(lane: Lane, now_s: float) -> HeldLane:
    return HeldLane(
        lane=lane.pool,
        token=lane.token,
        in_flight=len(lane.in_flight),
        unrepeatable=_unrepeatable(lane),
        leaving=lane.leaving or lane.lost,
        unwanted=now_s < lane.unwanted_until_s,
    )


def _unrepeatable(lane: Lane) -> bool:
    """Whether a request is in flight that may not be made twice; one for a robots.txt may."""
    fetches = lane.in_flight.keys() - lane.asking.values()
    entries = [lane.entries[fetch_id] for fetch_id in fetches if fetch_id in lane.entries]
    return not all(may_repeat(entry) for entry in entries)
