"""The log lines of fetches and lanes; which fields each event has is decided here and only here."""

import traceback
from collections.abc import Callable
from typing import Any

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Result
from fetchfleet.jobs.notify import Wake
from fetchfleet.worker.fetch.rules import trace_context
from fetchfleet.worker.fetch.rules.decide import Again, Answered, Broke, Happened, Held, Moved
from fetchfleet.worker.gate.gate import Shut
from fetchfleet.worker.gate.state import Breaker, GateState
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.scheduler.balance import Fleet
from fetchfleet.worker.sink.disk_space import Space

_BREAKER_EVENTS = {
    Breaker.OPEN: Event.LANE_BREAKER_OPEN,
    Breaker.HALF_OPEN: Event.LANE_BREAKER_HALF_OPEN,
    Breaker.CLOSED: Event.LANE_BREAKER_CLOSED,
}


def finished(result: Result, entry: Entry, lane: Lane, happened: Happened, log: Any) -> Callable[[], None]:
    """Writes the canonical line of a fetch, once its result is in Redis."""

    def tell() -> None:
        timings = result.timings
        log.info(
            Event.FETCH_FINISHED,
            id=result.id,
            batch=entry.batch_id,
            lane=lane.name,
            method=entry.fetch.method,
            url=redact.url(result.url),
            status=result.status,
            outcome=result.outcome.value,
            reason=result.reason.value if result.reason else None,
            note=note(happened),
            bytes=result.bytes,
            stale=result.stale,
            attempts=result.attempts,
            throttles=result.throttles,
            interruptions=result.interruptions,
            queue_ms=timings.queue_ms,
            connect_ms=timings.connect_ms,
            ttfb_ms=timings.ttfb_ms,
            total_ms=timings.total_ms,
            **trace_context.fields(entry.fetch),
        )

    return tell


def retry(entry: Entry, lane: Lane, again: Again, happened: Happened, log: Any) -> Callable[[], None]:
    """Writes the line of a fetch that waits for another attempt."""

    def tell() -> None:
        log.info(
            Event.FETCH_RETRY,
            id=entry.id,
            batch=entry.batch_id,
            lane=lane.name,
            url=redact.url(entry.fetch.url),
            status=None if isinstance(happened, Held | Moved) else happened.status,
            reason=again.reason.value if again.reason else None,
            note=note(happened),
            wait_s=round(again.wait_s, 3),
            attempts=again.entry.attempts,
            throttles=again.entry.throttles,
            interruptions=again.entry.interruptions,
            **trace_context.fields(entry.fetch),
        )

    return tell


def gate_changed(lane: Lane, before: GateState, log: Any) -> None:
    """A line for each thing that the gate has newly learnt of the host."""
    after = lane.gate
    if after.cool_until_ms > before.cool_until_ms:
        wait_s = (after.cool_until_ms - lane.clock.now_ms()) / 1000
        log.info(
            Event.LANE_COOLING,
            lane=lane.name,
            until_ms=after.cool_until_ms,
            wait_s=round(wait_s, 3),
            incidents=after.incidents,
        )
    if after.breaker is not before.breaker:
        event = _BREAKER_EVENTS[after.breaker]
        log.info(event, lane=lane.name, failures=after.failures, until_ms=after.open_until_ms)


def released(lane: Lane, shut: Shut | None, wake: Wake | None, handed_back: int, log: Any) -> None:
    """The lane was given back."""
    log.info(
        Event.LANE_RELEASED,
        lane=lane.name,
        more=wake is not None,
        due_in_ms=wake.due_in_ms if wake else None,
        why=shut.why.value if shut else None,
        handed_back=handed_back,
    )


def yielded(lane: Lane, held: int, fleet: Fleet, log: Any) -> None:
    """The lane is given back for another worker to have it; held: how many we have with it."""
    log.info(
        Event.LANE_YIELDED,
        lane=lane.name,
        in_flight=len(lane.in_flight),
        held=held,
        busy=fleet.busy,
        workers=fleet.workers,
    )


def unverified_tls(lane: Lane, log: Any) -> None:
    """Whoever answers for the lane's host is believed, because its policy says so."""
    log.warning(Event.LANE_UNVERIFIED_TLS, lane=lane.name)


def robots(lane: Lane, origin: str, happened: Happened, log: Any) -> None:
    """An origin was asked for its robots.txt."""
    log.info(
        Event.LANE_ROBOTS,
        lane=lane.name,
        origin=origin,
        status=happened.status if isinstance(happened, Answered | Broke) else None,
        reason=happened.reason.value if isinstance(happened, Broke) else None,
        note=note(happened),
    )


def exchange(entry: Entry | None, log: Any, **fields: Any) -> None:
    """A request was answered: a fetch's own, that of a redirect, or its origin's robots.txt."""
    of_fetch = {"id": entry.id, **trace_context.fields(entry.fetch)} if entry is not None else {}
    log.debug(Event.FETCH_EXCHANGE, **of_fetch, **fields)


def heartbeat(log: Any, **fields: Any) -> None:
    """How a worker is; worker/README.md says what each field means."""
    log.info(Event.WORKER_HEARTBEAT, **fields)


def bug(error: BaseException, entry: Entry, lane_name: str, log: Any) -> None:
    """An error of ours, with where it came from."""
    log.error(
        Event.FETCH_BUG,
        id=entry.id,
        lane=lane_name,
        error=redact.text(repr(error)),
        trace=redact.text("".join(traceback.format_tb(error.__traceback__)[-3:])),
        **trace_context.fields(entry.fetch),
    )


def worker_bug(what: str, error: BaseException, log: Any) -> None:
    """An error of ours in one of the worker's own loops, with where it came from."""
    log.error(
        Event.WORKER_BUG,
        loop=what,
        error=redact.text(repr(error)),
        trace=redact.text("".join(traceback.format_tb(error.__traceback__)[-3:])),
    )


def in_the_way(error: BaseException, entry: Entry, lane_name: str, log: Any) -> None:
    """Something was put where a body was to go, and not by us; the message names it."""
    said, trace = redact.text(str(error)), trace_context.fields(entry.fetch)
    log.error(Event.DISK_IN_THE_WAY, id=entry.id, lane=lane_name, error=said, **trace)


def disk_full(space: Space, wanting: str, log: Any) -> None:
    """There is no room for bodies any more."""
    log.error(Event.DISK_FULL, wanting=wanting, free_bytes=space.free_bytes, free_files=space.free_files)


def disk_ok(space: Space, log: Any) -> None:
    """There is room for bodies again."""
    log.info(Event.DISK_OK, free_bytes=space.free_bytes, free_files=space.free_files)


def redis_trouble(error: object, log: Any) -> None:
    """Redis did not do what it was asked."""
    log.warning(Event.REDIS_TROUBLE, error=redact.text(repr(error)))


def redis_refusal(error: object, log: Any) -> None:
    """Redis refuses this worker something, and will until somebody changes that."""
    log.error(Event.REDIS_REFUSAL, error=redact.text(repr(error)))


def foreign(key: str, found: str, wanted: str, log: Any) -> None:
    """Something else's was at a key of ours."""
    log.error(Event.REDIS_FOREIGN, key=key, found=found, wanted=wanted)


def note(happened: Happened) -> str | None:
    """What exactly was wrong, fit to be seen."""
    said = happened.note if isinstance(happened, Broke | Held) else ""
    return redact.text(said) if said else None
