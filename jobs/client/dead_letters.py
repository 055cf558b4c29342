"""The dead letters: fetches that failed permanently, and input that is not a fetch."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import RetriedFetch, Submitter, new_batch_id
from fetchfleet.jobs.contract.entry import BadEntryError, parse_entry
from fetchfleet.jobs.contract.ids import batch_of, inbox_prefix_of
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.jobs.patience import RedisCaller, once
from fetchfleet.jobs.scripts.batches import link_retry

READ_COUNT = 500
SHOWN_CHARS = 2000


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter.

    position: its id in the stream. door: where it was found: lane, inbox, arq, or key for a value at a
    key of the fleet. reason: of the closed list of results. note: the exact error. id, lane, fetch: None
    unless it is a fetch. text: the input as found.
    """

    position: str
    door: str
    reason: str
    note: str
    lane: str | None
    id: str | None
    fetch: Fetch | None
    text: str

    @property
    def batch(self) -> str | None:
        """The batch of the fetch."""
        return batch_of(self.id) if self.id else None


class DeadLetterFilter(NamedTuple):
    """Selects dead letters; a field that is None matches every letter."""

    batch: str | None = None
    host: str | None = None
    reason: str | None = None
    position: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether the letter is selected."""
        has = DeadLetterFilter(letter.batch, letter.lane, letter.reason, letter.position)
        return all(asked in {None, found} for asked, found in zip(self, has, strict=True))


ANY = DeadLetterFilter()


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a retry.

    fetches: how many were enqueued again; batches: their new batches, none of which holds fetches of two old
    ones. left: letters without a fetch.
    """

    fetches: int
    batches: list[str]
    left: int


class DeadLetters:
    """The fleet's dead letters. Redis keeps the newest DEAD_LENGTH."""

    def __init__(self, redis: Redis, submitter: Submitter, call: RedisCaller = once) -> None:
        self._redis = redis
        self._submitter = submitter
        self._call = call

    async def iter(self, which: DeadLetterFilter = ANY) -> AsyncIterator[DeadLetter]:
        """Iterate over the letters, oldest first."""
        async for letters in self._pieces(which):
            for letter in letters:
                yield letter

    async def retry(self, which: DeadLetterFilter = ANY) -> Retried:
        """Submit the fetches again as new ones and delete their letters; safe to repeat after a crash.

        The old batch of a fetch names the new one (Batch.retried_as), and its new result has the old id
        (retry_of). Letters that are written meanwhile stay. Raises what Fleet.submit raises.
        """
        fetches, batches, left = 0, dict[str, None](), 0
        async for letters in self._pieces(which):
            by_batch: dict[str | None, dict[str, RetriedFetch]] = {}
            for letter in letters:
                if letter.fetch is None:
                    left += 1
                    continue
                # With its letter as the key, a letter becomes one fetch however often it is retried.
                again = RetriedFetch(letter.fetch, letter.id, f"dead letter {letter.position}")
                by_batch.setdefault(letter.batch, {})[letter.position] = again
            for batch_id, found in by_batch.items():
                again_id = new_batch_id(inbox_prefix_of(batch_id) if batch_id else "")
                receipt = await self._submitter.submit(list(found.values()), batch_id=again_id)
                new = dict.fromkeys(batch_of(of) for of in receipt.ids)
                if batch_id is not None:
                    await self._call(link_retry, self._redis, batch_id=batch_id, retried_as=list(new))
                await self._call(self._redis.xdel, keys.DEAD, *found)
                fetches += len(found)
                batches |= new
        return Retried(fetches=fetches, batches=list(batches), left=left)

    async def purge(self, which: DeadLetterFilter = ANY) -> int:
        """Delete the letters; return how many there were."""
        count = 0
        async for letters in self._pieces(which):
            if letters:
                # Not the reply of XDEL: if that is lost, a second one deletes nothing.
                await self._call(self._redis.xdel, keys.DEAD, *(letter.position for letter in letters))
                count += len(letters)
        return count

    async def _pieces(self, which: DeadLetterFilter) -> AsyncIterator[list[DeadLetter]]:
        """Yield the letters present at the start: a fetch that is retried may soon become a letter again."""
        newest = await self._call(self._redis.xrevrange, keys.DEAD, count=1)
        start, end = "-", newest[0][0] if newest else "-"
        while rows := await self._call(self._redis.xrange, keys.DEAD, start, end, READ_COUNT):
            letters = [_letter(position.decode(), fields) for position, fields in rows]
            yield [letter for letter in letters if which.matches(letter)]
            start = f"({letters[-1].position}"


def _letter(position: str, fields: dict[bytes, bytes]) -> DeadLetter:
    text = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    try:
        fetch = parse_entry(fields.get(b"element", b"")).fetch
    except BadEntryError:
        fetch = None
    return DeadLetter(
        position=position,
        door=text.get("door", ""),
        reason=text.get("reason", ""),
        note=text.get("note", ""),
        lane=text.get("lane") or None,
        id=text.get("id") or None,
        fetch=fetch,
        text=text.get("element", "")[:SHOWN_CHARS],
    )
