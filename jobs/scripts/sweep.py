"""The scripts that keep the fleet's sorted sets free of what other programs write to them.

Each function is the only caller of the Lua file of the same name in jobs/lua, whose header documents KEYS and
ARGV in the order used here.
"""

from collections.abc import Iterable
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg

MAX_JOB_ID_BYTES = 1024
"""The longest id of an arq job: that of a notification holds a lane's name."""

MAX_TRIES = 1_000_000

MAX_PROGRESS_MS = 150_000
"""More than a job of any function may take; arq marks a job as in progress for so long."""

NAME = "\0"
"""Stands for a member's name in the pattern of a key; no valid name holds it."""


async def sweep_turn(redis: Redis, *, every_ms: int) -> bool:
    """Return whether it is this worker's turn to sweep: no other has had it within the interval."""
    return bool(await runner.run(redis, "sweep_turn", [keys.SWEPT], [every_ms, keys.SWEPT_TTL_MS]))


class DueJobs(NamedTuple):
    """Jobs that may run now, and what was in the queue before them.

    checked: how many members were looked at. removed: how many of them had no job; first: one of these.
    """

    ids: list[bytes]
    checked: int
    removed: int
    first: bytes


async def due_jobs(
    redis: Redis, *, until_ms: int, most: int, check: int, max_bytes: int, refuse_with: str
) -> DueJobs:
    """Return up to `most` jobs of arq's queue that are due, of the first `check` members.

    Members without a job are removed. max_bytes: a larger job is replaced by one of the function refuse_with.
    """
    args: list[Arg] = [
        *(until_ms, most, check, MAX_JOB_ID_BYTES, max_bytes, MAX_TRIES, MAX_PROGRESS_MS),
        *(keys.arq_job(""), keys.arq_in_progress(""), keys.arq_tries(""), refuse_with),
    ]
    return DueJobs(*await runner.run(redis, "due_jobs", [keys.QUEUE], args))


async def names(
    redis: Redis,
    key: str,
    *,
    until: int,
    skip: int = 0,
    most: int,
    max_bytes: int,
    newest_first: bool = False,
) -> list[str]:
    """Return names in a sorted set with scores up to `until`; remove members that cannot be names."""
    found = await runner.run(redis, "names", [key], [until, skip, most, int(newest_first), max_bytes])
    return [name.decode() for name in found]


class ForeignRemoval(NamedTuple):
    """The outcome of a look at some members of a sorted set.

    checked: how many were looked at. removed: how many of them stand for nothing; first: one of these.
    moved: how many of the others got another score.
    """

    checked: int
    removed: int
    first: str
    moved: int


async def remove_foreign(
    redis: Redis,
    key: str,
    patterns: Iterable[str],
    *,
    scores: tuple[float | str, float | str],
    skip: int = 0,
    count: int,
    max_name_bytes: int,
    move_to: int | None = None,
) -> ForeignRemoval:
    """Remove members that are no text, too long, or have none of their keys.

    patterns: a member's keys, each with NAME once. scores: the lowest and the highest to look at.
    move_to: the score that the other members get; None leaves theirs.
    """
    parts = [part for pattern in patterns for part in pattern.split(NAME)]
    moved_to: Arg = "" if move_to is None else move_to
    args: list[Arg] = [*scores, skip, count, max_name_bytes, moved_to, *parts]
    checked, removed, first, moved = await runner.run(redis, "remove_foreign", [key], args)
    return ForeignRemoval(checked, removed, text_of(first), moved)
