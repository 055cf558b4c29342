"""How many fetches are claimed at a time. Pure.

A claim costs Redis and us nearly as much for one fetch as for many. So where as many as may run at once have
begun in no time, twice as many are claimed, and so on. What is claimed begins within AHEAD_MS or so:
a fetch of a higher priority comes hardly later for it, and a crash interrupts hardly more.
"""

from typing import NamedTuple

AHEAD_MS = 500
MOST_ROOMS = 8
"""However quickly they begin, so many times what may run at once is the most."""


class Claimed(NamedTuple):
    """How many the last claim brought, and when."""

    brought: int = 0
    at_ms: int = 0


def how_many(last: Claimed, room: int, now_ms: int) -> int:
    """How many to claim now that all of the last claim have begun; room: how many may run at once."""
    lasted_ms = now_ms - last.at_ms
    count = last.brought
    if lasted_ms * 2 <= AHEAD_MS:
        count *= 2
    elif lasted_ms > AHEAD_MS:
        count //= 2
    return max(room, min(count, room * MOST_ROOMS))
