"""Chunks of a batch: Redis takes each of them entirely or not at all."""

import asyncio
import hashlib
import itertools
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import Any, TypeVar

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import serialize_new_entry
from fetchfleet.jobs.contract.ids import MAX_BATCH_FETCHES, fetch_id
from fetchfleet.jobs.contract.model import Fetch, as_fetch
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.jobs.scripts.submission import KeyedFetch

CHUNK_FETCHES = 500
CHUNK_BYTES = 4 << 20

Fetchable = Fetch | str | Mapping[str, Any]
T = TypeVar("T")


class Chunk:
    """The serialized entries of one submit call, grouped by lane and priority."""

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self.lanes: Counter[str] = Counter()
        self.groups: dict[tuple[str, str], list[bytes]] = {}
        self.keyed: list[KeyedFetch] = []

    @property
    def full(self) -> bool:
        """Whether the next fetch belongs in another chunk."""
        return self.count >= CHUNK_FETCHES or self.size_bytes >= CHUNK_BYTES

    def add(self, fetch_id: str, fetch: Fetch, serialized: bytes) -> None:
        """Add a fetch."""
        lane = lane_of_url(fetch.url)
        self.groups.setdefault((lane, fetch.priority.value), []).append(serialized)
        self.lanes[lane] += 1
        self.count += 1
        self.size_bytes += len(serialized)
        if fetch.key is not None:
            self.keyed.append(KeyedFetch(fetch_id, fetch.key, max(keys.KEY_TTL_MS, fetch.deadline_ms)))

    def digest(self) -> str:
        """Return a short hash of the chunk's content."""
        digest = hashlib.sha256()
        for serialized in self.groups.values():
            digest.update(b"\n".join(serialized))
        return digest.hexdigest()[:16]


async def chunks(
    batch_id: str, items: Iterable[Fetchable] | AsyncIterable[Fetchable]
) -> AsyncIterator[Chunk]:
    """Yield the items in chunks, each item checked; raises InvalidFetchError, which names the item."""
    places = itertools.count()
    chunk = Chunk()
    async for item in each(items):
        place = next(places)
        if place >= MAX_BATCH_FETCHES:
            raise InvalidFetchError(f"a batch holds at most {MAX_BATCH_FETCHES} fetches; begin another")
        of = fetch_id(batch_id, place)
        try:
            fetch = as_fetch(item)
            chunk.add(of, fetch, serialize_new_entry(of, fetch))
        except InvalidFetchError as error:
            raise InvalidFetchError(f"item {place}: {error}") from None
        if chunk.full:
            yield chunk
            chunk = Chunk()
            await asyncio.sleep(0)
    if chunk.count:
        yield chunk


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Iterate over a synchronous or an asynchronous iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
