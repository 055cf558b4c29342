"""The log lines of fetches, with their fields."""

import traceback
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Result
from fetchfleet.worker.fetch.rules.decide import Retry
from fetchfleet.worker.fetch.rules.outcome import (
    Answered,
    AttemptOutcome,
    Failed,
    Interrupted,
    Redirected,
    note_of,
)
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, trace_fields


def finished(
    session: FetchSession, entry: Entry, result: Result, outcome: AttemptOutcome
) -> Callable[[], None]:
    """Return a function that writes the canonical line of a fetch, once its result is in Redis."""
    lane_name, log = session.lane.name, session.services.log

    def tell() -> None:
        timings = result.timings
        log.info(
            Event.FETCH_FINISHED,
            id=result.id,
            batch=entry.batch_id,
            lane=lane_name,
            method=entry.fetch.method,
            url=redact.url(result.url),
            status=result.status,
            outcome=result.outcome.value,
            reason=result.reason.value if result.reason else None,
            note=note_of(outcome),
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


def retry(session: FetchSession, decision: Retry, outcome: AttemptOutcome) -> Callable[[], None]:
    """Return a function that writes the line of a fetch that waits for another attempt."""
    lane_name, log = session.lane.name, session.services.log
    entry = decision.entry

    def tell() -> None:
        log.info(
            Event.FETCH_RETRY,
            id=entry.id,
            batch=entry.batch_id,
            lane=lane_name,
            url=redact.url(entry.fetch.url),
            status=None if isinstance(outcome, Interrupted | Redirected) else outcome.status,
            reason=decision.reason.value if decision.reason else None,
            note=note_of(outcome),
            wait_s=round(decision.wait_s, 3),
            attempts=entry.attempts,
            throttles=entry.throttles,
            interruptions=entry.interruptions,
            **trace_fields(entry.fetch),
        )

    return tell


def robots(session: FetchSession, origin: str, outcome: AttemptOutcome) -> None:
    """Log the answer to a request for a robots.txt."""
    session.services.log.info(
        Event.LANE_ROBOTS,
        lane=session.lane.name,
        origin=origin,
        status=outcome.status if isinstance(outcome, Answered | Failed) else None,
        reason=outcome.reason.value if isinstance(outcome, Failed) else None,
        note=note_of(outcome),
    )


def bug(error: BaseException, entry: Entry, lane_name: str, log: FilteringBoundLogger) -> None:
    """Log an error that no rule names, with where it came from."""
    log.error(
        Event.FETCH_BUG,
        id=entry.id,
        lane=lane_name,
        error=redact.text(repr(error)),
        trace=redact.text("".join(traceback.format_tb(error.__traceback__)[-3:])),
        **trace_fields(entry.fetch),
    )


def in_the_way(error: BaseException, entry: Entry, lane_name: str, log: FilteringBoundLogger) -> None:
    """Log that something other than a file of the fleet is where a body should go; the message names it."""
    message, trace = redact.text(str(error)), trace_fields(entry.fetch)
    log.error(Event.DISK_IN_THE_WAY, id=entry.id, lane=lane_name, error=message, **trace)
