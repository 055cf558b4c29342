"""Which lanes a worker gives back, so that every worker has its share of them. Pure.

A lane changes hands at a price: what is in flight may be cut short. So nobody gives before it has held
too many for a while, and then enough to be left alone: between the share and the bound nothing moves.
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

SLACK = 1
"""So many lanes more than its share a worker may hold."""

LOOKS = 2
"""So many looks in a row must find too many: a worker that is restarted is gone for a moment only."""


class FleetLoad(NamedTuple):
    """What a look at the fleet has found: lanes that are held or due, and workers that are alive."""

    busy: int
    workers: int


class HeldLane(NamedTuple):
    """A lane that we hold.

    token: the larger, the later it was taken. unrepeatable: something is in flight that may not be made
    twice. leaving: it is being given back. unwanted: nobody else took it when it was last to be had.
    """

    lane: str
    token: int
    in_flight: int
    unrepeatable: bool = False
    leaving: bool = False
    unwanted: bool = False


class Balance(NamedTuple):
    """What follows from a look: how many in a row have found too many lanes, and which of them go."""

    too_many: int
    give: list[str]


def share(fleet: FleetLoad) -> int:
    """How many lanes a worker is to have; jobs/lua/take.lua gives it no more."""
    return max(1, ceil(fleet.busy / max(1, fleet.workers)))


def balance(stays: Sequence[HeldLane], fleet: FleetLoad, too_many: int) -> Balance:
    """What this look means; too_many: what the one before it has found.

    No lane goes while we hold no more than the share and SLACK, none below the share.
    """
    ours = [stay for stay in stays if not stay.leaving and not stay.unwanted]
    if len(ours) <= share(fleet) + SLACK:
        return Balance(0, [])
    if too_many + 1 < LOOKS:
        return Balance(too_many + 1, [])
    first = sorted(ours, key=_price)
    return Balance(0, [stay.lane for stay in first[: len(ours) - share(fleet)]])


def _price(stay: HeldLane) -> tuple[bool, int, int]:
    """What giving the lane back costs: of what may be lost the least, of the latest work first."""
    return stay.unrepeatable, stay.in_flight, -stay.token
