"""Takes fetches of one kind out of a lane that this worker holds, however far back they wait."""

import functools
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.lanes.claims import entries_of
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import retry_until_lost
from fetchfleet.worker.lanes.services import LaneServices
from fetchfleet.worker.lanes.store import Kind

End = Callable[[Entry], Awaitable[object]]
"""What becomes of each."""


class Withdrawn(NamedTuple):
    """How many were ended, and the earliest deadline (Unix ms) of those that stay, 0 if none does."""

    ended: int
    earliest_ms: int


async def withdraw(lane: Lane, kind: Kind, end: End, services: LaneServices) -> Withdrawn:
    """Claim them, a stretch of a queue at a time, and end each. Nothing else is claimed meanwhile."""
    count, deadlines = 0, list[int]()
    for queue in keys.LANE_QUEUES:
        offset: int | None = 0
        while offset is not None:
            if services.settler.full:
                await services.settler.flushed(lane)
            call = functools.partial(services.store.withdraw, lane.name, lane.token, kind, queue, offset)
            found = await retry_until_lost(lane, services, call)
            count += await end_all(lane, found.elements, end, services)
            deadlines += [found.earliest_ms] if found.earliest_ms else []
            offset = found.go_on
    return Withdrawn(count, min(deadlines, default=0))


async def end_all(lane: Lane, elements: list[bytes], end: End, services: LaneServices) -> int:
    """Hold what was claimed and end it; how many."""
    entries = entries_of(elements, lane, services)
    for entry in entries:
        lane.entries[entry.id] = entry
        await end(entry)
    return len(entries)
