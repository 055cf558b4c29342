"""Asking Redis until it answers, for as long as the lane is ours."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.urls import origin_of_url
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.services import LaneServices
from fetchfleet.worker.lanes.store import LaneLostError

REDIS_PAUSE_S = 0.5

T = TypeVar("T")


async def retry_until_lost(lane: Lane, services: LaneServices, call: Callable[[], Awaitable[T]]) -> T:
    """What call returns once Redis answers; LaneLostError when the lane is lost before.

    A call whose reply was lost may have been carried out, and is made again: what a claim took is handed
    back when the lane is released, and the other scripts pass over what they have done.
    """
    while True:
        try:
            return await call()
        except (RedisError, OSError) as error:
            services.report_redis_error(error)
            if await _mended(error, lane, services):
                continue
        await lane.changed(REDIS_PAUSE_S)
        if lane.lost:
            raise LaneLostError


async def _mended(error: Exception, lane: Lane, services: LaneServices) -> bool:
    """Whether something foreign stood in the way, and does no longer."""
    others: dict[str, str] = {}
    for entry in lane.entries.values():
        others |= keys.kinds_of_batch(entry.batch_id)
        others[keys.robots(origin_of_url(entry.url))] = "string"
    try:
        return await services.key_repair.repair(error, lane.name, others)
    except (RedisError, OSError):
        return False
