"""Removes members that another program wrote to the sorted sets of the fleet, in any number.

Workers read a page from the front of such a set. Foreign members would hide those behind them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS
from fetchfleet.jobs.notifications import GRACE_MS
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.jobs.scripts.sweep import MAX_JOB_ID_BYTES, NAME, remove_foreign
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.redis_support.drains import MAX_MEMBERS
from fetchfleet.worker.util.clock import mono_s

CHECKED = 1_000
"""The maximum number of members checked by one call, so that Redis can serve other clients in between."""

WITHIN_S = 0.5
"""The maximum time to clean one set. The next sweep continues."""

MAX_NAME_BYTES = 300
"""The maximum length of a lane or instance name, in bytes. A host has at most 253."""

MAX_DEFERRED_MS = 400 * 24 * 3600 * 1000
"""The maximum time for which an arq job is deferred."""

DUE = 1
"""The score of an arq job, or of a batch with a webhook, that is due by every clock."""

KEPT_BYTES = 1_000
"""The maximum number of bytes that a dead letter keeps of a member."""


class _Range(NamedTuple):
    """A range of scores of a sorted set, and how its members are checked."""

    key: str
    what: str
    """The kind of a foreign member, for logs and dead letters; empty for members that are just expired."""
    patterns: Sequence[str]
    """Keys with a placeholder for the member. A member of the fleet has at least one of them."""
    lowest: float | str
    """The lowest score."""
    highest: float | str
    """The highest score."""
    max_name_bytes: int = MAX_NAME_BYTES
    """Longer members are foreign."""
    move_to: int | None = None
    """The new score of members of the fleet, which do not belong in this range; None to leave them."""


class ForeignMembers:
    """Removes foreign members. One for each worker process."""

    def __init__(self, redis: Redis, log: FilteringBoundLogger, within_s: float = WITHIN_S) -> None:
        self._redis = redis
        self._log = log
        self._within_s = within_s
        self._repeats = Repeats()
        self._checked: dict[tuple[str, bool], int] = {}
        """The offset from which the next sweep checks a range."""

    async def remove(self) -> None:
        """Check a page at the front of each range and the next page of it; more while members are foreign."""
        now_ms = await redis_now_ms(self._redis)
        for scores in _ranges(now_ms):
            await self._remove(scores)
        await self._remove_impossible(now_ms)

    async def remove_batches(self) -> None:
        """Remove expired batches from the list of batches."""
        await self._remove(_Range(keys.BATCHES, "", [keys.batch(NAME)], "-inf", "+inf", BATCH_ID_CHARS))

    async def _remove(self, stretch: _Range) -> None:
        place, give_up_s = (stretch.key, stretch.move_to is None), mono_s() + self._within_s
        removed, first = 0, ""
        skip = 0
        for start in dict.fromkeys((0, self._checked.get(place, 0))):
            skip, changed = start, 1
            while changed and mono_s() < give_up_s:
                reply = await remove_foreign(
                    self._redis,
                    stretch.key,
                    stretch.patterns,
                    scores=(stretch.lowest, stretch.highest),
                    skip=skip,
                    count=CHECKED,
                    max_name_bytes=stretch.max_name_bytes,
                    move_to=stretch.move_to,
                )
                removed, first = removed + reply.removed, first or reply.first
                changed = reply.removed + reply.moved
                skip += reply.checked - changed
                if reply.checked < CHECKED:
                    skip = changed = 0
        self._checked[place] = skip
        if removed and stretch.what:
            await self.report(stretch.key, stretch.what, removed, first.encode())

    async def _remove_impossible(self, now_ms: int) -> None:
        """Remove deaths that are too old or in the future, and collections that are too large for a fleet."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zremrangebyscore(keys.DEATHS, "-inf", now_ms - keys.DEATHS_WINDOW_MS)
            pipe.zremrangebyscore(keys.DEATHS, now_ms + keys.WORKER_TTL_MS, "+inf")
            pipe.zcard(keys.DEATHS)
            pipe.hlen(keys.DRAINS)
            pipe.hlen(keys.HANDED)
            pipe.scard(keys.LACKING)
            _, _, *counts = await pipe.execute(raise_on_error=False)  # a key may have another type
        for key, members in zip((keys.DEATHS, keys.DRAINS, keys.HANDED, keys.LACKING), counts, strict=True):
            if isinstance(members, Exception):
                continue
            if members > MAX_MEMBERS:
                await self._redis.unlink(key)
                await self.report(key, "members, more than a fleet has", members, b"")

    async def report(self, key: str, what: str, removed: int, first: bytes) -> None:
        """Log that members were removed and write the first as a dead letter, at most once a minute."""
        left_out = self._repeats.admit((key, what), mono_s())
        if left_out is None:
            return
        events.foreign_members(key, what, removed, left_out, self._log)
        note = f"{key} held {removed} such members: {what}"
        letter = {"door": "key", "reason": "invalid", "note": note, "element": first[:KEPT_BYTES]}
        await self._redis.xadd(keys.DEAD, letter, maxlen=keys.DEAD_LENGTH)  # type: ignore[arg-type]


def _ranges(now_ms: int) -> list[_Range]:
    """Return the ranges to check."""
    lane, job, batch = [*keys.kinds_of_lane(NAME)], [keys.arq_job(NAME)], [keys.batch(NAME)]
    due_ms, never_ms = now_ms + GRACE_MS, now_ms + keys.LONGEST_WAIT_MS
    # The report of a dead worker may expire shortly before the next heartbeat removes its name.
    reported_ms = now_ms - keys.WORKER_TTL_MS // 2
    deferred_ms = now_ms + MAX_DEFERRED_MS
    return [
        _Range(keys.ATTENTION, "name of no lane", lane, "-inf", due_ms),
        _Range(keys.ATTENTION, "name of no lane", lane, never_ms, "+inf", move_to=due_ms),
        _Range(keys.WORKERS, "name of no worker", [keys.worker(NAME)], reported_ms, math.inf),
        _Range(keys.WEBHOOKS, "ID of no batch", batch, now_ms + GRACE_MS, "+inf", BATCH_ID_CHARS, DUE),
        _Range(keys.QUEUE, "member without a job", job, "-inf", deferred_ms, MAX_JOB_ID_BYTES),
        _Range(keys.QUEUE, "member without a job", job, deferred_ms, "+inf", MAX_JOB_ID_BYTES, DUE),
    ]
