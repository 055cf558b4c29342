"""The index of stored bodies by fetch, and the rules for finding a body by it or by its path.

The sinks of files and of objects each add how an entry is read and a body is examined.
"""

from abc import ABC, abstractmethod

from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.sink.index_entry import IndexEntry, StoredBody, fits, usable

MAX_ENTRY_BYTES = 128 * 1024
"""The maximum size of an entry."""


class BodyIndex(ABC):
    """Finds bodies that were stored earlier."""

    async def find(self, fetch: Fetch) -> StoredBody | None:
        """Return the body at the fetch's `dest`, else the unchanged body indexed for the fetch."""
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

    async def at_dest(self, fetch: Fetch) -> StoredBody | None:
        """Return the body at the fetch's `dest`, with its digest if it is the indexed one; None if none."""
        at_dest, entry = await self._look_up(fetch)
        if at_dest is None or entry is None or entry.path != at_dest.path:
            return at_dest
        return _body_of(entry) if await self.is_unchanged(entry) else at_dest

    @abstractmethod
    async def is_unchanged(self, entry: IndexEntry) -> bool:
        """Return whether the file or object of an entry is still the body that was stored."""

    @abstractmethod
    async def size_of(self, path: str) -> int | None:
        """Return the size of a file or object in bytes; None if there is none."""

    async def _look_up(self, fetch: Fetch) -> tuple[StoredBody | None, IndexEntry | None]:
        """Return the body at the fetch's `dest`, without its digest, and the fetch's index entry."""
        entry, dest = await self._read(fetch), fetch.dest
        size_bytes = await self.size_of(dest) if dest is not None else None
        if dest is None or size_bytes is None:
            return None, entry
        return StoredBody(path=dest, size_bytes=size_bytes, sha256=None), entry

    @abstractmethod
    async def _read(self, fetch: Fetch) -> IndexEntry | None:
        """Return the fetch's index entry."""


def entry_path(folder: str, key: str) -> str:
    """Return the path of an entry below the folder of entries. key: see `key_of`."""
    return f"{folder}/{key[:2]}/{key}.json"


def _body_of(entry: IndexEntry) -> StoredBody:
    return StoredBody(path=entry.path, size_bytes=entry.bytes, sha256=entry.sha256)
