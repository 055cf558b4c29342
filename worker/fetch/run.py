"""The life of a claimed fetch in this worker: attempt, learn, decide, settle, say so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import msgspec

from fetchfleet.jobs.contract.entry import Entry, to_element
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.fetch import if_exists, log_events
from fetchfleet.worker.fetch.attempt import Attempt
from fetchfleet.worker.fetch.result import result_of
from fetchfleet.worker.fetch.rules import stale_fallback
from fetchfleet.worker.fetch.rules.crashes import is_suspect, needs_start_marker, poisoned
from fetchfleet.worker.fetch.rules.decide import (
    CANCELLED,
    Decision,
    Finish,
    HostState,
    MoveLane,
    Retry,
    decide,
    defer_for_robots,
    expired,
)
from fetchfleet.worker.fetch.rules.outcome import (
    AttemptOutcome,
    Interrupted,
    Stored,
    observation_of,
    throttle_of,
)
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.gate import gate, retry_budget
from fetchfleet.worker.gate.gate import WaitReason
from fetchfleet.worker.http.base import Trace
from fetchfleet.worker.lanes import log_events as lane_events
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import retry_until_lost
from fetchfleet.worker.lanes.store import Cancelled, LaneLostError
from fetchfleet.worker.sink.index_entry import StoredBody


async def run_fetch(entry: Entry, lane: Lane, services: FetchServices) -> None:
    """One attempt at a claimed fetch, from the request to its settlement."""
    async with beginning(entry, lane, services):
        attempt = Attempt(entry, lane, services)
        held_up_s = lane.held_up_s()
        happened = Interrupted() if held_up_s else await attempt.run()
    learn(attempt.trace, happened, lane, services)
    if held_up_s:  # it was never begun, whatever Redis has been told
        _again(entry, lane, services, Retry(entry=entry, wait_s=held_up_s, reason=None), happened)
        return
    if attempt.resuming.note is not entry.part:
        entry = msgspec.structs.replace(entry, part=attempt.resuming.note)
    match _decided(entry, lane, happened, services):
        case Finish() as finish:
            await _finish(attempt, lane, services, finish, happened)
        case Retry() as again:
            _again(entry, lane, services, again, happened)
        case MoveLane(entry=moved):
            await _transfer(moved, lane, services)


def learn(trace: Trace, happened: AttemptOutcome, lane: Lane, services: FetchServices) -> None:
    """What the exchange says of the host goes into the lane's gate, and to Redis soon."""
    before, now_ms = lane.gate, lane.clock.now_ms()
    started_ms = lane.since_ms(trace.started_s)
    signal = observation_of(happened, started_ms, len(lane.in_flight), trace.latency_ms)
    lane.gate = gate.attempt_ended(lane.gate, lane.policy, signal, now_ms, services.chance())
    wait = throttle_of(happened)
    if wait is not None:
        chance = services.chance()
        lane.gate = gate.throttled(lane.gate, lane.policy, wait.wait_s, now_ms, chance)
    if lane.gate is not before:
        lane_events.gate_changed(lane, before, services.log)
        services.settler.save_gate(lane)


async def end_untried(entry: Entry, lane: Lane, services: FetchServices) -> bool:
    """Whether the fetch ends untried: its deadline has passed, workers die of it, or its dest is taken."""
    if await _end_by(poisoned(entry) or _expired(entry, lane), entry, lane, services):
        return True
    refusal = services.sink.refusal(entry.fetch)
    if refusal is not None:
        finish = Finish(outcome=Outcome.FAILED, reason=Reason.BAD_DEST)
        await _finish(Attempt(entry, lane, services), lane, services, finish, Interrupted(note=refusal))
        return True
    found = await if_exists.at_dest(entry, services)
    if found is not None:
        await _finish(Attempt(entry, lane, services), lane, services, *if_exists.meaning(entry, found))
    return found is not None


async def end_if_expired(entry: Entry, lane: Lane, services: FetchServices) -> bool:
    """Whether the fetch ends because its deadline has passed."""
    return await _end_by(_expired(entry, lane), entry, lane, services)


async def _end_by(finish: Finish | None, entry: Entry, lane: Lane, services: FetchServices) -> bool:
    if finish is not None:
        await end_untried_with(finish, lane, services, entry)
    return finish is not None


async def end_untried_with(finish: Finish, lane: Lane, services: FetchServices, entry: Entry) -> None:
    """The fetch ends so, without another attempt."""
    await _finish(Attempt(entry, lane, services), lane, services, finish, Interrupted())


def _expired(entry: Entry, lane: Lane) -> Finish | None:
    now_ms = lane.clock.now_ms()
    if now_ms < entry.deadline_ms:
        return None
    shut = lane.shut()
    return expired(entry, now_ms, cooling=shut is not None and shut.why is WaitReason.COOL_DOWN)


