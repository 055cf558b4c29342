"""The story of a fetch: attempt it, learn from the outcome, decide what becomes of it, settle that."""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import msgspec

from fetchfleet.jobs.contract.entry import Entry, serialize_entry
from fetchfleet.jobs.contract.field_checks import IfExists
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.fetch import handover, if_exists
from fetchfleet.worker.fetch.attempt import Attempt
from fetchfleet.worker.fetch.result import result_of
from fetchfleet.worker.fetch.rules import crashes, stale_fallback
from fetchfleet.worker.fetch.rules.abilities import PLACES
from fetchfleet.worker.fetch.rules.decide import (
    CANCELLED,
    Decision,
    Finish,
    HostState,
    MoveLane,
    Retry,
    decide,
    expired,
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
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import gate, retry_budget
from fetchfleet.worker.gate.gate import WaitReason
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.lanes import log_events, settler
from fetchfleet.worker.lanes.store import BatchCancelled, LaneLostError

_NO_MARKER = nullcontext()


async def run_fetch(session: FetchSession, entry: Entry) -> None:
    """Run a claimed fetch that the gate has admitted, from its request to its settlement."""
    if not entry.crashes and may_repeat(entry):
        await attempt_and_settle(session, entry)
    elif crashes.is_suspect(entry):
        await run_isolated(session, entry)
    else:
        await attempt_and_settle(session, entry, start_marked(session, entry))


async def attempt_and_settle(
    session: FetchSession, entry: Entry, start: AbstractAsyncContextManager[None] = _NO_MARKER
) -> None:
    """Attempt the fetch within `start`, and settle what became of it."""
    lane = session.lane
    async with start:
        blocked_s = lane.blocked_s()
        if not blocked_s:
            attempt = Attempt(session, entry)
            outcome = await attempt.run()
    if blocked_s:  # the host was throttled or failed meanwhile: the fetch has not started
        settle_retry(session, Retry(entry=entry, wait_s=blocked_s, reason=None), Interrupted())
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
            await move_to_lane(session, moved)


async def run_isolated(session: FetchSession, entry: Entry) -> None:
    """Run a suspect where none but it can be blamed for a death, until Redis knows what became of it."""
    lane, isolation = session.lane, session.services.isolation
    try:
        async with asyncio.timeout(max(0, entry.deadline_ms - lane.clock.now_ms()) / 1000):
            await isolation.begin(entry.id)
    except TimeoutError:
        late = Finish(outcome=Outcome.FAILED, reason=Reason.DEADLINE)
        await finish_unattempted(session, entry, finish=late)
        return
    try:
        await attempt_and_settle(session, entry, start_marked(session, entry))
        await session.services.settler.caught_up(lane)
    finally:
        isolation.end()


@asynccontextmanager
async def start_marked(session: FetchSession, entry: Entry) -> AsyncIterator[None]:
    """Note in Redis that the fetch starts, before it does."""
    started, noted = msgspec.structs.replace(entry, begun=True), asyncio.Event()
    session.settle(settler.started(started, noted.set))
    await noted.wait()
    session.lane.rewrite(started)
    if not crashes.is_suspect(entry):  # a suspect may have begun meanwhile
        await session.services.isolation.opened()
    timer = asyncio.get_running_loop().call_later(crashes.SOON_S, _outlive, session, entry.id)
    try:
        yield
    finally:
        timer.cancel()


def _outlive(session: FetchSession, fetch_id: str) -> None:
    """Note in Redis that the worker has outlived the start of the fetch."""
    entry = session.lane.entries.get(fetch_id)
    if entry is not None and not session.lane.lost:
        outlived = msgspec.structs.replace(entry, outlived=True)
        session.lane.rewrite(outlived)
        done = functools.partial(session.services.isolation.outlived, fetch_id)
        session.settle(settler.started(outlived, done))


def learn(session: FetchSession, trace: Trace, outcome: AttemptOutcome, fetch_id: str = "") -> None:
    """Teach the lane's gate what the exchange says of the host; fetch_id: whose request it was."""
    lane, services = session.lane, session.services
    now_ms = lane.clock.now_ms()
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
    lane = session.lane
    now_ms = lane.clock.now_ms()
    host = HostState() if isinstance(outcome, Stored) else host_state(session)  # a stored body ends the fetch
    decision = decide(entry, outcome, lane.policy, now_ms, host, session.services.chance())
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
    outcome: AttemptOutcome,
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
    result = result_of(
        entry, finish, outcome, attempt, stand_in, now_ms=lane.clock.now_ms(), worker_id=services.worker_id
    )
    note = note_of(outcome)
    if result.outcome is Outcome.FAILED:
        session.settle(settler.failed(result, note or ""))
    line = log_events.finished(lane.name, entry, result, note, services.log)
    session.settle(settler.finished(result, line))


def settle_retry(session: FetchSession, retry: Retry, outcome: AttemptOutcome) -> None:
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


async def move_to_lane(session: FetchSession, entry: Entry) -> None:
    """Move the fetch to the lane of its next request's host; that lane's limits hold from then on."""
    lane, services = session.lane, session.services
    to_lane, priority, element = (
        lane_of_url(entry.url),
        entry.fetch.priority.value,
        serialize_entry(entry),
    )
    try:
        due = await session.retry_until_lost(
            lambda: services.store.transfer(lane.name, lane.token, entry.id, element, to_lane, priority)
        )
    except LaneLostError:
        lane.lose()
        return
    if isinstance(due, BatchCancelled):
        await finish_unattempted(session, entry, finish=CANCELLED)
        return
    lane.drop(entry.id)
    if due is not None:
        await services.notify([due])


async def end_unattempted(session: FetchSession, entry: Entry) -> bool:
    """End a fetch that must not be attempted here; return whether it has ended or moved.

    Workers crash of it, its deadline has passed, this worker cannot do it, or its dest exists; or it
    continues in the lane of another host, to which it was redirected, or of its own host's present name.
    """
    fetch, services = entry.fetch, session.services
    if entry.interruptions:
        end = crashes.poisoned(entry)
        if end is not None:
            await finish_unattempted(session, entry, finish=end)
            return True
    if await end_if_expired(session, entry):
        return True
    if lane_of_url(entry.url) != session.lane.name:
        await move_to_lane(session, entry)
        return True
    if fetch.dest is None and fetch.body_file is None and not fetch.decode and not entry.tried:
        return False
    if services.others is not None and await handover.left_to_others(session, entry):
        return True
    refusal = services.sink.refusal(fetch)
    if refusal is not None:
        end = Finish(outcome=Outcome.FAILED, reason=Reason.BAD_DEST)
        await finish_fetch(session, entry, end, Interrupted(note=refusal))
        return True
    if fetch.dest is None or fetch.if_exists == IfExists.REPLACE:
        return False
    found = await if_exists.at_dest(entry, services)
    if found is not None:
        await finish_fetch(session, entry, *if_exists.meaning(entry, found))
    return found is not None


async def end_if_expired(session: FetchSession, entry: Entry) -> bool:
    """End a fetch whose deadline has passed; return whether it has ended."""
    now_ms = session.lane.clock.now_ms()
    if now_ms < entry.deadline_ms:
        return False
    closed = session.lane.closed()
    cooling = closed is not None and closed.why is WaitReason.COOL_DOWN
    end = expired(entry, now_ms, cooling=cooling)
    if end is not None:
        await finish_unattempted(session, entry, finish=end)
    return end is not None


async def finish_unattempted(session: FetchSession, entry: Entry, *, finish: Finish) -> None:
    """End the fetch without another attempt."""
    await finish_fetch(session, entry, finish, Interrupted())
