"""The lanes and workers of a fleet, read from Redis."""

from collections.abc import Collection, Sequence
from typing import Annotated, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import redis_now_ms, text_of
from fetchfleet.jobs.scripts.views import ROWS_AT_ONCE, LaneRow, lane_rows, lane_rows_of
from fetchfleet.worker.inspect.registration import Registration, is_or_wraps
from fetchfleet.worker.inspect.workers.silence import Heartbeats, VanishedWorker
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.totals import WorkerTotals
from fetchfleet.worker.redis_support.drains import drained
from fetchfleet.worker.util.quantities import count

MAX_LANES = 5_000
"""The maximum number of lanes to read. Those that need attention first are read."""

MAX_WORKERS = 10_000
"""The maximum number of worker names to read. Another program may have written any number."""

MAX_DEATHS = 100
"""The maximum number of recent deaths to read."""

REPORTS_AT_ONCE = 100
"""The number of reports to read at once. That of a worker with thousands of lanes has 100s of KB."""

MAX_WHY_CHARS = 40

PAUSED = "paused"
"""The value of WaitReason.PAUSED. Its module is not imported, because `run` starts faster without it."""

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
    """The time until a fetch may start. For a paused lane, the time until its worker looks at it again."""
    owner: str = ""
    """The instance of the worker that holds the lane; empty if none does."""
    oldest_s: float | None = None
    """The age of its oldest waiting fetch; None if unknown."""
    full: bool = False
    """True if its worker may start no fetch before one in flight ends."""
    ranges: int = 0
    """The requests for further ranges of bodies in segments, besides those of the fetches in flight."""
    held_up: str = ""
    """The text about an owner that sends no heartbeat, and the takeover; empty otherwise."""
    last_failure: str = ""
    """The last failure of the host, in words; empty after a good response."""

    @property
    def in_flight_text(self) -> str:
        """The fetches in flight, and the further ranges if there are any."""
        return f"{self.in_flight} + {count(self.ranges, 'range')}" if self.ranges else str(self.in_flight)

    @property
    def state(self) -> str:
        """The reason no fetch may start, else `busy`, or `waiting` for a worker."""
        if self.why:
            return self.why
        return "busy" if self.in_flight else "waiting"

    @property
    def known_wait_s(self) -> float | None:
        """The time until a fetch may start; None if one may start now, or if the lane is paused."""
        return self.opens_in_s if self.opens_in_s and self.why != PAUSED else None


Number = Annotated[int, msgspec.Meta(ge=0, lt=10**15)]
Rate = Annotated[float, msgspec.Meta(ge=0, lt=1e15)]
"""A number and a rate in a report. Redis is not trusted: other values make the report invalid."""


class LaneReport(msgspec.Struct):
    """The report of a worker on a lane that it holds."""

    in_flight: Number = 0
    why: str | None = None
    """The reason no fetch may start."""
    until_ms: Number | None = None
    """The time from which a fetch may start, Unix ms."""
    full: bool | msgspec.UnsetType = msgspec.UNSET
    """True if no fetch may start before one in flight ends; else unset, which is not in the report."""
    ranges: Number | msgspec.UnsetType = msgspec.UNSET
    """The requests for further ranges of bodies; unset without one."""


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
    finished: Number = 0
    """The fetches finished since its start."""
    finished_per_s: Rate = 0.0
    received_bytes: Annotated[int, msgspec.Meta(ge=0, lt=10**18)] = 0
    """The bytes of bodies received since its start."""
    received_bytes_per_s: Rate = 0.0
    totals: WorkerTotals = WorkerTotals()
    """Its counters since its start. Older versions publish none."""


class Snapshot(NamedTuple):
    """The state of a fleet."""

    now_ms: int
    """The time of the snapshot, Unix ms by the clock of Redis."""
    lanes: list[LaneSnapshot]
    """The lanes that are not idle, those with the most waiting fetches first, MAX_LANES at most."""
    lanes_in_all: int
    """The number of lanes that are not idle."""
    workers: dict[str, WorkerReport]
    """The reports of the live workers, by instance."""
    vanished: Sequence[VanishedWorker] = ()
    """The workers that send no heartbeat and have not stopped in order."""
    paused: Sequence[str] = ()
    """The names that are paused at run time, if they were read."""

    @property
    def received_bytes(self) -> int:
        """The bytes of bodies that the workers have received since they started."""
        return sum(worker.received_bytes for worker in self.workers.values())


async def snapshot(redis: Redis, max_lanes: int = MAX_LANES) -> Snapshot:
    """Read the state of the fleet, ROWS_AT_ONCE lanes in a round trip."""
    now_ms = await redis_now_ms(redis)
    workers = await worker_reports(redis)
    at = {name: report for worker in workers.values() for name, report in worker.lanes.items()}
    # By name: a lane whose place changes meanwhile may be read twice.
    rows: dict[str, LaneRow] = {}
    place, lanes_in_all = 0, 1
    while place < min(max_lanes, lanes_in_all):
        page = await lane_rows(redis, place)
        rows |= {row.name: row for row in page.rows}
        place, lanes_in_all = place + ROWS_AT_ONCE, page.lanes_in_all
    heartbeats = await heartbeats_of(redis, workers, now_ms)
    lanes = [_lane(row, at.get(row.name), heartbeats) for row in rows.values()]
    fullest_first = sorted(lanes, key=lambda lane: (-lane.waiting, lane.name))
    vanished = heartbeats.vanished(
        (row.owner, row.lease_ends_ms) for row in rows.values() if row.state == "held"
    )
    return Snapshot(now_ms, fullest_first[:max_lanes], lanes_in_all, workers, vanished)


