"""Ends the fetches of cancelled batches in a held lane."""

import functools
import math

from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.scripts.lanes import RemovalKind
from fetchfleet.worker.fetch.rules.decide import CANCELLED
from fetchfleet.worker.fetch.run import finish_fetch
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.lanes.store import Removal
from fetchfleet.worker.lanes.withdraw import end_claims, withdraw
from fetchfleet.worker.observability.log import Event


async def end_cancelled_batches(session: FetchSession) -> None:
    """End every fetch of the lane's cancelled batches. The caller must not claim fetches meanwhile."""
    lane, services = session.lane, session.services
    batches = set(lane.cancelled)
    end = functools.partial(finish_fetch, session, finish=CANCELLED)

    # Lane.cancel has stopped the fetches in flight.
    while not lane.lost and any(batch_of(fetch_id) in batches for fetch_id in lane.in_flight):
        await lane.changed(math.inf)

    # A fetch that was settled before it was stopped keeps that settlement.
    await services.settler.flush_pending(lane)
    lane.unqueue(batches)
    held = [entry for entry in lane.entries.values() if entry.batch_id in batches]
    for entry in held:
        await end(entry)
    count = len(held)

    for batch in batches:
        count += (await withdraw(session, Removal(RemovalKind.BATCH, batch), end)).ended

    # A removal scan whose reply was lost may have claimed fetches that are unknown to this worker.
    while not lane.lost:
        await services.settler.flush_pending(lane)
        claimed = await session.retry_until_lost(
            lambda: services.store.withdrawn(lane.name, lane.token, batches)
        )
        if not claimed.serialized:
            break
        count += await end_claims(session, claimed, end)

    if not lane.lost:
        lane.forget_cancelled(batches)
        services.log.info(Event.LANE_CANCELLED, lane=lane.name, batches=sorted(batches), fetches=count)
