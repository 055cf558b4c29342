"""The lanes that a worker returns, so that every worker has its share of them. Pure.

Giving a lane back has a price: fetches in flight may be cut short. So a worker gives none before it has held
too many for a while, and then enough to stay at its share: between the share and the bound nothing moves.
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

SLACK = 1
"""How many lanes more than its share a worker may hold."""

LOOKS = 2
"""How many looks in a row must find too many lanes: a worker that restarts is gone for a moment only."""


class FleetLoad(NamedTuple):
    """Lanes that are held or due, and workers that are alive."""

    busy: int
    workers: int


class HeldLane(NamedTuple):
    """A lane that this worker holds."""

    lane: str
    token: int
    """The larger, the later it was acquired."""
    in_flight: int
    unrepeatable: bool = False
    """Whether a request is in flight that must not be sent twice."""
    stopping: bool = False
    """Whether it is being given back."""
    unwanted: bool = False
    """Whether no other worker acquired it when it was last due."""


class Balance(NamedTuple):
    """The number of checks in a row that found too many lanes, and the lanes to return now."""

    too_many: int
    give: list[str]


def share(load: FleetLoad) -> int:
    """Return how many lanes a worker should hold; jobs/lua/take.lua gives it no more."""
    return max(1, ceil(load.busy / max(1, load.workers)))


def balance(lanes: Sequence[HeldLane], load: FleetLoad, too_many: int) -> Balance:
    """Decide what to give back; too_many: the result of the previous look.

    No lane goes while this worker holds at most its share and SLACK, and it keeps at least its share.
    """
    candidates = [lane for lane in lanes if not lane.stopping and not lane.unwanted]
    if len(candidates) <= share(load) + SLACK:
        return Balance(0, [])
    if too_many + 1 < LOOKS:
        return Balance(too_many + 1, [])
    # First those that cost least: nothing that must not be repeated, little in flight, acquired last.
    cheapest = sorted(candidates, key=lambda lane: (lane.unrepeatable, lane.in_flight, -lane.token))
    return Balance(0, [lane.lane for lane in cheapest[: len(candidates) - share(load)]])
