"""Signals read with the heartbeat: the fleet's size, a new policy, cancelled batches, resets."""

from collections.abc import Mapping
from typing import NamedTuple

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.runtime.live_lanes import LiveLanes
from fetchfleet.worker.runtime.live_policy import LivePolicy
from fetchfleet.worker.scheduler.acquire import Acquirer
from fetchfleet.worker.scheduler.balance import FleetLoad, share
from fetchfleet.worker.scheduler.rebalancer import Rebalancer


class Signals(NamedTuple):
    """What a heartbeat reads. The versions are counters that go up with each change."""

    fleet: FleetLoad
    policy_version: bytes
    cancels_version: bytes | None
    resets_version: bytes | None


class FleetSignals:
    """Acts on what the heartbeat reads. One for a worker process."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        acquirer: Acquirer,
        rebalancer: Rebalancer,
        live_policy: LivePolicy,
        live_lanes: LiveLanes,
    ) -> None:
        self._lanes = lanes
        self._acquirer = acquirer
        self._rebalancer = rebalancer
        self._live_policy = live_policy
        self._live_lanes = live_lanes

    async def heed(self, read: Signals) -> None:
        """Rebalance, then take over a new policy, end cancelled batches and reset lanes."""
        self.heed_fleet(read.fleet)
        if read.policy_version != self._live_policy.version:
            await self._live_policy.update(read.policy_version)
        await self._live_lanes.heed_cancels(read.cancels_version)
        await self._live_lanes.heed_resets(read.resets_version)

    def heed_fleet(self, fleet: FleetLoad) -> None:
        """Give back lanes beyond this worker's share, or look for those missing from it."""
        self._rebalancer.look(fleet)
        if len(self._lanes) < min(fleet.busy, share(fleet)):
            self._acquirer.look_soon()
