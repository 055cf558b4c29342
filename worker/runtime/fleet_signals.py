"""What a heartbeat brings back: the fleet's size, a new policy, cancelled batches."""

from collections.abc import Mapping

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.store import Store
from fetchfleet.worker.runtime.live_policy import LivePolicy
from fetchfleet.worker.scheduler.acquire import Taking
from fetchfleet.worker.scheduler.balance import FleetLoad, share
from fetchfleet.worker.scheduler.rebalancer import Balancer


class CancelWatch:
    """Looks for cancelled batches in this worker's lanes when their version in Redis has changed."""

    def __init__(self, store: Store, lanes: Mapping[str, Lane]) -> None:
        self._store = store
        self._lanes = lanes
        self._version: bytes | None = None

    def forget(self) -> None:
        """Look again at the next heartbeat: a lane was acquired after the last look."""
        self._version = None

    async def heed(self, version: bytes | None) -> None:
        """Tell each lane which of its batches are cancelled, if the version is new."""
        if version == self._version:
            return
        self._version = version
        lanes = list(self._lanes.values())
        try:
            found = await self._store.cancelled([lane.name for lane in lanes])
            for lane, batches in zip(lanes, found, strict=True):
                lane.cancel(batches)
        except BaseException:
            self.forget()
            raise


class FleetSignals:
    """Acts on what the heartbeat reads. One for a worker process."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        acquirer: Taking,
        rebalancer: Balancer,
        live_policy: LivePolicy,
        cancels: CancelWatch,
    ) -> None:
        self._lanes = lanes
        self._acquirer = acquirer
        self._rebalancer = rebalancer
        self._live_policy = live_policy
        self._cancels = cancels

    async def heed(self, fleet: FleetLoad, policy_version: bytes, cancels_version: bytes | None) -> None:
        """Rebalance, then take over a new policy, then end cancelled batches."""
        self.heed_fleet(fleet)
        await self._live_policy.heed(policy_version)
        await self._cancels.heed(cancels_version)

    def heed_fleet(self, fleet: FleetLoad) -> None:
        """Give back lanes beyond this worker's share, or look for those missing from it."""
        self._rebalancer.look(fleet)
        if len(self._lanes) < min(fleet.busy, share(fleet)):
            self._acquirer.look_soon()
