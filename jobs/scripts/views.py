"""The scripts that describe lanes, batches and consumer groups. They change nothing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.fetch import DEFAULT_DEADLINE_S
from fetchfleet.jobs.redis_connection import number_of, text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call

ROWS_AT_ONCE = 100
"""The number of lanes that one call describes, so that Redis can serve other clients in between."""

ENTRY_BYTES = 4 << 20
"""The maximum number of bytes of entries that one call reads for their times."""

_NAME = "\0"
_PATTERNS = [keys.lane(_NAME), keys.claimed(_NAME), keys.later(_NAME), *keys.waiting(_NAME)]


class LaneRow(NamedTuple):
    """A lane, as Redis has it. Texts are cut, and values of another program count as none."""

    name: str
    state: str
    """idle, scheduled or held."""
    due_ms: int | None
    shut_until_ms: int | None
    """The time until which no fetch may start, Unix ms."""
    why: str
    """The reason for shut_until_ms."""
    owner: str
    """The instance of the worker that holds the lane, or held it last."""
    waiting: int
    """The number of fetches in its queues."""
    claimed: int
    """The number of fetches that its owner has claimed."""
    submitted_ms: int | None
    """The time of the submit of the oldest fetch in its queues, Unix ms; None if unknown."""
    lease_ends_ms: int | None = None
    """The end of its owner's lease, Unix ms; None if it is not held."""
    last_failure: str = ""
    """The last failure of the host, in words; empty after a good response."""


class LaneRowPage(NamedTuple):
    """Some of the lanes that are not idle."""

    lanes_in_all: int
    """The number of lanes that are not idle."""
    rows: list[LaneRow]


async def lane_rows_of(redis: Redis, names: Sequence[str]) -> list[LaneRow]:
    """Describe the lanes with these names, which may be idle or unknown."""
    return [
        row
        for start in range(0, len(names), ROWS_AT_ONCE)
        for row in (await lane_rows(redis, lanes=names[start : start + ROWS_AT_ONCE])).rows
    ]


async def lane_rows(redis: Redis, first: int = 0, *, lanes: Sequence[str] = ()) -> LaneRowPage:
    """Describe ROWS_AT_ONCE lanes that are not idle, from the place `first` on, or these lanes instead.

    Names that are too long for a lane are left out.
    """
    parts = [part for pattern in _PATTERNS for part in pattern.split(_NAME)]
    page: list[Arg] = [
        first,
        first + ROWS_AT_ONCE - 1,
        keys.MAX_LANE_NAME_BYTES,
        DEFAULT_DEADLINE_S,
        ENTRY_BYTES,
    ]
    in_all, rows = await runner.run(redis, "lane_rows", [keys.ATTENTION], [*page, *parts, *lanes])
    return LaneRowPage(in_all, [_lane_row(row) for row in rows])


def _lane_row(reply: Sequence[Any]) -> LaneRow:
    name, state, due, shut_until, why, owner, waiting, claimed, submitted, lease_ends, last_failure = reply
    return LaneRow(
        text_of(name),
        text_of(state),
        number_of(due),
        number_of(shut_until),
        text_of(why),
        text_of(owner),
        waiting,
        claimed,
        number_of(submitted) or None,
        number_of(lease_ends),
        text_of(last_failure),
    )


MAX_GROUPS = 100
MAX_GROUP_NAME_BYTES = 200
COUNTED_UNREAD = 1_000
"""The maximum number of results to count for a group whose lag Redis does not know."""


async def unread_results(redis: Redis) -> dict[str, int]:
    """Return for each consumer group of the stream of all results how many it has not acknowledged.

    MAX_GROUPS are read. Redis does not know the lag of a group that an operator has moved; for these the
    number is counted, up to COUNTED_UNREAD.
    """
    args = [MAX_GROUPS, MAX_GROUP_NAME_BYTES, COUNTED_UNREAD]
    groups = await runner.run(redis, "unread_results", [keys.ALL_RESULTS], args)
    return {text_of(name): lag + pending for name, lag, pending in groups}


class NewestResults(NamedTuple):
    """The newest results of a batch."""

    length: int
    """The number of results in the stream. Readers may have removed earlier ones."""
    number: int
    """The number of results that were read."""
    oldest_ms: int
    """The time of the oldest of them, Unix ms; 0 without one."""
    now_ms: int
    """Unix ms by the clock of Redis."""


async def recent_results(
    redis: Redis, batch_ids: Sequence[str], *, count: int, within_ms: int
) -> list[NewestResults]:
    """Describe the newest results of each batch, `count` at most and not older than within_ms."""
    calls = [Call("result_rate", [keys.results(batch_id)], [count, within_ms]) for batch_id in batch_ids]
    replies = await runner.run_many(redis, calls) if calls else []
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return [NewestResults(*reply) for reply in replies]
