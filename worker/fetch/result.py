"""The result of a fetch, from its last outcome."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Fetch, Outcome, Result, Timings
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
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.observability import redact
from fetchfleet.worker.sink.index_entry import StoredBody
from fetchfleet.worker.util.clock import mono_s

_REPEATED = frozenset({"url", "method", "dest", "key", "meta"})
"""The fields of a fetch that its result has too."""

_NOT_DONE = frozenset({Outcome.FAILED, Outcome.CANCELLED})


def result_of(
    entry: Entry,
    finish: Finish,
    outcome: AttemptOutcome,
    attempt: Attempt | None,
    stand_in: StoredBody | None,
    *,
    now_ms: int,
    worker_id: str,
) -> Result:
    """Return what the producer reads.

    attempt: None if the fetch ended without one. stand_in: a body stored before, used in place of a new one.
    """
    stored = outcome if isinstance(outcome, Stored) else None
    body = outcome if isinstance(outcome, Stored | Unchanged | AlreadyExists) else stand_in
    with_validators = body if not isinstance(body, StoredBody) else None
    asked = attempt is not None and not isinstance(outcome, Interrupted)
    throttled = throttle_of(outcome) is not None
    charged = asked and not throttled and not isinstance(outcome, Redirected)
    final_url = None
    if attempt is not None and asked:  # a URL that a host has named may hold secrets
        last = attempt.request.url
        final_url = last if last == entry.fetch.url else redact.final_url(last)
    return Result(
        id=entry.id,
        url=entry.fetch.url,
        final_url=final_url,
        outcome=Outcome.UNCHANGED if stand_in else finish.outcome,
        reason=finish.reason,
        status=None if isinstance(outcome, Interrupted) else outcome.status,
        bytes=body.size_bytes if body else None,
        sha256=body.sha256 if body else None,
        path=body.path if body else None,
        offset=stored.offset if stored else None,
        length=stored.length if stored else None,
        etag=with_validators.etag if with_validators else None,
        last_modified=with_validators.last_modified if with_validators else None,
        content_encoding=stored.coding if stored else None,
        lines=stored.lines if stored else None,
        bad_line=outcome.line if isinstance(outcome, Failed) else None,
        stale=stand_in is not None,
        unverified=stored.unverified if stored else False,
        attempts=entry.attempts + 1 if charged else entry.attempts,
        throttles=entry.throttles + 1 if throttled else entry.throttles,
        interruptions=entry.interruptions,
        worker=worker_id,
        timings=timings_of(attempt.trace if attempt is not None else None, now_ms - entry.submitted_ms),
        meta=entry.fetch.meta,
        method=entry.fetch.method,
        dest=entry.fetch.dest,
        key=entry.fetch.key,
        omitted=omitted_of(entry.fetch) if finish.outcome in _NOT_DONE else None,
        retry_of=entry.retry_of,
    )


def timings_of(trace: Trace | None, total_ms: int) -> Timings:
    """Return where the time went; trace: of the last attempt, None if there was none."""
    ran_ms = (mono_s() - trace.started_s) * 1000 if trace else 0.0
    answered = trace is not None and trace.head_s is not None
    return Timings(
        queue_ms=round(max(0.0, total_ms - ran_ms), 1),
        connect_ms=round(trace.connect_s * 1000, 1) if trace and answered else None,
        ttfb_ms=round((trace.head_s - trace.started_s) * 1000, 1) if trace and trace.head_s else None,
        total_ms=float(total_ms),
    )


def omitted_of(fetch: Fetch) -> list[str]:
    """Return the names of the fields that a fetch has set and its result does not repeat."""
    return [name for name in msgspec.to_builtins(fetch) if name not in _REPEATED]
