"""The key of a body that has a template, or that does not replace an object of its name.

A body whose key is taken gets the key with its fetch ID. If the object there has the same bytes, by the
digest in its metadata, it is used instead, so a repeated attempt leaves no second copy.
"""

from contextlib import suppress
from typing import NamedTuple, Protocol

from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.errors import ExistsError
from fetchfleet.worker.sink.base import HttpExchange
from fetchfleet.worker.sink.names import is_content_addressed, path_for, suffixed
from fetchfleet.worker.sink.objects.store import MAX_PUT_BYTES, ObjectStore

LOOK_UP_BYTES = 1 << 20
"""The size from which a key is looked up before the body is sent."""


class WholeBody(NamedTuple):
    """The complete body."""

    size_bytes: int
    sha256: str


class PlacedObject(NamedTuple):
    """A stored body."""

    path: str
    etag: str | None


class PutBody(Protocol):
    """Stores the body at a path, and returns the ETag."""

    async def __call__(self, path: str, *, create: bool) -> str | None:
        """Raise ExistsError with `create` if an object has the path."""


async def place(
    entry: Entry, exchange: HttpExchange | None, content: WholeBody, store: ObjectStore, put: PutBody
) -> PlacedObject:
    """Store a body at the path of its fetch, or at another one if the fetch allows that.

    Raises BadDestError, ExistsError, OSError and the errors of `put`.
    """
    path = path_for(entry, exchange, content.sha256)
    match entry.fetch.on_existing:
        case IfExists.REPLACE:
            return PlacedObject(path, await put(path, create=False))
        case IfExists.SUFFIX if is_content_addressed(entry):
            same = await _same_body(store, path, content)
            return same or PlacedObject(path, await put(path, create=False))
        case IfExists.SUFFIX:
            return await _place_beside(path, entry.id, content, store, put)
        case IfExists.SKIP | IfExists.FAIL:
            try:
                return PlacedObject(path, await put(path, create=True))
            except ExistsError:
                return await _own(store, path, entry.id)


async def _place_beside(
    path: str, fetch_id: str, content: WholeBody, store: ObjectStore, put: PutBody
) -> PlacedObject:
    """Store a body at this path, or at that with the fetch ID if another object has the path."""
    last = suffixed(path, fetch_id)
    if content.size_bytes <= MAX_PUT_BYTES:  # a larger body cannot be sent with a condition
        for candidate in (path, last):
            if content.size_bytes < LOOK_UP_BYTES or await store.head(candidate) is None:
                with suppress(ExistsError):
                    return PlacedObject(candidate, await put(candidate, create=True))
            same = await _same_body(store, candidate, content)
            if same is not None:
                return same
    # An object of that key is of an earlier attempt at the same fetch.
    return PlacedObject(last, await put(last, create=False))


async def _own(store: ObjectStore, path: str, fetch_id: str) -> PlacedObject:
    """Return the object that the fetch itself has made: the reply to its request was lost.

    Raises ExistsError if it is of another fetch.
    """
    found = await store.read_attributes(path)
    if found is None or found.fetch != fetch_id:
        raise ExistsError(path)
    return PlacedObject(path, found.etag)


async def _same_body(store: ObjectStore, path: str, content: WholeBody) -> PlacedObject | None:
    """Return the object at the path if it has the same bytes, else None."""
    found = await store.read_attributes(path)
    if found is None or (found.size_bytes, found.sha256) != content:
        return None
    return PlacedObject(path, found.etag)
