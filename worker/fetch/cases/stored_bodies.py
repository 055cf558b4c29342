"""Bodies stored before: a file at the path of a fetch, or a body that the host confirms with a 304."""

from fetchfleet.jobs.contract.checks.conditions import is_conditional
from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.errors import BadAnswerError, ExistsError
from fetchfleet.worker.fetch.rules import stale_fallback
from fetchfleet.worker.fetch.rules.decide import EXISTS, UNCHANGED, Finish
from fetchfleet.worker.fetch.rules.outcome import AlreadyExists, AttemptOutcome, Interrupted, Unchanged
from fetchfleet.worker.fetch.rules.validators import validators_of
from fetchfleet.worker.fetch.services import FetchServices, FetchSession
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.sink.base import HttpExchange, Sink
from fetchfleet.worker.sink.index_entry import IndexEntry, StoredBody
from fetchfleet.worker.sink.names import known_path

_KEEPING = frozenset({IfExists.SKIP, IfExists.FAIL})

GONE = "the stored file changed while it was revalidated"


async def at_path(
    entry: Entry, services: FetchServices, exchange: HttpExchange | None = None
) -> AlreadyExists | None:
    """Return the file at the path of the fetch, if the fetch keeps it and the path is known.

    exchange: None before the response. Raises BadDestError if the path is too long.
    """
    if entry.fetch.if_exists not in _KEEPING or services.sink.stored is None:
        return None
    path = known_path(entry, exchange)
    if path is None:
        return None
    size_bytes = await services.sink.stored.size_of(path)
    return None if size_bytes is None else AlreadyExists(path=path, size_bytes=size_bytes)


def end_at_existing(entry: Entry, existing: AlreadyExists) -> tuple[Finish, AttemptOutcome]:
    """Return the end of a fetch whose file exists before its request is sent."""
    if entry.fetch.if_exists == IfExists.SKIP:
        return UNCHANGED, existing
    return EXISTS, Interrupted(note=str(ExistsError(existing.path)))


async def before_body(entry: Entry, services: FetchServices, exchange: HttpExchange) -> AlreadyExists | None:
    """Return the file at a path that the response tells, so that its body is not needed.

    Raises ExistsError if the fetch must not find a file there.
    """
    existing = await at_path(entry, services, exchange) if entry.fetch.name is not None else None
    if existing is not None and entry.fetch.if_exists == IfExists.FAIL:
        raise ExistsError(existing.path)
    return existing


async def created_meanwhile(
    entry: Entry, status: int, error: ExistsError, services: FetchServices
) -> AttemptOutcome:
    """Return the outcome of a body whose file was created while it was received; that file stays.

    Raises the error unless the fetch skips existing files.
    """
    if entry.fetch.if_exists == IfExists.SKIP and services.sink.stored is not None:
        size_bytes = await services.sink.stored.size_of(error.path)
        if size_bytes is not None:
            return AlreadyExists(path=error.path, size_bytes=size_bytes, status=status)
    raise error


async def stand_in(
    session: FetchSession, entry: Entry, finish: Finish, outcome: AttemptOutcome
) -> StoredBody | None:
    """Return the body stored before if the host is down and `fallback` is `stale`, else None."""
    closed, services = session.lane.closed(), session.services
    down = stale_fallback.is_host_down(entry, finish, outcome, closed.why if closed else None)
    if not down or services.sink.stored is None:
        return None
    allowed = stale_fallback.is_allowed(entry.fetch, services.policy_of(entry.fetch))
    return await services.sink.stored.find(entry.fetch) if allowed else None


async def find_indexed(fetch: Fetch, sink: Sink) -> IndexEntry | None:
    """Return the index entry of the unchanged stored body, if the fetch revalidates."""
    return await sink.stored.indexed(fetch) if fetch.revalidate and sink.stored is not None else None


async def not_modified(
    answer: Answer, request: Hop, fetch: Fetch, index_entry: IndexEntry | None, sink: Sink
) -> AttemptOutcome:
    """Return the outcome of a 304. Raises BadAnswerError if the request was not conditional.

    index_entry: of the stored body whose validators the request may have.
    """
    if not is_conditional(request.headers):
        raise BadAnswerError("304 in response to an unconditional request")
    received = validators_of(request.url, answer.header)
    stored = sink.stored
    if index_entry is not None and index_entry.url == request.url and stored is not None:
        if not await stored.is_unchanged(index_entry):
            return Interrupted(note=GONE)  # the next attempt requests the whole body
        return Unchanged(
            path=index_entry.path,
            size_bytes=index_entry.bytes,
            sha256=index_entry.sha256,
            etag=received.etag or index_entry.etag,
            last_modified=received.last_modified or index_entry.last_modified,
        )
    etag, last_modified = received.etag or fetch.etag, received.last_modified or fetch.last_modified
    body = await stored.at_dest(fetch) if stored is not None and (fetch.etag or fetch.last_modified) else None
    if body is None:
        return Unchanged(etag=etag, last_modified=last_modified)
    return Unchanged(
        path=body.path,
        size_bytes=body.size_bytes,
        sha256=body.sha256,
        etag=etag,
        last_modified=last_modified,
    )
