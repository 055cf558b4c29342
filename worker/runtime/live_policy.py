"""The policy as it holds at the moment: the worker's file, with the fleet's tables laid over it."""

from collections.abc import Callable, Iterable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import PolicyError


class Steered:
    """One for a worker process. Tables that do not go with the file are refused, and the old ones hold on."""

    def __init__(
        self,
        policy: Policy,
        lanes: Callable[[], Iterable[Lane]],
        on_change: Callable[[Lane], None],
        on_trouble: Callable[[BaseException], None],
        log: Any,
    ) -> None:
        self.policy = policy
        self._file = policy
        self._version = b""
        self._lanes = lanes
        self._on_change = on_change
        self._trouble = on_trouble
        self._log = log

    async def heed(self, redis: Redis, version: bytes) -> None:
        """If the fleet's tables have changed, they hold from now on, in our lanes too."""
        if version == self._version:
            return
        try:
            tables = await overrides.read(redis)
            self._version = version
            self.policy = self._file.overridden(tables)
        except (RedisError, OSError) as error:
            self._trouble(error)
            return
        except PolicyError as error:
            self._log.warning(Event.POLICY_REFUSED, error=str(error))
            return
        self._log.info(Event.POLICY_CHANGED, tables=sorted(tables))
        for lane in self._lanes():
            lane.policy = self.policy.for_lane(lane.name)
            self._on_change(lane)
            lane.notify()
