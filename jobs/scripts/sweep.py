"""The scripts of the sweep, and those that remove invalid members from the fleet's sorted sets."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call

MAX_JOB_ID_BYTES = 1024
"""Longest ID of an arq job: that of a notification contains the name of a lane."""

MAX_TRIES = 1_000_000
"""Maximum number of starts of an arq job; a larger number comes from another program."""

MAX_PROGRESS_MS = 150_000
"""The maximum time for which a job is marked as in progress: more than any arq function may take."""

NAME = "\0"
"""Placeholder for a member's name in the pattern of a key; no valid name contains it."""


async def take_turn(redis: Redis, task: str, *, every_ms: int) -> bool:
    """Return whether this worker may do a task of the fleet now: no worker did it within every_ms.

    task: the key with the time of the last turn, keys.SWEPT or keys.STATUS_LOGGED.
    """
    return bool(await runner.run(redis, "turn", [task], [every_ms, keys.TURN_TTL_MS]))


async def end_leases(redis: Redis, held: Sequence[tuple[str, str]]) -> None:
    """End the leases of lanes whose owners are known to be dead, each given by lane and owner.

    The next sweep reclaims the lanes. A lane with another owner, or with a conflicting key, stays as it is.
    """
    calls = [Call("end_lease", [keys.lane(lane), keys.ATTENTION], [lane, owner]) for lane, owner in held]
    if calls:
        await runner.run_many(redis, calls)


class DueJobs(NamedTuple):
    """Jobs that may run now."""

    ids: list[bytes]
    checked: int
    """Number of members that were checked."""
    removed: int
    """Number of members without a job, which were removed."""
    first: bytes
    """The beginning of the first member that was removed."""


async def due_jobs(
    redis: Redis, *, until_ms: int, limit: int, check: int, max_bytes: int, refuse_with: str
) -> DueJobs:
    """Return up to `limit` jobs of arq's queue that are due by until_ms, among the first `check` members.

    Members without a job are removed. A job of more than max_bytes is replaced by one for the arq function
    refuse_with.
    """
    args: list[Arg] = [
        *(until_ms, limit, check, MAX_JOB_ID_BYTES, max_bytes, MAX_TRIES, MAX_PROGRESS_MS),
        *(keys.arq_job(""), keys.arq_in_progress(""), keys.arq_tries(""), refuse_with),
    ]
    return DueJobs(*await runner.run(redis, "due_jobs", [keys.QUEUE], args))


async def names(
    redis: Redis,
    key: str,
    *,
    until: int,
    skip: int = 0,
    limit: int,
    max_bytes: int,
    newest_first: bool = False,
) -> list[str]:
    """Return names from a sorted set, with scores up to `until`; remove members that cannot be names."""
    reply = await runner.run(redis, "names", [key], [until, skip, limit, int(newest_first), max_bytes])
    return [name.decode() for name in reply]


class ForeignRemoval(NamedTuple):
    """The result of a check of members of a sorted set."""

    checked: int
    """Number of members that were checked."""
    removed: int
    """Number of members without a key, which were removed."""
    first: str
    """The beginning of the first member that was removed."""
    moved: int
    """Number of members that got another score."""


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
    """Remove members that are not text, too long, or have none of their keys.

    patterns: keys of a member, each with NAME once. scores: lowest and highest score to check. move_to: new
    score of the other members; None keeps their scores.
    """
    parts = [part for pattern in patterns for part in pattern.split(NAME)]
    moved_to: Arg = "" if move_to is None else move_to
    args: list[Arg] = [*scores, skip, count, max_name_bytes, moved_to, *parts]
    checked, removed, first, moved = await runner.run(redis, "remove_foreign", [key], args)
    return ForeignRemoval(checked, removed, text_of(first), moved)
