"""Sends lane notifications to the fleet as arq jobs."""

from collections.abc import Iterable

from arq.connections import ArqRedis
from redis.exceptions import RedisError

from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.notify import notify_lanes
from fetchfleet.worker.redis_support.health import RedisHealth


class LaneNotifier:
    """Sends lane notifications. One for each worker process."""

    def __init__(self, arq: ArqRedis, health: RedisHealth) -> None:
        self._arq = arq
        self._health = health

    async def send(self, notifications: Iterable[LaneNotification]) -> None:
        """Notify workers of these lanes."""
        await notify_lanes(self._arq, notifications)

    async def try_send(self, notifications: Iterable[LaneNotification]) -> None:
        """Notify workers of these lanes. Report a failure; the sweep makes up for lost notifications."""
        try:
            await self.send(notifications)
        except (RedisError, OSError) as error:
            self._health.report(error)
