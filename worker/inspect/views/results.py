"""The results of a batch: pages of those that match a selection."""

from collections.abc import AsyncIterator

import msgspec

from fetchfleet.jobs.client.batch import FROM_THE_START, Batch
from fetchfleet.jobs.contract.result import Result
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.worker.observability import redact

MAX_READ = 5000
"""The maximum number of results to read for a page."""


class ResultQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A selection of results. An empty field selects all."""

    outcome: str = ""
    reason: str = ""
    host: str = ""
    """A part of the URL's host."""
    after: str = FROM_THE_START
    """Begin with the results after this position."""
    limit: int = 100


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """A result, without secrets."""

    id: str
    url: str
    outcome: str
    reason: str | None
    note: str | None
    """The details of the last error."""
    status: int | None
    attempts: int
    bytes: int | None
    total_ms: float | None
    """The time from submit to the end."""
    path: str | None


class ResultPage(msgspec.Struct, frozen=True, kw_only=True):
    """Results in the order in which they were written."""

    results: list[ResultRow]
    read: int
    """The number of results that were read for this page, MAX_READ at most."""
    next: str | None
    """The position from which the next page continues; None at the end."""


def matches(result: Result, query: ResultQuery) -> bool:
    """Return whether a result is selected."""
    return (
        query.outcome in {"", result.outcome}
        and query.reason in {"", result.reason or ""}
        and (not query.host or query.host in result.url.partition("://")[2].partition("/")[0])
    )


async def results_of(batch: Batch, query: ResultQuery) -> ResultPage:
    """Read a page of results. Raises UnknownBatchError."""
    found: list[ResultRow] = []
    read, stream = 0, batch.results(after=query.after, follow=False)
    while read < MAX_READ and (page := await stream.page()):
        for position, result, _ in page:
            read += 1
            if matches(result, query):
                found.append(result_row(result))
            if len(found) == query.limit:
                is_last = position == page[-1].position and not await stream.page()
                return ResultPage(results=found, read=read, next=None if is_last else position)
    return ResultPage(results=found, read=read, next=stream.position if read >= MAX_READ else None)


async def result_lines(batch: Batch, query: ResultQuery) -> AsyncIterator[bytes]:
    """Yield all selected results as JSON Lines, without secrets and safe for a terminal, some at a time."""
    stream = batch.results(after=query.after, follow=False)
    while page := await stream.page():
        rows = [redact.result(msgspec.to_builtins(of.result)) for of in page if matches(of.result, query)]
        if rows:
            yield safe_json(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def result_row(result: Result) -> ResultRow:
    """Return the row of a result."""
    return ResultRow(
        id=result.id,
        url=redact.url(result.url),
        outcome=result.outcome.value,
        reason=result.reason.value if result.reason else None,
        note=result.note and redact.text(result.note),
        status=result.status,
        attempts=result.attempts,
        bytes=result.bytes,
        total_ms=result.timings.total_ms,
        path=result.path,
    )
