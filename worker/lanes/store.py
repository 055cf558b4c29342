"""Lanes in Redis, as a worker sees them. What is decided there is in jobs/lua."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.jobs.redis_values import is_text, number_of, text_of
from fetchfleet.jobs.scripts import lanes as scripts
from fetchfleet.jobs.scripts.lanes import Claim, Early, Enough, RemovalKind, TakeReply, Withdrawal
from fetchfleet.worker.gate.state import GateState, from_json, to_json
from fetchfleet.worker.redis_support.batching import ScriptBatcher

T = TypeVar("T")


class LaneLostError(Exception):
    """The lane is no longer this worker's: its lease lapsed and somebody else may have it."""


class Held(NamedTuple):
    """A lane that was taken, and by which token.

    policy_version: of the tables that were set at run time. cancelled: batches whose fetches may still be
    in it; orphans: what a dead owner had claimed.
    """

    token: int
    now_ms: int
    gate: GateState
    policy_version: bytes
    cancelled: set[str]
    orphans: list[bytes]


Taken = Held | Early | Enough | None
"""What became of an attempt to take a lane; None: it is not to be had, or no more by this hand-off."""


class Kind(NamedTuple):
    """Which fetches: of a batch, with a deadline that has passed, or all."""

    name: str
    batch: str = ""


EXPIRED = Kind("expired")
ALL = Kind("all")


class Look(NamedTuple):
    """How a lane is.

    earliest_ms: no fetch that waits has an earlier deadline, None if none waits; claimed: how many are.
    """

    earliest_ms: int | None
    claimed: int


class Cancelled(NamedTuple):
    """The fetch is one of a cancelled batch."""


LOOK_AT = 1000


