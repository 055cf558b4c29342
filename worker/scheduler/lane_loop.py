"""Serves a lane from acquisition to release: claims fetches, and starts them while the gate is open."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.jobs.scripts.lanes import Claim, Claimed
from fetchfleet.worker.fetch.cases import handover
from fetchfleet.worker.fetch.cases.robots_txt import request_robots, rules_for
from fetchfleet.worker.fetch.cases.unattempted import end_unattempted, may_end_unattempted
from fetchfleet.worker.fetch.rules.crashes import crashed, interrupted
from fetchfleet.worker.fetch.rules.decide import DISALLOWED
from fetchfleet.worker.fetch.run import finish_fetch, run_fetch
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import SATURATED, Admit, Closed, WaitReason
from fetchfleet.worker.gate.state import Breaker
from fetchfleet.worker.lanes import log_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.store import LaneLostError
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.scheduler.cancel import end_cancelled_batches
from fetchfleet.worker.scheduler.expire import end_expired, end_if_dead
from fetchfleet.worker.scheduler.probe import cheapest
from fetchfleet.worker.scheduler.slots import acquire_slot
from fetchfleet.worker.scheduler.step import Continue, ReleaseLane, Step, Wait, WaitForChange
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

MAX_IDLE_WAIT_S = 0.5
"""The maximum wait for which a lane without fetches in flight is kept. For a longer wait it is released."""

POLL_S = 0.5
"""The interval at which a lane with fetches in flight, and none waiting, tries to claim new ones."""

PROBE_CHOICE = 32
"""Number of fetches to claim for a choice of the probe of a host that may be down."""

CONTINUE, WAIT_FOR_CHANGE, RELEASE = Continue(), WaitForChange(), ReleaseLane()

Work = Callable[[FetchSession, Entry], Coroutine[Any, Any, None]]


async def serve_lane(
    session: FetchSession, orphans: Claimed, other_deaths: int = 0, claim: Claim | None = None
) -> None:
    """Serve the lane until it is empty, must wait, or stops; then release it.

    orphans: entries that a dead owner had claimed. other_deaths: number of other workers that died recently.
    claim: the first claim, if it was made with the acquisition.
    """
    lane, services = session.lane, session.services
    check_s = services.parameters.expiry_check_s
    services.pools.open(lane.pool, lane.name, lane.policy)
    try:
        if claim is not None:
            session.hold_claim(claim)
        elif orphans.serialized:
            session.hold(orphans)
            claimed = sorted(lane.ready, key=lambda entry: entry.id)
            lane.ready.clear()
            adopted = [crashed(entry, other_deaths) for entry in claimed]
            session.count_interruptions(claimed, adopted)
            await session.adopt(adopted)
        if lane.for_upkeep:
            await _end_unattempted_fetches(session)
            await end_if_dead(session)
        elif lane.closed() is None:  # else search at once: a closed lane may have become due for a deadline
            lane.check_expiry_at(lane.clock.now_ms() + int(check_s * 1000))

        while lane.serving and not lane.for_upkeep and not lane.released:
            step = WAIT_FOR_CHANGE if services.settler.is_releasing(lane) else await _step(session)
            if step is RELEASE:
                lane.stop_serving()
            elif step is not CONTINUE:
                wait_s = step.wait_s if isinstance(step, Wait) else math.inf
                await lane.idle(min(wait_s, check_s))

        while lane.in_flight and not lane.lost:  # meanwhile other fetches of the lane may expire
            await lane.changed(check_s)
            if lane.live:
                await _end_unattempted_fetches(session)
        await _release(session)
    except LaneLostError:
        lane.lose()
    finally:
        await aio.end(*lane.in_flight.values())
        await services.pools.close(lane.pool)
        if lane.lost:
            services.log.warning(Event.LANE_LOST, lane=lane.name)


async def _release(session: FetchSession) -> None:
    """Release the lane and return its claims, once its settlements are written."""
    lane = session.lane
    if not lane.released:
        await session.services.settler.flush(lane)
    if lane.released:
        log_events.released_empty(lane, session.services.worker_id)
    elif not lane.lost:
        claimed = list(lane.entries.values())
        unfinished = [interrupted(entry) if entry.id in lane.interrupted else entry for entry in claimed]
        session.count_interruptions(claimed, unfinished)
        await session.release(unfinished, handover.pick_needs(session) if lane.handovers else "")


async def _end_unattempted_fetches(session: FetchSession) -> None:
    """End fetches of cancelled batches, and expired fetches if a search for them is due."""
    if session.lane.cancelled:
        await end_cancelled_batches(session)
    if session.lane.expiry_check_due:
        await end_expired(session)


async def _step(session: FetchSession) -> Step:
    """Start fetches while the gate admits them. Returns the next action of the loop."""
    lane, services = session.lane, session.services
    slots, isolation, settler = services.slots, services.isolation, services.settler
    if lane.cancelled or lane.expiry_check_due:
        await _end_unattempted_fetches(session)
        return CONTINUE
    if lane.closed_periods:
        session.note_open()
    while True:
        if slots.take():
            granted = next_granted(session)
            if granted is not None:
                FetchTask(session, granted, run_fetch).start()
                continue
            slots.release()
        admission = lane.admission()
        if isinstance(admission, Closed):
            return await _wait_or_release(session, admission)
        if admission is SATURATED:
            # Claim during the requests for pieces too: they leave their places to fetches that wait.
            claims = (lane.claims.is_early or lane.ranges) and not lane.ready and not settler.full
            return await _claim(session) if claims else WAIT_FOR_CHANGE
        if isolation.closed or settler.full:
            return _wait_for_others(session)
        if not lane.ready:
            return RELEASE if lane.handovers and handover.is_due(session) else await _claim(session)
        entry = _next(lane)
        if await end_unattempted(session, entry):
            return CONTINUE
        if lane.policy.robots != "ignore":
            return await _start_if_allowed(session, entry)
        await _start_in_slot(session, entry, run_fetch)
        return CONTINUE


def _wait_for_others(session: FetchSession) -> Step:
    """Return the action while no lane may start a fetch: one runs in isolation, or too many results wait."""
    if not session.services.isolation.closed:
        return Wait(POLL_S)
    session.services.isolation.wake_when_open(session.lane.notify)
    return WAIT_FOR_CHANGE


async def _wait_or_release(session: FetchSession, closed: Closed) -> Step:
    """Return the action while the gate is closed. Ends the lane's fetches if the host is dead."""
    lane = session.lane
    session.note_closed(closed)
    if closed.why is WaitReason.BREAKER and await end_if_dead(session):
        return WAIT_FOR_CHANGE if lane.in_flight else RELEASE
    wait_s = (closed.until_ms - lane.clock.now_ms()) / 1000
    return Wait(max(wait_s, 0.001)) if lane.in_flight or wait_s <= MAX_IDLE_WAIT_S else RELEASE


