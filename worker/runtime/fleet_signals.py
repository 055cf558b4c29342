"""Acts on the values read with the heartbeat: fleet load, policy, cancelled batches, resets, a drain."""

from collections.abc import Mapping
from typing import NamedTuple

from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import is_text, number_of, text_of
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.redis_support import drains
from fetchfleet.worker.redis_support.event_tap import EventTap
from fetchfleet.worker.runtime.live_lanes import LiveLanes
from fetchfleet.worker.runtime.live_policy import LivePolicy
from fetchfleet.worker.scheduler.acquire import Acquirer
from fetchfleet.worker.scheduler.balance import FleetLoad, share
from fetchfleet.worker.scheduler.rebalancer import Rebalancer


class Signals(NamedTuple):
    """The values that a heartbeat reads. The versions are counters that grow with each change."""

    fleet: FleetLoad
    policy_version: bytes
    """Empty if no policy table was ever set at run time."""
    cancels_version: bytes | None
    """None if no batch was ever cancelled."""
    resets_version: bytes | None
    """None if no lane was ever reset."""
    handed: Mapping[bytes, bytes] = {}
    """The needs of lanes that were released for workers with other abilities, by lane."""
    watched: bool = False
    """True while a command or page watches the log lines of the fleet."""


class FleetSignals:
    """Acts on the values that the heartbeat reads. One for each worker process."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        acquirer: Acquirer,
        rebalancer: Rebalancer,
        live_policy: LivePolicy,
        live_lanes: LiveLanes,
        event_tap: EventTap,
    ) -> None:
        self._lanes = lanes
        self._acquirer = acquirer
        self._rebalancer = rebalancer
        self._live_policy = live_policy
        self._live_lanes = live_lanes
        self._event_tap = event_tap

    async def apply(self, read: Signals) -> None:
        """Rebalance, then apply the new policy, cancellations and resets, and acquire handed lanes.

        A worker that must not start fetches does the upkeep of lanes that no worker acquires.
        """
        self._event_tap.watch(watched=read.watched)
        self.apply_load(read.fleet)
        if read.policy_version != self._live_policy.version:
            await self._live_policy.update(read.policy_version)
        await self._live_lanes.apply_cancels(read.cancels_version)
        await self._live_lanes.apply_resets(read.resets_version)
        if read.handed:
            lanes = {text_of(name): text_of(needs) for name, needs in read.handed.items() if is_text(name)}
            await self._acquirer.acquire_handed_over(lanes)
        if not self._live_lanes.accepts() and not self._live_lanes.stopping:
            await self._acquirer.acquire_for_upkeep(others=read.fleet.workers > 0)

    def apply_load(self, fleet: FleetLoad) -> None:
        """Release lanes beyond the share of this worker, or look for lanes up to its share."""
        if self._live_lanes.drained.is_set():
            self._rebalancer.release_all()
            return
        self._rebalancer.check(fleet)
        if len(self._lanes) < min(fleet.busy, share(fleet)):
            self._acquirer.look_soon()


class DrainSignal:
    """Begins and ends the drain of this worker, as an operator requests. One for each worker process."""

    def __init__(
        self,
        redis: Redis,
        instance: str,
        live_lanes: LiveLanes,
        rebalancer: Rebalancer,
        log: FilteringBoundLogger,
    ) -> None:
        self._redis = redis
        self._instance = instance
        self._live_lanes = live_lanes
        self._rebalancer = rebalancer
        self._log = log
        self._since_ms = 0
        """Start of the drain in Unix ms; 0 if the worker is not drained."""
        self._holds_lanes = False

    @property
    def drained(self) -> bool:
        """True if this worker is drained."""
        return self._since_ms > 0

    async def apply(self, field: bytes | None, lanes: int) -> None:
        """Apply the field of this worker in keys.DRAINS. lanes: the number of held lanes."""
        asked_ms = number_of(field)
        if asked_ms and asked_ms > 0 and not self._since_ms:
            self._since_ms, self._holds_lanes = asked_ms, True
            self._live_lanes.drain()
            self._rebalancer.release_all()
            await self._redis.zrem(keys.WORKERS, self._instance)  # the others take its share at once
            self._log.info(Event.WORKER_DRAINING, lanes=lanes)
        elif asked_ms == drains.ENDED:
            await drains.forget(self._redis, self._instance)
            self._live_lanes.undrain()
            if self._since_ms:
                self._log.info(Event.WORKER_UNDRAINED)
            self._since_ms = 0
        elif asked_ms is None and self._since_ms:
            await drains.drain(self._redis, self._instance, self._since_ms)
        if self._since_ms and self._holds_lanes and not lanes:
            self._holds_lanes = False
            self._log.info(Event.WORKER_DRAINED)
