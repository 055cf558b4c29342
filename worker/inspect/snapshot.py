"""The lanes and workers of a fleet, read from Redis."""

from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import number_of, redis_now_ms, text_of
from fetchfleet.worker.inspect.registration import Registration, is_or_wraps
from fetchfleet.worker.lanes.totals import WorkerTotals
from fetchfleet.worker.redis_support.drains import drained

MAX_LANES = 500

MAX_WORKERS = 10_000
"""The maximum number of worker names to read. Another program may have written any number."""

MAX_WHY_BYTES = 40

_LACKS = {
    "bytes": "free space on its disk",
    "files": "free inodes on its disk",
    "writing": "a disk that takes bodies",
    "folder": "its out folder",
}


"""The words for the values of `WorkerReport.lacking`."""


class LaneSnapshot(msgspec.Struct, frozen=True):
    """The state of a lane."""

    name: str
    in_flight: int
    waiting: int
    why: str
    """The reason no fetch may start; empty if one may."""
    opens_in_s: float
    """The time until a fetch may start."""

    @property
    def state(self) -> str:
        """The reason no fetch may start, else `busy`, or `waiting` for a worker."""
        if self.why:
            return self.why
        return "busy" if self.in_flight else "waiting"


class LaneReport(msgspec.Struct):
    """The report of a worker on a lane that it holds."""

    in_flight: int = 0
    why: str | None = None
    """The reason no fetch may start."""
    until_ms: int | None = None
    """The time from which a fetch may start, Unix ms."""


class WorkerReport(msgspec.Struct):
    """The report of a worker, written with each heartbeat."""

    registration: Registration | None = None
    draining: bool = False
    """True if an operator has drained it: it releases its lanes and acquires none."""
    lacking: str = ""
    """The shortage for which it starts no fetch: bytes, files, writing or folder; empty if none."""
    lacking_error: str = ""
    """The error of the disk, if it refuses writes."""
    policy_version: str | None = None
    """The version of the policy tables in Redis that it has read."""
    policy_refused: str = ""
    """The reason it refuses those tables; empty if it uses them."""
    lanes: dict[str, LaneReport] = {}
    """The lanes that it holds, by name."""
    finished: int = 0
    """The fetches finished since its start."""
    finished_per_s: float = 0.0
    received_bytes: int = 0
    """The bytes of bodies received since its start."""
    received_bytes_per_s: float = 0.0
    totals: WorkerTotals = WorkerTotals()
    """Its counters since its start. Older versions publish none."""


class Snapshot(NamedTuple):
    """The state of a fleet."""

    now_ms: int
    """The time of the snapshot, Unix ms by the clock of Redis."""
    lanes: list[LaneSnapshot]
    """The lanes that are not idle, those with the most waiting fetches first, MAX_LANES at most."""
    workers: dict[str, WorkerReport]
    """The reports of the live workers, by instance."""

    @property
    def received_bytes(self) -> int:
        """The bytes of bodies that the workers have received since they started."""
        return sum(worker.received_bytes for worker in self.workers.values())


async def snapshot(redis: Redis) -> Snapshot:
    """Read the state of the fleet, in a few round trips."""
    now_ms = await redis_now_ms(redis)
    names = [text_of(name) for name in await redis.zrange(keys.ATTENTION, 0, MAX_LANES - 1)]
    workers = await worker_reports(redis)
    at = {name: report for worker in workers.values() for name, report in worker.lanes.items()}
    rows = await _rows(redis, names)
    lanes = [_lane(name, row, at.get(name), now_ms) for name, row in zip(names, rows, strict=True)]
    return Snapshot(now_ms, sorted(lanes, key=lambda lane: (-lane.waiting, lane.name)), workers)


async def lane_snapshot(redis: Redis, name: str, now_ms: int) -> LaneSnapshot:
    """Read the state of one lane, which may be idle."""
    reports = (of.lanes[name] for of in (await worker_reports(redis)).values() if name in of.lanes)
    (row,) = await _rows(redis, [name])
    return _lane(name, row, next(reports, None), now_ms)


async def living(redis: Redis, now_ms: int) -> list[str]:
    """Return the instances of the workers with a recent heartbeat."""
    members = await redis.zrangebyscore(
        keys.WORKERS, now_ms - keys.WORKER_TTL_MS, now_ms + keys.WORKER_TTL_MS, 0, MAX_WORKERS
    )
    return [text_of(member) for member in members]


async def is_alive(redis: Redis, name: str) -> bool:
    """Return whether a worker with this name, or a default name (host-pid) with this host, is alive."""
    workers = {*await living(redis, await redis_now_ms(redis)), *await worker_reports(redis)}
    return any(is_or_wraps(worker, name) for worker in workers)


async def _rows(redis: Redis, names: list[str]) -> list[list[Any]]:
    """Return for each lane the fields of its hash, the lengths of its queues, and the number of claims."""
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
    """Return the reports of the live workers, by instance. Drained and lacking workers are included."""
    with_heartbeat = await redis.zrange(keys.WORKERS, 0, MAX_WORKERS - 1)
    few_lacking = await redis.scard(keys.LACKING) <= MAX_WORKERS  # type: ignore[misc]
    lacking = await redis.smembers(keys.LACKING) if few_lacking else set[bytes]()  # type: ignore[misc]
    workers = sorted({*map(text_of, with_heartbeat), *map(text_of, lacking), *await drained(redis)})
    if not workers:
        return {}
    texts = await redis.mget([keys.worker(worker) for worker in workers])
    return {worker: _report(text) for worker, text in zip(workers, texts, strict=True) if text}


def lack_text(lacking: str, error: str) -> str:
    """Return in words the shortage of a worker that cannot store bodies, with the error of the disk. Pure."""
    return f"{_LACKS.get(lacking, lacking)}{f' ({error})' if error else ''}"


async def instances_named(redis: Redis, name: str) -> list[str]:
    """Return the live instances that an instance or worker name stands for, else those of a host name."""
    reports = await worker_reports(redis)
    names = {
        instance: of.registration.name if of.registration else instance for instance, of in reports.items()
    }
    instances = [instance for instance, worker_name in names.items() if name in {instance, worker_name}]
    return instances or [instance for instance in names if is_or_wraps(instance, name)]


def _report(text: bytes) -> WorkerReport:
    """Parse a worker's report. Return an empty one for a form that this version does not know."""
    try:
        return msgspec.json.decode(text, type=WorkerReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return WorkerReport()


def _lane(name: str, row: list[Any], report: LaneReport | None, now_ms: int) -> LaneSnapshot:
    """Return the state of a lane from a row of `_rows` and the report of its holder."""
    (state, due, shut_until, why), *queued, claimed = row
    if state == b"held":
        held = report or LaneReport()
        opens_ms = held.until_ms or now_ms
        waiting = sum(queued) + max(0, claimed - held.in_flight)
        return LaneSnapshot(name, held.in_flight, waiting, held.why or "", _in_s(opens_ms, now_ms))
    due_ms = number_of(due) or now_ms
    closed_until_ms = number_of(shut_until) or 0
    is_closed = closed_until_ms > now_ms
    reason = text_of((why or b"")[:MAX_WHY_BYTES]) if is_closed else "retry" if due_ms > now_ms else ""
    opens_ms = closed_until_ms if is_closed else due_ms
    return LaneSnapshot(name, 0, sum(queued) + claimed, reason, _in_s(opens_ms, now_ms))


def _in_s(until_ms: int, now_ms: int) -> float:
    return max(0, until_ms - now_ms) / 1000
