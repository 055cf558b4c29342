"""The operations on the fleet as a whole: its numbers and its workers."""

import msgspec
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response

from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.console.api.operations import Operation, answer
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.inspect.fleet_status import WorkerStatus, worker_status
from fetchfleet.worker.inspect.overview import Overview, overview
from fetchfleet.worker.inspect.snapshot import worker_reports


class WorkerList(msgspec.Struct, frozen=True, kw_only=True):
    """The workers with a recent heartbeat."""

    workers: list[WorkerStatus]
    """The workers, by instance."""


async def get_fleet(request: Request) -> Response:
    """Show the fleet in numbers."""
    return answer(await services_of(request).read(overview))


async def get_workers(request: Request) -> Response:
    """List the workers."""
    return answer(await services_of(request).read(_workers))


async def _workers(redis: Redis) -> WorkerList:
    """Read the reports of the workers."""
    reports, now_ms = await worker_reports(redis), await redis_now_ms(redis)
    workers = [worker_status(instance, report, now_ms) for instance, report in sorted(reports.items())]
    return WorkerList(workers=workers)


OPERATIONS = [
    Operation("GET", "/v1/fleet", get_fleet, "Show the fleet in numbers.", Overview),
    Operation("GET", "/v1/workers", get_workers, "List the workers.", WorkerList),
]
