"""What one worker of the fleet does every few seconds for lanes that nobody looks at."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fetchfleet.jobs.notify import Wake
from fetchfleet.worker.lanes.store import Store
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.redis_support.key_repair import Foreign


class Sweep:
    """Wakes lanes whose owner died or whose hand-off was lost."""

    def __init__(
        self, store: Store, foreign: Foreign, wake: Callable[[Iterable[Wake]], Awaitable[None]], log: Any
    ) -> None:
        self._store = store
        self._foreign = foreign
        self._wake = wake
        self._log = log

    async def run(self) -> None:
        """Once; what stands in the way of a lane is put aside, and the next sweep wakes it."""
        broken: list[tuple[str, Exception]] = []
        rescued = await self._store.rescue(broken=broken)
        for name, error in broken:
            await self._foreign.mend(error, name)
        for found, owner in rescued:
            self._log.warning(Event.LANE_RESCUED, lane=found.lane, owner=owner or None)
        await self._wake([found for found, _ in rescued])
