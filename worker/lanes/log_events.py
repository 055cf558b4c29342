"""The log lines of lanes and fetches. docs/logs.md describes their fields."""

import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from zlib import crc32

import msgspec
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.checks import trace_context
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Priority
from fetchfleet.jobs.contract.result import Outcome, Reason, Result
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.worker.gate import waits
from fetchfleet.worker.gate.gate import Closed
from fetchfleet.worker.gate.state import Breaker, GateState, resettable
from fetchfleet.worker.http.exchange import Trace
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import COUNTS, Event, suppressed, timestamp, trace_fields, write_info
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.observability.totals import FetchTotals
from fetchfleet.worker.util.clock import mono_s

_BREAKER_EVENTS = {
    Breaker.OPEN: Event.LANE_BREAKER_OPEN,
    Breaker.HALF_OPEN: Event.LANE_BREAKER_HALF_OPEN,
    Breaker.CLOSED: Event.LANE_BREAKER_CLOSED,
}


UNTRACED = Trace()
"""The trace of a fetch that ended without an attempt."""


def gate_changed(lane: Lane, before: GateState, log: FilteringBoundLogger) -> None:
    """Log a new or longer cool-down, and a new state of the breaker."""
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


def reset(lane: Lane, by: str, log: FilteringBoundLogger) -> None:
    """Log that an operator resets the lane. Call it before the gate changes."""
    parts = resettable(lane.gate, lane.clock.now_ms())
    log.info(Event.LANE_RESET, lane=lane.name, reset=parts, by=redact.text(by))


class TakenLine(msgspec.Struct, kw_only=True):
    """The log line of an acquired lane."""

    worker: str
    lane: str
    token: int
    orphans: int
    """Number of claims of a dead owner."""
    event: Event = Event.LANE_TAKEN
    level: str = "info"
    timestamp: str = msgspec.field(default_factory=timestamp)


class ReleasedLine(msgspec.Struct, kw_only=True):
    """The log line of a released lane."""

    worker: str
    lane: str
    more: bool = False
    """The lane is scheduled again, in due_in_ms."""
    due_in_ms: int | None = None
    why: str | None = None
    """The reason the gate is closed; None if it is open."""
    handed_back: int = 0
    """Number of returned claims."""
    event: Event = Event.LANE_RELEASED
    level: str = "info"
    timestamp: str = msgspec.field(default_factory=timestamp)


def taken(lane: Lane, orphans: int, worker_id: str) -> None:
    """Log that the lane was acquired. orphans: number of claims of a dead owner."""
    line = TakenLine(worker=worker_id, lane=lane.name, token=lane.token, orphans=orphans)
    write_info(Event.LANE_TAKEN, [line])


def released_empty(lane: Lane, worker_id: str) -> None:
    """Log that the lane was released without fetches."""
    write_info(Event.LANE_RELEASED, [ReleasedLine(worker=worker_id, lane=lane.name)])


def released(
    lane: Lane, closed: Closed | None, due: LaneNotification | None, handed_back: int, worker_id: str
) -> None:
    """Log that the lane was released. handed_back: number of returned claims."""
    line = ReleasedLine(
        worker=worker_id,
        lane=lane.name,
        more=due is not None,
        due_in_ms=due.due_in_ms if due else None,
        why=closed.why.value if closed else None,
        handed_back=handed_back,
    )
    write_info(Event.LANE_RELEASED, [line])


def yielded(lane: Lane, held: int, busy: int, workers: int, log: FilteringBoundLogger) -> None:
    """Log that the lane is released for another worker. held: lanes of this worker, with this one."""
    log.info(
        Event.LANE_YIELDED,
        lane=lane.name,
        in_flight=len(lane.in_flight),
        held=held,
        busy=busy,
        workers=workers,
    )


def unverified_tls(lane: Lane, repeats: Repeats, log: FilteringBoundLogger) -> None:
    """Log that the policy disables certificate verification for the host. At most one line a minute."""
    left_out = repeats.admit((Event.LANE_UNVERIFIED_TLS, lane.name), mono_s())
    if left_out is not None:
        log.warning(Event.LANE_UNVERIFIED_TLS, lane=lane.name, **suppressed(left_out))


