"""The policy in force: the worker's file, overlaid with the tables set in Redis at run time."""

from collections.abc import Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.http.base import Pools
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.redis_support.health import RedisHealth


class LivePolicy:
    """One for a worker process. It refuses tables that do not fit the file and keeps the previous ones."""

    def __init__(
        self,
        policy: Policy,
        redis: Redis,
        lanes: Mapping[str, Lane],
        pools: Pools,
        health: RedisHealth,
        log: FilteringBoundLogger,
    ) -> None:
        self._policy = policy
        self._file = policy
        self._version = b""
        self._redis = redis
        self._lanes = lanes
        self._pools = pools
        self._health = health
        self._log = log

    def in_force(self) -> Policy:
        """Return the policy of this moment."""
        return self._policy

    async def heed(self, version: bytes) -> None:
        """Apply the tables in Redis to every lane if their version is new."""
        if version == self._version:
            return
        try:
            tables = await overrides.read(self._redis)
            self._version = version
            self._policy = self._file.overridden(tables)
        except (RedisError, OSError) as error:
            self._health.report(error)
            return
        except PolicyError as error:
            self._log.warning(Event.POLICY_REFUSED, error=str(error))
            return
        self._log.info(Event.POLICY_CHANGED, tables=sorted(tables))
        for lane in self._lanes.values():
            lane.policy = self._policy.for_lane(lane.name)
            self._pools.apply_policy(lane.pool, lane.policy)
            lane.notify()
