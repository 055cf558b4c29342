"""The dead letters: fetches that failed for good, and what was no fetch at all."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter
from fetchfleet.jobs.contract.entry import BadElementError, from_element
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.contract.model import Fetch

READ_COUNT = 500
SHOWN_CHARS = 2000


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter.

    position: its name among them. door: where it was met: lane, inbox or arq. reason: of the closed list
    of results. note: what exactly was wrong. id, lane, fetch: None if it was no fetch. text: what was found.
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
        """The batch that it was of."""
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
    """What became of a retry.

    fetches: how many were enqueued again, as which batches. left: letters that hold no fetch, and stay.
    """

    fetches: int
    batches: list[str]
    left: int


class DeadLetters:
    """At most DEAD_LENGTH of them are kept; the oldest go first."""

    def __init__(self, redis: Redis, submitter: Submitter) -> None:
        self._redis = redis
        self._submitter = submitter

    async def iter(self, which: DeadLetterFilter = ANY) -> AsyncIterator[DeadLetter]:
        """The letters, the oldest first."""
        async for letters in self._pieces(which):
            for letter in letters:
                yield letter

    async def retry(self, which: DeadLetterFilter = ANY) -> Retried:
        """Submit the fetches again, as new ones, and drop their letters; safe to repeat after a crash.

        Letters that come meanwhile stay. Raises what Fleet.submit raises.
        """
        fetches, batches, left = 0, list[str](), 0
        async for letters in self._pieces(which):
            found = {letter.position: letter.fetch for letter in letters if letter.fetch is not None}
            left += len(letters) - len(found)
            if found:
                again = [_again(position, fetch) for position, fetch in found.items()]
                receipt = await self._submitter.submit(again)
                await self._redis.xdel(keys.DEAD, *found)
                fetches += len(found)
                batches += dict.fromkeys(batch_of(of) for of in receipt.ids)
        return Retried(fetches=fetches, batches=batches, left=left)

    async def purge(self, which: DeadLetterFilter = ANY) -> int:
        """Drop the letters; how many."""
        count = 0
        async for letters in self._pieces(which):
            if letters:
                count += await self._redis.xdel(keys.DEAD, *(letter.position for letter in letters))
        return count

    async def _pieces(self, which: DeadLetterFilter) -> AsyncIterator[list[DeadLetter]]:
        """Those that are there now: what is enqueued again may soon be among them again."""
        newest = await self._redis.xrevrange(keys.DEAD, count=1)
        start, end = "-", newest[0][0] if newest else "-"
        while rows := await self._redis.xrange(keys.DEAD, start, end, READ_COUNT):
            letters = [_letter(position.decode(), fields) for position, fields in rows]
            yield [letter for letter in letters if which.matches(letter)]
            start = f"({letters[-1].position}"


def _again(position: str, fetch: Fetch) -> Fetch:
    """The fetch with its letter for a key: each letter becomes one fetch, however often it is retried."""
    return msgspec.structs.replace(fetch, key=f"dead letter {position}")


def _letter(position: str, fields: dict[bytes, bytes]) -> DeadLetter:
    text = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    return DeadLetter(
        position=position,
        door=text.get("door", ""),
        reason=text.get("reason", ""),
        note=text.get("note", ""),
        lane=text.get("lane") or None,
        id=text.get("id") or None,
        fetch=_fetch(fields.get(b"element", b"")),
        text=text.get("element", "")[:SHOWN_CHARS],
    )


def _fetch(element: bytes) -> Fetch | None:
    try:
        return from_element(element).fetch
    except BadElementError:
        return None
