"""Ends the fetches of cancelled batches in a lane that this worker holds, however far back they wait."""

import functools
import math
from collections import deque
from collections.abc import Iterable

from jobs import keys
from jobs.entry import Entry
from jobs.names import batch_of
from worker.fetching import end_cancelled
from worker.holding import entries_of
from worker.lane import Lane
from worker.log import Event
from worker.parts import Parts
from worker.patience import patiently


async def end_cancelled_batches(lane: Lane, parts: Parts) -> None:
    """Every fetch of the lane's cancelled batches gets its result. Nothing is claimed meanwhile."""
    batches = set(lane.cancelled)
    await _stopped(lane, batches)
    count = await _end_in_hand(lane, batches, parts)
    for batch in batches:
        for queue in (*keys.waiting(lane.name), keys.later(lane.name)):
            count += await _end_waiting(lane, batch, queue, parts)
    count += await _end_unseen(lane, batches, parts)
    if not lane.lost:
        lane.cancelled -= batches
        parts.log.info(Event.LANE_CANCELLED, lane=lane.name, batches=sorted(batches), fetches=count)


async def _stopped(lane: Lane, batches: set[str]) -> None:
    """Until nothing of the batches is in flight; `Lane.cancel` has stopped it."""
    while not lane.lost and any(batch_of(fetch_id) in batches for fetch_id in lane.in_flight):
        await lane.changed(math.inf)


async def _end_in_hand(lane: Lane, batches: set[str], parts: Parts) -> int:
    """What had its settlement before it was stopped keeps it; the rest that we hold is cancelled."""
    await parts.settler.caught_up(lane)
    lane.ready = deque(entry for entry in lane.ready if entry.batch_id not in batches)
    return _end(lane, [entry for entry in lane.entries.values() if entry.batch_id in batches], parts)


async def _end_waiting(lane: Lane, batch: str, queue: str, parts: Parts) -> int:
    """Through the whole queue, a stretch at a time."""
    count, offset = 0, 0
    while True:
        if parts.settler.full:
            await parts.settler.flushed(lane)
        withdraw = functools.partial(parts.store.withdraw, lane.name, lane.token, batch, queue, offset)
        found = await patiently(lane, parts, withdraw)
        count += _end(lane, entries_of(found.elements, lane, parts), parts)
        if found.go_on is None:
            return count
        offset = found.go_on


async def _end_unseen(lane: Lane, batches: set[str], parts: Parts) -> int:
    """What a withdrawal claimed although its reply was lost."""
    count = 0
    while not lane.lost:
        await parts.settler.caught_up(lane)
        left = await patiently(lane, parts, lambda: parts.store.withdrawn(lane.name, lane.token, batches))
        if not left:
            break
        count += _end(lane, entries_of(left, lane, parts), parts)
    return count


def _end(lane: Lane, entries: Iterable[Entry], parts: Parts) -> int:
    count = 0
    for entry in entries:
        lane.entries[entry.id] = entry
        end_cancelled(entry, lane, parts)
        count += 1
    return count
