"""The index of stored bodies by fetch: a small JSON object for each entry, below the prefix of the store.

An entry describes an object by its size and its ETag in the store. Errors of the store cost time only: the
body counts as not stored, and is fetched.
"""

from contextlib import suppress

from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.errors import BadDestError
from fetchfleet.worker.sink.body_index import MAX_ENTRY_BYTES, BodyIndex, entry_path
from fetchfleet.worker.sink.index_entry import (
    IndexEntry,
    StoredAt,
    Validators,
    from_json,
    key_of,
    to_json,
)
from fetchfleet.worker.sink.objects.store import ObjectFound, ObjectStore, StoreError

STORED = ".fetchfleet/stored"

JSON = {"Content-Type": "application/json"}


class ObjectIndex(BodyIndex):
    """The index of objects."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def is_unchanged(self, entry: IndexEntry) -> bool:
        """Return whether the object of an entry is still the body that was stored, by size and ETag."""
        found = await self._head(entry.path)
        return found is not None and found[:2] == (entry.bytes, entry.object_etag) and found.etag is not None

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
            await self._store.put(entry_path(STORED, key_of(fetch)), to_json(entry), JSON)

    async def _head(self, path: str) -> ObjectFound | None:
        with suppress(StoreError, BadDestError):
            return await self._store.head(path)
        return None

    async def _read(self, fetch: Fetch) -> IndexEntry | None:
        with suppress(StoreError):
            text = await self._store.get(entry_path(STORED, key_of(fetch)), MAX_ENTRY_BYTES)
            return None if text is None else from_json(text)
        return None
