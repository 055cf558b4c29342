"""Ends the fetches of cancelled batches in a lane that this worker holds."""

import functools
import math
from collections import deque

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.worker.fetch.rules.decide import CANCELLED
from fetchfleet.worker.fetch.run import end_untried_with
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import retry_until_lost
from fetchfleet.worker.lanes.store import Kind
from fetchfleet.worker.lanes.withdraw import End, end_all, withdraw
from fetchfleet.worker.observability.log import Event


async def end_cancelled_batches(lane: Lane, services: FetchServices) -> None:
    """Every fetch of the lane's cancelled batches gets its result. Nothing is claimed meanwhile."""
    batches = set(lane.cancelled)
    end = functools.partial(end_untried_with, CANCELLED, lane, services)
    await _stopped(lane, batches)
    count = await _end_in_hand(lane, batches, end, services)
    for batch in batches:
        count += (await withdraw(lane, Kind("batch", batch), end, services)).ended
    count += await _end_unseen(lane, batches, end, services)
    if not lane.lost:
        lane.cancelled -= batches
        services.log.info(Event.LANE_CANCELLED, lane=lane.name, batches=sorted(batches), fetches=count)


async def _stopped(lane: Lane, batches: set[str]) -> None:
    """Until nothing of the batches is in flight; `Lane.cancel` has stopped it."""
    while not lane.lost and any(batch_of(fetch_id) in batches for fetch_id in lane.in_flight):
        await lane.changed(math.inf)


async def _end_in_hand(lane: Lane, batches: set[str], end: End, services: FetchServices) -> int:
    """What had its settlement before it was stopped keeps it; the rest that we hold is cancelled."""
    await services.settler.caught_up(lane)
    lane.ready = deque(entry for entry in lane.ready if entry.batch_id not in batches)
    held: list[Entry] = [entry for entry in lane.entries.values() if entry.batch_id in batches]
    for entry in held:
        await end(entry)
    return len(held)


async def _end_unseen(lane: Lane, batches: set[str], end: End, services: FetchServices) -> int:
    """What a withdrawal claimed although its reply was lost."""
    count = 0
    while not lane.lost:
        await services.settler.caught_up(lane)
        left = await retry_until_lost(
            lane, services, lambda: services.store.withdrawn(lane.name, lane.token, batches)
        )
        if not left:
            break
        count += await end_all(lane, left, end, services)
    return count
