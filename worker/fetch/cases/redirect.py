"""Follow redirects: within a lane at once, to another host through that host's lane."""

from fetchfleet.jobs.contract.entry import MAX_HOPS, Entry, Hop, serialize_entry
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.fetch.cases.host_signals import requested_wait_s
from fetchfleet.worker.fetch.rules.decide import may_repeat
from fetchfleet.worker.fetch.rules.outcome import Answered, AttemptOutcome, Failed, Redirected
from fetchfleet.worker.fetch.rules.redirects import AllowedRedirects, RedirectRefused, follow, is_redirect
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.lanes.store import BatchCancelled, LaneLostError


def request_after(
    session: FetchSession, entry: Entry, request: Hop, hops: int, answer: Answer
) -> Hop | AttemptOutcome:
    """Return the request that follows a response without a body to store, or the outcome of the attempt.

    A redirect with Retry-After is not followed at once (RFC 9110 §10.2.3).
    hops: the number of redirects before this response.
    """
    lane, status = session.lane, answer.status
    wait_s = requested_wait_s(answer, lane.clock.now_ms())
    if not is_redirect(status):
        return Answered(status=status, wait_s=wait_s)
    if entry.fetch.sign:  # Standard Webhooks: a redirect is a failure
        note = f"{status}: a webhook follows no redirect"
        return Failed(reason=Reason.REDIRECT_REFUSED, final=True, status=status, note=note)
    if hops >= MAX_HOPS:
        return Failed(reason=Reason.TOO_MANY_REDIRECTS, final=True, status=status)
    allowed = AllowedRedirects(
        repeat=may_repeat(entry),
        https_to_http=lane.policy.https_to_http,
        bodies=lane.policy.redirect_bodies,
    )
    hop = follow(request, status, answer.header("location"), allowed)
    if isinstance(hop, RedirectRefused):
        return Failed(reason=Reason.REDIRECT_REFUSED, final=True, status=status, note=hop.message)
    rules = lane.rules(hop.url) if lane_of_url(hop.url) == lane.name else None
    if rules is not None and not rules.allows(hop.url):
        return Failed(reason=Reason.ROBOTS_DISALLOWED, final=True, status=status)
    if rules is None or wait_s is not None or not session.may_send_another():
        return Redirected(hop=hop, hops=hops + 1, status=status, wait_s=wait_s)
    return hop


async def move_to_lane(session: FetchSession, entry: Entry) -> bool:
    """Move the fetch to the lane of its next request's host, whose limits apply from then on.

    Returns False if its batch is cancelled; the fetch then stays in this lane.
    """
    lane, services = session.lane, session.services
    to_lane, priority, serialized = lane_of_url(entry.url), entry.fetch.priority.value, serialize_entry(entry)
    try:
        due = await session.retry_until_lost(
            lambda: services.store.transfer(lane.name, lane.token, entry.id, serialized, to_lane, priority)
        )
    except LaneLostError:
        lane.lose()
        return True
    if isinstance(due, BatchCancelled):
        return False
    lane.drop(entry.id)
    if due is not None:
        await services.notify([due])
    return True
