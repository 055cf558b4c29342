"""Removes fetches of one kind from all queues of a held lane, and ends them."""

import functools
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.scripts.lanes import ClaimReply
from fetchfleet.worker.lanes.services import LaneServices
from fetchfleet.worker.lanes.session import LaneSession
from fetchfleet.worker.lanes.store import Removal

EndFetch = Callable[[Entry], Awaitable[object]]
"""Ends one fetch."""


class Withdrawn(NamedTuple):
    """The result of a removal scan."""

    ended: int
    """Number of fetches that were ended."""
    earliest_ms: int
    """Earliest deadline of the fetches that stay, in Unix ms; 0 if none stays."""


async def withdraw(session: LaneSession[LaneServices], removal: Removal, end: EndFetch) -> Withdrawn:
    """Claim the fetches, one page of a queue at a time, and end each. Claims no others."""
    lane, services = session.lane, session.services
    count, deadlines = 0, list[int]()
    for queue in keys.LANE_QUEUES:
        offset: int | None = 0
        while offset is not None:
            if services.settler.full:
                await services.settler.flush(lane)
            call = functools.partial(services.store.withdraw, lane.name, lane.token, removal, queue, offset)
            found = await session.retry_until_lost(call)
            count += await end_claims(session, found, end)
            if found.earliest_ms:
                deadlines.append(found.earliest_ms)
            offset = found.next_offset
    return Withdrawn(count, min(deadlines, default=0))


async def end_claims(session: LaneSession[LaneServices], claimed: ClaimReply, end: EndFetch) -> int:
    """End each claimed entry. Returns the number of those that are fetches of the lane."""
    entries = session.decode(claimed)
    for entry in entries:
        session.lane.replace_entry(entry)
        await end(entry)
    return len(entries)
