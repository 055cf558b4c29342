"""The state of a whole fleet: `fetchfleet status`."""

from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis

from fetchfleet.worker.inspect.doors import Door, arq_door, inbox_door
from fetchfleet.worker.inspect.overview import Overview, overview_of
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, WorkerReport, snapshot
from fetchfleet.worker.inspect.workers.silence import VanishedWorker

MAX_LANES_SHOWN = 500


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker with a recent heartbeat."""

    id: str
    """Its name."""
    instance: str
    """The identity of the process. Two workers may have one name."""
    version: str | None
    """The version of fetchfleet. This and the fields to age_s are None for a worker of an older version."""
    python: str | None
    engine: str | None
    sink: str | None
    policy: str | None
    """The digest of its policy file, or `defaults`."""
    age_s: float | None
    """The time since its start."""
    abilities: list[str] | None = None
    """Its abilities (worker/fetch/rules/abilities.py); None if it does not publish them."""
    draining: bool = False
    """True if an operator has drained it: it releases its lanes and acquires none."""
    lacking: str = ""
    """The shortage for which it starts no fetch: bytes, files, writing or folder; empty if none."""
    lacking_error: str = ""
    """The error of the disk, if it refuses writes."""
    lanes: int
    in_flight: int
    finished_per_s: float
    received_bytes_per_s: float

    @property
    def state(self) -> str:
        """`working`, `drained`, or `no disk` if it cannot store bodies."""
        if self.draining:
            return "drained"
        return "no disk" if self.lacking else "working"


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a fleet."""

    workers: list[WorkerStatus]
    vanished: Sequence[VanishedWorker]
    """The workers that send no heartbeat and have not stopped in order."""
    lanes: list[LaneSnapshot]
    """The lanes that are not idle, those with the most waiting fetches first, MAX_LANES_SHOWN at most."""
    lanes_in_all: int
    """The number of lanes that are not idle."""
    backlog: int
    """The fetches without a result, in lanes and at the doors."""
    backlog_exact: bool
    """False if some messages at the doors were not read; each counts as one fetch."""
    oldest_s: float | None
    """The age of the oldest waiting fetch; None if unknown."""
    in_lanes: int
    """The fetches of the backlog that are in lanes."""
    inbox: int
    """The inbox messages that no worker has enqueued yet."""
    inbox_door: Door
    arq_door: Door
    dead: int
    overview: Overview
    """The state in numbers."""

    @property
    def finished_per_s(self) -> float:
        """The recent rate of finished fetches."""
        return sum(worker.finished_per_s for worker in self.workers)

    @property
    def received_bytes_per_s(self) -> float:
        """The recent rate of received bytes of bodies."""
        return sum(worker.received_bytes_per_s for worker in self.workers)


def worker_status(instance: str, report: WorkerReport, now_ms: int) -> WorkerStatus:
    """Return the status of a worker from its report. Pure."""
    known = report.registration
    return WorkerStatus(
        id=known.name if known else instance,
        instance=instance,
        version=known.version if known else None,
        python=known.python if known else None,
        engine=known.engine if known else None,
        sink=known.sink if known else None,
        policy=known.policy if known else None,
        age_s=round(max(0, now_ms - known.started_ms) / 1000, 3) if known else None,
        abilities=list(known.abilities) if known and known.abilities is not None else None,
        draining=report.draining,
        lacking=report.lacking,
        lacking_error=report.lacking_error,
        lanes=len(report.lanes),
        in_flight=sum(lane.in_flight for lane in report.lanes.values()),
        finished_per_s=report.finished_per_s,
        received_bytes_per_s=report.received_bytes_per_s,
    )


async def fleet_status(redis: Redis) -> FleetStatus:
    """Read the state of the fleet, in a few round trips."""
    fleet = await snapshot(redis)
    overview = await overview_of(redis, fleet)
    inbox, arq = await inbox_door(redis), await arq_door(redis, fleet.now_ms)
    ages = [age_s for age_s in (overview.oldest_s, arq.oldest_s) if age_s is not None]
    return FleetStatus(
        workers=[
            worker_status(instance, report, fleet.now_ms)
            for instance, report in sorted(fleet.workers.items())
        ],
        vanished=fleet.vanished,
        lanes=fleet.lanes[:MAX_LANES_SHOWN],
        lanes_in_all=fleet.lanes_in_all,
        backlog=overview.backlog + inbox.fetches + arq.fetches,
        backlog_exact=inbox.exact and arq.exact,
        oldest_s=max(ages) if ages else None,
        in_lanes=overview.backlog,
        inbox=inbox.messages,
        inbox_door=inbox,
        arq_door=arq,
        dead=overview.dead,
        overview=overview,
    )
