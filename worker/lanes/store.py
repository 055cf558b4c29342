"""The calls of a worker to Redis about its lanes."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.redis_connection import number_of, text_of
from fetchfleet.jobs.scripts import batches as batch_scripts
from fetchfleet.jobs.scripts import lanes as scripts
from fetchfleet.jobs.scripts.lanes import (
    Claim,
    Claimed,
    Early,
    Enough,
    RemovalKind,
    TakeReply,
    Withdrawal,
)
from fetchfleet.jobs.scripts.sweep import names
from fetchfleet.worker.gate.state import GateState, from_json
from fetchfleet.worker.redis_support.script_batches import ScriptBatcher
from fetchfleet.worker.util.clock import mono_s

PAGE_SIZE = 1000
"""Entries of a queue that one call of a removal scan checks, and cancelled batches that one call reads."""

CANCELLED_WITHIN_S = 1.0
"""Maximum time to read cancelled batches, of which another program may have written any number."""

T = TypeVar("T")


class LaneLostError(Exception):
    """The worker no longer owns the lane. Another worker may own it."""


class AcquiredLane(NamedTuple):
    """A lane that this worker has acquired."""

    token: int
    """The fencing token."""
    now_ms: int
    """Unix ms by Redis's clock."""
    gate: GateState
    policy_version: bytes
    """The version of the policy tables set at run time."""
    cancelled: set[str]
    """IDs of cancelled batches that may still have fetches in the lane."""
    orphans: Claimed
    """Entries that a dead owner had claimed."""
    other_deaths: int = 0
    """Number of workers other than the last owner that died recently."""
    reset_by: str = ""
    """The operator who has reset the lane since its last owner; empty if none has."""
    claim: Claim | None = None
    """The first claim; None if nothing is claimed yet."""


AcquireResult = AcquiredLane | Early | Enough | None
"""None: the notification is stale, or the lane cannot be acquired."""


class Removal(NamedTuple):
    """The fetches to remove from a lane."""

    kind: RemovalKind
    batch_id: str = ""
    """For RemovalKind.BATCH."""


EXPIRED = Removal(RemovalKind.EXPIRED)
ALL = Removal(RemovalKind.ALL)


class LaneOverview(NamedTuple):
    """The deadline and the claims of a lane in Redis."""

    earliest_ms: int | None
    """A lower bound of the deadlines of waiting fetches, in Unix ms; None if unset."""
    claimed: int
    """Number of claimed entries."""


class LaneNeeds(NamedTuple):
    """The data of a due lane that show if it needs a worker even without starting a fetch."""

    scheduled: bool
    """The lane has no owner."""
    earliest_ms: int | None
    """A lower bound of the deadlines of waiting fetches, in Unix ms; None if unset."""
    reset: bool
    """An operator has reset the lane since its last owner."""
    gate: GateState
    cancelled: bool
    """A cancelled batch may have fetches in the lane."""
    orphans: bool
    """A dead owner had claimed fetches. `earliest_ms` does not include their deadlines."""


class BatchCancelled(NamedTuple):
    """The fetch stays in its lane because its batch is cancelled."""


class CancelledBatches(NamedTuple):
    """The cancelled batches of some lanes."""

    by_lane: dict[str, set[str]]
    """IDs of the batches, by lane."""
    refused: list[tuple[str, Exception]]
    """Lanes for which the call failed, with the error."""
    complete: bool
    """False if there was no time to read all."""


