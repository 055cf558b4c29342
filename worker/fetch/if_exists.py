"""A fetch whose dest exists and must not be replaced (`if_exists`)."""

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.field_checks import IfExists
from fetchfleet.worker.errors import ExistsError
from fetchfleet.worker.fetch.rules.decide import EXISTS, UNCHANGED, Finish
from fetchfleet.worker.fetch.rules.outcome import AlreadyExists, AttemptOutcome, Interrupted
from fetchfleet.worker.fetch.services import FetchServices


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