def _next(lane: Lane) -> Entry:
    """Remove and return the next fetch to start; the cheapest one if the host may be down."""
    if lane.gate.breaker is Breaker.CLOSED:
        return lane.ready.popleft()
    place = cheapest(lane.ready)
    entry = lane.ready[place]
    del lane.ready[place]
    return entry


def next_granted(session: FetchSession, excluding: int = 0) -> Entry | None:
    """Remove and return the next fetch, if the grant admits it and it needs no check first; else None.

    Counts its start. excluding: number of fetches in flight to ignore.
    """
    lane = session.lane
    if not lane.ready or lane.requests - excluding >= lane.grant or not lane.serving or lane.cancelled:
        return None
    entry, now_ms = lane.ready[0], lane.clock.now_ms()
    fetch = entry.fetch
    if (
        now_ms >= lane.expiry_check_ms
        or now_ms >= entry.deadline_ms
        or fetch.dest is not None
        or (fetch.name is not None and may_end_unattempted(fetch, session.services.sink))
        or fetch.body_file is not None
        or fetch.decode
        or fetch.sign
        or entry.tried
        or entry.interruptions
        or lane.policy.robots != "ignore"
        or entry.hop is not None
        or lane_of_url(fetch.url) != lane.name
        or session.services.isolation.closed
        or session.services.settler.full
    ):
        return None
    lane.ready.popleft()
    lane.count_start(now_ms)
    if lane.claims.is_early and not lane.ready:
        lane.notify()
    return entry