class LaneStore:
    """The lanes in Redis, for one worker. Calls with a token raise LaneLostError if the token is stale."""

    def __init__(self, redis: Redis, owner: str, lease_ms: int, page_size: int = PAGE_SIZE) -> None:
        self._redis = redis
        self._batcher = ScriptBatcher(redis)
        self._owner = owner
        self._lease_ms = lease_ms
        self._page_size = page_size

    async def aclose(self) -> None:
        """Cancel the calls under way."""
        await self._batcher.aclose()

    async def due(self, now_ms: int, limit: int, offset: int = 0) -> list[str]:
        """Return lanes that are due, the most overdue first."""
        return await due_lanes(self._redis, until_ms=now_ms + GRACE_MS, skip=offset, limit=limit)

    async def just_due(self, now_ms: int, limit: int) -> list[str]:
        """Return lanes that are due, the least overdue first. Names of no lanes may hide them from `due`."""
        return await due_lanes(self._redis, until_ms=now_ms + GRACE_MS, limit=limit, newest_first=True)

    async def needs(self, lanes: Sequence[str]) -> list[LaneNeeds]:
        """Return the needs of each lane."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for lane in lanes:
                pipe.hmget(keys.lane(lane), ["state", "earliest_ms", "reset", "gate"])
                pipe.exists(keys.cancelled(lane))
                pipe.exists(keys.claimed(lane))
            found = await pipe.execute(raise_on_error=False) if lanes else []
        return [_needs(*replies) for replies in zip(*[iter(found)] * 3, strict=True)]

    async def acquire(
        self, lane: str, generation: int, held: int | None = None, *, count: int = 0
    ) -> AcquireResult:
        """Acquire a scheduled lane and claim up to count fetches. Returns None if the notification is stale.

        held: number of lanes that the owner holds, to compare with its share; None for no comparison.
        """
        found = await self._take([scripts.Wanted(lane, generation, count)], held)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    async def acquire_many(
        self, lanes: Sequence[str], held: int | None, *, handed: bool = False, counts: Sequence[int] = ()
    ) -> list[AcquireResult | Exception]:
        """Acquire lanes that are due, in one call. An error for one lane is its result.

        counts: number of fetches to claim in each. handed: the lanes were handed over to workers like this
        one, and need not be due.
        """
        counted = zip(lanes, counts or [0] * len(lanes), strict=True)
        wanted = [scripts.Wanted(lane, None, count) for lane, count in counted]
        return await self._take(wanted, held, handed=handed)

    async def _take(
        self, wanted: Sequence[scripts.Wanted], held: int | None, *, handed: bool = False
    ) -> list[AcquireResult | Exception]:
        """Acquire lanes in one call. held, handed: as in `acquire` and `acquire_many`."""
        call = scripts.take_call(wanted, owner=self._owner, lease_ms=self._lease_ms, held=held, handed=handed)
        try:
            reply = await self._batcher.run(*call)
        except ResponseError as error:
            reply = error
        replies = scripts.take_replies(reply, len(wanted))
        return [
            reply if isinstance(reply, Exception) else await self._acquired(lane, reply)
            for (lane, _, _), reply in zip(wanted, replies, strict=True)
        ]

    async def _acquired(self, lane: str, reply: TakeReply) -> AcquireResult:
        if not isinstance(reply, scripts.TakenLane):
            return reply
        gate = from_json(reply.gate)
        cancelled = (await self.cancelled([lane])).by_lane[lane] if reply.cancelled else set[str]()
        return AcquiredLane(
            reply.token,
            reply.now_ms,
            gate,
            reply.policy_version,
            cancelled,
            reply.orphans,
            reply.other_deaths,
            text_of(reply.reset_by),
            reply.claim,
        )

    async def renew(self, lanes: Sequence[tuple[str, int]]) -> tuple[int, list[bool]]:
        """Renew all leases in one call. Returns Redis's time, and for each lane if it is still held."""
        return await scripts.renew(self._redis, lanes, lease_ms=self._lease_ms)

    async def cancelled(self, lanes: Iterable[str]) -> CancelledBatches:
        """Return the cancelled batches that may have fetches in the lanes, read for CANCELLED_WITHIN_S."""
        batches: dict[str, set[str]] = {lane: set() for lane in lanes}
        refused: list[tuple[str, Exception]] = []
        cursors, give_up_s = dict.fromkeys(batches, 0), mono_s() + CANCELLED_WITHIN_S
        while cursors and mono_s() < give_up_s:
            pages = await batch_scripts.cancelled_batches(self._redis, cursors, count=self._page_size)
            for lane, page in zip(list(cursors), pages, strict=True):
                if isinstance(page, Exception):
                    refused.append((lane, page))
                    del cursors[lane]
                    continue
                batches[lane].update(page.batch_ids)
                cursors[lane] = page.cursor
            cursors = {lane: cursor for lane, cursor in cursors.items() if cursor}
        return CancelledBatches(batches, refused, complete=not cursors)

    async def take_resets(self, lanes: Sequence[str]) -> list[str]:
        """Return and clear, for each lane, the operator who has reset it; "" if none has."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for lane in lanes:
                pipe.hget(keys.lane(lane), "reset")
            found = [text_of(by or b"") for by in await pipe.execute()]
            for lane, by in zip(lanes, found, strict=True):
                if by:
                    pipe.hdel(keys.lane(lane), "reset")
            await pipe.execute()
        return found

    async def make_retries_due(self, lane: str, now_ms: int) -> None:
        """Make every retry of a held lane due now, one page at a time."""
        later = keys.later(lane)
        while found := await self._redis.zrangebyscore(later, f"({now_ms}", "+inf", 0, self._page_size):
            await self._redis.zadd(later, dict.fromkeys(found, now_ms), xx=True)

    async def claim(self, lane: str, token: int, count: int) -> Claim:
        """Claim up to count waiting fetches."""
        call = scripts.claim_call(lane=lane, token=token, count=count)
        return _fenced(scripts.claim_reply(await self._batcher.run(*call)))

    async def claims(self, lane: str, token: int) -> Claimed:
        """Return every claimed entry of the lane, including those unknown to this worker."""
        return _fenced(await scripts.claims(self._redis, lane=lane, token=token))

    async def adopt(self, lane: str, token: int, elements: Sequence[bytes]) -> None:
        """Rewrite claimed entries whose counters have changed."""
        _fenced(await scripts.adopt(self._redis, lane=lane, token=token, serialized=elements) or None)

    async def transfer(
        self, lane: str, token: int, fetch_id: str, element: bytes, to_lane: str, priority: str
    ) -> LaneNotification | BatchCancelled | None:
        """Move a claimed fetch to another lane. Returns the notification to send, if any."""
        reply = await scripts.transfer(
            self._redis,
            lane=lane,
            token=token,
            fetch_id=fetch_id,
            serialized=element,
            to_lane=to_lane,
            priority=priority,
        )
        accepted, due = _fenced(reply)
        return due if accepted else BatchCancelled()

    async def overview(self, lane: str) -> LaneOverview:
        """Return the earliest deadline and the number of claims of the lane."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(keys.lane(lane), "earliest_ms")
            pipe.hlen(keys.claimed(lane))
            earliest_ms, claimed = await pipe.execute()
        return LaneOverview(number_of(earliest_ms), claimed)

    async def withdraw(self, lane: str, token: int, removal: Removal, queue: str, offset: int) -> Withdrawal:
        """Claim the fetches to remove from one page of a queue."""
        reply = await scripts.withdraw(
            self._redis,
            lane=lane,
            token=token,
            queue=queue,
            kind=removal.kind,
            batch_id=removal.batch_id,
            offset=offset,
            count=self._page_size,
        )
        return _fenced(reply)

    async def withdrawn(self, lane: str, token: int, batches: set[str]) -> Claimed:
        """Remove these cancelled batches, of which no fetch waits, from the lane. Returns their claims."""
        return _fenced(await scripts.withdrawn(self._redis, lane=lane, token=token, batch_ids=batches))

    async def note_earliest(self, lane: str, token: int, earliest_ms: int | None) -> None:
        """Save the earliest deadline that a removal scan of the lane has found, in Unix ms.

        None, before the scan, clears it, so that fetches added during the scan count.
        """
        noted = await scripts.earliest(self._redis, lane=lane, token=token, earliest_ms=earliest_ms)
        _fenced(noted or None)

    async def release(
        self,
        lane: str,
        token: int,
        gate: bytes,
        closed_until_ms: int,
        why: str,
        changed: Sequence[bytes],
        needs: str = "",
    ) -> LaneNotification | None:
        """Release the lane. Returns the notification to send; None if the lane is idle.

        gate: its state as JSON. closed_until_ms, why: when and why the gate opens, 0 if it is open. changed:
        claimed entries to rewrite. needs: hand the lane over to a worker that meets them; empty for none.
        """
        call = scripts.release_call(
            lane=lane,
            token=token,
            gate=gate,
            shut_until_ms=closed_until_ms,
            why=why,
            changed=changed,
            needs=needs,
        )
        return _fenced(scripts.release_reply(lane, await self._batcher.run(*call))).notification


async def due_lanes(
    redis: Redis, *, until_ms: int, skip: int = 0, limit: int, newest_first: bool = False
) -> list[str]:
    """Return lanes that need attention by a time. Removes members that are not names of lanes."""
    return await names(
        redis,
        keys.ATTENTION,
        until=until_ms,
        skip=skip,
        limit=limit,
        max_bytes=keys.MAX_LANE_NAME_BYTES,
        newest_first=newest_first,
    )


def _needs(fields: Any, cancelled: Any, claimed: Any) -> LaneNeeds:
    """Decode the replies for a lane. A lane with a conflicting value is acquired, which repairs it."""
    if isinstance(fields, Exception):
        fields, claimed = (b"scheduled", None, None, None), True
    state, earliest_ms, reset, gate = fields
    return LaneNeeds(
        scheduled=state == b"scheduled",
        earliest_ms=number_of(earliest_ms),
        reset=reset is not None,
        gate=from_json(gate or b""),
        cancelled=bool(cancelled),
        orphans=bool(claimed),
    )


def _fenced(reply: T | None) -> T:
    """Return the reply. Raises LaneLostError if it is None: the token is stale."""
    if reply is None:
        raise LaneLostError
    return reply