class FinishedLine(msgspec.Struct, kw_only=True):
    """The log line of a finished fetch (`fetch.finished`)."""

    worker: str
    id: str
    batch: str
    lane: str
    method: str
    url: str
    status: int | None
    outcome: Outcome
    reason: Reason | None
    note: str | None
    bytes: int | None
    stale: bool
    attempts: int
    throttles: int
    interruptions: int
    queue_ms: float | None
    connect_ms: float | None
    ttfb_ms: float | None
    total_ms: float | None
    protocol: str | None
    """`HTTP/1.1`, `HTTP/1.0` or `HTTP/2`; None without a response."""
    reused: bool | None
    """False if the last request opened a connection; None if it had none."""
    dns_ms: float | None
    """The name resolution for the connection that was opened last; None if none was, or for an address."""
    tls_ms: float | None
    """The TLS handshake of that connection."""
    peer: str | None
    """`ADDRESS:PORT` of the host, for the last request."""
    hops: int
    """The number of redirects."""
    content_type: str | None
    """The Content-Type of the last response, shortened."""
    path: str | None
    """The path of the stored body, as in the result."""
    priority: Priority
    waited_ms: dict[str, float] | None
    """The parts of queue_ms by cause (worker/gate/waits.py)."""
    lenient: bool | msgspec.UnsetType
    """True if the headers of a response needed lenient parsing, else omitted."""
    trace_id: str | msgspec.UnsetType
    event: Event = Event.FETCH_FINISHED
    level: str = "info"
    timestamp: str = ""
    """The time of the write."""


def finished(
    lane: Lane,
    entry: Entry,
    result: Result,
    trace: Trace | None = None,
    hops: int | None = None,
) -> FinishedLine:
    """Return the log line of a finished fetch. Write it once Redis has the result.

    trace: of the last attempt, None if there was none. hops: the number of redirects that it has followed.
    """
    trace = trace or UNTRACED
    timings, fetch, traceparent = result.timings, entry.fetch, entry.fetch.traceparent
    response, path, dns_s, tls_s = trace.response, result.path, trace.dns_s, trace.tls_s
    queue_ms = timings.queue_ms or 0.0
    if lane.closed_periods or entry.retry_waits:
        waited_ms = waits.waited_ms(queue_ms, entry.submitted_ms, lane.closed_periods, entry.retry_waits)
    else:
        waited_ms = {waits.QUEUE: queue_ms}
    return FinishedLine(
        worker=result.worker,
        id=result.id,
        batch=entry.batch_id,
        lane=lane.name,
        method=fetch.method,
        url=redact.url(result.url),
        status=result.status,
        outcome=result.outcome,
        reason=result.reason,
        note=result.note or None,  # ABSENT is false
        bytes=result.bytes,
        stale=result.stale,
        attempts=result.attempts,
        throttles=result.throttles,
        interruptions=result.interruptions,
        queue_ms=timings.queue_ms,
        connect_ms=timings.connect_ms,
        ttfb_ms=timings.ttfb_ms,
        total_ms=timings.total_ms,
        protocol=None if response is None else response.version,
        reused=None if trace.peer is None else not trace.opened,
        dns_ms=None if dns_s is None else round(dns_s * 1000, 1),
        tls_ms=None if tls_s is None else round(tls_s * 1000, 1),
        peer=trace.peer,
        hops=entry.hops if hops is None else hops,
        content_type=result.content_type,
        path=path if path is None or (fetch.dest is None and fetch.name is None) else redact.text(path),
        priority=fetch.priority,
        waited_ms=waited_ms,
        lenient=trace.lenient or msgspec.UNSET,
        trace_id=msgspec.UNSET if traceparent is None else trace_context.trace_id(traceparent),
    )


