"""The wait of a lane for one of the worker's slots."""

import asyncio

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.scheduler.expire import end_expired


async def acquire_slot(session: FetchSession, entry: Entry) -> bool:
    """Wait for a slot for the fetch. Returns False if there is none: stop, cancellation or deadline.

    Ends expired fetches of the lane during the wait.
    """
    lane, slots = session.lane, session.services.slots
    check_s = session.services.parameters.expiry_check_s

    def notify_lane(_: asyncio.Future[None]) -> None:
        lane.notify()

    waiter = slots.queue()
    waiter.add_done_callback(notify_lane)
    try:
        while lane.serving and not lane.cancelled and not waiter.done():
            left_s = (entry.deadline_ms - lane.clock.now_ms()) / 1000
            if left_s <= 0:
                break
            await lane.changed(min(left_s, check_s))
            if lane.expiry_check_due:
                await end_expired(session)
    except BaseException:
        if slots.leave(waiter):
            slots.release()
        raise
    return slots.leave(waiter)
