"""The dead letters of a fleet, newest first: pages of those that match, their number, and one in detail."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch_list import MAX_TIME_MS
from fetchfleet.jobs.client.dead_letters import ANY, DeadLetter, DeadLetterFilter, decode_letter, letter_at
from fetchfleet.jobs.contract.ids import is_position
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.worker.observability import redact
from fetchfleet.worker.util.clock import mono_s

MAX_PAGE = 1_000
"""The maximum number of letters on a page."""

READ_AT_ONCE = 100
MAX_READ = 20_000
"""The maximum number of letters to read for a page or a count."""

MAX_READ_BYTES = 64 << 20
"""The number of bytes of letters after which no more are read."""

MAX_READ_S = 2.0
"""The time after which no more letters are read: a page waits for its values for 5 s."""

MAX_NAMES = 20
"""The maximum number of hosts in a count."""

MAX_NAME_CHARS = 300


class DeadLetterRow(msgspec.Struct, frozen=True, kw_only=True):
    """A fetch that failed, or input that is not a fetch. Secrets are masked."""

    position: str
    """The ID of its record in the stream of dead letters."""
    at_ms: int
    """The time when it was written, Unix ms."""
    door: str
    """Its source: lane (a failed fetch), inbox, arq, or key (a value of another program)."""
    reason: str
    note: str
    """The exact error."""
    host: str | None
    id: str | None
    """The ID of the fetch; None if it is not a fetch."""
    batch: str | None
    url: str | None
    retriable: bool
    """True if the letter has a fetch, which can be submitted again."""


class DeadLetterPage(msgspec.Struct, frozen=True, kw_only=True):
    """Letters that match, newest first."""

    letters: list[DeadLetterRow]
    next: str | None
    """The position from which the next page goes on; None at the end."""
    in_all: int
    """The number of all dead letters."""


class DeadLetterDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One letter. Secrets are masked."""

    letter: DeadLetterRow
    fetch: dict[str, Any] | None
    """The fetch, with headers and body; None if it is not a fetch."""
    text: str
    """The beginning of the serialized entry or of the input."""


class Matching(msgspec.Struct, frozen=True, kw_only=True):
    """The number of letters that match."""

    count: int
    exact: bool
    """False if there are letters that were not read: the numbers are minima."""
    retriable: int
    """The number of those with a fetch, which can be submitted again."""
    reasons: dict[str, int]
    """Their number by reason, the most frequent first."""
    hosts: dict[str, int]
    """Their number by host, the most frequent first, MAX_NAMES at most."""


class _Read(NamedTuple):
    """A letter that was read."""

    letter: DeadLetter
    is_last_allowed: bool
    """True if no more letters are read after it."""


def known_reason(text: str) -> str:
    """Return the reason. Raises ValueError with the list of reasons if there is no such reason."""
    if text not in frozenset(Reason):
        raise ValueError(f"reason: {text!r} does not exist; the reasons are {', '.join(Reason)}")
    return text


def letter_row(letter: DeadLetter) -> DeadLetterRow:
    """Return a letter without its fetch, with secrets masked. Pure."""
    return DeadLetterRow(
        position=letter.position,
        at_ms=min(int(letter.position.partition("-")[0]), MAX_TIME_MS),
        door=letter.door[:MAX_NAME_CHARS],
        reason=letter.reason[:MAX_NAME_CHARS],
        note=redact.text(letter.note),
        host=letter.lane[:MAX_NAME_CHARS] if letter.lane else None,
        id=letter.id[:MAX_NAME_CHARS] if letter.id else None,
        batch=letter.batch[:MAX_NAME_CHARS] if letter.batch else None,
        url=redact.url(letter.fetch.url) if letter.fetch else None,
        retriable=letter.fetch is not None,
    )


async def dead_letters(
    redis: Redis, which: DeadLetterFilter = ANY, *, before: str | None = None, limit: int = 100
) -> DeadLetterPage:
    """Read the newest letters that match, MAX_PAGE at most. before: `next` of an earlier page.

    If few of many letters match, the page may have fewer than `limit` although it is not the last.
    Raises ValueError if `before` is not a position.
    """
    letters: list[DeadLetterRow] = []
    last: str | None = None
    async for read in _newest_first(redis, before):
        if which.matches(read.letter):
            letters.append(letter_row(read.letter))
        if len(letters) == min(limit, MAX_PAGE) or read.is_last_allowed:
            last = read.letter.position
            break
    return DeadLetterPage(letters=letters, next=last, in_all=await redis.xlen(keys.DEAD))


async def count_dead_letters(redis: Redis, which: DeadLetterFilter = ANY) -> Matching:
    """Count the letters that match, of the newest MAX_READ."""
    count = retriable = 0
    exact = True
    reasons, hosts = Counter[str](), Counter[str]()
    async for read in _newest_first(redis, None):
        if which.matches(read.letter):
            count, retriable = count + 1, retriable + (read.letter.fetch is not None)
            reasons[read.letter.reason[:MAX_NAME_CHARS]] += 1
            if read.letter.lane:
                hosts[read.letter.lane[:MAX_NAME_CHARS]] += 1
        exact = exact and not read.is_last_allowed
    return Matching(
        count=count,
        exact=exact,
        retriable=retriable,
        reasons=dict(reasons.most_common(MAX_NAMES)),
        hosts=dict(hosts.most_common(MAX_NAMES)),
    )


async def dead_letter(redis: Redis, position: str) -> DeadLetterDetail | None:
    """Read one letter; None if there is none at the position."""
    letter = await letter_at(redis, position) if is_position(position) else None
    if letter is None:
        return None
    masked = redact.record(msgspec.to_builtins(letter))
    return DeadLetterDetail(letter=letter_row(letter), fetch=masked["fetch"], text=masked["text"])


async def _newest_first(redis: Redis, before: str | None) -> AsyncIterator[_Read]:
    """Yield the letters before a position, newest first, until a maximum number, size or time is reached."""
    if before is not None and not is_position(before):
        raise ValueError(f"{before!r} is not a position")
    if before is not None and not before.strip("0-"):
        return  # no record is before the first possible ID
    read, read_bytes, began_s = 0, 0, mono_s()
    end = "+" if before is None else f"({before}"
    while rows := await redis.xrevrange(keys.DEAD, end, "-", READ_AT_ONCE):
        for position, fields in rows:
            read, read_bytes = read + 1, read_bytes + sum(map(len, fields.values()))
            is_last = read >= MAX_READ or read_bytes >= MAX_READ_BYTES or mono_s() - began_s >= MAX_READ_S
            yield _Read(decode_letter(position.decode(), fields), is_last)
            if is_last:
                return
        end = f"({rows[-1][0].decode()}"
