"""The log lines of fetches, with their fields."""

import traceback
from collections.abc import Callable
from typing import Any

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Result
from fetchfleet.worker.fetch.rules.decide import Retry
from fetchfleet.worker.fetch.rules.outcome import Answered, AttemptOutcome, Failed, Interrupted, Redirected
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.events import trace_fields
from fetchfleet.worker.observability.log import Event


def finished(
    result: Result, entry: Entry, lane: Lane, happened: AttemptOutcome, log: Any
) -> Callable[[], None]:
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
            **trace_fields(entry.fetch),
        )

    return tell


def retry(entry: Entry, lane: Lane, again: Retry, happened: AttemptOutcome, log: Any) -> Callable[[], None]:
    """Writes the line of a fetch that waits for another attempt."""

    def tell() -> None:
        log.info(
            Event.FETCH_RETRY,
            id=entry.id,
            batch=entry.batch_id,
            lane=lane.name,
            url=redact.url(entry.fetch.url),
            status=None if isinstance(happened, Interrupted | Redirected) else happened.status,
            reason=again.reason.value if again.reason else None,
            note=note(happened),
            wait_s=round(again.wait_s, 3),
            attempts=again.entry.attempts,
            throttles=again.entry.throttles,
            interruptions=again.entry.interruptions,
            **trace_fields(entry.fetch),
        )

    return tell


def robots(lane: Lane, origin: str, happened: AttemptOutcome, log: Any) -> None:
    """An origin was asked for its robots.txt."""
    log.info(
        Event.LANE_ROBOTS,
        lane=lane.name,
        origin=origin,
        status=happened.status if isinstance(happened, Answered | Failed) else None,
        reason=happened.reason.value if isinstance(happened, Failed) else None,
        note=note(happened),
    )


def bug(error: BaseException, entry: Entry, lane_name: str, log: Any) -> None:
    """An error of ours, with where it came from."""
    log.error(
        Event.FETCH_BUG,
        id=entry.id,
        lane=lane_name,
        error=redact.text(repr(error)),
        trace=redact.text("".join(traceback.format_tb(error.__traceback__)[-3:])),
        **trace_fields(entry.fetch),
    )


def in_the_way(error: BaseException, entry: Entry, lane_name: str, log: Any) -> None:
    """Something was put where a body was to go, and not by us; the message names it."""
    said, trace = redact.text(str(error)), trace_fields(entry.fetch)
    log.error(Event.DISK_IN_THE_WAY, id=entry.id, lane=lane_name, error=said, **trace)


def note(happened: AttemptOutcome) -> str | None:
    """What exactly was wrong, fit to be seen."""
    said = happened.note if isinstance(happened, Failed | Interrupted) else ""
    return redact.text(said) if said else None
