"""End fetches that this worker must not attempt."""

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.errors import BadDestError
from fetchfleet.worker.fetch.cases import handover, stored_bodies
from fetchfleet.worker.fetch.cases.redirect import move_to_lane
from fetchfleet.worker.fetch.rules import crashes
from fetchfleet.worker.fetch.rules.decide import CANCELLED, Finish, expired
from fetchfleet.worker.fetch.rules.outcome import Interrupted
from fetchfleet.worker.fetch.run import finish_fetch
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate.gate import WaitReason
from fetchfleet.worker.sink import names
from fetchfleet.worker.sink.base import Sink


async def end_unattempted(session: FetchSession, entry: Entry) -> bool:
    """End a fetch that this worker must not attempt; return whether it ended, moved or was handed over.

    It ends if it keeps crashing workers, its deadline has passed, the sink cannot store it, its name lacks a
    value, or its file exists. It moves if its next request belongs to another lane: a redirect's, or its
    host's current name.
    """
    fetch, services = entry.fetch, session.services
    if entry.interruptions:
        end = crashes.poisoned(entry)
        if end is not None:
            await finish_fetch(session, entry, end)
            return True
    if await end_if_expired(session, entry):
        return True
    if lane_of_url(entry.url) != session.lane.name:
        if not await move_to_lane(session, entry):
            await finish_fetch(session, entry, CANCELLED)
        return True
    if services.others is not None and await handover.hand_over(session, entry):
        return True
    refusal = services.sink.refusal(fetch)
    if refusal is not None:
        end = Finish(outcome=Outcome.FAILED, reason=Reason.BAD_DEST)
        await finish_fetch(session, entry, end, Interrupted(note=refusal))
        return True
    if fetch.dest is None and fetch.name is None:
        return False
    try:
        names.check(entry)
        existing = await stored_bodies.at_path(entry, services)
    except BadDestError as error:
        end = Finish(outcome=Outcome.FAILED, reason=Reason.BAD_DEST)
        await finish_fetch(session, entry, end, Interrupted(note=str(error)))
        return True
    if existing is not None:
        await finish_fetch(session, entry, *stored_bodies.end_at_existing(entry, existing))
    return existing is not None


def may_end_unattempted(fetch: Fetch, sink: Sink) -> bool:
    """Return whether a name may end the fetch: a file stays, a value is missing, or the sink has no names."""
    return fetch.if_exists is not None or names.uses_meta(fetch) or sink.refusal(fetch) is not None


async def end_if_expired(session: FetchSession, entry: Entry) -> bool:
    """End a fetch whose deadline has passed; return whether it has ended."""
    now_ms = session.lane.clock.now_ms()
    if now_ms < entry.deadline_ms:
        return False
    closed = session.lane.closed()
    cooling = closed is not None and closed.why is WaitReason.COOL_DOWN
    end = expired(entry, now_ms, cooling=cooling)
    if end is not None:
        await finish_fetch(session, entry, end)
    return end is not None
