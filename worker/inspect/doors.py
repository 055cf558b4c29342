"""Fetches that wait outside of the lanes until a worker enqueues it: inbox messages, and arq jobs.

A message or job may hold 100,000 fetches and 8 MiB, so at most READ_BYTES of each door are read to count
them. Each message beyond that counts as one fetch, and the count is then not exact.
"""

import re
from contextlib import suppress
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import is_inbox_name
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.worker.intake.arq_jobs import FETCH

READ_BYTES = 16 << 20
JOBS_LOOKED_AT = 10_000
_INTERNAL_ID = re.compile(r"lane:.*:[0-9]+|sweep:[0-9]+", re.DOTALL)
"""The ids of the fleet's own jobs: notifications and cron jobs."""


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """The messages or arq jobs at a door."""

    messages: int = 0
    fetches: int = 0
    """The fetches in them; a message that was not read counts as one."""
    exact: bool = True
    """False if some were not read."""
    oldest_s: float | None = None
    """Since the oldest was enqueued; None if that is not known."""
    for_newer: int = 0
    """Inbox messages beside these that are put aside for a newer worker."""


class _Message(msgspec.Struct):
    """The part of an inbox message that tells how many fetches it holds."""

    fetches: list[msgspec.Raw] | None = None


class _Job(msgspec.Struct):
    """The part of an arq job that tells how many fetches it holds, and since when."""

    f: str
    a: list[msgspec.Raw] = []
    et: int = 0


class CountedJob(NamedTuple):
    """The number of fetches in an arq job, and the time of its enqueueing (Unix ms, 0 if unknown)."""

    fetches: int
    enqueued_ms: int


_message = msgspec.json.Decoder(_Message).decode
_job = msgspec.json.Decoder(_Job).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def fetches_in_message(message: bytes) -> int:
    """Return how many fetches an inbox message holds; 1 if it is invalid and will be a dead letter. Pure."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _message(message).fetches
        return 1 if found is None else len(found)
    return 1


def fetches_in_job(raw: bytes) -> CountedJob:
    """Return how many fetches an arq job holds, and when it was enqueued. Pure."""
    try:
        job = _job(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return CountedJob(1, 0)
    what = bytes(job.a[0]).lstrip() if job.f == FETCH and job.a else b""
    return CountedJob(len(_list(what)) if what.startswith(b"[") else 1, max(0, job.et))


async def messages_at_doors(redis: Redis) -> int:
    """Return how many messages and arq jobs, for any host, no worker has enqueued yet. Reads none of them."""
    queued = await redis.zcard(keys.QUEUE)
    names = [text_of(member) for member in await redis.zrange(keys.QUEUE, 0, JOBS_LOOKED_AT - 1)]
    internal = sum(1 for name in names if _INTERNAL_ID.fullmatch(name))
    inbox = sum((await _lengths(redis, await _inbox_lists(redis))).values())
    return int(inbox + max(len(names), queued) - internal)


async def _inbox_lists(redis: Redis) -> list[str]:
    """Return the lists of the shared inbox and of the registered ones, with what a worker is enqueuing."""
    found = await redis.smembers(keys.INBOXES)  # type: ignore[misc]
    names = sorted(name for name in map(text_of, found) if is_inbox_name(name))
    return [key for name in ("", *names) for key in (keys.inbox(name), keys.taken(name))]


async def _lengths(redis: Redis, lists: list[str]) -> dict[str, int]:
    async with redis.pipeline(transaction=False) as pipe:
        for key in lists:
            pipe.llen(key)
        found = await pipe.execute()
    return {key: int(length) for key, length in zip(lists, found, strict=True) if length}


async def inbox_door(redis: Redis) -> Door:
    """Count the inboxes, with the messages that a worker is enqueuing. Their messages carry no time."""
    lists = await _inbox_lists(redis)
    aside = [keys.newer(key.removeprefix(keys.inbox()).removeprefix(":")) for key in lists[::2]]
    messages = fetches = 0
    exact, room = True, READ_BYTES
    for key, length in (await _lengths(redis, lists)).items():
        found: list[bytes] | None = None
        with suppress(ResponseError):  # a managed Redis may deny MEMORY USAGE
            used = await redis.memory_usage(key, samples=0) or 0
            if used <= room:
                room -= used
                found = await redis.lrange(key, 0, -1)  # type: ignore[misc]
        if found is None:
            messages, fetches, exact = messages + length, fetches + length, False
        else:
            messages, fetches = messages + len(found), fetches + sum(map(fetches_in_message, found))
    for_newer = sum((await _lengths(redis, aside)).values())
    return Door(messages=messages, fetches=fetches, exact=exact, for_newer=for_newer)


async def arq_door(redis: Redis, now_ms: int) -> Door:
    """Count the arq jobs that no worker has enqueued yet; the fleet's own jobs are none of them."""
    queued = await redis.zcard(keys.QUEUE)
    rows = await redis.zrange(keys.QUEUE, 0, JOBS_LOOKED_AT - 1, withscores=True)
    # A foreign member may have any score; that of a job is the time when it is due.
    score_ms = {text_of(member): int(score) if 0 < score < now_ms else now_ms for member, score in rows}
    jobs = [name for name in score_ms if not _INTERNAL_ID.fullmatch(name)]
    raws = await _raw_jobs(redis, jobs)
    messages = fetches = unseen = max(0, queued - len(rows))
    oldest_ms = now_ms
    for name in jobs:
        if name in raws and raws[name] is None:
            continue  # it has just ended
        raw = raws.get(name)
        job = CountedJob(1, 0) if raw is None else fetches_in_job(raw)
        messages, fetches = messages + 1, fetches + job.fetches
        oldest_ms = min(oldest_ms, job.enqueued_ms or score_ms[name])
    oldest_s = round((now_ms - oldest_ms) / 1000, 3) if messages > unseen else None
    exact = len(raws) == len(jobs) and not unseen
    return Door(messages=messages, fetches=fetches, exact=exact, oldest_s=oldest_s)


async def _raw_jobs(redis: Redis, jobs: list[str]) -> dict[str, bytes | None]:
    """Return the serialized jobs that fit in READ_BYTES, by their ids; None for one that has ended."""
    async with redis.pipeline(transaction=False) as pipe:
        for name in jobs:
            pipe.strlen(keys.arq_job(name))
        lengths = await pipe.execute()
    chosen, room = [], READ_BYTES
    for name, length in zip(jobs, lengths, strict=True):
        if length <= room:
            chosen.append(name)
            room -= length
    found = await redis.mget([keys.arq_job(name) for name in chosen]) if chosen else []
    return dict(zip(chosen, found, strict=True))