def write_finished(lines: Sequence[FinishedLine], totals: FetchTotals, one_of: int = 1) -> None:
    """Write the log lines of finished fetches with the current time, and count the fetches.

    one_of: write all lines if 1, else a sample.
    """
    now, finished, by_lane = timestamp(), totals.finished, totals.by_lane
    total, queue, connect = totals.total_ms, totals.queue_ms, totals.connect_ms
    first_byte, body = totals.first_byte_ms, totals.body_bytes
    for line in lines:
        line.timestamp = now
        finished[line.outcome, line.reason] += 1
        # Without calls of Histogram.add, which would cost as much as the rest of this loop.
        if (value := line.total_ms) is not None:
            total.counts[bisect_left(total.bounds, value)] += 1
            total.sum += value
        if (value := line.queue_ms) is not None:
            queue.counts[bisect_left(queue.bounds, value)] += 1
            queue.sum += value
        if (value := line.ttfb_ms) is not None:
            first_byte.counts[bisect_left(first_byte.bounds, value)] += 1
            first_byte.sum += value
        if line.outcome is Outcome.STORED and (value := line.bytes) is not None:
            body.counts[bisect_left(body.bounds, value)] += 1
            body.sum += value
        if value := line.connect_ms:  # 0.0 on a reused connection
            connect.counts[bisect_left(connect.bounds, value)] += 1
            connect.sum += value
        if by_lane is not None:
            by_lane[line.lane] += 1
    if by_lane is not None:
        totals.bound_lanes()
    if one_of != 1:
        kept = sampled(lines, one_of)
        COUNTS.events[Event.FETCH_FINISHED] += len(lines) - len(kept)
        lines = kept
    write_info(Event.FETCH_FINISHED, lines)


def sampled(lines: Sequence[FinishedLine], one_of: int) -> list[FinishedLine]:
    """Return the lines of failed and cancelled fetches, and one of so many others, or none of them if 0.

    The ID of the fetch decides, so that all workers choose the same fetches.
    """
    return [
        line
        for line in lines
        if line.reason is not None
        or line.outcome is Outcome.CANCELLED
        or (one_of and crc32(line.id.encode()) % one_of == 0)
    ]


def retry(
    lane_name: str,
    entry: Entry,
    wait_s: float,
    reason: Reason | None,
    status: int | None,
    note: str | None,
    totals: FetchTotals,
    log: FilteringBoundLogger,
) -> Callable[[], None]:
    """Return a function that counts and logs that a fetch waits for another attempt."""

    def write_line() -> None:
        totals.retries[reason] += 1
        log.info(
            Event.FETCH_RETRY,
            id=entry.id,
            batch=entry.batch_id,
            lane=lane_name,
            url=redact.url(entry.fetch.url),
            status=status,
            reason=reason.value if reason else None,
            note=note,
            wait_s=round(wait_s, 3),
            attempts=entry.attempts,
            throttles=entry.throttles,
            interruptions=entry.interruptions,
            **trace_fields(entry.fetch),
        )

    return write_line


def unserved(
    lane_name: str, entry: Entry, needs: Iterable[str], repeats: Repeats, log: FilteringBoundLogger
) -> None:
    """Log that a fetch waits for a worker that meets its needs. One line a minute for a lane and needs."""
    names = sorted(needs)
    left_out = repeats.admit((Event.LANE_UNSERVED, lane_name, *names), mono_s())
    if left_out is not None:
        fields = {**trace_fields(entry.fetch), **suppressed(left_out)}
        log.warning(Event.LANE_UNSERVED, id=entry.id, lane=lane_name, needs=names, **fields)


def robots(
    lane_name: str,
    origin: str,
    status: int | None,
    reason: Reason | None,
    note: str | None,
    log: FilteringBoundLogger,
) -> None:
    """Log the outcome of a request for a robots.txt."""
    log.info(
        Event.LANE_ROBOTS,
        lane=lane_name,
        origin=origin,
        status=status,
        reason=reason.value if reason else None,
        note=note,
    )


def bug(lane_name: str, entry: Entry, error: BaseException, log: FilteringBoundLogger) -> None:
    """Log an unexpected error, with the end of its traceback."""
    log.error(
        Event.FETCH_BUG,
        id=entry.id,
        lane=lane_name,
        error=redact.text(repr(error)),
        trace=redact.text("".join(traceback.format_tb(error.__traceback__)[-3:])),
        **trace_fields(entry.fetch),
    )


def in_the_way(
    lane_name: str, entry: Entry, error: BaseException, repeats: Repeats, log: FilteringBoundLogger
) -> None:
    """Log that a body's path is blocked, for example by a link or a folder, which the message names.

    One line a minute for a message, because every body may meet the same obstacle.
    """
    message = redact.text(str(error))
    left_out = repeats.admit((Event.DISK_IN_THE_WAY, message), mono_s())
    if left_out is not None:
        fields = {**trace_fields(entry.fetch), **suppressed(left_out)}
        log.error(Event.DISK_IN_THE_WAY, id=entry.id, lane=lane_name, error=message, **fields)
