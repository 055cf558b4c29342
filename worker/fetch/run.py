"""The story of a fetch: attempt it, learn from the outcome, decide what becomes of it, settle that."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.worker.fetch import handover
from fetchfleet.worker.fetch.attempt import Attempt, attempted
from fetchfleet.worker.fetch.cases.redirect import move_to_lane
from fetchfleet.worker.fetch.cases.start_marker import run_marked
from fetchfleet.worker.fetch.rules import stale_fallback
from fetchfleet.worker.fetch.rules.abilities import PLACES
from fetchfleet.worker.fetch.rules.decide import (
    CANCELLED,
    STORED,
    Decision,
    Finish,
    HostState,
    MoveLane,
    Retry,
    decide,
    may_repeat,
)
from fetchfleet.worker.fetch.rules.outcome import (
    AttemptOutcome,
    Interrupted,
    Redirected,
    Stored,
    note_of,
    observation_of,
    throttle_of,
)
from fetchfleet.worker.fetch.rules.result import result_of
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import gate, retry_budget
from fetchfleet.worker.http.trace import Trace, timings_of
from fetchfleet.worker.lanes import log_events, settler

_UNATTEMPTED = Interrupted()


async def run_fetch(session: FetchSession, entry: Entry) -> None:
    """Run a claimed fetch that the gate has admitted, from its request to its settlement."""
    if not entry.crashes and may_repeat(entry):
        await conclude(await attempted(session, entry))
    elif not await run_marked(session, entry, attempted, conclude):
        await finish_fetch(session, entry, Finish(outcome=Outcome.FAILED, reason=Reason.DEADLINE))


async def conclude(attempt: Attempt) -> None:
    """Learn from an attempt, decide what becomes of its fetch, and settle that."""
    session, entry, outcome = attempt.session, attempt.entry, attempt.outcome
    if outcome is None:  # the host was throttled or failed meanwhile: the fetch has not started
        settle_retry(session, Retry(entry=entry, wait_s=session.lane.blocked_s(), reason=None))
        return
    if attempt.part is not entry.part:
        entry = msgspec.structs.replace(entry, part=attempt.part)
    match learn_and_decide(session, entry, attempt.trace, outcome):
        case Finish() as end:
            if end.reason in PLACES and await handover.tried_here(session, entry, outcome):
                return
            await finish_fetch(session, entry, end, outcome, attempt)
        case Retry() as retry:
            settle_retry(session, retry, outcome)
        case MoveLane(entry=moved):
            if not await move_to_lane(session, moved):
                await finish_fetch(session, moved, CANCELLED)


def learn(session: FetchSession, trace: Trace, outcome: AttemptOutcome, fetch_id: str = "") -> None:
    """Teach the lane's gate what the exchange says of the host; fetch_id: whose request it was."""
    lane, services = session.lane, session.services
    now_ms = lane.clock.now_ms()
    if isinstance(outcome, Stored) and gate.is_well(lane.gate, lane.policy):
        session.change_gate(gate.answered(lane.gate, str(outcome.status), now_ms), save=True)
        return
    sent_ms = lane.since_ms(trace.started_s)
    observation = observation_of(outcome, sent_ms, len(lane.in_flight), trace.latency_ms, fetch_id)
    state = gate.attempt_ended(lane.gate, lane.policy, observation, now_ms, services.chance())
    throttle = throttle_of(outcome)
    if throttle is not None:
        state = gate.throttled(state, lane.policy, throttle.wait_s, now_ms, services.chance())
    session.change_gate(state, save=True)


def learn_and_decide(session: FetchSession, entry: Entry, trace: Trace, outcome: AttemptOutcome) -> Decision:
    """Teach the gate the outcome, then decide what becomes of the fetch.

    The order matters: a retry waits until the lane opens, and the outcome may just have closed it.
    """
    learn(session, trace, outcome, entry.id)
    if isinstance(outcome, Stored):
        return STORED
    lane = session.lane
    now_ms = lane.clock.now_ms()
    decision = decide(entry, outcome, lane.policy, now_ms, host_state(session), session.services.chance())
    if isinstance(decision, Retry) and decision.entry.attempts > entry.attempts:
        session.change_gate(retry_budget.retried(lane.gate, now_ms))
    return decision


def host_state(session: FetchSession) -> HostState:
    """Return what a decision needs to know of the host."""
    lane = session.lane
    now_ms, closed = lane.clock.now_ms(), lane.closed()
    return HostState(
        opens_ms=closed.until_ms if closed else now_ms,
        retry_ms=retry_budget.retry_not_before_ms(lane.gate, now_ms),
        dead=gate.is_dead(lane.gate, lane.policy, now_ms),
    )


async def finish_fetch(
    session: FetchSession,
    entry: Entry,
    finish: Finish,
    outcome: AttemptOutcome = _UNATTEMPTED,
    attempt: Attempt | None = None,
) -> None:
    """Settle the end of a fetch. If its host is down, a body stored before may stand in for a failure."""
    lane, services, fetch = session.lane, session.services, entry.fetch
    stand_in = None
    if finish.outcome is Outcome.FAILED:
        closed = lane.closed()
        down = stale_fallback.instead(entry, finish, outcome, closed.why if closed else None)
        if down and services.sink.stored is not None:
            wanted = stale_fallback.in_force(fetch, services.policy_of(fetch))
            stand_in = await services.sink.stored.find(fetch) if wanted else None
    if entry.part is not None:
        services.sink.disk.forget(entry.id, entry.part)
    last_url, trace = (attempt.request.url, attempt.trace) if attempt is not None else (None, None)
    timings = timings_of(trace, lane.clock.now_ms() - entry.submitted_ms)
    result = result_of(entry, finish, outcome, last_url, stand_in, timings, services.worker_id)
    note = note_of(outcome)
    if result.outcome is Outcome.FAILED:
        session.settle(settler.failed(result, note or ""))
    line = log_events.finished(lane.name, entry, result, note, services.log)
    session.settle(settler.finished(result, line))


def settle_retry(session: FetchSession, retry: Retry, outcome: AttemptOutcome = _UNATTEMPTED) -> None:
    """Queue the fetch for its next attempt."""
    status = None if isinstance(outcome, Interrupted | Redirected) else outcome.status
    line = log_events.retry(
        session.lane.name,
        retry.entry,
        retry.wait_s,
        retry.reason,
        status,
        note_of(outcome),
        session.services.log,
    )
    session.settle(settler.retried(retry.entry, retry.wait_s, line))