def end_disallowed(entry: Entry, lane: Lane, services: FetchServices) -> None:
    """The fetch ends because its host's robots.txt says so."""
    finish = Finish(outcome=Outcome.FAILED, reason=Reason.ROBOTS_DISALLOWED)
    _settle(Attempt(entry, lane, services), lane, services, finish, Interrupted())


async def wait_for_robots(
    entry: Entry, happened: AttemptOutcome, lane: Lane, services: FetchServices
) -> None:
    """The fetch waits because its host did not say what its robots.txt allows; happened: what it said."""
    match defer_for_robots(entry, happened, lane.clock.now_ms(), _host(lane)):
        case Finish() as finish:
            await _finish(Attempt(entry, lane, services), lane, services, finish, Interrupted())
        case Retry() as again:
            _again(entry, lane, services, again, happened)


def _host(lane: Lane) -> HostState:
    now_ms, shut = lane.clock.now_ms(), lane.shut()
    return HostState(
        opens_ms=shut.until_ms if shut else now_ms,
        retry_ms=retry_budget.retry_not_before_ms(lane.gate, now_ms),
        dead=gate.is_dead(lane.gate, lane.policy, now_ms),
    )


def _decided(entry: Entry, lane: Lane, happened: AttemptOutcome, services: FetchServices) -> Decision:
    now_ms = lane.clock.now_ms()
    host = (
        HostState() if isinstance(happened, Stored) else _host(lane)
    )  # a body that is there asks nothing of it
    decision = decide(entry, happened, lane.policy, now_ms, host, services.chance())
    if isinstance(decision, Retry) and decision.entry.attempts > entry.attempts:
        lane.gate = retry_budget.retried(lane.gate, now_ms)
    return decision


async def _finish(
    attempt: Attempt, lane: Lane, services: FetchServices, finish: Finish, happened: AttemptOutcome
) -> None:
    """Settle the fetch; where its host is down, with what was stored before if that is wanted."""
    failed = finish.outcome is Outcome.FAILED
    old = await _stored_before(attempt.entry, lane, services, finish, happened) if failed else None
    _settle(attempt, lane, services, finish, happened, old)


async def _stored_before(
    entry: Entry, lane: Lane, services: FetchServices, finish: Finish, happened: AttemptOutcome
) -> StoredBody | None:
    shut = lane.shut()
    down = stale_fallback.instead(entry, finish, happened, shut.why if shut else None)
    wanted = down and stale_fallback.in_force(entry.fetch, services.policy_of(entry.fetch))
    stored = services.sink.stored
    return await stored.find(entry.fetch) if wanted and stored is not None else None


def _settle(
    attempt: Attempt,
    lane: Lane,
    services: FetchServices,
    finish: Finish,
    happened: AttemptOutcome,
    old: StoredBody | None = None,
) -> None:
    note = attempt.resuming.note
    if note is not None:
        services.sink.disk.forget(attempt.entry.id, note)
    result = result_of(attempt, finish, happened, services.worker_id, old)
    line = log_events.finished(result, attempt.entry, lane, happened, services.log)
    if result.outcome is Outcome.FAILED:
        services.settler.add(lane, settler.failed(result, log_events.note(happened) or ""))
    services.settler.add(lane, settler.finished(result, line))


def _again(entry: Entry, lane: Lane, services: FetchServices, again: Retry, happened: AttemptOutcome) -> None:
    line = log_events.retry(entry, lane, again, happened, services.log)
    services.settler.add(lane, settler.again(again.entry, again.wait_s, line))


async def _transfer(entry: Entry, lane: Lane, services: FetchServices) -> None:
    """To the lane of the host that the redirect names; its limits hold from there on."""
    assert entry.hop is not None
    to_lane, priority = lane_of_url(entry.hop.url), entry.fetch.priority.value
    element = to_element(entry)
    try:
        wake = await retry_until_lost(
            lane,
            services,
            lambda: services.store.transfer(lane.name, lane.token, entry.id, element, to_lane, priority),
        )
    except LaneLostError:
        lane.lose()
        return
    if isinstance(wake, Cancelled):
        await end_untried_with(CANCELLED, lane, services, entry)
        return
    lane.drop(entry.id)
    if wake is not None:
        await services.notify([wake])


def beginning(entry: Entry, lane: Lane, services: FetchServices) -> AbstractAsyncContextManager[None]:
    """The fetch may be begun. A suspect has had to wait until no other runs in this worker.

    So a fetch that workers die of is found out by itself: what else they had claimed is not blamed for it.
    """
    return _noted(entry, lane, services) if needs_start_marker(entry) else nullcontext()


@asynccontextmanager
async def _noted(entry: Entry, lane: Lane, services: FetchServices) -> AsyncIterator[None]:
    async with services.quarantine if is_suspect(entry) else nullcontext():
        begun = msgspec.structs.replace(entry, begun=True)
        noted = asyncio.Event()
        services.settler.add(lane, settler.begun(begun, noted.set))
        await noted.wait()
        lane.entries[entry.id] = begun
        yield
