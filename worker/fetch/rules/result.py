"""The result of a fetch, from its last outcome. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Fetch, Outcome, Result, Timings
from fetchfleet.worker.fetch.rules.decide import Finish
from fetchfleet.worker.fetch.rules.outcome import (
    AlreadyExists,
    Answered,
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

_REPEATED = frozenset({"url", "method", "dest", "key", "meta"})
"""The fields of a fetch that its result has too."""

_NOT_DONE = frozenset({Outcome.FAILED, Outcome.CANCELLED})


def result_of(
    entry: Entry,
    finish: Finish,
    outcome: AttemptOutcome,
    last_url: str | None,
    stand_in: StoredBody | None,
    timings: Timings,
    worker_id: str,
) -> Result:
    """Return what the producer reads.

    last_url: of the request that went out last, None if the fetch ended without an attempt. stand_in: a body
    stored before, used in place of a new one.
    """
    stored = outcome if isinstance(outcome, Stored) else None
    body = outcome if isinstance(outcome, Stored | Unchanged | AlreadyExists) else stand_in
    with_validators = body if not isinstance(body, StoredBody) else None
    asked = last_url is not None and not isinstance(outcome, Interrupted)
    throttled = isinstance(outcome, Answered) and throttle_of(outcome) is not None
    charged = asked and not throttled and not isinstance(outcome, Redirected)
    final_url = None
    if last_url is not None and asked:  # a URL that a host has named may hold secrets
        final_url = last_url if last_url == entry.fetch.url else redact.final_url(last_url)
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
        timings=timings,
        meta=entry.fetch.meta,
        method=entry.fetch.method,
        dest=entry.fetch.dest,
        key=entry.fetch.key,
        omitted=omitted_of(entry.fetch) if finish.outcome in _NOT_DONE else None,
        retry_of=entry.retry_of,
    )


def omitted_of(fetch: Fetch) -> list[str]:
    """Return the names of the fields that a fetch has set and its result does not repeat."""
    return [name for name in msgspec.to_builtins(fetch) if name not in _REPEATED]
