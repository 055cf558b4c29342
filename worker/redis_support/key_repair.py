"""What something else has put at our Redis keys is put aside, and what it stood in the way of goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.chunk import Fetchable
from fetchfleet.jobs.client.submit import Limits, Notify, Receipt, Submitter, WhenFull
from fetchfleet.jobs.errors import KeyTypeConflictError
from fetchfleet.jobs.redis_values import is_text
from fetchfleet.jobs.scripts.repair import ConflictingKey, quarantine, recount, repair_lanes
from fetchfleet.worker.observability import events

KEPT_BYTES = 64 << 10
SCAN_COUNT = 1000
_SIGNS = ("WRONGTYPE", "value is not an integer")


def is_foreign(error: object) -> bool:
    """Whether Redis has refused a call because what is at a key is not ours."""
    if not isinstance(error, ResponseError):
        return False
    return isinstance(error, KeyTypeConflictError) or any(sign in str(error) for sign in _SIGNS)


class Foreign:
    """One for a worker process; `run` is its task. It does not depend on arq: its queue is a key too."""

    def __init__(self, redis: Redis, lease_ms: int, log: Any, check_s: float = 5.0) -> None:
        self._redis = redis
        self._lease_ms = lease_ms
        self._log = log
        self._check_s = check_s
        self._asked = asyncio.Event()

    def look_soon(self) -> None:
        """Something foreign was met."""
        self._asked.set()

    async def run(self) -> None:
        """Look at the keys that a fleet has once, every few seconds and when asked to, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_s):
                    await self._asked.wait()
            self._asked.clear()
            try:
                await self.put_aside(keys.FIXED)
            except (RedisError, OSError) as error:
                events.redis_trouble(error, self._log)
                await asyncio.sleep(1)

    async def mend(self, error: object, lane: str, others: Mapping[str, str] | None = None) -> bool:
        """Whether what the error told of, at a lane's keys or the others, is out of the way."""
        if not is_foreign(error):
            return False
        kinds = {**keys.FIXED, **keys.kinds_of_lane(lane), **(others or {})}
        if isinstance(error, KeyTypeConflictError):
            kinds[error.key] = error.wanted
        return bool(await self.put_aside(kinds, lane))

    async def put_aside(self, kinds: Mapping[str, str], lane: str | None = None) -> list[ConflictingKey]:
        """Move what is not of its kind to the dead letters, tell of it, and see to who is left waiting."""
        moved = await quarantine(self._redis, kinds, kept_bytes=KEPT_BYTES)
        for found in moved:
            events.foreign(found.key, found.type, found.kind, self._log)
        if moved:
            await self._see_to({found.key for found in moved}, lane)
        return moved

    async def _see_to(self, moved: set[str], lane: str | None) -> None:
        """Lanes that nobody would look at any more are begun anew, and what was counted is counted again."""
        everywhere = bool(moved & {keys.ATTENTION, keys.BACKLOG})
        begun = {lane} if lane else {key.removeprefix(keys.lane("")) for key in moved if _is_lane(key)}
        lanes = await self._all_lanes() | begun if everywhere else begun
        await repair_lanes(self._redis, lanes, lease_ms=self._lease_ms)
        if keys.BACKLOG in moved:
            await recount(self._redis, lanes)

    async def clear_queue(self) -> None:
        """What cannot be the id of a job goes out of arq's queue: its loop would end there for ever."""
        first = 0
        while found := await self._redis.zrange(keys.QUEUE, first, first + SCAN_COUNT - 1):
            others = [member for member in found if not is_text(member)]
            if others:
                await self._bury(keys.QUEUE, others)
            first += len(found) - len(others)

    async def _bury(self, key: str, members: Sequence[bytes]) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            for member in members:
                letter = {"door": "key", "reason": "invalid", "note": f"{key} held it", "element": member}
                pipe.xadd(keys.DEAD, letter, maxlen=keys.DEAD_LENGTH)  # type: ignore[arg-type]
            pipe.zrem(key, *members)
            await pipe.execute()
        events.foreign(key, "member that is no text", "id of a job", self._log)

    async def _all_lanes(self) -> set[str]:
        prefix = keys.lane("")
        found = self._redis.scan_iter(match=f"{prefix}*", count=SCAN_COUNT)
        return _texts([name async for name in found], prefix)


class PatientSubmitter(Submitter):
    """A worker's way in for what came by a door: nobody is there to be told of a foreign key."""

    def __init__(self, foreign: Foreign, redis: Redis, notify: Notify, limits: Limits) -> None:
        super().__init__(redis, notify, limits)
        self._foreign = foreign

    async def submit(
        self,
        fetches: Iterable[Fetchable] | AsyncIterable[Fetchable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
    ) -> Receipt:
        """As Submitter does; what is in the way is put aside first, if the same may be said twice."""
        try:
            return await super().submit(fetches, batch_id=batch_id, when_full=when_full)
        except KeyTypeConflictError as error:
            if batch_id is None or not isinstance(fetches, Sequence):
                raise
            await self._foreign.put_aside({error.key: error.wanted})
            return await super().submit(fetches, batch_id=batch_id, when_full=when_full)


def _is_lane(key: str) -> bool:
    return key.startswith(keys.lane(""))


def _texts(names: Iterable[bytes], prefix: str) -> set[str]:
    return {name.decode(errors="replace").removeprefix(prefix) for name in names}
