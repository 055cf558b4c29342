"""Lanes in Redis, as a worker sees them. What is decided there is in jobs/lua."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import batch_of, is_batch_id
from fetchfleet.jobs.notify import GRACE_MS, Wake, busy_within_ms
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.jobs.redis_values import is_text, number_of, text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.gate.state import GateState, from_json, to_json
from fetchfleet.worker.redis_support.batching import Together


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


class Early(NamedTuple):
    """The hand-off came before the lane is due."""

    due_in_ms: int


class Enough(NamedTuple):
    """The owner has its share of the lanes: another worker should have this one."""


Taken = Held | Early | Enough | None
"""What became of an attempt to take a lane; None: it is not to be had, or no more by this hand-off."""

TAKE_ANYWAY = -1


class Claim(NamedTuple):
    """What a claim brought. next_retry_ms: until the lane's next retry, None if there is none."""

    now_ms: int
    elements: list[bytes]
    waiting: int
    next_retry_ms: int | None


class Kind(NamedTuple):
    """Which fetches: of a batch, with a deadline that has passed, or all."""

    name: str
    batch: str = ""


EXPIRED = Kind("expired")
ALL = Kind("all")


class Withdrawal(NamedTuple):
    """What a withdrawal brought.

    go_on: the offset of the next stretch, None at the end. earliest_ms: the earliest deadline of those that
    stay in this one, 0 if none does.
    """

    elements: list[bytes]
    go_on: int | None
    earliest_ms: int


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
        self._together = Together(redis)
        self._owner = owner
        self._lease_ms = lease_ms

    async def aclose(self) -> None:
        """Nothing is asked of Redis any more."""
        await self._together.aclose()

    async def take(self, lane: str, generation: int, held: int = TAKE_ANYWAY) -> Taken:
        """Take a scheduled lane; None when this hand-off is stale.

        held: how many lanes the owner has, for it is to have no more than its share of the fleet's.
        """
        return await self._taken(lane, await self._together.run(*self._taking(lane, generation, held)))

    async def take_many(self, lanes: Sequence[str], held: int) -> list[Taken | Exception]:
        """Take those that are due, in one round trip; what Redis refuses comes as an exception."""
        calls = [self._taking(lane, "", held + i) for i, lane in enumerate(lanes)]
        replies = await runner.run_many(self._redis, calls)
        return [
            reply if isinstance(reply, Exception) else await self._taken(lane, reply)
            for lane, reply in zip(lanes, replies, strict=True)
        ]

    async def due(self, now_ms: int, limit: int) -> list[str]:
        """Lanes that wait for somebody to take them, those that have waited longest first."""
        found = await self._redis.zrangebyscore(keys.ATTENTION, "-inf", now_ms + GRACE_MS, 0, limit)
        return await self._only_names(found)

    def _taking(self, lane: str, generation: int | Literal[""], held: int) -> runner.Call:
        names = [keys.lane(lane), keys.claimed(lane), keys.ATTENTION, keys.SERIAL, keys.WORKERS]
        names += [keys.cancelled(lane), keys.POLICY_VERSION]
        args: list[runner.Arg] = [lane, generation, self._owner, self._lease_ms]
        args += [held, keys.WORKER_TTL_MS, busy_within_ms(self._lease_ms)]
        return runner.Call("take", names, args)

    async def _taken(self, lane: str, reply: Any) -> Taken:
        match reply:
            case [b"taken", token, now_ms, gate, policy, cancelled, *orphans]:
                batches = await self._batches(lane, cancelled)
                return Held(token, now_ms, from_json(gate), policy, batches, orphans)
            case [b"early", due_in_ms]:
                return Early(due_in_ms)
            case [b"enough"]:
                return Enough()
            case _:
                return None

    async def claim(self, lane: str, token: int, count: int) -> Claim:
        """Claim up to count waiting fetches."""
        names = [keys.lane(lane), keys.claimed(lane), keys.later(lane), *keys.waiting(lane)]
        reply = await self._together.run("claim", names, [token, count])
        now_ms, elements, waiting, retry_ms = _fenced(reply)
        return Claim(now_ms, elements, waiting, retry_ms if retry_ms >= 0 else None)

    async def adopt(self, lane: str, token: int, elements: Sequence[bytes]) -> None:
        """Rewrite claimed elements whose ledgers have changed."""
        names = [keys.lane(lane), keys.claimed(lane)]
        _fenced(await runner.run(self._redis, "adopt", names, [token, *elements]))

    async def transfer(
        self, lane: str, token: int, fetch_id: str, element: bytes, to_lane: str, priority: str
    ) -> Wake | Cancelled | None:
        """Hand a claimed fetch to another lane; what to wake, if anything.

        Cancelled if the fetch stays here because its batch is cancelled.
        """
        batch = batch_of(fetch_id)
        names = [
            *(keys.lane(lane), keys.claimed(lane), keys.ATTENTION, keys.SERIAL),
            *(keys.lane(to_lane), keys.waiting_at(to_lane, priority)),
            *(keys.batch(batch), keys.batch_lanes(batch)),
        ]
        args: list[runner.Arg] = [token, fetch_id, element, to_lane, GRACE_MS]
        match _fenced(await runner.run(self._redis, "transfer", names, args)):
            case [0]:
                return Cancelled()
            case [_, *wake] if wake:
                return Wake(to_lane, *wake)
        return None

    async def withdraw(self, lane: str, token: int, kind: Kind, queue: str, offset: int) -> Withdrawal:
        """Claim fetches of a kind out of one stretch of a queue, however far back they wait."""
        names = [keys.lane(lane), keys.claimed(lane), queue]
        args: list[runner.Arg] = [token, kind.name, kind.batch, offset, LOOK_AT]
        _, elements, go_on, earliest_ms = _fenced(await runner.run(self._redis, "withdraw", names, args))
        return Withdrawal(elements, go_on if go_on >= 0 else None, earliest_ms)

    async def look(self, lane: str) -> Look:
        """See whether the lane wants to be looked through."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(keys.lane(lane), "earliest_ms")
            pipe.hlen(keys.claimed(lane))
            earliest_ms, claimed = await pipe.execute()
        return Look(number_of(earliest_ms), claimed)

    async def claims(self, lane: str, token: int) -> list[bytes]:
        """All that is claimed in the lane, whether its owner knows of it or not."""
        names = [keys.lane(lane), keys.claimed(lane)]
        reply: list[bytes] = _fenced(await runner.run(self._redis, "claims", names, [token]))
        return reply[1:]

    async def note_earliest(self, lane: str, token: int, earliest_ms: int | None) -> None:
        """What looking through the lane has found; None before it, so that what comes meanwhile counts."""
        noted = "" if earliest_ms is None else earliest_ms
        _fenced(await runner.run(self._redis, "earliest", [keys.lane(lane)], [token, noted]))

    async def withdrawn(self, lane: str, token: int, batches: set[str]) -> list[bytes]:
        """No fetch of these cancelled batches is left in the lane; else those that are claimed."""
        names = [keys.lane(lane), keys.claimed(lane), keys.cancelled(lane)]
        reply: list[bytes] = _fenced(await runner.run(self._redis, "withdrawn", names, [token, *batches]))
        return reply[1:]

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
    ) -> Wake | None:
        """Give the lane back; what to wake, None when it is idle."""
        names = [
            *(keys.lane(lane), keys.claimed(lane), keys.later(lane), *keys.waiting(lane)),
            *(keys.ATTENTION, keys.SERIAL, keys.BACKLOG, keys.cancelled(lane)),
        ]
        args: list[runner.Arg] = [
            *(token, lane, shut_until_ms, why, to_json(gate), keys.GATE_TTL_MS, GRACE_MS),
            *changed,
        ]
        _, *wake = _fenced(await self._together.run("release", names, args))
        return Wake(lane, *wake) if wake else None

    async def renew(self, lanes: Sequence[tuple[str, int]]) -> tuple[int, list[bool]]:
        """Prolong all leases in one call: Redis's time, and for each lane whether it is still ours."""
        names = [keys.ATTENTION, *(keys.lane(name) for name, _ in lanes)]
        args: list[Any] = [self._lease_ms]
        for name, token in lanes:
            args += [name, token]
        now_ms, *kept = await runner.run(self._redis, "renew", names, args)
        return now_ms, [bool(flag) for flag in kept]

    async def robots(self, origin: str) -> bytes | None:
        """What the origin's robots.txt said, None if nobody knows."""
        text: bytes | None = await self._redis.get(keys.robots(origin))
        return text

    async def keep_robots(self, origin: str, text: bytes, ttl_ms: int) -> None:
        """Tell the fleet what an origin's robots.txt says."""
        await self._redis.set(keys.robots(origin), text, px=ttl_ms)

    async def rescue(
        self, limit: int = 200, broken: list[tuple[str, Exception]] | None = None
    ) -> list[tuple[Wake, str]]:
        """Re-schedule lanes that are overdue: what to wake, and the owner that was lost ('' if none).

        broken: to which lanes are added that cannot be, each with what Redis says.
        """
        now_ms = await redis_now_ms(self._redis)
        overdue = await self._redis.zrangebyscore(keys.ATTENTION, "-inf", now_ms, 0, limit)
        names = await self._only_names(overdue)
        calls = [
            runner.Call(
                "reclaim_lane",
                [keys.lane(name), keys.ATTENTION, keys.SERIAL, *_contents(name)],
                [name, GRACE_MS],
            )
            for name in names
        ]
        replies = await runner.run_many(self._redis, calls) if calls else []
        if broken is not None:
            broken += [pair for pair in zip(names, replies, strict=True) if isinstance(pair[1], Exception)]
        return [
            (Wake(name, reply[0], 0), text_of(reply[1]))
            for name, reply in zip(names, replies, strict=True)
            if isinstance(reply, list) and reply
        ]

    async def _only_names(self, found: Sequence[bytes]) -> list[str]:
        """What can be the name of a lane; the rest was never ours, and goes."""
        others = [name for name in found if not is_text(name)]
        if others:
            await self._redis.zrem(keys.ATTENTION, *others)
        return [name.decode() for name in found if is_text(name)]


def _contents(lane: str) -> list[str]:
    """Wherever a fetch of the lane may be."""
    return [keys.claimed(lane), keys.later(lane), *keys.waiting(lane)]


def _fenced(reply: Any) -> Any:
    """The reply, or LaneLostError when the script refused our token."""
    if reply in ([], 0):
        raise LaneLostError
    return reply if isinstance(reply, list) else [reply]
