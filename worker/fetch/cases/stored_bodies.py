"""Bodies that are there already: a file at the dest of a fetch, or a stored body that its host confirms."""

from fetchfleet.jobs.contract.conditions import is_conditional
from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.field_checks import IfExists
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import BadAnswerError, ExistsError
from fetchfleet.worker.fetch.rules import stale_fallback
from fetchfleet.worker.fetch.rules.decide import EXISTS, UNCHANGED, Finish
from fetchfleet.worker.fetch.rules.outcome import AlreadyExists, AttemptOutcome, Interrupted, Unchanged
from fetchfleet.worker.fetch.rules.validators import validators_of
from fetchfleet.worker.fetch.services import FetchServices, FetchSession
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.sink.base import Sink
from fetchfleet.worker.sink.index_entry import IndexEntry, StoredBody

GONE = "the stored file changed while its host was asked whether it is the newest"


async def at_dest(entry: Entry, services: FetchServices) -> AlreadyExists | None:
    """Return the file at the fetch's dest, if that decides what becomes of the fetch."""
    fetch = entry.fetch
    if fetch.if_exists == IfExists.REPLACE or fetch.dest is None or services.sink.stored is None:
        return None
    size_bytes = await services.sink.stored.size_of(fetch.dest)
    return None if size_bytes is None else AlreadyExists(path=fetch.dest, size_bytes=size_bytes)


def meaning(entry: Entry, found: AlreadyExists) -> tuple[Finish, AttemptOutcome]:
    """Return how a fetch ends whose dest exists before its request."""
    if entry.fetch.if_exists == IfExists.SKIP:
        return UNCHANGED, found
    return EXISTS, Interrupted(note=f"{found.path!r} is there already")


async def since_then(
    entry: Entry, status: int, error: ExistsError, services: FetchServices
) -> AttemptOutcome:
    """Return the outcome of a body that came after its dest had been created: that file stays."""
    found = await at_dest(entry, services) if entry.fetch.if_exists == IfExists.SKIP else None
    if found is not None:
        return AlreadyExists(path=found.path, size_bytes=found.size_bytes, status=status)
    raise error


async def stand_in(
    session: FetchSession, entry: Entry, finish: Finish, outcome: AttemptOutcome
) -> StoredBody | None:
    """Return the body stored before that stands in for a failure, if the host is down and it is wanted."""
    closed, services = session.lane.closed(), session.services
    down = stale_fallback.instead(entry, finish, outcome, closed.why if closed else None)
    if not down or services.sink.stored is None:
        return None
    wanted = stale_fallback.in_force(entry.fetch, services.policy_of(entry.fetch))
    return await services.sink.stored.find(entry.fetch) if wanted else None


async def known_of(fetch: Fetch, sink: Sink) -> IndexEntry | None:
    """Return the stored and unchanged body of a fetch that revalidates."""
    return await sink.stored.known(fetch) if fetch.revalidate and sink.stored is not None else None


async def not_modified(
    answer: Answer, asked: Hop, fetch: Fetch, known: IndexEntry | None, sink: Sink
) -> AttemptOutcome:
    """Return what a 304 means for the stored body; BadAnswerError if the request was not conditional."""
    if not is_conditional(asked.headers):
        raise BadAnswerError("304 although nothing conditional was asked")
    received = validators_of(asked.url, answer.header)
    stored = sink.stored
    if known is not None and known.url == asked.url and stored is not None:
        if not await stored.unchanged(known):
            return Interrupted(note=GONE)  # asked again, for the whole of it
        return Unchanged(
            path=known.path,
            size_bytes=known.bytes,
            sha256=known.sha256,
            etag=received.etag or known.etag,
            last_modified=received.last_modified or known.last_modified,
        )
    etag, last_modified = received.etag or fetch.etag, received.last_modified or fetch.last_modified
    here = await stored.at_dest(fetch) if stored is not None and (fetch.etag or fetch.last_modified) else None
    if here is None:
        return Unchanged(etag=etag, last_modified=last_modified)
    return Unchanged(
        path=here.path,
        size_bytes=here.size_bytes,
        sha256=here.sha256,
        etag=etag,
        last_modified=last_modified,
    )
