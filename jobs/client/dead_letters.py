"""`DeadLetters`: fetches that failed, and input that is not a fetch."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import RetriedFetch, Submitter, new_batch_id
from fetchfleet.jobs.contract.entry import BadEntryError, parse_entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.ids import batch_of, inbox_prefix_of
from fetchfleet.jobs.patience import RedisCaller, call_once
from fetchfleet.jobs.scripts.batches import link_retry

READ_COUNT = 500
SHOWN_CHARS = 2000


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A fetch that failed, or input that is not a fetch."""

    position: str
    """ID of its record in the stream `ff:dead`."""
    door: str
    """Source: lane (a failed fetch), inbox, arq, or key (a value of another program at a fleet's key)."""
    reason: str
    """Reason, as in `Result.reason`."""
    note: str
    """Exact error."""
    lane: str | None
    """Lane of the fetch; None if it is not a fetch."""
    id: str | None
    """ID of the fetch; None if it is not a fetch."""
    fetch: Fetch | None
    """The fetch, with headers and body; None if it cannot be read."""
    text: str
    """The first SHOWN_CHARS characters of the serialized entry or input."""

    @property
    def batch(self) -> str | None:
        """The batch ID of the fetch; None if it is not a fetch."""
        return batch_of(self.id) if self.id else None


class DeadLetterFilter(NamedTuple):
    """A selection of dead letters: those that match every field. None matches every letter."""

    batch: str | None = None
    """Batch ID."""
    host: str | None = None
    """Host, the name of the lane."""
    reason: str | None = None
    """Reason, such as `http_status`."""
    position: str | None = None
    """Position of a single letter."""

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether the letter matches every field."""
        values = (letter.batch, letter.lane, letter.reason, letter.position)
        return all(wanted in {None, value} for wanted, value in zip(self, values, strict=True))


ANY = DeadLetterFilter()


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `DeadLetters.retry`."""

    fetches: int
    """Number of fetches that were submitted again."""
    batches: list[str]
    """IDs of their new batches. Each holds fetches of one old batch only."""
    left: int
    """Number of letters that stay, because they have no fetch."""


class DeadLetters:
    """The dead letters of the fleet, of which Redis keeps about the newest 100,000.

    Each call takes a DeadLetterFilter and covers the letters present when it starts.
    """

    def __init__(self, redis: Redis, submitter: Submitter, call: RedisCaller = call_once) -> None:
        self._redis = redis
        self._submitter = submitter
        self._call = call

    async def iter(self, which: DeadLetterFilter = ANY) -> AsyncIterator[DeadLetter]:
        """Yield the selected letters, oldest first."""
        async for letters in self._pages(which):
            for letter in letters:
                yield letter

    async def retry(self, which: DeadLetterFilter = ANY) -> Retried:
        """Submit the fetches of the selected letters as new ones, and delete these letters.

        `Batch.retried_as` of the old batch names the new one; `Result.retry_of` of the new result is the old
        fetch ID. Safe to repeat after a crash. Raises the errors of `Fleet.submit`.
        """
        fetches, batches, left = 0, dict[str, None](), 0
        async for letters in self._pages(which):
            by_batch: dict[str | None, dict[str, RetriedFetch]] = {}
            for letter in letters:
                if letter.fetch is None:
                    left += 1
                    continue
                # With its position as the key, a letter becomes one fetch even if the retry is repeated.
                retried = RetriedFetch(letter.fetch, letter.id, f"dead letter {letter.position}")
                by_batch.setdefault(letter.batch, {})[letter.position] = retried
            for batch_id, retries in by_batch.items():
                retry_batch_id = new_batch_id(inbox_prefix_of(batch_id) if batch_id else "")
                receipt = await self._submitter.submit(list(retries.values()), batch_id=retry_batch_id)
                new_batches = dict.fromkeys(batch_of(fetch_id) for fetch_id in receipt.ids)
                if batch_id is not None:
                    await self._call(link_retry, self._redis, batch_id=batch_id, retried_as=list(new_batches))
                await self._call(self._redis.xdel, keys.DEAD, *retries)
                fetches += len(retries)
                batches |= new_batches
        return Retried(fetches=fetches, batches=list(batches), left=left)

    async def purge(self, which: DeadLetterFilter = ANY) -> int:
        """Delete the selected letters; return their number."""
        count = 0
        async for letters in self._pages(which):
            if letters:
                # The reply of XDEL is not used: after a lost reply, the repeated call deletes nothing.
                await self._call(self._redis.xdel, keys.DEAD, *(letter.position for letter in letters))
                count += len(letters)
        return count

    async def _pages(self, which: DeadLetterFilter) -> AsyncIterator[list[DeadLetter]]:
        """Yield the letters present at the start, by page: a retried fetch may soon become a letter again."""
        newest = await self._call(self._redis.xrevrange, keys.DEAD, count=1)
        start, end = "-", newest[0][0] if newest else "-"
        if which.position is not None:
            start = end = which.position
        while rows := await self._call(self._redis.xrange, keys.DEAD, start, end, READ_COUNT):
            letters = [decode_letter(position.decode(), fields) for position, fields in rows]
            yield [letter for letter in letters if which.matches(letter)]
            start = f"({letters[-1].position}"


async def letter_at(redis: Redis, position: str) -> DeadLetter | None:
    """Return the letter at a position; None if there is none."""
    rows = await redis.xrange(keys.DEAD, position, position, 1)
    return decode_letter(rows[0][0].decode(), rows[0][1]) if rows else None


def decode_letter(position: str, fields: dict[bytes, bytes]) -> DeadLetter:
    """Return the letter of a stream record. Invalid UTF-8 is replaced, and missing fields are empty."""
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