class Store:
    """Every call about a lane carries its token; LaneLostError when it is no longer the current one."""

    def __init__(self, redis: Redis, owner: str, lease_ms: int) -> None:
        self._redis = redis
        self._batcher = ScriptBatcher(redis)
        self._owner = owner
        self._lease_ms = lease_ms

    async def aclose(self) -> None:
        """Nothing is asked of Redis any more."""
        await self._batcher.aclose()

    async def take(self, lane: str, generation: int, held: int | None = None) -> Taken:
        """Take a scheduled lane; None if the notification is stale.

        held: how many lanes the owner has, to compare with its share of the fleet's; None takes it anyway.
        """
        call = scripts.take_call(
            lane=lane, generation=generation, owner=self._owner, lease_ms=self._lease_ms, held=held
        )
        return await self._taken(lane, scripts.take_reply(await self._batcher.run(*call)))

    async def take_many(self, lanes: Sequence[str], held: int | None) -> list[Taken | Exception]:
        """Take the lanes that are due, in one round trip; a refusal of Redis comes as an exception."""
        replies = await scripts.take_many(
            self._redis, lanes, owner=self._owner, lease_ms=self._lease_ms, held=held
        )
        return [
            reply if isinstance(reply, Exception) else await self._taken(lane, reply)
            for lane, reply in zip(lanes, replies, strict=True)
        ]

    async def due(self, now_ms: int, limit: int) -> list[str]:
        """Lanes that wait for somebody to take them, those that have waited longest first."""
        found = await self._redis.zrangebyscore(keys.ATTENTION, "-inf", now_ms + GRACE_MS, 0, limit)
        return await self._only_names(found)

    async def _taken(self, lane: str, reply: TakeReply) -> Taken:
        if not isinstance(reply, scripts.TakenLane):
            return reply
        batches = await self._batches(lane, reply.cancelled)
        return Held(
            reply.token, reply.now_ms, from_json(reply.gate), reply.policy_version, batches, reply.orphans
        )

    async def claim(self, lane: str, token: int, count: int) -> Claim:
        """Claim up to count waiting fetches."""
        call = scripts.claim_call(lane=lane, token=token, count=count)
        return _fenced(scripts.claim_reply(await self._batcher.run(*call)))

    async def adopt(self, lane: str, token: int, elements: Sequence[bytes]) -> None:
        """Rewrite claimed elements whose ledgers have changed."""
        _fenced(await scripts.adopt(self._redis, lane=lane, token=token, elements=elements) or None)

    async def transfer(
        self, lane: str, token: int, fetch_id: str, element: bytes, to_lane: str, priority: str
    ) -> LaneNotification | Cancelled | None:
        """Hand a claimed fetch to another lane; what to wake, if anything.

        Cancelled if the fetch stays here because its batch is cancelled.
        """
        reply = await scripts.transfer(
            self._redis,
            lane=lane,
            token=token,
            fetch_id=fetch_id,
            element=element,
            to_lane=to_lane,
            priority=priority,
        )
        accepted, wake = _fenced(reply)
        return wake if accepted else Cancelled()

    async def withdraw(self, lane: str, token: int, kind: Kind, queue: str, offset: int) -> Withdrawal:
        """Claim fetches of a kind out of one stretch of a queue, however far back they wait."""
        reply = await scripts.withdraw(
            self._redis,
            lane=lane,
            token=token,
            queue=queue,
            kind=RemovalKind(kind.name),
            batch_id=kind.batch,
            offset=offset,
            count=LOOK_AT,
        )
        return _fenced(reply)

    async def look(self, lane: str) -> Look:
        """See whether the lane wants to be looked through."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(keys.lane(lane), "earliest_ms")
            pipe.hlen(keys.claimed(lane))
            earliest_ms, claimed = await pipe.execute()
        return Look(number_of(earliest_ms), claimed)

    async def claims(self, lane: str, token: int) -> list[bytes]:
        """All that is claimed in the lane, whether its owner knows of it or not."""
        return _fenced(await scripts.claims(self._redis, lane=lane, token=token))

    async def note_earliest(self, lane: str, token: int, earliest_ms: int | None) -> None:
        """What looking through the lane has found; None before it, so that what comes meanwhile counts."""
        noted = await scripts.earliest(self._redis, lane=lane, token=token, earliest_ms=earliest_ms)
        _fenced(noted or None)

    async def withdrawn(self, lane: str, token: int, batches: set[str]) -> list[bytes]:
        """No fetch of these cancelled batches is left in the lane; else those that are claimed."""
        return _fenced(await scripts.withdrawn(self._redis, lane=lane, token=token, batch_ids=batches))

    async def cancelled(self, lanes: Sequence[str]) -> list[set[str]]:
        """For each lane the cancelled batches whose fetches may still be in it."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for lane in lanes:
                pipe.smembers(keys.cancelled(lane))
            found = await pipe.execute()
        return [await self._batches(lane, names) for lane, names in zip(lanes, found, strict=True)]

    async def _batches(self, lane: str, found: Iterable[bytes]) -> set[str]:
        """Those that can be ids of batches; a lane would look for the others for ever, so they go."""
        names = {name: text_of(name) for name in found}
        others = [name for name, text in names.items() if not is_batch_id(text)]
        if others:
            await self._redis.srem(keys.cancelled(lane), *others)  # type: ignore[misc]
        return set(names.values()) - {names[name] for name in others}

    async def release(
        self,
        lane: str,
        token: int,
        gate: GateState,
        shut_until_ms: int,
        why: str,
        changed: Sequence[bytes],
    ) -> LaneNotification | None:
        """Give the lane back; what to wake, None when it is idle."""
        call = scripts.release_call(
            lane=lane,
            token=token,
            gate=to_json(gate),
            shut_until_ms=shut_until_ms,
            why=why,
            changed=changed,
        )
        return _fenced(scripts.release_reply(lane, await self._batcher.run(*call))).notification

    async def renew(self, lanes: Sequence[tuple[str, int]]) -> tuple[int, list[bool]]:
        """Prolong all leases in one call: Redis's time, and for each lane whether it is still ours."""
        return await scripts.renew(self._redis, lanes, lease_ms=self._lease_ms)

    async def robots(self, origin: str) -> bytes | None:
        """What the origin's robots.txt said, None if nobody knows."""
        text: bytes | None = await self._redis.get(keys.robots(origin))
        return text

    async def keep_robots(self, origin: str, text: bytes, ttl_ms: int) -> None:
        """Tell the fleet what an origin's robots.txt says."""
        await self._redis.set(keys.robots(origin), text, px=ttl_ms)

    async def rescue(
        self, limit: int = 200, broken: list[tuple[str, Exception]] | None = None
    ) -> list[tuple[LaneNotification, str]]:
        """Re-schedule lanes that are overdue: what to wake, and the owner that was lost ('' if none).

        broken: to which lanes are added that cannot be, each with what Redis says.
        """
        now_ms = await redis_now_ms(self._redis)
        overdue = await self._redis.zrangebyscore(keys.ATTENTION, "-inf", now_ms, 0, limit)
        names = await self._only_names(overdue)
        replies = await scripts.reclaim_lanes(self._redis, names)
        if broken is not None:
            broken += [
                (name, reply)
                for name, reply in zip(names, replies, strict=True)
                if isinstance(reply, Exception)
            ]
        return [
            (reply.notification, reply.owner) for reply in replies if isinstance(reply, scripts.ReclaimedLane)
        ]

    async def _only_names(self, found: Sequence[bytes]) -> list[str]:
        """What can be the name of a lane; the rest was never ours, and goes."""
        others = [name for name in found if not is_text(name)]
        if others:
            await self._redis.zrem(keys.ATTENTION, *others)
        return [name.decode() for name in found if is_text(name)]


def _fenced(reply: T | None) -> T:
    """Return the reply; raise LaneLostError if the script refused our token."""
    if reply is None:
        raise LaneLostError
    return reply
