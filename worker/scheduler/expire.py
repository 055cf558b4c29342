"""Ends fetches past their deadline, and all fetches of a dead host."""

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
    """End every fetch of the lane that is past its deadline, and set the time of the next search."""
    lane, services = session.lane, session.services
    now_ms = lane.clock.now_ms()
    for entry in list(lane.ready):
        if await end_if_expired(session, entry):
            lane.ready.remove(entry)
    for fetch_id in list(lane.handovers):
        waiting = lane.entries.get(fetch_id)
        if waiting is None or await end_if_expired(session, waiting):
            del lane.handovers[fetch_id]
    earliest_ms, claimed = await session.retry_until_lost(lambda: services.store.overview(lane.name))
    if claimed > len(lane.entries):
        await hold_orphaned_claims(session)
    # The deadlines of claimed fetches count too, because their claims may be returned.
    deadlines = (entry.deadline_ms for entry in lane.entries.values())
    claimed_ms = min((deadline_ms for deadline_ms in deadlines if deadline_ms > now_ms), default=None)
    if earliest_ms is not None and earliest_ms <= now_ms:
        await session.retry_until_lost(lambda: services.store.note_earliest(lane.name, lane.token, None))

        async def end(entry: Entry) -> None:
            await end_if_expired(session, entry)

        rest_ms = (await withdraw(session, EXPIRED, end)).earliest_ms
        await session.retry_until_lost(lambda: services.store.note_earliest(lane.name, lane.token, rest_ms))
        earliest_ms = rest_ms or None
    if claimed_ms is not None and (earliest_ms is None or claimed_ms < earliest_ms):
        note = functools.partial(services.store.note_earliest, lane.name, lane.token, claimed_ms)
        await session.retry_until_lost(note)
        earliest_ms = claimed_ms
    next_ms = now_ms + int(services.parameters.expiry_check_s * 1000)
    lane.check_expiry_at(min(next_ms, max(earliest_ms, now_ms + 1000)) if earliest_ms else next_ms)


async def end_if_dead(session: FetchSession) -> bool:
    """Return whether the host is dead. If so, end all fetches that wait for it, without an attempt."""
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
    """Add fetches that are claimed in Redis, but unknown to this worker, to the lane's `ready` fetches.

    The reply to their claim was lost, or Redis lost their settlement in a restart. The caller must not claim
    fetches meanwhile.
    """
    lane, services = session.lane, session.services
    await services.settler.flush_pending(lane)
    known = set(lane.entries)  # read first, because a fetch that is settled meanwhile may be in the reply
    claimed = await session.retry_until_lost(lambda: services.store.claims(lane.name, lane.token))
    unknown = [
        found
        for found in zip(claimed.serialized, claimed.records, strict=True)
        if found[0][:FETCH_ID_CHARS].decode("latin-1") not in known
    ]
    session.hold(
        Claimed([element for element, _ in unknown], [record for _, record in unknown], claimed.too_large)
    )
