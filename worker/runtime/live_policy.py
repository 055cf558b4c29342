"""The policy in force: the policy file of the worker with the overrides in Redis."""

from collections.abc import Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.errors import shortened
from fetchfleet.worker.http.base import Pools
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.redis_support.health import RedisHealth


class LivePolicy:
    """The policy in force. One for each worker process.

    It rejects overrides that do not fit the policy file, and keeps the previous ones. Pauses always apply.
    """

    def __init__(
        self,
        policy: Policy,
        redis: Redis,
        lanes: Mapping[str, Lane],
        pools: Pools,
        health: RedisHealth,
        log: FilteringBoundLogger,
    ) -> None:
        self.policy = policy
        """The current policy of every lane."""
        self.version = b""
        """The version of the overrides that were read last."""
        self.refused = ""
        """The reason the tables do not fit the policy file; empty if they do."""
        self._file = policy
        self._redis = redis
        self._lanes = lanes
        self._pools = pools
        self._health = health
        self._log = log

    async def update(self, version: bytes) -> None:
        """Read the overrides in Redis and apply them to every held lane. version: that of the overrides."""
        try:
            changes = await overrides.read(self._redis)
        except (RedisError, OSError) as error:
            self._health.report(error)
            return
        self.version = version
        try:
            self.policy = self._file.overridden(changes.tables, changes.marks)
            self.refused = ""
        except PolicyError as error:
            self.refused = shortened(str(error))
            # Pauses apply nevertheless, because operators rely on them.
            self.policy = self.policy.with_pauses(self._file.pauses_with(changes))
            self._log.warning(Event.POLICY_REFUSED, error=self.refused)
        else:
            self._log.info(Event.POLICY_CHANGED, tables=sorted(changes.tables))
        for lane in self._lanes.values():
            lane.change_policy(self.policy.for_lane(lane.name))
            self._pools.apply_policy(lane.pool, lane.policy)
