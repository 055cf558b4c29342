"""A lane's stay with this worker: take over, serve while it may be served, give back."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from fetchfleet.jobs.contract.entry import Entry, to_element
from fetchfleet.jobs.contract.urls import origin_of_url
from fetchfleet.worker.fetch import log_events
from fetchfleet.worker.fetch.robots_txt import ask_first, rules_for
from fetchfleet.worker.fetch.rules.crashes import crashed, interrupted
from fetchfleet.worker.fetch.run import end_disallowed, end_untried, run_fetch
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import Admit, Closed, Saturated, WaitReason
from fetchfleet.worker.gate.state import Breaker
from fetchfleet.worker.lanes import log_events as lane_events
from fetchfleet.worker.lanes.claims import hold
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import retry_until_lost
from fetchfleet.worker.lanes.store import LaneLostError
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.scheduler.cancel import end_cancelled_batches
from fetchfleet.worker.scheduler.expire import LOOK_EVERY_S, end_expired, end_if_dead
from fetchfleet.worker.scheduler.probe import cheapest
from fetchfleet.worker.util import aio

STAY_S = 0.5
"""A wait no longer than this is sat out; for a longer one the lane is given back."""

POLL_S = 0.5
"""How often a lane with fetches in flight, and none waiting, looks for new ones."""

PROBE_CHOICE = 32
"""Out of so many the probe of a host is chosen that may be ill."""

Work = Callable[[Entry, Lane, FetchServices], Coroutine[Any, Any, None]]


async def drain(lane: Lane, orphans: list[bytes], services: FetchServices) -> None:
    """Hold the lane until it is empty, must wait, or is to leave; then give it back."""
    services.pools.open(lane.pool, lane.policy)
    try:
        await _adopt(lane, orphans, services)
        if lane.shut() is None:  # else it may have been taken for the sake of a deadline
            lane.look_ms = lane.clock.now_ms() + int(LOOK_EVERY_S * 1000)
        while lane.serving:
            if lane.cancelled:
                await end_cancelled_batches(lane, services)
            await end_expired(lane, services)
            wait_s = await _step(lane, services)
            if wait_s is None:
                break
            if wait_s:
                await lane.changed(min(wait_s, LOOK_EVERY_S))
        await _leave(lane, services)
    except LaneLostError:
        lane.lose()
    finally:
        await _stop(lane, services)


async def _step(lane: Lane, services: FetchServices) -> float | None:
    """Start a fetch if one may start.

    How long to wait before the next step (inf: for a change), None when nothing is left to stay for.
    """
    verdict = lane.verdict()
    if isinstance(verdict, Closed):
        if verdict.why is WaitReason.BREAKER and await end_if_dead(lane, services):
            return None if not lane.in_flight else math.inf
        return _sit_out(lane, (verdict.until_ms - lane.clock.now_ms()) / 1000)
    if isinstance(verdict, Saturated):
        return math.inf
    if not lane.ready:
        wait_s = await _claim(lane, services)
        if not lane.ready:
            return wait_s
    entry = _next(lane)
    if await end_untried(entry, lane, services):
        return 0
    return await _serve(entry, lane, services)


async def _serve(entry: Entry, lane: Lane, services: FetchServices) -> float:
    """Start the fetch, or ask its origin's robots.txt first; how long to wait before the next step."""
    url = entry.url
    rules = await rules_for(entry, lane, services)
    if lane.cancelled:  # perhaps this one, while we looked
        lane.ready.appendleft(entry)
        return 0
    if rules is None and lane.is_asking(url):
        lane.ready.appendleft(entry)
        return math.inf
    if rules is None:
        if await _start(entry, ask_first, lane, services):
            lane.asking[origin_of_url(url)] = entry.id
    elif rules.allows(url):
        await _start(entry, run_fetch, lane, services)
    else:
        end_disallowed(entry, lane, services)
    return 0


def _next(lane: Lane) -> Entry:
    """The first in line; to a host that may be ill the one that asks least of it."""
    if lane.gate.breaker is Breaker.CLOSED:
        return lane.ready.popleft()
    place = cheapest(lane.ready)
    entry = lane.ready[place]
    del lane.ready[place]
    return entry


async def _start(entry: Entry, work: Work, lane: Lane, services: FetchServices) -> bool:
    """Start work for the fetch, if the lane still lets it when the worker has a slot for it."""
    if not await _slot(entry, lane, services):
        lane.ready.appendleft(entry)
        return False
    if not lane.serving or lane.cancelled or not isinstance(lane.verdict(), Admit):
        services.slots.release()
        lane.ready.appendleft(entry)
        return False
    before = lane.gate
    task = lane.start(entry.id, work(entry, lane, services))
    lane_events.gate_changed(lane, before, services.log)
    if lane.gate.paced_ms != before.paced_ms:
        services.settler.save_gate(lane)  # whoever takes over from us after a crash keeps the pace too
    task.add_done_callback(lambda done: _ended(entry, done, lane, services))
    return True


