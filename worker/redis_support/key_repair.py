"""Repairs keys of the fleet that another program overwrote with a value of the wrong type.

The value becomes a dead letter, the key is removed, and lanes that depend on it are rescheduled.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Limits, Notify, Receipt, Submittable, Submitter, WhenFull
from fetchfleet.jobs.errors import KeyTypeConflictError
from fetchfleet.jobs.redis_connection import is_text
from fetchfleet.jobs.scripts.repair import ConflictingKey, quarantine, recount, repair_lanes, unscheduled
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.util.clock import mono_s

KEPT_BYTES = 64 << 10
"""The maximum number of bytes that a dead letter keeps of a value."""
SCAN_COUNT = 1000
LOST_LANES_SCAN_COUNT = 2000
"""The number of keys that one search for lost lanes scans."""
MAX_KEY_BYTES = 400
"""The maximum length of a lane's key in bytes, for the longest host name."""
_CONFLICT_MESSAGES = ("WRONGTYPE", "value is not an integer")


def is_key_conflict(error: object) -> bool:
    """Return whether a call failed because a key holds a value of the wrong type."""
    if not isinstance(error, ResponseError):
        return False
    return isinstance(error, KeyTypeConflictError) or any(text in str(error) for text in _CONFLICT_MESSAGES)


class KeyRepair:
    """Checks and repairs keys. One for each worker process; `run` is its task.

    It does not depend on arq, whose keys may be affected too.
    """

    def __init__(
        self,
        redis: Redis,
        lease_ms: int,
        report_redis_error: Callable[[BaseException], None],
        log: FilteringBoundLogger,
        check_every_s: float = 5.0,
    ) -> None:
        self._redis = redis
        self._lease_ms = lease_ms
        self._report_redis_error = report_redis_error
        self._log = log
        self._check_every_s = check_every_s
        self._check_wanted = asyncio.Event()
        self._cursor = 0
        self._repeats = Repeats()

    def check_soon(self) -> None:
        """Check the keys without waiting for the interval, because a call met a conflicting key."""
        self._check_wanted.set()

    async def run(self) -> None:
        """Check the fixed keys of the fleet at intervals and after `check_soon`, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_every_s):
                    await self._check_wanted.wait()
            self._check_wanted.clear()
            try:
                await self.quarantine({**keys.FIXED, keys.ARQ_ABORTS: "zset"})
            except (RedisError, OSError) as error:
                self._report_redis_error(error)
                await asyncio.sleep(1)

    async def repair(self, error: object, lane: str, others: Mapping[str, str] | None = None) -> bool:
        """Repair the key that caused the error: one of the lane, a fixed one, or one of `others`.

        others: the type that each further key should have. Return whether a key was repaired.
        """
        if not is_key_conflict(error):
            return False
        kinds = {**keys.FIXED, **keys.kinds_of_lane(lane), **(others or {})}
        if isinstance(error, KeyTypeConflictError):
            kinds[error.key] = error.wanted
        return bool(await self.quarantine(kinds, lane))

    async def quarantine(self, kinds: Mapping[str, str], lane: str | None = None) -> list[ConflictingKey]:
        """Move values of the wrong type to the dead letters, and repair the lanes that depend on their keys.

        kinds: the type that each key should have. lane: the lane of the failed call; None if unknown. Return
        the keys whose values were moved.
        """
        moved = await quarantine(self._redis, kinds, kept_bytes=KEPT_BYTES)
        for conflict in moved:
            self._log_conflict(conflict.key, conflict.type, conflict.kind)
        if not moved:
            return []
        names = {conflict.key for conflict in moved}
        prefix = keys.lane("")
        lanes = {lane} if lane else {key.removeprefix(prefix) for key in names if key.startswith(prefix)}
        if names & {keys.ATTENTION, keys.BACKLOG}:  # they depend on all lanes, which only a scan finds
            async for key in self._redis.scan_iter(match=f"{prefix}*", count=SCAN_COUNT):
                lanes.add(key.decode(errors="replace").removeprefix(prefix))
        await repair_lanes(self._redis, lanes, lease_ms=self._lease_ms)
        if keys.BACKLOG in names:
            await recount(self._redis, lanes)
        return moved

    async def find_lost_lanes(self) -> None:
        """Scan the next part of all keys for lanes that are missing in keys.ATTENTION, and restore them."""
        self._cursor, page = await self._redis.scan(
            self._cursor, match=keys.LANE_KEYS, count=LOST_LANES_SCAN_COUNT
        )
        names = [key.decode() for key in page if is_text(key) and len(key) <= MAX_KEY_BYTES]
        prefix = keys.lane("")
        lanes = {key.removeprefix(prefix) for key in names if key.startswith(prefix)}
        with_fetches = {keys.lane_of(key) for key in names if not key.startswith(prefix)}
        lost = await unscheduled(self._redis, lanes - {""}, with_fetches - {""})
        await repair_lanes(self._redis, lost, lease_ms=self._lease_ms)

    def _log_conflict(self, key: str, found: str, wanted: str) -> None:
        """Log a conflict, at most once a minute: the other program may write repeatedly."""
        left_out = self._repeats.admit((key, found), mono_s())
        if left_out is not None:
            events.conflicting_key(key, found, wanted, left_out, self._log)


class RepairingSubmitter(Submitter):
    """Submits for the inbox and arq jobs. It repairs conflicting keys: no producer waits for an error."""

    def __init__(self, key_repair: KeyRepair, redis: Redis, notify: Notify, limits: Limits) -> None:
        super().__init__(redis, notify, limits)
        self._key_repair = key_repair

    async def submit(
        self,
        fetches: Iterable[Submittable] | AsyncIterable[Submittable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
        check: Callable[[int, Any], None] | None = None,
        notify: str = "",
    ) -> Receipt:
        """Submit as Submitter does. Repair a conflicting key and try again if a repetition is idempotent."""
        submit = partial(
            super().submit, fetches, batch_id=batch_id, when_full=when_full, check=check, notify=notify
        )
        try:
            return await submit()
        except KeyTypeConflictError as error:
            if batch_id is None or not isinstance(fetches, Sequence):
                raise
            await self._key_repair.quarantine({error.key: error.wanted})
            return await submit()

    async def submit_part(
        self, fetches: Sequence[Submittable], *, batch_id: str, part: int, last: bool, notify: str = ""
    ) -> Receipt:
        """Submit as Submitter does. Repair a conflicting key and try again."""
        submit = partial(super().submit_part, fetches, batch_id=batch_id, part=part, last=last, notify=notify)
        try:
            return await submit()
        except KeyTypeConflictError as error:
            await self._key_repair.quarantine({error.key: error.wanted})
            return await submit()
