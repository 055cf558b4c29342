"""Decides which lanes a worker releases, so that every worker has its share. Pure.

A release may interrupt fetches in flight. A worker therefore releases lanes only after several checks have
found more than its share and SLACK, and then down to its share. Between these two numbers no lane moves.
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

SLACK = 1
"""Number of lanes above its share that a worker may hold."""

CHECKS = 2
"""Consecutive checks that must find too many lanes, because a worker that restarts is back soon."""


class FleetLoad(NamedTuple):
    """The number of lanes and workers of the fleet."""

    busy: int
    """Lanes that are held or due."""
    workers: int
    """Live workers."""


class HeldLane(NamedTuple):
    """A lane that this worker holds."""

    lane: str
    token: int
    """The fencing token; larger for lanes that were acquired later."""
    in_flight: int
    """Number of fetches in flight."""
    unrepeatable: bool = False
    """A request is in flight that must not be sent twice."""
    stopping: bool = False
    """The lane is being released, or is lost."""
    unwanted: bool = False
    """No other worker acquired the lane when it was last due."""


class Balance(NamedTuple):
    """The result of a check."""

    too_many: int
    """Consecutive checks that found too many lanes, for the next check."""
    release: list[str]
    """The lanes to release now."""


def share(load: FleetLoad) -> int:
    """Return the number of lanes that a worker should hold. take.lua lets it acquire no more."""
    return max(1, ceil(load.busy / max(1, load.workers)))


def balance(lanes: Sequence[HeldLane], load: FleetLoad, too_many: int) -> Balance:
    """Return the lanes to release. too_many: from the result of the previous check.

    None is released while the worker holds at most its share and SLACK. It keeps at least its share.
    """
    candidates = [lane for lane in lanes if not lane.stopping and not lane.unwanted]
    if len(candidates) <= share(load) + SLACK:
        return Balance(0, [])
    if too_many + 1 < CHECKS:
        return Balance(too_many + 1, [])
    # Release first: lanes without an unrepeatable request, with few fetches in flight, acquired last.
    cheapest = sorted(candidates, key=lambda lane: (lane.unrepeatable, lane.in_flight, -lane.token))
    return Balance(0, [lane.lane for lane in cheapest[: len(candidates) - share(load)]])
