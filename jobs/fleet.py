"""The producer's client: submits fetches to lanes and wakes them."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from jobs import keys, scripts
from jobs.batch import Batch
from jobs.connect import connect
from jobs.entry import new_element
from jobs.errors import InvalidFetchError
from jobs.lanes import lane_of_url
from jobs.model import MAX_MESSAGE_BYTES, Fetch, as_fetch
from jobs.names import BATCH_ID_CHARS, MAX_BATCH_FETCHES, fetch_id, is_batch_id
from jobs.wake import GRACE_MS, Wake, arq_client, wake

if TYPE_CHECKING:
    from arq.connections import ArqRedis

CHUNK_FETCHES = 500
CHUNK_BYTES = 4 << 20

Fetchable = Fetch | str | Mapping[str, Any]
T = TypeVar("T")


class Fleet:
    """A door to the fleet behind one Redis. Use it as an async context manager, or call `aclose()`."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect(redis_url)
        self._arq: ArqRedis | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; safe to call twice."""
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    def batch(self, batch_id: str) -> Batch:
        """A handle on a batch made earlier, by whichever process; raises ValueError for no batch id."""
        if not is_batch_id(batch_id):
            raise ValueError(f"{batch_id!r} is not a batch id: those are {BATCH_ID_CHARS} hex digits")
        return Batch(self._redis, batch_id)

    async def submit(
        self,
        fetches: Iterable[Fetchable] | AsyncIterable[Fetchable],
        *,
        batch_id: str | None = None,
    ) -> Batch:
        """Enqueue the fetches and return their batch, which begins to run while submit goes on.

        A list or tuple is checked whole before anything is enqueued. An iterator is checked as it
        goes; when an item is bad, what came before it stays enqueued. Raises InvalidFetchError, which
        names the item, and redis.exceptions.RedisError.

        batch_id: 16 hex digits of your own, for a batch that must be found again after a crash.
        """
        batch = self.batch(batch_id or secrets.token_hex(BATCH_ID_CHARS // 2))
        chunks = _chunks(batch.id, _each(fetches))
        if isinstance(fetches, Sequence):
            chunks = _each([chunk async for chunk in chunks])
        async for number, chunk in _numbered(chunks):
            await self._submit_chunk(batch.id, number, chunk)
        await self._seal(batch.id)
        return batch

    async def _submit_chunk(self, batch_id: str, number: int, chunk: "_Chunk") -> None:
        call = chunk.call(batch_id, number)
        wakes = await scripts.run(self._redis, call.script, call.keys, call.args)
        if wakes:
            self._arq = self._arq or arq_client(self._redis.connection_pool)
            await wake(self._arq, [Wake(name.decode(), *when) for name, *when in wakes])

    async def _seal(self, batch_id: str) -> None:
        names = [keys.batch(batch_id), keys.results(batch_id)]
        await scripts.run(self._redis, "seal", names, [keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS])


class _Chunk:
    """The elements of one submit call, grouped by lane and priority."""

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self._groups: dict[tuple[str, str], list[bytes]] = {}

    @property
    def full(self) -> bool:
        return self.count >= CHUNK_FETCHES or self.size_bytes >= CHUNK_BYTES

    def add(self, fetch: Fetch, element: bytes) -> None:
        group = (lane_of_url(fetch.url), fetch.priority.value)
        self._groups.setdefault(group, []).append(element)
        self.count += 1
        self.size_bytes += len(element)

    def call(self, batch_id: str, number: int) -> scripts.Call:
        names = [keys.batch(batch_id), keys.ATTENTION, keys.SERIAL]
        args: list[scripts.Arg] = [number, self.count, keys.UNFINISHED_TTL_MS, GRACE_MS]
        for (lane, priority), elements in self._groups.items():
            names += [keys.lane(lane), keys.waiting_at(lane, priority)]
            args += [lane, len(elements), *elements]
        return scripts.Call("submit", names, args)


def _checked(place: int, item: Fetchable) -> Fetch:
    try:
        return as_fetch(item)
    except InvalidFetchError as error:
        raise InvalidFetchError(f"item {place}: {error}") from None


def _element(fetch_id: str, place: int, fetch: Fetch) -> bytes:
    try:
        element = new_element(fetch_id, fetch)
    except (TypeError, ValueError) as error:
        raise InvalidFetchError(f"item {place}: meta: cannot be JSON: {error}") from None
    if len(element) > MAX_MESSAGE_BYTES:
        raise InvalidFetchError(f"item {place}: has more than {MAX_MESSAGE_BYTES} bytes as JSON")
    return element


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _chunks(batch_id: str, items: AsyncIterator[Fetchable]) -> AsyncIterator[_Chunk]:
    places = itertools.count()
    chunk = _Chunk()
    async for item in items:
        place = next(places)
        if place >= MAX_BATCH_FETCHES:
            raise InvalidFetchError(f"a batch holds at most {MAX_BATCH_FETCHES} fetches; begin another")
        fetch = _checked(place, item)
        chunk.add(fetch, _element(fetch_id(batch_id, place), place, fetch))
        if chunk.full:
            yield chunk
            chunk = _Chunk()
            await asyncio.sleep(0)
    if chunk.count:
        yield chunk


async def _numbered(chunks: AsyncIterator[_Chunk]) -> AsyncIterator[tuple[int, _Chunk]]:
    number = 0
    async for chunk in chunks:
        number += 1
        yield number, chunk
