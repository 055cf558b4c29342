"""The result of a fetch, out of how its last attempt went."""

from fetchfleet.jobs.contract.model import Outcome, Result, Timings
from fetchfleet.worker.fetch.attempt import Attempt
from fetchfleet.worker.fetch.rules.decide import Finish
from fetchfleet.worker.fetch.rules.outcome import (
    AlreadyExists,
    AttemptOutcome,
    Failed,
    Interrupted,
    Redirected,
    Stored,
    Unchanged,
    throttle_of,
)
from fetchfleet.worker.observability import redact
from fetchfleet.worker.sink.index_entry import StoredBody
from fetchfleet.worker.util.clock import mono_s


def result_of(
    attempt: Attempt, finish: Finish, happened: AttemptOutcome, worker_id: str, old: StoredBody | None
) -> Result:
    """What the producer gets to read; old: what stands in for the body."""
    entry = attempt.entry
    stored = happened if isinstance(happened, Stored) else None
    kept = happened if isinstance(happened, Stored | Unchanged | AlreadyExists) else old
    throttled = throttle_of(happened) is not None
    unasked = isinstance(happened, Interrupted) or (
        isinstance(happened, AlreadyExists) and happened.status is None
    )
    tried = not unasked and not isinstance(happened, Redirected) and not throttled
    return Result(
        id=entry.id,
        url=entry.fetch.url,
        final_url=None if unasked else _final_url(attempt),
        outcome=Outcome.UNCHANGED if old else finish.outcome,
        reason=finish.reason,
        status=None if isinstance(happened, Interrupted) else happened.status,
        bytes=kept.size_bytes if kept else None,
        sha256=kept.sha256 if kept else None,
        path=kept.path if kept else None,
        offset=stored.offset if stored else None,
        length=stored.length if stored else None,
        etag=None if kept is None or isinstance(kept, StoredBody) else kept.etag,
        last_modified=None if kept is None or isinstance(kept, StoredBody) else kept.last_modified,
        content_encoding=stored.coding if stored else None,
        lines=stored.lines if stored else None,
        bad_line=happened.line if isinstance(happened, Failed) else None,
        stale=old is not None,
        unverified=isinstance(happened, Stored) and happened.unverified,
        attempts=entry.attempts + tried,
        throttles=entry.throttles + throttled,
        interruptions=entry.interruptions,
        worker=worker_id,
        timings=_timings(attempt),
        meta=entry.fetch.meta,
    )


def _final_url(attempt: Attempt) -> str:
    """The caller knows his own; one that a host has named may hold what is only for us."""
    own, last = attempt.entry.fetch.url, attempt.request.url
    return own if last == own else redact.final_url(last)


def _timings(attempt: Attempt) -> Timings:
    trace = attempt.trace
    total_ms = float(attempt.lane.clock.now_ms() - attempt.entry.submitted_ms)
    ran_ms = (mono_s() - trace.started_s) * 1000
    answered = trace.head_s is not None
    return Timings(
        queue_ms=round(max(0.0, total_ms - ran_ms), 1),
        connect_ms=round(trace.connect_s * 1000, 1) if answered else None,
        ttfb_ms=round((trace.head_s - trace.started_s) * 1000, 1) if trace.head_s else None,
        total_ms=total_ms,
    )
