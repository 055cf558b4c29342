"""The state of a whole fleet in numbers: what the log, the metrics, the console and the terminal show."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.jobs.redis_connection import number_of
from fetchfleet.jobs.scripts.views import unread_results
from fetchfleet.worker.gate.gate import WaitReason
from fetchfleet.worker.inspect.doors import waiting_at_doors
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, Snapshot, WorkerReport, snapshot
from fetchfleet.worker.observability.totals import NO_REASON

BUSY, WAITING, RETRY = "busy", "waiting", "retry"
LANE_STATES = (BUSY, WAITING, *(reason.value for reason in WaitReason), RETRY)
"""The states of a lane that is not idle."""

OTHER = "other"
OUTCOMES = frozenset(outcome.value for outcome in Outcome)
REASONS = frozenset({NO_REASON, *(reason.value for reason in Reason)})

MAX_SUM = 10**18
"""The maximum of a sum: reports in Redis may hold any numbers."""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a fleet in numbers."""

    now_ms: int
    """The time of the snapshot, Unix ms by the clock of Redis."""
    workers: int
    """The live workers that acquire lanes."""
    draining: int
    """The live workers that an operator has drained."""
    lacking: int
    """The live workers that cannot store bodies, unless they are drained."""
    lanes: dict[str, int]
    """The number of lanes by state. Every state of LANE_STATES is present."""
    lanes_read: int
    """The number of lanes in `lanes`, `runnable` and `oldest_s`."""
    lanes_in_all: int
    """The number of lanes that are not idle."""
    runnable: int
    """The lanes with waiting fetches, one of which could start now if a worker had a free slot."""
    backlog: int
    """The fetches in lanes that have no result."""
    waiting: int
    """The fetches of the backlog that are not in flight."""
    in_flight: int
    oldest_s: float | None
    """The age of the oldest waiting fetch in a lane; None without one."""
    inbox: int
    """The inbox messages that no worker has enqueued yet."""
    arq: int
    """The arq jobs with fetches that no worker has enqueued yet."""
    dead: int
    """The dead letters."""
    unread: dict[str, int]
    """The results that a consumer group of the stream of all results has not acknowledged, by group."""
    finished: dict[str, dict[str, int]]
    """The fetches that the live workers have finished since their start, by outcome and reason."""
    finished_per_s: float
    received_bytes_per_s: float


def state_of_lane(lane: LaneSnapshot) -> str:
    """Return the state of a lane, one of LANE_STATES. Pure.

    A reason that this version does not know counts as RETRY: the lane waits for a time.
    """
    return lane.state if lane.state in LANE_STATES else RETRY


def is_runnable(lane: LaneSnapshot) -> bool:
    """Return whether a waiting fetch of the lane could start now. Pure."""
    return lane.waiting > 0 and not lane.why and not lane.full and not lane.held_up


async def overview(redis: Redis) -> Overview:
    """Read the state of a fleet, in a few round trips."""
    return await overview_of(redis, await snapshot(redis))


async def overview_of(redis: Redis, fleet: Snapshot) -> Overview:
    """Return the state of a fleet in numbers, of which the lanes and workers have been read."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.get(keys.BACKLOG)
        pipe.xlen(keys.DEAD)
        backlog_text, dead = await pipe.execute()
    backlog = max(0, number_of(backlog_text) or 0)
    reports = fleet.workers.values()
    silent = {worker.instance for worker in fleet.vanished}
    in_flight = sum(
        lane.in_flight
        for instance, report in fleet.workers.items()
        if instance not in silent
        for lane in report.lanes.values()
    )
    states = Counter(map(state_of_lane, fleet.lanes))
    ages_s = [lane.oldest_s for lane in fleet.lanes if lane.oldest_s is not None]
    doors = await waiting_at_doors(redis)
    draining = sum(report.draining for report in reports)
    lacking = sum(bool(report.lacking) and not report.draining for report in reports)
    return Overview(
        now_ms=fleet.now_ms,
        workers=len(reports) - draining - lacking,
        draining=draining,
        lacking=lacking,
        lanes={state: states[state] for state in LANE_STATES},
        lanes_read=len(fleet.lanes),
        lanes_in_all=fleet.lanes_in_all,
        runnable=sum(map(is_runnable, fleet.lanes)),
        backlog=backlog,
        waiting=max(0, backlog - in_flight),
        in_flight=in_flight,
        oldest_s=round(max(ages_s), 3) if ages_s else None,
        inbox=doors.inbox,
        arq=doors.arq,
        dead=dead,
        unread=await unread_results(redis),
        finished=finished_of(reports),
        finished_per_s=round(sum(report.finished_per_s for report in reports), 1),
        received_bytes_per_s=round(sum(report.received_bytes_per_s for report in reports)),
    )


def finished_of(reports: Iterable[WorkerReport]) -> dict[str, dict[str, int]]:
    """Return the sum of the finished fetches in reports, by outcome and reason. Pure.

    Outcomes and reasons that this version does not know are OTHER.
    """
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for report in reports:
        for outcome, reasons in report.totals.finished.items():
            by_reason = sums[outcome if outcome in OUTCOMES else OTHER]
            for reason, count in reasons.items():
                by_reason[reason if reason in REASONS else OTHER] += count
    return {
        outcome: {reason: min(count, MAX_SUM) for reason, count in sorted(sums[outcome].items())}
        for outcome in sorted(sums)
    }
