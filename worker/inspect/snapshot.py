"""The lanes and workers of a fleet, read from Redis."""

from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import number_of, redis_now_ms, text_of
from fetchfleet.worker.inspect.registration import Registration, is_of
from fetchfleet.worker.redis_support.drains import drained

MAX_LANES = 500

MAX_WORKERS = 10_000
"""How many names of workers are read: another program may have written any number."""

MAX_WHY_BYTES = 40

_LACKS = {
    "bytes": "free space on its disk",
    "files": "free inodes on its disk",
    "writing": "a disk that takes bodies",
    "folder": "its out folder",
}


class LaneSnapshot(msgspec.Struct, frozen=True):
    """A lane."""

    name: str
    in_flight: int
    waiting: int
    why: str
    """Why it waits; empty if it does not."""
    opens_in_s: float
    """How long until it may start a fetch."""

    @property
    def state(self) -> str:
        """Return why it waits, or else busy or waiting (for a worker)."""
        if self.why:
            return self.why
        return "busy" if self.in_flight else "waiting"


class LaneReport(msgspec.Struct):
    """A worker's report about a lane that it holds."""

    in_flight: int = 0
    why: str | None = None
    until_ms: int | None = None


class WorkerReport(msgspec.Struct):
    """A worker's report about itself, written with each heartbeat; the totals count from its start."""

    registration: Registration | None = None
    draining: bool = False
    """Whether an operator has drained it: it gives its lanes back and takes none."""
    lacking: str = ""
    """What it lacks to store bodies: bytes, files, writing or folder; else empty. It starts no fetch then."""
    lacking_error: str = ""
    """The error of the writes that are refused."""
    policy_version: str | None = None
    """The version of the policy tables in Redis that it has read."""
    policy_refused: str = ""
    """Why it does not use those tables."""
    lanes: dict[str, LaneReport] = {}
    finished: int = 0
    finished_per_s: float = 0.0
    received_bytes: int = 0
    received_bytes_per_s: float = 0.0


class Snapshot(NamedTuple):
    """The fleet at now_ms: its lanes that are not idle, and the reports of its live workers."""

    now_ms: int
    lanes: list[LaneSnapshot]
    workers: dict[str, WorkerReport]

    @property
    def received_bytes(self) -> int:
        """Return the bytes of bodies that the workers have received since they started."""
        return sum(worker.received_bytes for worker in self.workers.values())


async def snapshot(redis: Redis) -> Snapshot:
    """Read the fleet, its fullest lane first and MAX_LANES at most, in a few round trips."""
    now_ms = await redis_now_ms(redis)
    names = [text_of(name) for name in await redis.zrange(keys.ATTENTION, 0, MAX_LANES - 1)]
    workers = await worker_reports(redis)
    at = {name: report for worker in workers.values() for name, report in worker.lanes.items()}
    rows = await _rows(redis, names)
    lanes = [_lane(name, row, at.get(name), now_ms) for name, row in zip(names, rows, strict=True)]
    return Snapshot(now_ms, sorted(lanes, key=lambda lane: (-lane.waiting, lane.name)), workers)


async def lane_snapshot(redis: Redis, name: str, now_ms: int) -> LaneSnapshot:
    """Read one lane, which may be idle."""
    found = (at.lanes[name] for at in (await worker_reports(redis)).values() if name in at.lanes)
    (row,) = await _rows(redis, [name])
    return _lane(name, row, next(found, None), now_ms)


async def living(redis: Redis, now_ms: int) -> list[str]:
    """Return the instances of the workers with a recent heartbeat."""
    found = await redis.zrangebyscore(
        keys.WORKERS, now_ms - keys.WORKER_TTL_MS, now_ms + keys.WORKER_TTL_MS, 0, MAX_WORKERS
    )
    return [text_of(worker) for worker in found]


async def is_alive(redis: Redis, name: str) -> bool:
    """Return whether a worker of that name, or of that host (named host-pid), has a recent heartbeat."""
    workers = {*await living(redis, await redis_now_ms(redis)), *await worker_reports(redis)}
    return any(is_of(worker, name) for worker in workers)


async def _rows(redis: Redis, names: list[str]) -> list[list[Any]]:
    """Return for each lane the fields of its hash, then the lengths of its queues."""
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


async def worker_reports(redis: Redis) -> dict[str, WorkerReport]:
    """Return the reports of the live workers by their instances."""
    with_heartbeat = await redis.zrange(keys.WORKERS, 0, MAX_WORKERS - 1)
    few_lacking = await redis.scard(keys.LACKING) <= MAX_WORKERS  # type: ignore[misc]
    lacking = await redis.smembers(keys.LACKING) if few_lacking else set[bytes]()  # type: ignore[misc]
    workers = sorted({*map(text_of, with_heartbeat), *map(text_of, lacking), *await drained(redis)})
    if not workers:
        return {}
    found = await redis.mget([keys.worker(worker) for worker in workers])
    return {worker: _report(text) for worker, text in zip(workers, found, strict=True) if text}


def lack_text(lacking: str, error: str) -> str:
    """Return what a worker lacks to store bodies. Pure."""
    return f"{_LACKS.get(lacking, lacking)}{f' ({error})' if error else ''}"


async def instances_named(redis: Redis, name: str) -> list[str]:
    """Return the instances of the live workers of that instance or name, or else those of that host."""
    reports = await worker_reports(redis)
    names = {
        instance: of.registration.name if of.registration else instance for instance, of in reports.items()
    }
    found = [instance for instance, called in names.items() if name in {instance, called}]
    return found or [instance for instance in names if is_of(instance, name)]


def _report(text: bytes) -> WorkerReport:
    """Return a worker's report; an empty one if another program wrote it, or a version with another form."""
    try:
        return msgspec.json.decode(text, type=WorkerReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return WorkerReport()


def _lane(name: str, row: list[Any], report: LaneReport | None, now_ms: int) -> LaneSnapshot:
    (state, due_ms, shut_until_ms, why), *queued, claimed = row
    if state == b"held":
        at = report or LaneReport()
        opens_ms = at.until_ms or now_ms
        held_why = at.why or ""
        waiting = sum(queued) + max(0, claimed - at.in_flight)
        return LaneSnapshot(name, at.in_flight, waiting, held_why, _in_s(opens_ms, now_ms))
    due = number_of(due_ms) or now_ms
    closed_until = number_of(shut_until_ms) or 0
    closed = closed_until > now_ms
    reason = text_of((why or b"")[:MAX_WHY_BYTES]) if closed else "retry" if due > now_ms else ""
    opens_ms = closed_until if closed else due
    return LaneSnapshot(name, 0, sum(queued) + claimed, reason, _in_s(opens_ms, now_ms))


def _in_s(until_ms: int, now_ms: int) -> float:
    return max(0, until_ms - now_ms) / 1000
