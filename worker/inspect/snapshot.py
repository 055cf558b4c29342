"""What a fleet is at, read from Redis: for the progress display and the status of lanes."""

from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect, redis_now_ms
from fetchfleet.jobs.redis_values import number_of, text_of
from fetchfleet.worker.redis_support.errors import redis_at

MAX_LANES = 500


class LaneSnapshot(msgspec.Struct, frozen=True):
    """One lane that is not idle. why it waits, '' if it need not; opens_in_s: until it may start again."""

    name: str
    in_flight: int
    waiting: int
    why: str
    opens_in_s: float

    @property
    def state(self) -> str:
        """busy, waiting (for a worker) or shut, with the reason."""
        if self.why:
            return self.why
        return "busy" if self.in_flight else "waiting"


class Portrait(msgspec.Struct):
    """What a worker says of one lane of its own."""

    in_flight: int = 0
    why: str | None = None
    until_ms: int | None = None


class WorkerPortrait(msgspec.Struct):
    """What a worker says of itself, once a second. finished, received_bytes: since it started."""

    lanes: dict[str, Portrait] = {}
    finished: int = 0
    finished_per_s: float = 0.0
    received_bytes: int = 0
    received_bytes_per_s: float = 0.0


class Snapshot(NamedTuple):
    """The fleet at now_ms: its lanes that are not idle, and what its living workers say of themselves."""

    now_ms: int
    lanes: list[LaneSnapshot]
    workers: dict[str, WorkerPortrait]

    @property
    def received_bytes(self) -> int:
        """Of bodies, by all of the workers since they started."""
        return sum(worker.received_bytes for worker in self.workers.values())


async def snapshot(redis: Redis) -> Snapshot:
    """Every lane that is not idle, the fullest first; MAX_LANES at most. A few round trips."""
    now_ms = await redis_now_ms(redis)
    names = [text_of(name) for name in await redis.zrange(keys.ATTENTION, 0, MAX_LANES - 1)]
    workers = await _portraits(redis)
    at = {name: portrait for worker in workers.values() for name, portrait in worker.lanes.items()}
    rows = await _rows(redis, names)
    lanes = [_lane(name, row, at.get(name), now_ms) for name, row in zip(names, rows, strict=True)]
    return Snapshot(now_ms, sorted(lanes, key=lambda lane: (-lane.waiting, lane.name)), workers)


async def lane_snapshot(redis: Redis, name: str, now_ms: int) -> LaneSnapshot:
    """One lane, be it idle."""
    found = (at.lanes[name] for at in (await _portraits(redis)).values() if name in at.lanes)
    (row,) = await _rows(redis, [name])
    return _lane(name, row, next(found, None), now_ms)


async def living(redis: Redis, now_ms: int) -> list[str]:
    """The ids of the workers that have shown life of late."""
    found = await redis.zrangebyscore(keys.WORKERS, now_ms - keys.WORKER_TTL_MS, "+inf")
    return [text_of(worker) for worker in found]


async def is_alive(redis_url: str, name: str) -> bool:
    """Whether a worker of that id, or of that host (its id is host-pid), has shown life of late."""
    async with connect(redis_url) as redis:
        with redis_at(redis_url):
            workers = await living(redis, await redis_now_ms(redis))
    return any(f"{worker}-".startswith(f"{name}-") for worker in workers)


async def _rows(redis: Redis, names: list[str]) -> list[list[Any]]:
    """For each lane: its hash's fields, then the lengths of its queues."""
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(keys.lane(name), ["state", "due_ms", "shut_until_ms", "why"])
            for waiting in keys.waiting(name):
                pipe.llen(waiting)
            pipe.zcard(keys.later(name))
            pipe.hlen(keys.claimed(name))
        replies = await pipe.execute()
    width = len(keys.waiting("")) + 3
    return [replies[i : i + width] for i in range(0, len(replies), width)]


async def _portraits(redis: Redis) -> dict[str, WorkerPortrait]:
    """What the living workers say of themselves, by their ids."""
    workers = [text_of(worker) for worker in await redis.zrange(keys.WORKERS, 0, -1)]
    if not workers:
        return {}
    found = await redis.mget([keys.worker(worker) for worker in workers])
    return {
        worker: msgspec.json.decode(text, type=WorkerPortrait)
        for worker, text in zip(workers, found, strict=True)
        if text
    }


def _lane(name: str, row: list[Any], portrait: Portrait | None, now_ms: int) -> LaneSnapshot:
    (state, due_ms, shut_until_ms, why), *queued, claimed = row
    if state == b"held":
        at = portrait or Portrait()
        opens_ms = at.until_ms or now_ms
        held_why = at.why or ""
        waiting = sum(queued) + max(0, claimed - at.in_flight)
        return LaneSnapshot(name, at.in_flight, waiting, held_why, _in_s(opens_ms, now_ms))
    due = number_of(due_ms) or now_ms
    shut_until = number_of(shut_until_ms) or 0
    shut = shut_until > now_ms
    parked = text_of(why or b"") if shut else "retry" if due > now_ms else ""
    opens_ms = shut_until if shut else due
    return LaneSnapshot(name, 0, sum(queued) + claimed, parked, _in_s(opens_ms, now_ms))


def _in_s(until_ms: int, now_ms: int) -> float:
    return max(0, until_ms - now_ms) / 1000
