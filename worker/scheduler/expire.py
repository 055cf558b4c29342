"""End what must not wait any longer: fetches past their deadline, and all that waits for a dead host."""

import functools

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS
from fetchfleet.jobs.scripts.lanes import Claimed
from fetchfleet.worker.fetch.cases.unattempted import end_if_expired
from fetchfleet.worker.fetch.rules.decide import HOST_DEAD
from fetchfleet.worker.fetch.run import finish_fetch
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import gate
from fetchfleet.worker.lanes.store import ALL, EXPIRED
from fetchfleet.worker.lanes.withdraw import withdraw
from fetchfleet.worker.observability.log import Event


async def end_expired(session: FetchSession) -> None:
    """End every fetch past its deadline, wherever in the lane it waits; set the time of the next check."""
    lane, services = session.lane, session.services
    now_ms = lane.clock.now_ms()
    for entry in list(lane.ready):
        if await end_if_expired(session, entry):
            lane.ready.remove(entry)
    for fetch_id in list(lane.aside):
        waiting = lane.entries.get(fetch_id)
        if waiting is None or await end_if_expired(session, waiting):
            del lane.aside[fetch_id]
    earliest_ms, claimed = await session.retry_until_lost(lambda: services.store.overview(lane.name))
    if claimed > len(lane.entries):
        await hold_orphaned_claims(session)
    # A claimed fetch may be handed back, to wait in the lane again.
    deadlines = (entry.deadline_ms for entry in lane.entries.values())
    ours_ms = min((deadline_ms for deadline_ms in deadlines if deadline_ms > now_ms), default=None)
    if earliest_ms is not None and earliest_ms <= now_ms:
        await session.retry_until_lost(lambda: services.store.note_earliest(lane.name, lane.token, None))

        async def end(entry: Entry) -> None:
            await end_if_expired(session, entry)

        left_ms = (await withdraw(session, EXPIRED, end)).earliest_ms
        await session.retry_until_lost(lambda: services.store.note_earliest(lane.name, lane.token, left_ms))
        earliest_ms = left_ms or None
    if ours_ms is not None and (earliest_ms is None or ours_ms < earliest_ms):
        await session.retry_until_lost(lambda: services.store.note_earliest(lane.name, lane.token, ours_ms))
        earliest_ms = ours_ms
    next_ms = now_ms + int(services.parameters.expiry_check_s * 1000)
    lane.check_expiry_at(min(next_ms, max(earliest_ms, now_ms + 1000)) if earliest_ms else next_ms)


async def end_if_dead(session: FetchSession) -> bool:
    """End everything that waits for the host without an attempt if the host is dead; return whether it is."""
    lane = session.lane
    if not gate.is_dead(lane.gate, lane.policy, lane.clock.now_ms()):
        return False
    end = functools.partial(finish_fetch, session, finish=HOST_DEAD)
    count = len(lane.ready)
    while lane.ready:
        await end(lane.ready.popleft())
    count += (await withdraw(session, ALL, end)).ended
    if count:
        since_ms = lane.gate.down_since_ms
        session.services.log.warning(Event.LANE_DEAD, lane=lane.name, fetches=count, down_since_ms=since_ms)
    return True


async def hold_orphaned_claims(session: FetchSession) -> None:
    """Queue fetches that are claimed in Redis and unknown to this worker.

    The reply to their claim was lost, or Redis restarted without its last second of writes, the settlement
    among them. Nothing else is claimed meanwhile.
    """
    lane, services = session.lane, session.services
    await services.settler.flush_pending(lane)
    known = set(lane.entries)  # read first: a fetch that is settled meanwhile may still be in the reply
    claimed = await session.retry_until_lost(lambda: services.store.claims(lane.name, lane.token))
    unknown = [
        found
        for found in zip(claimed.serialized, claimed.records, strict=True)
        if found[0][:FETCH_ID_CHARS].decode("latin-1") not in known
    ]
    session.hold(
        Claimed([element for element, _ in unknown], [record for _, record in unknown], claimed.too_large)
    )
