"""One read of the fleet for the display, and the pause of a host."""

from collections.abc import Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs.client.submit import Notify
from fetchfleet.worker.inspect.fleet_status import WorkerStatus, worker_status
from fetchfleet.worker.inspect.overview import Overview, overview_of
from fetchfleet.worker.inspect.policy_in_force import policy_in_force
from fetchfleet.worker.inspect.views.batches import BatchPage, batches
from fetchfleet.worker.inspect.views.hosts import HostRow, host_rows, hosts_snapshot
from fetchfleet.worker.inspect.workers.silence import VanishedWorker
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.pauses import Stop

MAX_BATCHES = 200


class Picture(NamedTuple):
    """The state of a fleet."""

    overview: Overview
    workers: list[WorkerStatus]
    hosts: list[HostRow]
    vanished: Sequence[VanishedWorker]
    batches: BatchPage | None
    """The newest batches; None if they were not read."""


async def read_picture(redis: Redis, *, with_batches: bool = False) -> Picture:
    """Read the state of the fleet. with_batches: read the newest batches too."""
    fleet = await hosts_snapshot(redis)
    return Picture(
        overview=await overview_of(redis, fleet),
        workers=[worker_status(worker, of, fleet.now_ms) for worker, of in fleet.workers.items()],
        hosts=host_rows(fleet),
        vanished=fleet.vanished,
        batches=await batches(redis, limit=MAX_BATCHES) if with_batches else None,
    )


async def pause_of(redis: Redis, given: Policy, host: str) -> Stop | None:
    """Return the pause that stops a host; None if it is not paused. given: a policy file, or NO_POLICY."""
    return (await policy_in_force(redis, given, host)).policy.pauses.stop(host)


async def pause(redis: Redis, notify: Notify, given: Policy, host: str) -> str:
    """Pause a host. Return what was done."""
    await overrides.pause(redis, notify, host, (await policy_in_force(redis, given, host)).file)
    return f"{host} is paused; fetches in flight continue"


async def resume(redis: Redis, notify: Notify, given: Policy, host: str) -> str:
    """Resume a host. Return what was done. Raises PolicyError if a wider pause stops it."""
    file = (await policy_in_force(redis, given, host)).file
    await overrides.resume(redis, notify, host, file, excepted=False)
    return f"{host} is resumed"
