"""The result of a fetch, from its last outcome. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import ABSENT, Outcome, Result, Timings
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
    note_of,
    throttle_of,
)
from fetchfleet.worker.observability import redact
from fetchfleet.worker.sink.index_entry import StoredBody

_REPEATED = frozenset({"url", "method", "dest", "name", "key", "meta"})
"""The fields of a fetch that its result repeats."""

_UNSUCCESSFUL = frozenset({Outcome.FAILED, Outcome.CANCELLED})


def result_of(
    entry: Entry,
    finish: Finish,
    outcome: AttemptOutcome,
    last_url: str | None,
    stand_in: StoredBody | None,
    timings: Timings,
    content_type: str | None,
    worker_id: str,
    *,
    store: str | None = None,
    host_note: str | None = None,
) -> Result:
    """Return the result of a fetch after its last outcome.

    last_url: the URL of the last request, None if the fetch ended without an attempt.
    stand_in: a body stored before, used in place of a failure. content_type: of the last response. store: the
    URL of the object store with the bodies, None if they are files. host_note: the details of a dead host.
    """
    if isinstance(outcome, Stored):
        url = last_url or entry.fetch.url
        return _result_of_stored(entry, outcome, url, timings, content_type, worker_id, store)
    body = outcome if isinstance(outcome, Unchanged | AlreadyExists) else stand_in
    with_validators = body if not isinstance(body, StoredBody) else None
    attempted = last_url is not None and not isinstance(outcome, Interrupted)
    throttled = isinstance(outcome, Answered) and throttle_of(outcome) is not None
    charged = attempted and not throttled and not isinstance(outcome, Redirected)
    return Result(
        id=entry.id,
        url=entry.fetch.url,
        final_url=_final_url(entry, last_url) if last_url is not None and attempted else None,
        outcome=Outcome.UNCHANGED if stand_in else finish.outcome,
        reason=finish.reason,
        status=None if isinstance(outcome, Interrupted) else outcome.status,
        bytes=body.size_bytes if body else None,
        sha256=body.sha256 if body else None,
        path=body.path if body else None,
        store=store if body and body.path is not None else None,
        etag=with_validators.etag if with_validators else None,
        last_modified=with_validators.last_modified if with_validators else None,
        content_type=content_type,
        bad_line=outcome.line if isinstance(outcome, Failed) else None,
        stale=stand_in is not None,
        attempts=entry.attempts + 1 if charged else entry.attempts,
        throttles=entry.throttles + 1 if throttled else entry.throttles,
        interruptions=entry.interruptions,
        worker=worker_id,
        timings=timings,
        meta=entry.fetch.meta,
        method=entry.fetch.method,
        dest=entry.fetch.dest,
        name=entry.fetch.name,
        key=entry.fetch.key,
        omitted=omitted_of(entry.fetch) if finish.outcome in _UNSUCCESSFUL else None,
        retry_of=entry.retry_of,
        note=(redact.text(host_note) if host_note else note_of(outcome)) or ABSENT,
    )


def _result_of_stored(
    entry: Entry,
    stored: Stored,
    last_url: str,
    timings: Timings,
    content_type: str | None,
    worker_id: str,
    store: str | None,
) -> Result:
    fetch, at, validators = entry.fetch, stored.at, stored.validators
    return Result(
        id=entry.id,
        url=fetch.url,
        final_url=_final_url(entry, last_url),
        outcome=Outcome.STORED,
        status=stored.status,
        bytes=at.size_bytes if at is not None else 0,
        sha256=(at.sha256 or None) if at is not None else None,
        path=at.path if at is not None else None,
        store=store if at is not None else None,
        offset=at.offset if at is not None else None,
        length=at.length if at is not None else None,
        etag=validators.etag,
        last_modified=validators.last_modified,
        content_encoding=stored.coding,
        content_type=content_type,
        lines=stored.lines,
        unverified=stored.unverified,
        attempts=entry.attempts + 1,
        throttles=entry.throttles,
        interruptions=entry.interruptions,
        worker=worker_id,
        timings=timings,
        meta=fetch.meta,
        method=fetch.method,
        dest=fetch.dest,
        name=fetch.name,
        key=fetch.key,
        retry_of=entry.retry_of,
        note=ABSENT,
    )


def _final_url(entry: Entry, last_url: str) -> str:
    """Return the URL of the last request, redacted if a redirect named it: it may hold secrets."""
    return last_url if last_url == entry.fetch.url else redact.final_url(last_url)


def omitted_of(fetch: Fetch) -> list[str]:
    """Return the names of the fields that the fetch sets and its result does not repeat."""
    return [name for name in msgspec.to_builtins(fetch) if name not in _REPEATED]
