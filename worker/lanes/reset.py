"""Operations of an operator on lanes: find them by a name, and reset them."""

import asyncio
from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Notify
from fetchfleet.jobs.redis_connection import is_text, redis_now_ms
from fetchfleet.jobs.scripts.host_control import MAX_RESET_RETRIES, reset_lanes
from fetchfleet.worker.gate.state import from_json, resettable
from fetchfleet.worker.policy.names import DEFAULT, EVERY_HOST_BELOW

SCAN_COUNT = 1000
"""The COUNT of each SCAN."""


async def lanes_of(redis: Redis, name: str, *, limit: int | None = None) -> list[str]:
    """Return the lanes in Redis, idle ones too, that match a host, a pattern or `default`.

    A host costs one command, a pattern a scan of all keys. limit: end the scan at so many lanes.
    """
    if name != DEFAULT and not name.startswith(EVERY_HOST_BELOW):
        return [name] if await redis.exists(keys.lane(name)) else []
    prefix, suffix = keys.lane(""), "" if name == DEFAULT else name.removeprefix("*")
    found: list[str] = []
    async for key in redis.scan_iter(match=f"{prefix}*{suffix}", count=SCAN_COUNT):
        if is_text(key):
            found.append(key.decode().removeprefix(prefix))
        if len(found) == limit:
            break
    return sorted(set(found))


class LaneReset(msgspec.Struct, kw_only=True):
    """The effect of a reset on one lane."""

    lane: str
    reset: list[str]
    """The parts of the host's state that are reset: breaker, cool_down, quota, concurrency, robots."""
    retries: int = 0
    """Retries that the reset made due."""
    held: bool = False
    """A worker holds the lane, and applies the reset."""
    pending: bool = True
    """No worker has applied the reset yet."""


async def reset(redis: Redis, notify: Notify, lanes: Sequence[str], by: str) -> list[LaneReset]:
    """Request a reset of lanes, and make them and their retries due. Returns the lanes that exist.

    by: the operator, for the log.
    """
    now_ms = await redis_now_ms(redis)
    async with redis.pipeline(transaction=False) as pipe:
        for lane in lanes:
            pipe.hget(keys.lane(lane), "gate")
        gates = await pipe.execute() if lanes else []
    found = {
        lane: LaneReset(lane=lane, reset=resettable(from_json(gate or b""), now_ms))
        for lane, gate in zip(lanes, gates, strict=True)
    }
    remaining = list(lanes)
    while remaining:
        replies = dict(zip(remaining, await reset_lanes(redis, remaining, by=by), strict=True))
        remaining = []
        for lane, reply in replies.items():
            if reply is None:
                del found[lane]
                continue
            found[lane].held = reply.state == "held"
            found[lane].retries += reply.retries
            if reply.retries == MAX_RESET_RETRIES:
                remaining.append(lane)
        await notify([reply.notification for reply in replies.values() if reply and reply.notification])
    return list(found.values())


async def await_applied(redis: Redis, resets: Sequence[LaneReset], within_s: float, every_s: float) -> None:
    """Update `pending` of the resets until all busy lanes have applied theirs, or for within_s."""
    waiting = list(resets)
    give_up_s = asyncio.get_running_loop().time() + within_s
    while waiting:
        async with redis.pipeline(transaction=False) as pipe:
            for one in waiting:
                pipe.hmget(keys.lane(one.lane), ["reset", "state"])
            rows = await pipe.execute()
        for one, (mark, _) in zip(waiting, rows, strict=True):
            one.pending = mark is not None
        busy = [state in {b"held", b"scheduled"} for _, state in rows]
        waiting = [one for one, is_busy in zip(waiting, busy, strict=True) if one.pending and is_busy]
        if not waiting or asyncio.get_running_loop().time() > give_up_s:
            return
        await asyncio.sleep(every_s)