class FetchTask:
    """A task in a slot of the worker. It runs a fetch, then one fetch after the other of `next_granted`."""

    __slots__ = ("_entry", "_session", "_work")

    def __init__(self, session: FetchSession, entry: Entry, work: Work) -> None:
        self._session = session
        self._entry = entry
        self._work = work

    def start(self) -> None:
        """Start the task. The caller has taken a slot and counted the start."""
        self._session.lane.start(self._entry.id, self._run(), self._ended)

    async def _run(self) -> None:
        session = self._session
        lane, slots = session.lane, session.services.slots
        await self._work(session, self._entry)
        task = lane.in_flight[self._entry.id]
        while not slots.wanted and not task.cancelling():
            entry = next_granted(session, excluding=1)
            if entry is None:
                return
            lane.follow(self._entry.id, entry.id)
            self._entry = entry
            await run_fetch(session, entry)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Release the slot, and notify the lane unless the settler may release it."""
        session, entry = self._session, self._entry
        lane, services = session.lane, session.services
        services.slots.release()
        lane.end(entry.id, task)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # count a bug as a crash, which bounds the retries of the fetch
            log_events.bug(lane.name, entry, error, services.log)
            begun = msgspec.structs.replace(entry, begun=True)
            after = crashed(begun)
            session.count_interruptions([begun], [after])
            lane.hold(after)
        if not (lane.seems_empty and services.settler.has(lane)):
            lane.notify()


async def _start_if_allowed(session: FetchSession, entry: Entry) -> Step:
    """Start the fetch if its origin's robots.txt allows it. Requests the robots.txt if it is unknown."""
    lane = session.lane
    rules = await rules_for(session, entry)
    if lane.cancelled:  # perhaps the batch of this fetch, meanwhile
        lane.requeue(entry)
        return CONTINUE
    if rules is None and lane.is_requesting_robots(entry.url):
        lane.requeue(entry)
        return WAIT_FOR_CHANGE
    if rules is None:
        if await _start_in_slot(session, entry, request_robots):
            lane.begin_robots_request(entry.url, entry.id)
    elif rules.allows(entry.url):
        await _start_in_slot(session, entry, run_fetch)
    else:
        await finish_fetch(session, entry, DISALLOWED)
    return CONTINUE


async def _start_in_slot(session: FetchSession, entry: Entry, work: Work) -> bool:
    """Start work for the fetch, if the gate still admits it once a slot is free. Returns whether it did."""
    lane, services = session.lane, session.services
    slots = services.slots
    if not slots.take() and not await acquire_slot(session, entry):
        lane.requeue(entry)
        return False
    held_up = services.isolation.closed or not isinstance(lane.admission(), Admit)
    if not lane.serving or lane.cancelled or held_up:
        slots.release()
        lane.requeue(entry)
        return False
    session.count_start(save_rate=True)
    FetchTask(session, entry, work).start()
    return True


async def _claim(session: FetchSession) -> Step:
    """Claim as many fetches as may run at once, or more of a fast host. Returns the next action."""
    lane, services = session.lane, session.services
    if lane.claims.emptied and not lane.in_flight and not lane.handovers:
        services.settler.release_if_empty(lane)
        return WAIT_FOR_CHANGE
    if lane.in_flight and lane.claims.was_just_emptied():
        return Wait(POLL_S)
    closed = lane.gate.breaker is Breaker.CLOSED
    most = gate.max_in_flight(lane.gate, lane.policy)
    count = lane.claims.next_size(most, mono_s()) if closed else PROBE_CHOICE
    claim = await session.retry_until_lost(lambda: services.store.claim(lane.name, lane.token, count))
    lane.clock.sync(claim.now_ms)
    session.hold_claim(claim)
    if claim.serialized:
        return CONTINUE
    retry_s = math.inf if claim.next_retry_ms is None else max(claim.next_retry_ms, 1) / 1000
    if lane.in_flight:
        return Wait(min(retry_s, POLL_S))
    if services.settler.has(lane):  # a retry that is not written yet may be due soon
        await services.settler.flush(lane)
        return CONTINUE
    return Wait(retry_s) if retry_s <= MAX_IDLE_WAIT_S else RELEASE