async def lane_snapshots(redis: Redis, names: Sequence[str], now_ms: int) -> list[LaneSnapshot]:
    """Read the states of lanes, which may be idle."""
    workers = await worker_reports(redis)
    at = {name: report for worker in workers.values() for name, report in worker.lanes.items()}
    rows = await lane_rows_of(redis, names)
    heartbeats = await heartbeats_of(redis, workers, now_ms)
    return [_lane(row, at.get(row.name), heartbeats) for row in rows]


async def heartbeats_of(redis: Redis, workers: Collection[str], now_ms: int) -> Heartbeats:
    """Read the heartbeats of a fleet. Call it after reading lanes: a worker joins before it acquires lanes.

    workers: those with a report.
    """
    latest_ms = now_ms + keys.WORKER_TTL_MS  # higher scores are from another program
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zrangebyscore(keys.WORKERS, 0, latest_ms, 0, MAX_WORKERS, withscores=True)
        pipe.zrangebyscore(
            keys.DEATHS, now_ms - keys.DEATHS_WINDOW_MS, latest_ms, 0, MAX_DEATHS, withscores=True
        )
        last, deaths = await pipe.execute(raise_on_error=False)  # a key may have another type
    last_ms, deaths_ms = (
        {} if isinstance(found, Exception) else {text_of(name): int(at_ms) for name, at_ms in found}
        for found in (last, deaths)
    )
    return Heartbeats(now_ms=now_ms, last_ms=last_ms, reports=workers, deaths_ms=deaths_ms)


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


async def worker_reports(redis: Redis) -> dict[str, WorkerReport]:
    """Return the reports of the live workers, by instance. Drained and lacking workers are included."""
    with_heartbeat = await redis.zrange(keys.WORKERS, 0, MAX_WORKERS - 1)
    few_lacking = await redis.scard(keys.LACKING) <= MAX_WORKERS  # type: ignore[misc]
    lacking = await redis.smembers(keys.LACKING) if few_lacking else set[bytes]()  # type: ignore[misc]
    workers = sorted({*map(text_of, with_heartbeat), *map(text_of, lacking), *await drained(redis)})
    reports: dict[str, WorkerReport] = {}
    for start in range(0, len(workers), REPORTS_AT_ONCE):
        page = workers[start : start + REPORTS_AT_ONCE]
        texts = await redis.mget([keys.worker(worker) for worker in page])
        reports |= {worker: _report(text) for worker, text in zip(page, texts, strict=True) if text}
    return reports


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


def _lane(row: LaneRow, report: LaneReport | None, heartbeats: Heartbeats) -> LaneSnapshot:
    """Return the state of a lane from its row and the report of its holder. Pure."""
    oldest_s, now_ms = None, heartbeats.now_ms
    last_failure = redact.text(row.last_failure) if row.last_failure else ""
    if row.submitted_ms is not None and now_ms - keys.UNFINISHED_TTL_MS < row.submitted_ms:
        oldest_s = max(0, now_ms - row.submitted_ms) / 1000
    if row.state == "held":
        held = report or LaneReport()
        held_up = heartbeats.holder_text(row.owner, row.lease_ends_ms)
        if held_up:  # its fetches wait for the takeover
            held = LaneReport(why=held.why, until_ms=held.until_ms)
        waiting = row.waiting + max(0, row.claimed - held.in_flight)
        return LaneSnapshot(
            name=row.name,
            in_flight=held.in_flight,
            waiting=waiting,
            why=held.why or "",
            opens_in_s=_in_s(held.until_ms or now_ms, now_ms),
            owner=row.owner,
            oldest_s=oldest_s,
            full=held.full is True,
            ranges=held.ranges or 0,
            held_up=held_up,
            last_failure=last_failure,
        )
    due_ms = row.due_ms or now_ms
    closed_until_ms = row.shut_until_ms or 0
    is_closed = closed_until_ms > now_ms
    reason = row.why[:MAX_WHY_CHARS] if is_closed else "retry" if due_ms > now_ms else ""
    opens_ms = closed_until_ms if is_closed else due_ms
    waiting = row.waiting + row.claimed
    opens_in_s = _in_s(opens_ms, now_ms)
    return LaneSnapshot(
        row.name, 0, waiting, reason, opens_in_s, oldest_s=oldest_s, last_failure=last_failure
    )


def _in_s(until_ms: int, now_ms: int) -> float:
    return max(0, min(until_ms - now_ms, keys.LONGEST_WAIT_MS)) / 1000
