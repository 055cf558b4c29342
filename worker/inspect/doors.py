"""The doors of a fleet: inbox messages and arq jobs that no worker has enqueued in lanes yet.

A message or job may contain 100,000 fetches and 8 MiB, so at most READ_BYTES of a door are read to count its
fetches. Each message beyond that counts as one fetch, and the count is not exact.
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
MAX_INBOXES = 10_000
"""The maximum number of named inboxes. A larger set was not written by a fleet."""

_INTERNAL_ID = re.compile(r"lane:.*:[0-9]+|sweep:[0-9]+", re.DOTALL)
"""The IDs of the fleet's internal jobs: lane notifications and cron jobs."""


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """The inbox messages, or the arq jobs, that wait at a door."""

    messages: int = 0
    fetches: int = 0
    """The number of fetches in the messages. A message that was not read counts as one."""
    exact: bool = True
    """False if some messages were not read."""
    oldest_s: float | None = None
    """The age of the oldest message or job; None if unknown."""
    for_newer: int = 0
    """The inbox messages that are quarantined for a newer worker; not in `messages`."""


class _Message(msgspec.Struct):
    """The field of an inbox message that is needed to count its fetches."""

    fetches: list[msgspec.Raw] | None = None


class _Job(msgspec.Struct):
    """The fields of an arq job that are needed to count its fetches, by arq's own names."""

    f: str
    """The function."""
    a: list[msgspec.Raw] = []
    """The arguments."""
    et: int = 0
    """The time when it was enqueued, Unix ms."""


class CountedJob(NamedTuple):
    """The number of fetches in an arq job, and its age."""

    fetches: int
    enqueued_ms: int
    """Unix ms; 0 if unknown."""


_message = msgspec.json.Decoder(_Message).decode
_job = msgspec.json.Decoder(_Job).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def fetches_in_message(message: bytes) -> int:
    """Return the number of fetches in an inbox message; 1 for an invalid one. Pure."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fetches = _message(message).fetches
        return 1 if fetches is None else len(fetches)
    return 1


def fetches_in_job(raw: bytes) -> CountedJob:
    """Return the number of fetches in a serialized arq job, and the time when it was enqueued. Pure."""
    try:
        job = _job(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return CountedJob(1, 0)
    argument = bytes(job.a[0]).lstrip() if job.f == FETCH and job.a else b""
    return CountedJob(len(_list(argument)) if argument.startswith(b"[") else 1, max(0, job.et))


class Waiting(NamedTuple):
    """The number of messages and jobs that no worker has enqueued yet, for any host."""

    inbox: int
    """The inbox messages."""
    arq: int
    """The arq jobs."""


async def waiting_at_doors(redis: Redis) -> Waiting:
    """Count the inbox messages and the arq jobs, without reading them."""
    queued = await redis.zcard(keys.QUEUE)
    names = [text_of(member) for member in await redis.zrange(keys.QUEUE, 0, JOBS_LOOKED_AT - 1)]
    internal = sum(1 for name in names if _INTERNAL_ID.fullmatch(name))
    inbox = sum((await _lengths(redis, await _inbox_lists(redis))).values())
    return Waiting(inbox, max(len(names), queued) - internal)


async def _inbox_lists(redis: Redis) -> list[str]:
    """Return the keys of all inboxes, each followed by that of its messages in progress."""
    few = await redis.scard(keys.INBOXES) <= MAX_INBOXES  # type: ignore[misc]
    members = await redis.smembers(keys.INBOXES) if few else set[bytes]()  # type: ignore[misc]
    names = sorted(name for name in map(text_of, members) if is_inbox_name(name))
    return [key for name in ("", *names) for key in (keys.inbox(name), keys.taken(name))]


async def _lengths(redis: Redis, lists: list[str]) -> dict[str, int]:
    """Return the lengths of the lists that are not empty, by key."""
    async with redis.pipeline(transaction=False) as pipe:
        for key in lists:
            pipe.llen(key)
        lengths = await pipe.execute()
    return {key: int(length) for key, length in zip(lists, lengths, strict=True) if length}


async def inbox_door(redis: Redis) -> Door:
    """Count the messages of all inboxes, those in progress included. Messages have no time."""
    lists = await _inbox_lists(redis)
    quarantines = [keys.newer(key.removeprefix(keys.inbox()).removeprefix(":")) for key in lists[::2]]
    messages = fetches = 0
    exact, left_bytes = True, READ_BYTES
    for key, length in (await _lengths(redis, lists)).items():
        texts: list[bytes] | None = None
        with suppress(ResponseError):  # a managed Redis may deny MEMORY USAGE
            used_bytes = await redis.memory_usage(key, samples=0) or 0
            if used_bytes <= left_bytes:
                left_bytes -= used_bytes
                texts = await redis.lrange(key, 0, -1)  # type: ignore[misc]
        if texts is None:
            messages, fetches, exact = messages + length, fetches + length, False
        else:
            messages, fetches = messages + len(texts), fetches + sum(map(fetches_in_message, texts))
    for_newer = sum((await _lengths(redis, quarantines)).values())
    return Door(messages=messages, fetches=fetches, exact=exact, for_newer=for_newer)


async def arq_door(redis: Redis, now_ms: int) -> Door:
    """Count the arq jobs whose fetches are not enqueued yet, without the fleet's internal jobs."""
    queued = await redis.zcard(keys.QUEUE)
    rows = await redis.zrange(keys.QUEUE, 0, JOBS_LOOKED_AT - 1, withscores=True)
    # The score of a job is its due time. A member written by another program may have any score.
    score_ms = {text_of(member): int(score) if 0 < score < now_ms else now_ms for member, score in rows}
    jobs = [name for name in score_ms if not _INTERNAL_ID.fullmatch(name)]
    raws = await _raw_jobs(redis, jobs)
    messages = fetches = unread = max(0, queued - len(rows))
    oldest_ms = now_ms
    for name in jobs:
        if name in raws and raws[name] is None:
            continue  # it ended after the queue was read
        raw = raws.get(name)
        job = CountedJob(1, 0) if raw is None else fetches_in_job(raw)
        messages, fetches = messages + 1, fetches + job.fetches
        oldest_ms = min(oldest_ms, job.enqueued_ms or score_ms[name])
    oldest_s = round((now_ms - oldest_ms) / 1000, 3) if messages > unread else None
    exact = len(raws) == len(jobs) and not unread
    return Door(messages=messages, fetches=fetches, exact=exact, oldest_s=oldest_s)


async def _raw_jobs(redis: Redis, jobs: list[str]) -> dict[str, bytes | None]:
    """Return the serialized jobs that fit in READ_BYTES, by ID; None for a job that has ended."""
    async with redis.pipeline(transaction=False) as pipe:
        for name in jobs:
            pipe.strlen(keys.arq_job(name))
        lengths = await pipe.execute()
    names, left_bytes = [], READ_BYTES
    for name, length_bytes in zip(jobs, lengths, strict=True):
        if length_bytes <= left_bytes:
            names.append(name)
            left_bytes -= length_bytes
    raws = await redis.mget([keys.arq_job(name) for name in names]) if names else []
    return dict(zip(names, raws, strict=True))
