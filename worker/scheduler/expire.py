"""Ends what must not wait any longer: fetches past their deadline, and all that waits for a dead host."""

import functools

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.fetch.rules.decide import HOST_DEAD
from fetchfleet.worker.fetch.run import end_if_expired, end_untried_with
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.gate import gate
from fetchfleet.worker.lanes.claims import hold_unseen
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import retry_until_lost
from fetchfleet.worker.lanes.store import ALL, EXPIRED
from fetchfleet.worker.lanes.withdraw import withdraw
from fetchfleet.worker.observability.log import Event

LOOK_EVERY_S = 2.0
"""How often a lane looks at Redis: a producer may have added an earlier deadline."""


async def end_expired(lane: Lane, services: FetchServices) -> None:
    """Every fetch past its deadline ends, wherever in the lane it waits. Cheap until one is due."""
    now_ms = lane.clock.now_ms()
    if now_ms < lane.look_ms:
        return
    for entry in list(lane.ready):
        if await end_if_expired(entry, lane, services):
            lane.ready.remove(entry)
    earliest_ms, claimed = await retry_until_lost(lane, services, lambda: services.store.look(lane.name))
    if claimed > len(lane.entries):
        await hold_unseen(lane, services)
    if earliest_ms is not None and earliest_ms <= now_ms:
        earliest_ms = await _look_through(lane, services)
    lane.look_ms = now_ms + int(LOOK_EVERY_S * 1000)
    if earliest_ms:
        lane.look_ms = min(lane.look_ms, max(earliest_ms, now_ms + 1000))


async def end_if_dead(lane: Lane, services: FetchServices) -> bool:
    """Whether the host is dead; then all that waits for it ends, without being tried."""
    if not gate.is_dead(lane.gate, lane.policy, lane.clock.now_ms()):
        return False
    end = functools.partial(end_untried_with, HOST_DEAD, lane, services)
    count = len(lane.ready)
    while lane.ready:
        await end(lane.ready.popleft())
    count += (await withdraw(lane, ALL, end, services)).ended
    if count:
        since_ms = lane.gate.down_since_ms
        services.log.warning(Event.LANE_DEAD, lane=lane.name, fetches=count, down_since_ms=since_ms)
    return True


async def _look_through(lane: Lane, services: FetchServices) -> int | None:
    """End what has expired; the earliest deadline of what stays."""
    await retry_until_lost(lane, services, lambda: services.store.note_earliest(lane.name, lane.token, None))

    async def end(entry: Entry) -> None:
        await end_if_expired(entry, lane, services)

    found = await withdraw(lane, EXPIRED, end, services)
    earliest_ms = found.earliest_ms
    await retry_until_lost(
        lane, services, lambda: services.store.note_earliest(lane.name, lane.token, earliest_ms)
    )
    return earliest_ms or None
