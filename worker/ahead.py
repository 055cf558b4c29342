"""How many fetches are claimed at a time. Pure.

A claim costs Redis and us nearly as much for two fetches as for one. So where as many as may run at once have
begun in no time, twice as many are claimed. More are not: whatever is claimed when a worker dies is taken to
have been interrupted by it, and a fetch of a higher priority comes after what is claimed.
"""

from typing import NamedTuple

QUICK_MS = 250
MOST_ROOMS = 2


class Claimed(NamedTuple):
    """How many the last claim brought, and when."""

    brought: int = 0
    at_ms: int = 0


def how_many(last: Claimed, room: int, now_ms: int) -> int:
    """How many to claim now that all of the last claim have begun; room: how many may run at once."""
    if last.brought < room:
        return room
    lasted_ms = now_ms - last.at_ms
    return room * MOST_ROOMS if lasted_ms * room <= QUICK_MS * last.brought else room
