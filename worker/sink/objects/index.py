"""The index of stored bodies by fetch: a small JSON object for each entry, below the prefix of the store.

An entry describes an object by its size and its ETag in the store. Errors of the store cost time only: the
body counts as not stored, and is fetched.
"""

from contextlib import suppress

from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.errors import BadDestError
from fetchfleet.worker.sink.index_entry import (
    IndexEntry,
    StoredAt,
    StoredBody,
    Validators,
    fits,
    from_json,
    key_of,
    to_json,
    usable,
)
from fetchfleet.worker.sink.objects.store import ObjectFound, ObjectStore, StoreError

STORED = ".fetchfleet/stored"

MAX_ENTRY_BYTES = 128 * 1024
"""The maximum size of an entry."""

JSON = {"Content-Type": "application/json"}


class ObjectIndex:
    """Finds bodies that were stored earlier. See StoredBodies."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def find(self, fetch: Fetch) -> StoredBody | None:
        """Return the object at the fetch's `dest`, else the unchanged body indexed for the fetch."""
        at_dest, entry = await self._look_up(fetch)
        indexed_there = at_dest is not None and entry is not None and entry.path == at_dest.path
        if at_dest is not None and not indexed_there and fits(fetch, at_dest.size_bytes, None):
            return at_dest
        if entry is None or not fits(fetch, entry.bytes, entry.sha256) or not await self.is_unchanged(entry):
            return None
        return _body_of(entry)

    async def indexed(self, fetch: Fetch) -> IndexEntry | None:
        """Return the index entry of an unchanged body at the place where the fetch would store it."""
        entry = await self._read(fetch)
        if entry is None or not usable(fetch, entry):
            return None
        return entry if await self.is_unchanged(entry) else None

    async def is_unchanged(self, entry: IndexEntry) -> bool:
        """Return whether the object of an entry is still the body that was stored, by size and ETag."""
        found = await self._head(entry.path)
        return found is not None and found[:2] == (entry.bytes, entry.object_etag) and found.etag is not None

    async def at_dest(self, fetch: Fetch) -> StoredBody | None:
        """Return the object at the fetch's `dest`, with its digest if it is the indexed body."""
        at_dest, entry = await self._look_up(fetch)
        if at_dest is None or entry is None or entry.path != at_dest.path:
            return at_dest
        return _body_of(entry) if await self.is_unchanged(entry) else at_dest

    async def size_of(self, path: str) -> int | None:
        """Return the size of an object in bytes; None if there is no such object."""
        found = await self._head(path)
        return None if found is None else found.size_bytes

    async def add(self, fetch: Fetch, at: StoredAt, object_etag: str | None, validators: Validators) -> None:
        """Write the entry of a body. Ignores errors, because the body itself is stored."""
        entry = IndexEntry(
            path=at.path,
            bytes=at.size_bytes,
            sha256=at.sha256,
            stored_ms=0,
            object_etag=object_etag,
            **validators._asdict(),
        )
        with suppress(StoreError):
            await self._store.put(_path_of(fetch), to_json(entry), JSON)

    async def _look_up(self, fetch: Fetch) -> tuple[StoredBody | None, IndexEntry | None]:
        """Return the object at the fetch's `dest`, and the fetch's index entry."""
        found = await self._head(fetch.dest) if fetch.dest is not None else None
        entry = await self._read(fetch)
        if fetch.dest is None or found is None:
            return None, entry
        return StoredBody(path=fetch.dest, size_bytes=found.size_bytes, sha256=None), entry

    async def _head(self, path: str) -> ObjectFound | None:
        with suppress(StoreError, BadDestError):
            return await self._store.head(path)
        return None

    async def _read(self, fetch: Fetch) -> IndexEntry | None:
        with suppress(StoreError):
            text = await self._store.get(_path_of(fetch), MAX_ENTRY_BYTES)
            return None if text is None else from_json(text)
        return None


def _body_of(entry: IndexEntry) -> StoredBody:
    return StoredBody(path=entry.path, size_bytes=entry.bytes, sha256=entry.sha256)


def _path_of(fetch: Fetch) -> str:
    key = key_of(fetch)
    return f"{STORED}/{key[:2]}/{key}.json"
