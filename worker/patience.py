"""Asking Redis until it answers, for as long as the lane is ours."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

from worker import lines
from worker.lane import Lane
from worker.parts import Parts
from worker.store import LaneLostError

REDIS_PAUSE_S = 0.5

T = TypeVar("T")


async def patiently(lane: Lane, parts: Parts, call: Callable[[], Awaitable[T]]) -> T:
    """What call returns once Redis answers; LaneLostError when the lane is lost before.

    A call whose reply was lost may have been carried out, and is made again: what a claim took is handed
    back when the lane is released, and the other scripts pass over what they have done.
    """
    while True:
        try:
            return await call()
        except (RedisError, OSError) as error:
            lines.redis_trouble(error, parts.log)
        await lane.changed(REDIS_PAUSE_S)
        if lane.lost:
            raise LaneLostError
