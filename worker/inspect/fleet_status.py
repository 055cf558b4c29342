"""The state of a whole fleet, for people and machines: `fetchfleet status`."""

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import BadElementError, from_element
from fetchfleet.jobs.redis_values import number_of
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, Snapshot, WorkerPortrait, snapshot


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One living worker."""

    id: str
    lanes: int
    in_flight: int
    finished_per_s: float
    received_bytes_per_s: float


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at a glance.

    backlog: fetches without a result; oldest_s: how long the oldest of those that wait has been there, None
    if none waits. lanes: those with the most to do; lanes_in_all: of them there are. inbox: messages that no
    worker has taken in yet.
    """

    workers: list[WorkerStatus]
    lanes: list[LaneSnapshot]
    lanes_in_all: int
    backlog: int
    oldest_s: float | None
    inbox: int
    dead: int

    @property
    def finished_per_s(self) -> float:
        """Fetches ended a second, of late."""
        return sum(worker.finished_per_s for worker in self.workers)

    @property
    def received_bytes_per_s(self) -> float:
        """Bytes received a second, of late."""
        return sum(worker.received_bytes_per_s for worker in self.workers)


async def fleet_status(redis: Redis) -> FleetStatus:
    """Read it, in a handful of round trips."""
    fleet = await snapshot(redis)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zcard(keys.ATTENTION)
        pipe.get(keys.BACKLOG)
        pipe.llen(keys.INBOX)
        pipe.xlen(keys.DEAD)
        lanes_in_all, backlog, inbox, dead = await pipe.execute()
    return FleetStatus(
        workers=[_worker(name, portrait) for name, portrait in sorted(fleet.workers.items())],
        lanes=fleet.lanes,
        lanes_in_all=lanes_in_all,
        backlog=max(0, number_of(backlog) or 0),
        oldest_s=await _oldest_s(redis, fleet),
        inbox=inbox,
        dead=dead,
    )


def _worker(name: str, portrait: WorkerPortrait) -> WorkerStatus:
    return WorkerStatus(
        id=name,
        lanes=len(portrait.lanes),
        in_flight=sum(lane.in_flight for lane in portrait.lanes.values()),
        finished_per_s=portrait.finished_per_s,
        received_bytes_per_s=portrait.received_bytes_per_s,
    )


async def _oldest_s(redis: Redis, fleet: Snapshot) -> float | None:
    """By the heads of the queues and the next retries, which were there before what is behind them."""
    async with redis.pipeline(transaction=False) as pipe:
        for lane in fleet.lanes:
            for queue in keys.waiting(lane.name):
                pipe.lrange(queue, 0, 0)
            pipe.zrange(keys.later(lane.name), 0, 0)
        heads = [element for found in await pipe.execute() for element in found] if fleet.lanes else []
    submitted = [at for at in map(_submitted_ms, heads) if at is not None]
    return round(max(0, fleet.now_ms - min(submitted)) / 1000, 3) if submitted else None


def _submitted_ms(element: bytes) -> int | None:
    try:
        return from_element(element).submitted_ms
    except BadElementError:
        return None