async def _slot(entry: Entry, lane: Lane, services: FetchServices) -> bool:
    """Whether the worker has a slot for the fetch; False when it, or its lane, must be seen to first."""
    if not services.slots.locked():
        return await services.slots.acquire()
    asking = asyncio.create_task(services.slots.acquire(), name=f"slot {lane.name}")
    asking.add_done_callback(lambda _: lane.notify())
    try:
        await _wait_for(asking, entry, lane, services)
    except BaseException:
        await aio.end(asking)
        if not asking.cancelled():
            services.slots.release()
        raise
    if not asking.done():
        await aio.end(asking)
    return not asking.cancelled()


async def _wait_for(asking: asyncio.Task[Any], entry: Entry, lane: Lane, services: FetchServices) -> None:
    """Until the slot is there, or the fetch or its lane must be seen to; deadlines hold meanwhile."""
    while lane.serving and not lane.cancelled and not asking.done():
        left_s = (entry.deadline_ms - lane.clock.now_ms()) / 1000
        if left_s <= 0:
            return
        await lane.changed(min(left_s, LOOK_EVERY_S))
        await end_expired(lane, services)


def _ended(entry: Entry, task: asyncio.Task[None], lane: Lane, services: FetchServices) -> None:
    """The slot is free. A bug of ours counts as a crash, so that it cannot go round for ever."""
    services.slots.release()
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log_events.bug(error, entry, lane.name, services.log)
        lane.hold(crashed(msgspec.structs.replace(entry, begun=True)))


def _sit_out(lane: Lane, wait_s: float) -> float | None:
    """Stay for a short wait, or as long as something is in flight anyway."""
    if lane.in_flight or wait_s <= STAY_S:
        return max(wait_s, 0.001)
    return None


async def _claim(lane: Lane, services: FetchServices) -> float | None:
    """Claim as many as may run at once; how long to wait if none came, None if none will."""
    if services.settler.full:
        return POLL_S
    closed = lane.gate.breaker is Breaker.CLOSED
    count = gate.max_in_flight(lane.gate, lane.policy) if closed else PROBE_CHOICE
    claim = await retry_until_lost(lane, services, lambda: services.store.claim(lane.name, lane.token, count))
    lane.clock.sync(claim.now_ms)
    hold(lane, claim.elements, services)
    if claim.elements:
        return 0
    retry_s = math.inf if claim.next_retry_ms is None else max(claim.next_retry_ms, 1) / 1000
    if lane.in_flight:
        return min(retry_s, POLL_S)
    if services.settler.has(lane):  # a retry on its way to Redis may be due soon
        await services.settler.flushed(lane)
        return 0
    return retry_s if retry_s <= STAY_S else None


async def _adopt(lane: Lane, orphans: list[bytes], services: FetchServices) -> None:
    """Take over what a dead owner had claimed, each counted as a crash."""
    hold(lane, orphans, services)
    adopted = sorted((crashed(entry) for entry in lane.ready), key=lambda entry: entry.id)
    lane.ready.clear()
    for entry in adopted:
        lane.hold(entry)
    if adopted:
        elements = [to_element(entry) for entry in adopted]
        await retry_until_lost(lane, services, lambda: services.store.adopt(lane.name, lane.token, elements))


async def _leave(lane: Lane, services: FetchServices) -> None:
    """Let what is in flight end, then give the lane back with what is left in our hands."""
    while lane.in_flight and not lane.lost:
        await lane.changed(math.inf)
    await services.settler.flushed(lane)
    if lane.lost:
        return
    shut = lane.shut()
    left = [_as_left(entry, lane) for entry in lane.entries.values()]
    wake = await retry_until_lost(
        lane,
        services,
        lambda: services.store.release(
            lane.name,
            lane.token,
            lane.gate,
            shut.until_ms if shut else 0,
            shut.why.value if shut else "",
            [to_element(entry) for entry in left],
        ),
    )
    lane.released = True
    lane_events.released(lane, shut, wake, len(left), services.log)
    if wake is not None:
        await services.notify([wake])


def _as_left(entry: Entry, lane: Lane) -> Entry:
    return interrupted(entry) if entry.id in lane.cut else entry


async def _stop(lane: Lane, services: FetchServices) -> None:
    """Nothing of the lane is left running in this worker."""
    await aio.end(*lane.in_flight.values())
    await services.pools.close(lane.pool)
    if lane.lost:
        services.log.warning(Event.LANE_LOST, lane=lane.name)
